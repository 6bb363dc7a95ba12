"""
Several workers under one name, where users rename them: the pods of one workload, say.

Each worker has its own part of a series, and what is shown is made of the parts that there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from .labels import LabelRules
from .registry import Bound, Counter, Gauge

#: What the numbers of several workers make together.
Join = Callable[[Iterable[float]], float]


def furthest(values: Iterable[float]) -> float:
    """Return the value that is furthest from 0."""
    return max(values, key=abs)


class WorkerNames:
    """What each worker is shown as. Remembers it until the worker is forgotten."""

    def __init__(self, rules: LabelRules) -> None:
        #: Whether each worker is shown as it is called.
        self.are_plain = rules.are_none
        self._rules = rules
        self._shown: dict[str, str | None] = {}

    def shown(self, worker: str) -> str | None:
        """Return the value of the label ``worker``, None for one that is not shown."""
        if worker not in self._shown:
            self._shown[worker] = self._rules.shown(worker)
        return self._shown[worker]

    def forget(self, worker: str) -> None:
        """The worker is not followed any more."""
        self._shown.pop(worker, None)


class _Part(Gauge):
    """One worker's part of a series; without a total, that of a worker which is not shown."""

    __slots__ = ("_is_known", "_total")

    def __init__(self, total: Counter | None = None) -> None:
        super().__init__("", "", ())
        self._total = total
        self._is_known = False

    def rise_to(self, value: float) -> None:
        """Add to the total what the worker's own count rose by, since the first time that it was told."""
        if self._total is not None and self._is_known:
            # A lower count than before is that of a new process.
            self._total.inc(value - self.value if value >= self.value else value)
        self._is_known = True
        self.value = value


#: Takes what workers tell that are not shown.
_UNSEEN: Final = _Part()

Kind = TypeVar("Kind", bound=Counter)


class _Shared(ABC, Generic[Kind]):
    """A family of worker metrics, by what workers are shown as."""

    def __init__(self, bound: Bound[Kind], names: WorkerNames) -> None:
        self._bound = bound
        self._names = names
        self._parts: dict[tuple[str, ...], dict[str, _Part]] = {}

    def child(self, worker: str, *more: str) -> Gauge:
        """Return the worker's part."""
        shown = self._names.shown(worker)
        if shown is None:
            return _UNSEEN
        parts = self._parts.setdefault((shown, *more), {})
        part = parts.get(worker)
        if part is None:
            part = parts[worker] = self._new_part((shown, *more))
        return part

    def remove(self, worker: str, *more: str) -> None:
        """Forget the worker's part, and the series with the last of them."""
        labels = (self._names.shown(worker) or "", *more)
        parts = self._parts.get(labels, {})
        if parts.pop(worker, None) is not None and not parts:
            del self._parts[labels]
            self._bound.remove(*labels)

    @abstractmethod
    def _new_part(self, labels: tuple[str, ...]) -> _Part: ...


class SharedGauge(_Shared[Gauge]):
    """A gauge of workers, which :meth:`refresh` makes of their parts by *join*."""

    def __init__(self, bound: Bound[Gauge], names: WorkerNames, join: Join) -> None:
        super().__init__(bound, names)
        self._join = join

    def refresh(self) -> None:
        """Bring the series up to date."""
        for labels, parts in self._parts.items():
            self._bound.child(*labels).set(self._join([part.value for part in parts.values()]))

    def _new_part(self, labels: tuple[str, ...]) -> _Part:  # noqa: ARG002  # has no total
        return _Part()


class SharedCounter(_Shared[Counter]):
    """
    A counter of workers, which each of them adds to.

    Not the sum of their counts: that would fall when one is forgotten, and jump when one is found.
    """

    def _new_part(self, labels: tuple[str, ...]) -> _Part:
        return _Part(self._bound.child(*labels))
