"""
How many tasks a worker holds for their ETA, without fetching them at every poll.

A worker raises its prefetch count by one for each such task, so their number is what lies above the prefetch multiplier
times slots. The multiplier comes from the worker's settings, where ``--prefetch-multiplier`` on its command line does
not show, and after a reconnect a worker lowers the count for a while; so the sum is trusted only after it once agreed
with a true count. Until then the tasks are counted one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

import msgspec

from .replies import Settings, Stats

#: Prefetch count up to which the tasks are counted one by one: the answer holds their arguments, which may be large.
_COUNT_LIMIT = 5000

T = TypeVar("T")


class Ask(Protocol):
    """Sends a command to workers and returns the answers of a given shape, by worker."""

    def __call__(
        self, command: str, shape: type[T], arguments: Mapping[str, object] | None = None, *, workers: list[str]
    ) -> dict[str, T]: ...


class EtaTasks:
    """Remembers what is needed to tell the number of tasks held for their ETA, per process of a worker."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        #: Prefetch multiplier by worker and process id, which cannot change while the process lives; None: not told.
        self._multipliers: dict[tuple[str, int], float | None] = {}
        self._trusted: set[tuple[str, int]] = set()

    def count(self, stats: Mapping[str, Stats]) -> dict[str, int | None]:
        """Return the number for every worker in *stats*; None with unlimited prefetch, or where it cannot be told."""
        keys = {worker: (worker, answer.pid) for worker, answer in stats.items()}
        self._forget_all_but(set(keys.values()))
        self._learn(keys)
        derived = {worker: _above_base(stats[worker], self._multipliers[key]) for worker, key in keys.items()}
        doubtful = [
            worker
            for worker, key in keys.items()
            if key not in self._trusted and 0 < (stats[worker].prefetch_count or 0) <= _COUNT_LIMIT
        ]
        counted = {
            worker: len(tasks)
            for worker, tasks in self._ask("scheduled", tuple[msgspec.Raw, ...], workers=doubtful).items()
        }
        self._trusted.update(keys[worker] for worker, number in counted.items() if number == derived[worker])
        return {
            worker: counted.get(worker, derived[worker] if key in self._trusted else None)
            for worker, key in keys.items()
        }

    def _learn(self, keys: Mapping[str, tuple[str, int]]) -> None:
        """Ask for the settings of processes not seen before, and keep the one that matters."""
        unknown = [worker for worker, key in keys.items() if key not in self._multipliers]
        answers = self._ask("conf", Settings, {"with_defaults": True}, workers=unknown)
        for worker in unknown:
            self._multipliers[keys[worker]] = answers.get(worker, Settings()).worker_prefetch_multiplier

    def _forget_all_but(self, keys: set[tuple[str, int]]) -> None:
        self._multipliers = {key: value for key, value in self._multipliers.items() if key in keys}
        self._trusted &= keys


def _above_base(stats: Stats, multiplier: float | None) -> int | None:
    if not multiplier or not stats.prefetch_count or stats.slots is None:
        return None
    held = stats.prefetch_count - int(multiplier) * stats.slots
    return held if held >= 0 else None
