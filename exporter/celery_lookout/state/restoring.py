"""From the records of ``saved`` back to a cluster that has not seen anything yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from operator import itemgetter
from typing import Any, Final

from ..metrics.kept import KeptFamily, KeptHistogram, KeptNumber, KeptReader
from ..metrics.registry import OTHER
from ..readings import ConsumedQueue
from .beat import _Beat
from .boots import Boot
from .cluster import Cluster, _Vanished
from .queues import Queue
from .records import Attempt, Row, RunningTasks
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
from .starts import Unseen
from .workers import Worker


class ClusterReader:
    """
    Puts *cluster* together from saved records, one after another; then ``finish`` says what time it is.

    A record that has no place any more, or refers to one that has none, is left out and counted. The cluster's limits
    hold. Where *loses* is true, what was said since it was saved is gone.
    """

    def __init__(self, cluster: Cluster, *, loses: bool) -> None:
        self._cluster = cluster
        self._loses = loses
        self._saved_at = 0.0
        self._deaf_since: float | None = None
        self._rows: list[Row] = []
        self._workers: list[Worker | None] = []
        #: What rows are shown as now, by what they were.
        self._places: dict[tuple[str, str], tuple[str, str]] = {}
        self._metrics = KeptReader(cluster.scope, self._place)
        self._left_out = 0
        self._takers: Final[dict[type, Callable[[Any], None]]] = {
            SavedClock: self._take_clock,
            SavedQueue: self._take_queue,
            SavedRoute: self._take_route,
            SavedRow: self._take_row,
            KeptFamily: self._metrics.take,
            KeptNumber: self._metrics.take,
            KeptHistogram: self._metrics.take,
            SavedWorker: self._take_worker,
            SavedBoot: self._take_boot,
            SavedTotals: self._take_totals,
            SavedTask: self._take_task,
            SavedHeld: self._take_held,
            SavedEnded: self._take_ended,
            SavedVanished: self._take_vanished,
            SavedBeat: self._take_beat,
        }

    @property
    def left_out(self) -> int:
        """How many records had no place."""
        return self._left_out + self._metrics.left_out

    def take(self, record: SavedRecord) -> None:
        """Take in the next record."""
        self._takers[type(record)](record)

    def finish(self, now: float) -> None:
        """Let the cluster go on at *now*, as if its clock had stood still since it was saved."""
        cluster = self._cluster
        for queue in cluster.queues._queues.values():
            _sort(queue)
        cluster.workers.silenced("connection", self._saved_at if self._deaf_since is None else self._deaf_since)
        cluster.shift(now - self._saved_at, now)
        cluster.snapshots.recount()
        cluster.goes_on = True

    def _take_clock(self, clock: SavedClock) -> None:
        self._saved_at, self._deaf_since = clock.saved_at, clock.deaf_since

    def _take_queue(self, queue: SavedQueue) -> None:
        self._cluster.queues.get(queue.name)

    def _take_route(self, route: SavedRoute) -> None:
        self._cluster.routes.learn([ConsumedQueue(route.queue, route.exchange, route.routing_key)])

    def _take_row(self, row: SavedRow) -> None:
        kept = self._cluster.tasks.keep_row(row.task, row.queue)
        self._rows.append(kept)
        self._places[row.task, row.queue] = kept.series.task, kept.queue.name

    def _place(self, labels: dict[str, str]) -> None:
        """Put *labels* of a series into their limits, as the rows before."""
        if "task" in labels and "queue" in labels:
            place = self._places.get((labels["task"], labels["queue"]), (OTHER, OTHER))
            labels["task"], labels["queue"] = place
        elif "queue" in labels:
            labels["queue"] = self._cluster.queues.keep(labels["queue"]).name
        if "exception" in labels:
            labels["exception"] = self._cluster.tasks.exceptions.keep(labels["exception"])

    def _row(self, number: int | None) -> Row | None:
        return None if number is None or number >= len(self._rows) else self._rows[number]

    def _worker(self, number: int | None) -> Worker | None:
        return None if number is None or number >= len(self._workers) else self._workers[number]

    def _running(self, told: tuple[SavedRunning, ...]) -> list[RunningTasks]:
        found = ((self._row(running.row), running) for running in told)
        return [
            RunningTasks(row, running.number, running.acknowledged, running.oldest_start)
            for row, running in found
            if row is not None
        ]

    def _take_worker(self, saved: SavedWorker) -> None:
        worker = self._cluster.workers.get(saved.name)
        self._workers.append(worker)
        if worker is None:
            self._left_out += 1
            return
        worker.freq = saved.freq
        worker.pid = saved.pid
        worker.boots = saved.boots
        worker.alive_until = saved.alive_until
        worker.was_alive = saved.was_alive
        worker.met_at = saved.met_at
        worker.last_heartbeat = saved.last_heartbeat
        worker.graceful = saved.graceful
        worker.version = saved.version
        worker.pool = saved.pool
        worker.slots = saved.slots
        worker.queues = tuple(ConsumedQueue(*queue) for queue in saved.queues)
        starts = worker.starts
        starts.seen = saved.starts
        starts.counted_from = saved.counted_from
        starts.processed = saved.processed
        starts.unseen.extend(Unseen(*unseen) for unseen in saved.unseen)
        starts.before_gap = None if saved.before_gap is None else Unseen(*saved.before_gap)
        starts.quiet_share = saved.quiet_share
        starts.seen_at_heartbeat = saved.starts_at_heartbeat
        starts.silent_heartbeats = saved.silent_heartbeats
        worker.sends_task_events = saved.sends_task_events
        worker.sends_heartbeats = saved.sends_heartbeats
        worker.told_running = self._running(saved.told_running)
        worker.is_unheard = self._loses
        coverage = worker.coverage
        coverage.counted_until = saved.counted_until
        coverage.counted_starts = saved.counted_starts
        self._cluster.precedence.restore(worker, saved.held)

    def _take_boot(self, saved: SavedBoot) -> None:
        worker = self._workers[-1] if self._workers else None
        if worker is None:
            self._left_out += 1
            return
        boot = Boot(saved)
        boot.seq = saved.seq
        boot.at = saved.at
        boot.processed = saved.processed
        boot.is_final = saved.is_final
        boot.heard_at = saved.heard_at
        boot.failures_left_out = saved.failures_left_out
        boot.told_until = math.inf if saved.told_until is None else saved.told_until
        boot.rebased_at = saved.rebased_at
        boot.is_rebasing = saved.is_rebasing
        boot.rebase_until = saved.rebase_until
        boot.starts_at_close = saved.starts_at_close
        boot.gap = saved.gap
        worker.coverage.boots.append(boot)

    def _take_totals(self, totals: SavedTotals) -> None:
        worker = self._workers[-1] if self._workers else None
        if worker is None or not worker.coverage.boots:
            self._left_out += 1
            return
        worker.coverage.boots[-1].restore(totals)

    def _take_task(self, saved: SavedTask) -> None:
        row = self._row(saved.row)
        if row is None:
            self._left_out += 1
            return
        task = self._cluster.tasks._add(saved.id, row)
        # Most times are 0, for which one float is enough.
        task.next_row = self._row(saved.next_row)
        task.worker = worker = self._worker(saved.worker)
        task.retries = saved.retries
        task.received_at = saved.received_at or 0.0
        task.started_at = saved.started_at or 0.0
        task.ended = saved.ended
        task.final_at = saved.final_at or 0.0
        task.requeued = saved.requeued
        task.before = None if saved.before is None else Attempt(*saved.before)
        task.retried_at = saved.retried_at or 0.0
        task.first_sent = saved.first_sent
        task.sent_retries = saved.sent_retries
        task.waits_from = saved.waits_from or 0.0
        task.next_waits_from = saved.next_waits_from or 0.0
        task.waited = saved.waited
        if worker is not None and saved.runs:
            worker.running[saved.id] = task
        if worker is not None and saved.reserved_at is not None:
            worker.reserved[saved.id] = saved.reserved_at
        for place, since in ((row, saved.unreceived), (task.next_row, saved.next_unreceived)):
            if place is not None and since is not None:
                place.queue.unreceived[saved.id] = since

    def _take_held(self, held: SavedHeld) -> None:
        tasks = self._cluster.tasks
        events = [
            (tasks.handlers[event.type] if counts else tasks.note, event)
            for counts, event in held.events
            if event.type in tasks.handlers
        ]
        tasks._unsent.restore(held.id, events, self._saved_at)

    def _take_ended(self, ended: SavedEnded) -> None:
        self._cluster.tasks._ended.append((ended.at, ended.id))

    def _take_vanished(self, gone: SavedVanished) -> None:
        worker = self._worker(gone.worker)
        if worker is None:
            self._left_out += 1
            return
        told = worker.told_running if gone.told is None else self._running(gone.told)
        self._cluster._vanished.append(_Vanished(gone.due, worker, gone.boots, gone.at, told))

    def _take_beat(self, beat: SavedBeat) -> None:
        beats = self._cluster.beats
        beats._beats[beat.name] = _Beat(heard_at=beat.heard_at)
        beats._metrics.last_heartbeat.child(beat.name).set(round(beat.heard_at, 3))


def _sort(queue: Queue) -> None:
    """Tasks come in the order in which they were first heard of; what was sent again waits since later."""
    waiting = queue.unreceived
    if any(since > later for since, later in pairwise(waiting.values())):
        queue.unreceived = dict(sorted(waiting.items(), key=itemgetter(1)))
