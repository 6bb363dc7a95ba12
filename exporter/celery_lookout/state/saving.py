"""From a cluster to the records of ``saved``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..metrics.kept import kept
from .boots import Boot
from .cluster import Cluster
from .records import Row, RunningTasks, Task
from .saved import (
    SavedBeat,
    SavedBoot,
    SavedClock,
    SavedEnded,
    SavedHeld,
    SavedQueue,
    SavedRecord,
    SavedRoute,
    SavedRow,
    SavedRunning,
    SavedTask,
    SavedTotals,
    SavedVanished,
    SavedWorker,
)
from .workers import Worker

#: Totals in one record: a row of a hostile worker may have many.
TOTALS_AT_A_TIME: Final = 1_000


def saved(cluster: Cluster, now: float) -> Iterator[SavedRecord]:
    """Yield what *cluster* is made of, in the order in which it can be put together again."""
    return _Saving(cluster).records(now)


class _Saving:
    """Knows the numbers of rows and workers."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._tasks = cluster.tasks
        self._rows = {row: number for number, row in enumerate(cluster.tasks._rows.values())}
        self._workers = {worker: number for number, worker in enumerate(cluster.workers)}

    def records(self, now: float) -> Iterator[SavedRecord]:
        cluster, tasks = self._cluster, self._tasks
        yield SavedClock(now, cluster.workers._deaf_since)
        for queue in cluster.queues._followed:
            yield SavedQueue(queue)
        for (exchange, routing_key), queue in cluster.routes._queues.items():
            yield SavedRoute(exchange, routing_key, queue)
        for task, queue in tasks._rows:
            yield SavedRow(task, queue)
        yield from kept(cluster.scope)
        for worker in cluster.workers:
            yield self._worker(worker)
            for boot in worker.coverage.boots:
                yield _boot(boot)
                yield from _totals(boot)
        for task_id, one in tasks._tasks.items():
            yield self._task(task_id, one)
        for task_id, held in tasks._unsent.items():
            yield SavedHeld(task_id, tuple((handle != tasks.note, event) for handle, event in held))
        for at, task_id in tasks._ended:
            yield SavedEnded(at, task_id)
        for gone in cluster._vanished:
            if gone.worker in self._workers:
                number = self._workers[gone.worker]
                told = None if gone.told is gone.worker.told_running else self._running(gone.told)
                yield SavedVanished(gone.due, number, gone.boots, gone.at, told)
        for name, beat in cluster.beats._beats.items():
            yield SavedBeat(name, beat.heard_at)

    def _running(self, told: list[RunningTasks]) -> tuple[SavedRunning, ...]:
        return tuple(
            SavedRunning(self._rows[running.row], running.number, running.acknowledged, running.oldest_start)
            for running in told
        )

    def _worker(self, worker: Worker) -> SavedWorker:
        coverage = worker.coverage
        return SavedWorker(
            name=worker.name,
            freq=worker.freq,
            pid=worker.pid,
            boots=worker.boots,
            alive_until=worker.alive_until,
            was_alive=worker.was_alive,
            met_at=worker.met_at,
            last_heartbeat=worker.last_heartbeat,
            graceful=worker.graceful,
            version=worker.version,
            pool=worker.pool,
            slots=worker.slots,
            queues=tuple((queue.name, queue.exchange, queue.routing_key) for queue in worker.queues),
            starts=worker.starts.seen,
            counted_from=worker.starts.counted_from,
            processed=worker.starts.processed,
            unseen=tuple(worker.starts.unseen),
            before_gap=worker.starts.before_gap,
            quiet_share=worker.starts.quiet_share,
            sends_task_events=worker.sends_task_events,
            starts_at_heartbeat=worker.starts.seen_at_heartbeat,
            silent_heartbeats=worker.starts.silent_heartbeats,
            sends_heartbeats=worker.sends_heartbeats,
            told_running=self._running(worker.told_running),
            counted_until=coverage.counted_until,
            counted_starts=coverage.counted_starts,
            held=tuple(coverage.held),
        )

    def _task(self, task_id: str, task: Task) -> SavedTask:
        worker, before, next_row = task.worker, task.before, task.next_row
        return SavedTask(
            task_id,
            self._rows[task.row],
            None if next_row is None else self._rows[next_row],
            None if worker is None else self._workers.get(worker),
            task.retries,
            task.received_at,
            task.started_at,
            task.ended,
            task.final_at,
            task.requeued,
            None if before is None else (before.waits_from, before.started_at),
            task.retried_at,
            task.first_sent,
            task.sent_retries,
            task.waits_from,
            task.next_waits_from,
            task.waited,
            worker is not None and task_id in worker.running,
            None if worker is None else worker.reserved.get(task_id),
            task.row.queue.unreceived.get(task_id),
            _unreceived(task_id, next_row),
        )


def _unreceived(task_id: str, row: Row | None) -> float | None:
    return None if row is None else row.queue.unreceived.get(task_id)


def _boot(boot: Boot) -> SavedBoot:
    return SavedBoot(
        boot=boot.id,
        started_at=boot.started_at,
        pid=boot.pid,
        interval=boot.interval,
        seq=boot.seq,
        at=boot.at,
        processed=boot.processed,
        is_final=boot.is_final,
        heard_at=boot.heard_at,
        failures_left_out=boot.failures_left_out,
        told_until=None if boot.is_open else boot.told_until,
        rebased_at=boot.rebased_at,
        is_rebasing=boot.is_rebasing,
        rebase_until=boot.rebase_until,
        starts_at_close=boot.starts_at_close,
        gap=boot.gap,
    )


def _totals(boot: Boot) -> Iterator[SavedTotals]:
    for (task, queue), counted in boot.rows.items():
        totals = list(counted.items())
        for start in range(0, len(totals), TOTALS_AT_A_TIME):
            yield SavedTotals(task, queue, dict(totals[start : start + TOTALS_AT_A_TIME]))
