"""
What of the metrics goes on over a clean stop, as plain records: counters, histograms, and times of what was last done.

A family is followed by its series. Labels are without ``broker``, which the scope knows. What others count and tell
again (a worker's own counters) is not kept, nor is what is measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, TypeAlias

from msgspec import Meta, Struct

from .registry import Counter, Family, Gauge, Histogram, Scope

_Text = Annotated[str, Meta(max_length=1024)]
_Labels = Annotated[tuple[_Text, ...], Meta(max_length=20)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Number = _Count | Annotated[float, Meta(ge=0, le=1e300)]

#: Larger integers do not fit into the file; as floats they lose what no scrape shows either.
_LARGEST: Final = 2**63 - 1


class KeptFamily(Struct, frozen=True, array_like=True, tag="family"):
    """The family that the next series belong to."""

    name: _Text
    kind: _Text
    labels: _Labels
    bounds: Annotated[tuple[float, ...], Meta(max_length=200)] = ()


class KeptNumber(Struct, frozen=True, array_like=True, tag="number", gc=False):
    """A counter or a gauge."""

    labels: _Labels
    value: _Number


class KeptHistogram(Struct, frozen=True, array_like=True, tag="histogram", gc=False):
    """A histogram; each count is of its bucket alone."""

    labels: _Labels
    counts: Annotated[tuple[_Count, ...], Meta(max_length=201)]
    sum: _Number


Kept: TypeAlias = KeptFamily | KeptNumber | KeptHistogram


def kept(scope: Scope) -> Iterator[Kept]:
    """Yield what is kept of the families of *scope*."""
    tail = _tail(scope)
    for family in scope.registry.families.values():
        if not family.kept or not _belongs(family, scope):
            continue
        yield KeptFamily(family.name, family.kind, _without(family.labels, tail), tuple(family.bounds))
        for labels, child in family.children.items():
            if labels[len(labels) - len(tail) :] == tail:
                yield _record(_without(labels, tail), child)


def _tail(scope: Scope) -> tuple[str, ...]:
    return () if scope.broker is None else (scope.broker,)


def _belongs(family: Family[Any], scope: Scope) -> bool:
    return ("broker" in family.labels) == (scope.broker is not None)


def _without(labels: tuple[str, ...], tail: tuple[str, ...]) -> tuple[str, ...]:
    return labels[: len(labels) - len(tail)]


def _record(labels: tuple[str, ...], child: Counter | Histogram) -> Kept:
    if isinstance(child, Histogram):
        return KeptHistogram(labels, tuple(child.counts), float(child.sum))
    return KeptNumber(labels, child.value if child.value <= _LARGEST else float(child.value))


class KeptReader:
    """
    Brings what was kept back into the families of *scope*.

    *place* makes of the values of some labels, by name, those that are within the limits. What falls together then is
    added up.
    """

    def __init__(self, scope: Scope, place: Callable[[dict[str, str]], None] | None = None) -> None:
        self._scope = scope
        self._place = place
        self._tail = _tail(scope)
        self._family: Family[Any] | None = None
        #: Series that have no place any more: no such metric, or one with other labels or buckets.
        self.left_out = 0

    def take(self, record: Kept) -> None:
        """Take in the next record."""
        if isinstance(record, KeptFamily):
            self._family = self._place_of(record)
        elif self._family is None or not _fits(record, self._family, len(self._tail)):
            self.left_out += 1
        else:
            self._add(record, self._family)

    def _place_of(self, told: KeptFamily) -> Family[Any] | None:
        family = self._scope.registry.families.get(told.name)
        if family is None or not family.kept or not _belongs(family, self._scope):
            return None
        same = family.kind == told.kind and tuple(family.bounds) == told.bounds
        return family if same and _without(family.labels, self._tail) == told.labels else None

    def _add(self, record: KeptNumber | KeptHistogram, family: Family[Any]) -> None:
        labels = dict(zip(_without(family.labels, self._tail), record.labels, strict=True))
        if self._place is not None:
            self._place(labels)
        child = family.child(*labels.values(), *self._tail)
        if isinstance(record, KeptHistogram):
            for bucket, count in enumerate(record.counts):
                child.add(bucket, count)
            child.add_sum(record.sum)
        elif isinstance(child, Gauge):
            child.set(max(child.value, record.value))
        else:
            child.inc(record.value)


def _fits(record: KeptNumber | KeptHistogram, family: Family[Any], fixed: int) -> bool:
    if len(record.labels) + fixed != len(family.labels):
        return False
    if isinstance(record, KeptNumber):
        return family.kind != "histogram"
    return family.kind == "histogram" and len(record.counts) == len(family.bounds) + 1
