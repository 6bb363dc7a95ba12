"""
What a worker has counted since it booted, by task and queue, in the words of the wire format (``docs/wire.md``).

All totals only rise. What was sent last is kept beside what is true now, so that a snapshot can tell both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from ._records import NAME_LIMIT, UNMEASURED, Received, Run

#: Upper bounds of the histograms, in seconds and bytes. The sidecar's are the same; other bounds need another version
#: of the wire format.
RUNTIME_BUCKETS = (
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0,
)  # fmt: skip
WAIT_BUCKETS = (0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
PEAK_BUCKETS = tuple(float(16 * 2**20 * 2**power) for power in range(11))

#: Rows of one worker; what comes after them shares one.
ROWS_LIMIT = 1000
#: Classes of exception of one row.
EXCEPTIONS_LIMIT = 50
OTHER = "_other"

#: Outcomes whose bodies ran to an end: only their runtime means something.
_TIMED = frozenset({"succeeded", "failed", "retried"})
_TERMINATIONS = {
    "SoftTimeLimitExceeded": "soft_time_limit",
    "TimeLimitExceeded": "hard_time_limit",
    "WorkerLostError": "worker_lost",
}


class Row:
    """The totals of one (task, queue)."""

    __slots__ = ("_classes", "last_failure_at", "last_success_at", "queue", "sent", "task", "totals")

    def __init__(self, task: str, queue: str) -> None:
        self.task = task
        self.queue = queue
        self.totals: dict[str, float] = {}
        #: The totals as they were sent last.
        self.sent: dict[str, float] = {}
        self.last_success_at: float | None = None
        self.last_failure_at: float | None = None
        self._classes: set[str] = set()

    def add(self, key: str, amount: float = 1) -> None:
        """Raise the total *key*."""
        self.totals[key] = self.totals.get(key, 0) + amount

    def count_start(self, wait: float) -> None:
        """Count a body that started after *wait* seconds, which may be ``UNMEASURED``."""
        self.add("started")
        if wait != UNMEASURED:
            self._observe("wait", WAIT_BUCKETS, wait)

    def count_end(self, run: Run) -> None:
        """Count how *run* ended and what it took."""
        self.add(run.outcome)
        if run.outcome == "succeeded":
            self.last_success_at = max(self.last_success_at or 0.0, run.ended_at)
        elif run.outcome == "failed":
            self._count_failure(run)
        elif run.outcome == "retried":
            self.add(f"retry_exception:{self._class(run.exception)}")
        if run.runtime != UNMEASURED and run.outcome in _TIMED:
            self._observe(f"runtime:{run.outcome}", RUNTIME_BUCKETS, run.runtime)
        if run.cpu != UNMEASURED:
            self.add("cpu_seconds", run.cpu)
        if run.peak:
            self._observe("peak", PEAK_BUCKETS, run.peak)
        if run.growth:
            self.add("memory_growth_bytes", run.growth)

    def _count_failure(self, run: Run) -> None:
        self.last_failure_at = max(self.last_failure_at or 0.0, run.ended_at)
        self.add(f"exception:{self._class(run.exception)}")
        termination = _TERMINATIONS.get(run.exception)
        if termination is not None:
            self.add(termination)
        if run.retries:
            self.add("retries_exhausted")

    def _observe(self, name: str, bounds: Sequence[float], value: float) -> None:
        self.add(f"{name}:{bisect_left(bounds, value)}")
        self.add(f"{name}:sum", value)

    def _class(self, name: str) -> str:
        if name not in self._classes:
            if len(self._classes) >= EXCEPTIONS_LIMIT:
                return OTHER
            self._classes.add(name)
        return name


class Totals:
    """All rows of one worker."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def row(self, task: str, queue: str) -> Row:
        """Return the row, made if it was not there; past the limit the shared one. Names are cut to their length."""
        row = self._rows.get((task, queue))
        if row is None:
            task, queue = task[:NAME_LIMIT], queue[:NAME_LIMIT]
            if len(self._rows) >= ROWS_LIMIT and (task, queue) not in self._rows:
                task = queue = OTHER
            row = self._rows.setdefault((task, queue), Row(task, queue))
        return row

    def count_received(self, received: Received) -> None:
        """Count a message taken from the broker."""
        row = self.row(received.task, received.queue)
        row.add("received")
        if received.redelivered:
            row.add("redelivered")


def changes(row: Row, *, everything: bool) -> dict[str, list[float]]:
    """Return, for each total of *row* that changed since it was sent (or *everything*), what was sent and the total."""
    return {
        key: [_rounded(row.sent.get(key, 0)), _rounded(total)]
        for key, total in row.totals.items()
        if everything or row.sent.get(key) != total
    }


def wire_row(row: Row, totals: dict[str, list[float]]) -> dict[str, Any]:
    """Return *row* with *totals* as snapshots have it."""
    return {
        "task": row.task,
        "queue": row.queue,
        "last_success_at": row.last_success_at,
        "last_failure_at": row.last_failure_at,
        "totals": totals,
    }


def _rounded(total: float) -> float:
    return total if isinstance(total, int) else round(total, 6)
