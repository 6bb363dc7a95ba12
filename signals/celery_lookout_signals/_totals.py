"""
What a worker has counted since it booted, by task and queue, in the words of the wire format (``docs/wire.md``).

All totals only rise. What was sent last is kept beside what is true now, so that a snapshot can tell both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from ._records import NAME_LIMIT, UNMEASURED, Run

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
#: Exemplars of one row that are kept for the next snapshot.
EXEMPLARS_LIMIT = 64
OTHER = "_other"

_TERMINATIONS = {
    "SoftTimeLimitExceeded": "soft_time_limit",
    "TimeLimitExceeded": "hard_time_limit",
    "WorkerLostError": "worker_lost",
}

#: Trace id, task id, value, Unix time.
Exemplar = tuple[str, str, float, float]


class _Histogram:
    """The names of a histogram's totals."""

    def __init__(self, name: str, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.buckets = [f"{name}:{number}" for number in range(len(bounds) + 1)]
        self.sum = f"{name}:sum"


def _bucket(histogram: _Histogram, value: float) -> str:
    return histogram.buckets[bisect_left(histogram.bounds, value)]


_WAIT = _Histogram("wait", WAIT_BUCKETS)
_PEAK = _Histogram("peak", PEAK_BUCKETS)
#: Of outcomes whose bodies ran to an end: only their runtime means something.
_RUNTIMES = {
    outcome: _Histogram(f"runtime:{outcome}", RUNTIME_BUCKETS) for outcome in ("succeeded", "failed", "retried")
}


class Row:
    """The totals of one (task, queue)."""

    __slots__ = ("_classes", "exemplars", "last_failure_at", "last_success_at", "queue", "sent", "task", "totals")

    def __init__(self, task: str, queue: str) -> None:
        self.task = task
        self.queue = queue
        self.totals: defaultdict[str, float] = defaultdict(int)
        #: The totals as they were sent last.
        self.sent: dict[str, float] = {}
        #: Since the last snapshot, the newest exemplar of a total: trace id, task id, value and Unix time.
        self.exemplars: dict[str, Exemplar] = {}
        self.last_success_at: float | None = None
        self.last_failure_at: float | None = None
        self._classes: set[str] = set()

    def count_start(self, wait: float) -> None:
        """Count a body that started after *wait* seconds, which may be ``UNMEASURED``."""
        self.totals["started"] += 1
        if wait != UNMEASURED:
            self._observe(_WAIT, wait)

    def count_end(self, run: Run) -> None:
        """Count how *run* ended and what it took."""
        self.totals[run.outcome] += 1
        if run.outcome == "succeeded":
            self.last_success_at = max(self.last_success_at or 0.0, run.ended_at)
        elif run.outcome == "failed":
            self._count_failure(run)
        elif run.outcome == "retried":
            self.totals[f"retry_exception:{self._class(run.exception)}"] += 1
        runtimes = _RUNTIMES.get(run.outcome)
        if run.runtime != UNMEASURED and runtimes is not None:
            self._observe(runtimes, run.runtime)
        if run.cpu != UNMEASURED:
            self.totals["cpu_seconds"] += run.cpu
        if run.peak:
            self._observe(_PEAK, run.peak)
        if run.growth:
            self.totals["memory_growth_bytes"] += run.growth

    def exemplify_start(self, wait: float, trace_id: str, task_id: str, at: float) -> None:
        """Keep a task whose start was counted as exemplar of its wait."""
        if wait != UNMEASURED:
            self._exemplify(_bucket(_WAIT, wait), (trace_id, task_id, round(wait, 6), round(at, 3)))

    def exemplify_end(self, run: Run) -> None:
        """Keep *run* as exemplar of how it ended, which was counted."""
        at = round(run.ended_at, 3)
        runtimes = _RUNTIMES.get(run.outcome)
        if run.runtime != UNMEASURED and runtimes is not None:
            key = _bucket(runtimes, run.runtime)
            self._exemplify(key, (run.trace_id, run.task_id, round(run.runtime, 6), at))
        if run.outcome == "failed":
            for failure in ("failed", f"exception:{self._class(run.exception)}", _TERMINATIONS.get(run.exception)):
                if failure is not None:
                    self._exemplify(failure, (run.trace_id, run.task_id, 1, at))

    def _exemplify(self, key: str, exemplar: Exemplar) -> None:
        known = self.exemplars.get(key)
        if len(self.exemplars) < EXEMPLARS_LIMIT if known is None else known[-1] <= exemplar[-1]:
            self.exemplars[key] = exemplar

    def _count_failure(self, run: Run) -> None:
        self.last_failure_at = max(self.last_failure_at or 0.0, run.ended_at)
        self.totals[f"exception:{self._class(run.exception)}"] += 1
        termination = _TERMINATIONS.get(run.exception)
        if termination is not None:
            self.totals[termination] += 1
        if run.retries:
            self.totals["retries_exhausted"] += 1

    def _observe(self, histogram: _Histogram, value: float) -> None:
        self.totals[_bucket(histogram, value)] += 1
        self.totals[histogram.sum] += value

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

    def count_received(self, task: str, queue: str, *, redelivered: bool) -> None:
        """Count a message taken from the broker."""
        row = self.row(task, queue)
        row.totals["received"] += 1
        if redelivered:
            row.totals["redelivered"] += 1


def changes(row: Row, *, everything: bool) -> dict[str, list[float]]:
    """Return, for each total of *row* that changed since it was sent (or *everything*), what was sent and the total."""
    return {
        key: [_rounded(row.sent.get(key, 0)), _rounded(total)]
        for key, total in row.totals.items()
        if everything or row.sent.get(key) != total
    }


def newest(row: Row, limit: int) -> dict[str, Exemplar]:
    """Return the exemplars of *row*, the newest if there are more than *limit*."""
    if len(row.exemplars) <= limit:
        return dict(row.exemplars)
    return dict(sorted(row.exemplars.items(), key=lambda item: item[1][-1], reverse=True)[:limit])


def wire_row(row: Row, totals: dict[str, list[float]], exemplars: dict[str, Exemplar]) -> dict[str, Any]:
    """Return *row* with *totals* and *exemplars* as snapshots have it."""
    return {
        "task": row.task,
        "queue": row.queue,
        "last_success_at": row.last_success_at,
        "last_failure_at": row.last_failure_at,
        "totals": totals,
        "exemplars": exemplars,
    }


def _rounded(total: float) -> float:
    return total if isinstance(total, int) else round(total, 6)
