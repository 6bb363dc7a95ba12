"""
From a worker's snapshots to the series of its tasks and its own.

``MOVES`` says what each key of the wire moves, and ``EXEMPLARS`` where its exemplar is shown; which of it is new is
found out in ``boots``, and whether it counts in ``coverage``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeAlias

from ..failures import Failure, FailureSink, is_kind
from ..metrics.exemplars import Exemplar, exemplar
from ..metrics.exporter import ExporterMetrics
from ..metrics.limits import UNKNOWN
from ..metrics.tasks import PEAK_MEMORY_BUCKETS, RUNTIME_BUCKETS, WAIT_BUCKETS, TaskSeries
from ..snapshots import Failure as ToldFailure
from ..snapshots import Row as ToldRow
from ..snapshots import WorkerSnapshot
from .boots import Boot, rise
from .queues import Queues
from .records import Row, RunningTasks
from .tasks import Tasks
from .workers import Worker, Workers

#: Totals remembered of all workers together, some 200 bytes each. What comes after is refused.
TOTALS_LIMIT: Final = 2_000_000

Move: TypeAlias = Callable[[Row, float], None]
Show: TypeAlias = Callable[[TaskSeries, Exemplar], None]


def _count(name: str, row: Row, amount: float) -> None:
    getattr(row.series, name).inc(amount)


def _count_reason(count: Callable[[TaskSeries, str, float], None], reason: str, row: Row, amount: float) -> None:
    count(row.series, reason, amount)


def _count_rejected(requeue: bool, row: Row, amount: float) -> None:
    row.series.count_rejected(amount, requeue=requeue)


def _runtimes(outcome: str, bucket: int, row: Row, amount: float) -> None:
    row.series.runtime_of(outcome).add(bucket, int(amount))


def _runtime_sum(outcome: str, row: Row, amount: float) -> None:
    row.series.runtime_of(outcome).add_sum(amount)


def _waits(bucket: int, row: Row, amount: float) -> None:
    row.series.queue_wait.add(bucket, int(amount))
    row.queue.count_waits(WAIT_BUCKETS[bucket - 1] if bucket else 0.0, int(amount))


def _wait_sum(row: Row, amount: float) -> None:
    row.series.queue_wait.add_sum(amount)


def _peaks(bucket: int, row: Row, amount: float) -> None:
    row.series.peak_memory.add(bucket, int(amount))


def _peak_sum(row: Row, amount: float) -> None:
    row.series.peak_memory.add_sum(amount)


def _moves() -> Iterator[tuple[str, Move]]:
    for name in (
        "received", "redelivered", "started", "succeeded", "failed", "retried", "retries_exhausted", "ignored",
        "cpu_seconds",
    ):  # fmt: skip
        yield name, partial(_count, name)
    yield "memory_growth_bytes", partial(_count, "memory_growth")
    yield "rejected", partial(_count_rejected, False)
    yield "requeued", partial(_count_rejected, True)
    for reason in ("revoked", "expired", "terminated"):
        yield reason, partial(_count_reason, TaskSeries.count_revoked, reason)
    for reason in ("soft_time_limit", "hard_time_limit", "worker_lost"):
        yield reason, partial(_count_reason, TaskSeries.count_termination, reason)
    for outcome in ("succeeded", "failed", "retried"):
        for bucket in range(len(RUNTIME_BUCKETS) + 1):
            yield f"runtime:{outcome}:{bucket}", partial(_runtimes, outcome, bucket)
        yield f"runtime:{outcome}:sum", partial(_runtime_sum, outcome)
    for bucket in range(len(WAIT_BUCKETS) + 1):
        yield f"wait:{bucket}", partial(_waits, bucket)
    yield "wait:sum", _wait_sum
    for bucket in range(len(PEAK_MEMORY_BUCKETS) + 1):
        yield f"peak:{bucket}", partial(_peaks, bucket)
    yield "peak:sum", _peak_sum


MOVES: Final[dict[str, Move]] = dict(_moves())

#: Keys that end in the name of a class.
EXCEPTIONS: Final = {"exception": TaskSeries.count_exception, "retry_exception": TaskSeries.count_retry_exception}


def _show_runtime(outcome: str, series: TaskSeries, exemplar: Exemplar) -> None:
    series.runtime_of(outcome).exemplify(exemplar)


def _show_wait(series: TaskSeries, exemplar: Exemplar) -> None:
    series.queue_wait.exemplify(exemplar)


def _show_failure(series: TaskSeries, exemplar: Exemplar) -> None:
    series.failed.exemplify(exemplar)


def _show_reason(show: Callable[[TaskSeries, str, Exemplar], None], reason: str) -> Show:
    return lambda series, exemplar: show(series, reason, exemplar)


def _exemplars() -> Iterator[tuple[str, Show]]:
    for outcome in ("succeeded", "failed", "retried"):
        for bucket in range(len(RUNTIME_BUCKETS) + 1):
            yield f"runtime:{outcome}:{bucket}", partial(_show_runtime, outcome)
    for bucket in range(len(WAIT_BUCKETS) + 1):
        yield f"wait:{bucket}", _show_wait
    yield "failed", _show_failure
    for reason in ("soft_time_limit", "hard_time_limit", "worker_lost"):
        yield reason, _show_reason(TaskSeries.exemplify_termination, reason)


EXEMPLARS: Final[dict[str, Show]] = dict(_exemplars())


class Snapshots:
    """
    Takes in the snapshots of all workers of one broker.

    *refused* is called with the reason and how many for what cannot be counted; *lose* with a worker whose process has
    ended, for a later look at what came of what it was running.
    """

    def __init__(
        self,
        exporter: ExporterMetrics,
        *,
        tasks: Tasks,
        workers: Workers,
        queues: Queues,
        refused: Callable[[str, int], None],
        lose: Callable[[Worker], None],
        failures: FailureSink | None,
    ) -> None:
        self._exporter = exporter
        self._tasks = tasks
        self._workers = workers
        self._queues = queues
        self._refused = refused
        self._lose = lose
        self._failures = failures
        self._size = 0
        #: Starts told of, and waits: tasks whose publisher stamps them.
        self.starts = 0
        self.waits = 0

    def take(self, snapshot: WorkerSnapshot, now: float, *, live: bool, is_old: bool) -> bool:
        """
        Take in one snapshot, and say whether it tells who consumes which queue.

        Not *live* are those that waited for us. *is_old* are those that were counted before this process began: they
        tell how the worker is.
        """
        worker = self._workers.get(snapshot.node)
        if worker is None:
            self._refused("too_many", 1)
            return False
        coverage = worker.coverage
        before = coverage.boots[-1] if coverage.boots else None
        boot = coverage.boot(snapshot)
        if boot is None:
            return False
        is_latest = boot is coverage.boots[-1]
        is_newer = snapshot.seq > boot.seq
        if is_newer:
            if snapshot.counts:
                self._exporter.events_lost.inc(coverage.open(boot, snapshot))
            if boot.seq:
                self._exporter.snapshots_missed.inc(snapshot.seq - boot.seq - 1)
            untold = boot.untold_since(snapshot)
            boot.hear(snapshot, now)
            if self._failures is not None and snapshot.counts and not is_old:
                for told in snapshot.failures:
                    self._failures.take(_failure(told, snapshot.node))
                self._failures.take_untold(untold)
        if snapshot.counts and not is_old and snapshot.at >= boot.rebased_at:
            self._count(boot, snapshot, now)
        if is_newer and is_latest:
            self._workers.tell(worker, snapshot, now, live=live, replaces=before not in (None, boot))
            self._take_running(worker, snapshot, before, boot)
            for queue in worker.queues:
                self._queues.get(queue.name)
        return bool(worker.queues)

    def recount(self) -> None:
        """Count again how many totals are remembered: workers were forgotten meanwhile, and their boots."""
        self._size = sum(boot.size for worker in self._workers for boot in worker.coverage.boots)

    def _count(self, boot: Boot, snapshot: WorkerSnapshot, at: float) -> None:
        is_base = snapshot.at == boot.rebased_at
        unknown: set[str] = set()
        excess = 0
        for told in snapshot.rows:
            row = self._row(told)
            counted = boot.counted(told.task, told.queue)
            for key, (before, now) in told.totals.items():
                move = MOVES.get(key) or self._exception(key)
                if move is None or before > now:
                    unknown.add(key)
                    continue
                if key not in counted:
                    if self._size >= TOTALS_LIMIT:
                        excess += 1
                        continue
                    boot.size += 1
                    self._size += 1
                amount = rise(counted, key, now if is_base else before, now)
                if amount:
                    move(row, amount)
                    self._note(key, row, amount)
            unknown |= self._exemplify(row.series, told, at)
        self._refused("field", len(unknown))
        self._refused("too_many", excess)

    def _exemplify(self, series: TaskSeries, told: ToldRow, now: float) -> set[str]:
        """Show the exemplars of a row, and return the keys of those that are none."""
        unknown = set()
        for key, one in told.exemplars.items():
            show = EXEMPLARS.get(key)
            if show is None and key.startswith("exception:"):
                show = _show_reason(TaskSeries.exemplify_exception, key.removeprefix("exception:"))
            # A clock that is ahead must not keep those of other workers away for as long.
            found = exemplar(one.trace_id, one.task_id, one.value, min(one.at, now))
            if show is None or found is None:
                unknown.add(f"exemplar of {key}")
            else:
                show(series, found)
        return unknown

    def _row(self, told: ToldRow) -> Row:
        row = self._tasks.row(told.task, told.queue)
        row.series.ignored.inc(0)  # from now on it is known that there were none
        if told.last_success_at is not None:
            row.series.succeeded_at(told.last_success_at)
        if told.last_failure_at is not None:
            row.series.failed_at(told.last_failure_at)
        return row

    def _exception(self, key: str) -> Move | None:
        kind, _, name = key.partition(":")
        count = EXCEPTIONS.get(kind)
        if count is None or not name:
            return None
        return partial(_count_reason, count, self._tasks.exceptions.admit(name))

    def _note(self, key: str, row: Row, amount: float) -> None:
        if key == "started":
            self.starts += int(amount)
            source = "unknown" if row.queue.name == UNKNOWN else "snapshot"
            self._exporter.queue_resolution[source].inc(amount)
        elif key.startswith("wait:") and key != "wait:sum":
            self.waits += int(amount)

    def _take_running(self, worker: Worker, snapshot: WorkerSnapshot, before: Boot | None, boot: Boot) -> None:
        if before is not None and before is not boot:
            self._lose(worker)
            worker.told_running = []
        if snapshot.running is None or not snapshot.counts:
            return
        worker.told_running.clear()  # who looks at the old list later sees that it does not hold any more
        worker.told_running = [
            RunningTasks(self._tasks.row(told.task, told.queue), told.number, told.acknowledged, told.oldest_start)
            for told in snapshot.running
        ]
        if snapshot.final:
            self._lose(worker)


def _failure(told: ToldFailure, worker: str) -> Failure:
    return Failure(
        kind=told.kind if is_kind(told.kind) else "exception",
        task_id=told.task_id,
        task=told.task,
        queue=told.queue,
        worker=worker,
        retries=told.retries,
        at=told.at,
        exception=told.exception,
        traceback=told.traceback,
        runtime=told.runtime,
        trace_id=told.trace_id,
        sentry_event_id=told.sentry_event_id,
        expected=told.expected,
    )
