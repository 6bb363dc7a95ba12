"""
One broker's cluster: events and readings in, metrics out.

Pure: no sockets, no clock, no globals. The time comes with each call, and never from an event.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from ..events import TASK_EVENTS, Event
from ..failures import FailureSink
from ..metrics.beat import BeatMetrics
from ..metrics.exporter import ExporterMetrics
from ..metrics.labels import Labels
from ..metrics.limits import LabelBudget
from ..metrics.queues import BrokerMetrics, QueueMetrics
from ..metrics.registry import OTHER, Counter, Scope
from ..metrics.tasks import TaskMetrics
from ..metrics.workers import WorkerMetrics
from ..readings import ActiveTask, BrokerReading, WorkerReading
from ..snapshots import AnySnapshot, BeatSnapshot
from .beat import Beats
from .coverage import Precedence
from .queues import Queues
from .records import RunningTasks
from .routes import Routes
from .snapshots import Snapshots
from .starts import comes_again
from .tasks import Tasks
from .workers import Worker, Workers

#: Seconds for which a task of a vanished worker may reappear elsewhere before it is counted as lost.
LOST_AFTER_SECONDS: Final = 60.0

#: A task held longer than this without an event is worth asking its worker about.
SUSPECT_SECONDS: Final = 60.0

#: Tasks that one worker is asked about at a time: its answer has their arguments in it.
SUSPECTS_AT_A_TIME: Final = 100

#: A clock that goes back by less than this does no harm.
STEP_SECONDS: Final = 1.0

#: Seconds without a poll of the snapshots after which what the next one brings counts as having waited for us.
PAUSE_SECONDS: Final = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is remembered and shown. See ``docs/configuration.md``."""

    tasks_in_flight: int = 1_000_000
    task_names: int = 2_000
    queues: int = 1_000
    exceptions: int = 200
    workers: int = 10_000


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What the settings say about a cluster."""

    limits: Limits = field(default_factory=Limits)
    labels: Labels = field(default_factory=Labels)
    #: Queue to the longest acceptable wait in seconds.
    latency_slos: Mapping[str, float] = field(default_factory=dict)
    #: Queues to watch from the start, whether anybody consumes them or not.
    queues: tuple[str, ...] = ()


class _Vanished(NamedTuple):
    """
    A worker process that is gone, and when to see what came of its tasks.

    They are lost unless the worker lives by then and its ``boots`` are these still.
    """

    due: float
    worker: Worker
    boots: int | None
    at: float
    told: list[RunningTasks]


class Cluster:
    """
    Everything known of one broker's cluster.

    *failures* is told of each task that fails for good; *trace_id_of* is asked for the trace of a task that events tell
    of, by the task's id.
    """

    def __init__(
        self,
        scope: Scope,
        options: ClusterOptions,
        failures: FailureSink | None = None,
        *,
        trace_id_of: Callable[[str], str | None] | None = None,
    ) -> None:
        limits = options.limits
        self.scope = scope
        #: Whether it goes on where an earlier process stopped, see ``restoring``.
        self.goes_on = False
        self._failures = failures
        self.exporter = ExporterMetrics(scope)
        self.routes = Routes()
        labels, drop = options.labels, self.exporter.drop_value
        self.workers = Workers(WorkerMetrics(scope, labels.worker), limits.workers, partial(drop, "worker"))
        self.queues = Queues(
            QueueMetrics(scope),
            BrokerMetrics(scope),
            LabelBudget(limits.queues, labels.queue, partial(drop, "queue")),
            options.latency_slos,
            limit=limits.queues,
        )
        names = LabelBudget(limits.task_names, labels.task, partial(drop, "task"))
        self.tasks = Tasks(
            TaskMetrics(scope),
            self.exporter,
            queues=self.queues,
            workers=self.workers,
            routes=self.routes,
            limit=limits.tasks_in_flight,
            names=names,
            exceptions=LabelBudget(limits.exceptions, dropped=partial(drop, "exception")),
            failures=failures,
            trace_id_of=trace_id_of,
        )
        self.beats = Beats(BeatMetrics(scope), names=names)
        self.snapshots = Snapshots(
            self.exporter,
            tasks=self.tasks,
            workers=self.workers,
            queues=self.queues,
            refused=self.refused_snapshot,
            lose=self._lose,
            failures=failures,
        )
        self.precedence = Precedence(
            count=self.tasks.handlers, note=self.tasks.note, lose=self._lose, fault=self._fault
        )
        for name in options.queues:
            self.queues.get(name)
        self._vanished: deque[_Vanished] = deque()
        self._now = 0.0
        self._live = True
        #: Whether workers could be asked: only then is a queue that nobody consumes known to be one.
        self._workers_answer = False
        #: Faults of ours that were logged: each kind once.
        self._faults: set[tuple[str, type[Exception]]] = set()
        #: When the last poll of the snapshots worked, and since when all did.
        self._polled_at = self._polls_work_since = 0.0
        events = self.exporter.events
        handlers: dict[str, Callable[[Event], None]] = dict.fromkeys(TASK_EVENTS, self._task_event)
        handlers |= {
            "task-sent": self.tasks.handlers["task-sent"],
            "worker-online": self._heartbeat,
            "worker-heartbeat": self._heartbeat,
            "worker-offline": self._offline,
        }
        self._handlers: dict[str, tuple[Callable[[Event], None], Counter]] = {
            name: (handler, events.child(name)) for name, handler in handlers.items()
        }
        self._unknown = (_ignore, events.child(OTHER))

    def fold(self, batch: Iterable[Event], now: float, *, live: bool = True) -> None:
        """Take in events read at *now*. Not *live* are those that waited for us in a queue, or come again."""
        self.tick(now)
        self._live = live
        handlers, unknown = self._handlers, self._unknown
        event = None
        for event in batch:
            handle, counter = handlers.get(event.type, unknown)
            counter.inc()
            try:
                handle(event)
            except Exception as error:  # noqa: BLE001  # a fault of ours costs the event that met it, and is counted as such
                self._fault(event, error)
        if event is not None:
            self.exporter.last_event.child().set(round(now, 3))
            self.exporter.event_lag.set(round(max(now - event.timestamp, 0.0), 3))

    def _fault(self, event: Event, error: Exception) -> None:
        self.refused("fault")
        self._log_fault("an event", event.type, error)

    def _log_fault(self, what: str, kind: str, error: Exception) -> None:
        if (kind, type(error)) not in self._faults:
            self._faults.add((kind, type(error)))
            log.error("fault while counting %s", what, exc_info=error, extra={"event": kind})

    def tick(self, now: float) -> None:
        """Do what is due at *now*. Call it a few times a second, also when nothing comes in."""
        self._look_at_clock(now)
        self.tasks.tick(now)
        for worker in self.workers.just_gone(now):
            if not worker.graceful:
                # All that it was running: its clock may be ahead of ours.
                at = max([now, *(task.started_at for task in worker.running.values())])
                self._suspect_loss(worker, at, worker.told_running if worker.coverage.is_open else [])
        clock = self.workers.clock(now)
        while self._vanished and self._vanished[0].due <= clock:
            gone = self._vanished.popleft()
            if gone.worker.boots != gone.boots or not gone.worker.is_alive(clock):
                self.tasks.count_lost(gone.worker, gone.at, gone.told)

    def _look_at_clock(self, now: float) -> None:
        if now < self._now - STEP_SECONDS:
            self.shift(now - self._now, now)
        self._now = now

    def shift(self, seconds: float, now: float) -> None:
        """Move what is measured on our own clock by *seconds*: it was set back, or we were not there meanwhile."""
        self.workers.shift(seconds, now)
        self.tasks.shift(seconds)
        self.queues.shift(seconds)
        self._vanished = deque(gone._replace(due=gone.due + seconds) for gone in self._vanished)
        self.beats.shift(now)
        self._polled_at += seconds
        self._polls_work_since += seconds

    def refresh(self, now: float) -> None:
        """Bring all gauges up to date, before a scrape is rendered."""
        self.tick(now)
        self.workers.refresh(now)
        self.tasks.refresh(now)
        self.beats.refresh(now)
        consumers = self.workers.consumers(now, self.queues.shown) if self._workers_answer else None
        self.queues.refresh(now, consumers)

    def broker_lost(self, now: float) -> None:
        """The event connection went silent or broke."""
        self._look_at_clock(now)
        self.exporter.broker_up.set(0)
        self.workers.silenced("connection", now)

    def broker_found(self, now: float, *, gap: bool) -> None:
        """The event connection works; with a *gap*, events published meanwhile may be gone."""
        self._look_at_clock(now)
        self.exporter.broker_up.set(1)
        self._audible("connection", now)
        if gap:
            self.workers.measure_gap()

    def publishing(self, now: float, *, works: bool) -> None:
        """The broker takes messages, or makes all publishers wait, workers among them."""
        if works:
            self._audible("publishing", now)
        else:
            self.workers.silenced("publishing", now)

    def _audible(self, cause: str, now: float) -> None:
        silent_seconds = self.workers.audible(cause, now)
        if silent_seconds:
            # Who vanished before that could not come back in it.
            self._vanished = deque(gone._replace(due=gone.due + silent_seconds) for gone in self._vanished)

    def refused(self, reason: str, count: int = 1) -> None:
        """Count input that could not be used."""
        self.exporter.events_invalid.child(reason).inc(count)

    def refused_snapshot(self, reason: str, count: int = 1) -> None:
        """Count snapshots, or parts of them, that could not be used."""
        self.exporter.snapshots_invalid.child(reason).inc(count)

    def take_snapshots(self, old: Iterable[AnySnapshot], new: Iterable[AnySnapshot], now: float) -> None:
        """
        Take in what a poll of the snapshots brought: *old* ones were read before this process began.

        Then they were counted, too, and a process that goes on knows which: it may count them again.
        """
        self.tick(now)
        live = now - self._polled_at < PAUSE_SECONDS
        for snapshot in old:
            is_counted = not self.goes_on or isinstance(snapshot, BeatSnapshot)
            self._take_snapshot(snapshot, now, live=False, is_old=is_counted)
        for snapshot in new:
            self.exporter.snapshots.inc()
            self._take_snapshot(snapshot, now, live=live, is_old=False)

    def _take_snapshot(self, snapshot: AnySnapshot, now: float, *, live: bool, is_old: bool) -> None:
        try:
            if isinstance(snapshot, BeatSnapshot):
                self.beats.take(snapshot, now)
                if self._failures is not None and not is_old:
                    self._failures.take_beat(snapshot, now)
                return
            self._workers_answer |= self.snapshots.take(snapshot, now, live=live, is_old=is_old)
        except Exception as error:  # noqa: BLE001  # as in ``fold``
            self.refused_snapshot("fault")
            self._log_fault("a snapshot", "snapshot", error)

    def snapshots_polled(self, number: int, now: float, *, worked: bool) -> None:
        """Draw conclusions from a poll of the snapshots, once what it brought is taken in."""
        self.precedence.poll_ends(number)
        if worked:
            if now - self._polled_at >= PAUSE_SECONDS:
                self._polls_work_since = now
            self._polled_at = now
            self.precedence.close_silent(self.workers, now, self._polls_work_since)
            self.snapshots.recount()

    def take_broker(self, reading: BrokerReading) -> None:
        """Take in a poll of the broker."""
        self.tasks.expect_little_of(self.queues.take(reading))

    def take_workers(self, readings: Iterable[WorkerReading]) -> None:
        """Take in workers' answers. None at all is an answer, too: nobody is there."""
        self._workers_answer = True
        for reading in readings:
            self.workers.take(reading)
            if reading.queues is not None:
                self.routes.learn(reading.queues)
                for queue in reading.queues:
                    self.queues.get(queue.name)

    def take_active(self, active: Iterable[tuple[str, ActiveTask]]) -> None:
        """Take in what workers hold, as they say when asked."""
        for worker_name, task in active:
            worker = self.workers.get(worker_name)
            if worker is None or not worker.coverage.is_open:
                self.tasks.take_active(worker_name, task)

    def living_workers(self) -> dict[str, int]:
        """
        Return the names of workers that are alive, each with how often it came online.

        Without those of which it will be known in a moment whether they send snapshots: it matters for what they are
        asked.
        """
        clock = self.workers.clock(self._now)
        return {
            worker.name: worker.greetings
            for worker in self.workers
            if worker.is_alive(clock) and not self.precedence.is_waiting(worker)
        }

    def covered_workers(self) -> frozenset[str]:
        """Return the names of living workers whose snapshots count: of their tasks, no event is needed."""
        clock = self.workers.clock(self._now)
        return frozenset(worker.name for worker in self.workers if worker.coverage.is_open and worker.is_alive(clock))

    def workers_without_task_events(self) -> frozenset[str]:
        """Return the workers that run tasks and say nothing of it, neither in events nor in snapshots."""
        clock = self.workers.clock(self._now)
        silent = (
            worker for worker in self.workers if worker.sends_task_events is False and not worker.coverage.is_open
        )
        return frozenset(worker.name for worker in silent if worker.is_alive(clock))

    def suspects(self) -> dict[str, list[str]]:
        """Return, for each living worker, the ids of tasks held so long without a word that it should be asked."""
        found: dict[str, list[str]] = {}
        clock = self.workers.clock(self._now)
        for worker in self.workers:
            if worker.is_alive(clock):
                ids = self._long_held(worker)
                if ids:
                    found[worker.name] = ids[:SUSPECTS_AT_A_TIME]
        return found

    def _long_held(self, worker: Worker) -> list[str]:
        before = self._now - SUSPECT_SECONDS
        ids = [task_id for task_id, task in worker.running.items() if task.started_at < before]
        return ids + [task_id for task_id, eta in worker.reserved.items() if eta < before]

    def not_held(self, worker_name: str, task_ids: list[str]) -> None:
        """The worker says that it has not got these tasks (any more)."""
        worker = self.workers.get(worker_name)
        if worker is not None:
            # While it was asked, a task may have come back to it as another attempt.
            self.tasks.let_go_silently(worker, set(task_ids).intersection(self._long_held(worker)))

    def summary(self) -> dict[str, Any]:
        """Return what the status page shows: ``queues``, ``workers`` and ``tasks``, JSON-able."""
        consumers = self.workers.consumers(self._now, self.queues.shown)
        return {
            "queues": self.queues.summary(self._now, consumers),
            "workers": self.workers.summary(self._now),
            "tasks": self.tasks.summary(),
        }

    def _task_event(self, event: Event) -> None:
        worker = self.workers.get(event.hostname)
        if worker is None:
            self.tasks.handlers[event.type](event)
            return
        worker.sends_task_events = True
        if event.type == "task-started":
            # At once, even if the event has to wait: heartbeats are held against it.
            worker.starts.hear(event, live=self._live)
        self.precedence.hear(worker, event)

    def _heartbeat(self, event: Event) -> None:
        worker = self._heard_from(event)
        if worker is None:
            return
        self.precedence.meet(worker, event)
        if event.type == "worker-online" and worker.is_replaced_by(event):
            self._suspect_loss(worker, event.timestamp)
        lost = self.workers.heartbeat(worker, event, self._now, live=self._live)
        if lost and not worker.coverage.is_open:
            self.exporter.events_lost.inc(lost)

    def _heard_from(self, event: Event) -> Worker | None:
        """Return the worker that *event* is about; None if it cannot be followed, or has said this before."""
        worker = self.workers.get(event.hostname)
        if worker is None or (not self._live and comes_again(event, worker.newest_word)):
            return None
        worker.newest_word = event
        return worker

    def _offline(self, event: Event) -> None:
        worker = self._heard_from(event)
        if worker is not None:
            self.workers.offline(worker, self._now)
            if event.active == 0:  # what we still think it runs ended without an event: ignored, say
                running = worker.running.items()
                self.tasks.let_go_silently(
                    worker, [task_id for task_id, task in running if task.started_at <= event.timestamp]
                )
            else:
                self._suspect_loss(worker, event.timestamp)

    def _suspect_loss(self, worker: Worker, at: float, told: list[RunningTasks] | None = None) -> None:
        """The process that *worker* was until *at* is gone; look later at what it was running, or *told* to be."""
        if worker.is_unheard and not told:
            self.tasks.let_go_silently(worker, list(worker.running))  # it may have ended all of it, unheard
        elif worker.running or told:
            self._vanished.append(_Vanished(self._now + LOST_AFTER_SECONDS, worker, worker.boots, at, told or []))

    def _lose(self, worker: Worker) -> None:
        """The process that told what *worker* is running has ended; look later at what came of that."""
        if worker.told_running:
            due = self._now + LOST_AFTER_SECONDS
            self._vanished.append(_Vanished(due, worker, None, 0.0, worker.told_running))


def _ignore(event: Event) -> None:
    """An event of a type that means nothing to us: it is counted, that is all."""
