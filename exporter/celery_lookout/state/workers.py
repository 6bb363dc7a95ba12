"""
Workers: alive or not, how busy, and how many events of theirs we missed.

A worker is alive while something fresh is heard from it. The clock for that stands still while the broker is away or
takes no messages: a silence in which nobody could be heard says nothing about the workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final

from ..events import Event
from ..metrics.limits import DropReason
from ..metrics.workers import LOAD_PERIODS, WorkerMetrics
from ..probes.names import is_broadcast, is_fit
from ..readings import ConsumedQueue, WorkerReading
from ..snapshots import WorkerSnapshot
from .coverage import Coverage
from .starts import Starts

if TYPE_CHECKING:
    from .records import RunningTasks, Task

#: Celery's own interval between heartbeats, in seconds, until the worker tells another.
HEARTBEAT_SECONDS: Final = 2.0

#: Seconds added to two intervals before a worker counts as gone: a slow tick, a slow broker, our own reading interval.
MARGIN_SECONDS: Final = 5.0

#: Celery's longest wait between two attempts to reach its broker, in seconds; never longer than the outage was.
RECONNECT_SECONDS: Final = 30.0

#: Seconds for which a goodbye is not believed that comes soon after an outage. A worker that loses its broker says
#: goodbye, which arrives when it has it again, before it has asked around and says that it is online.
GOODBYE_SECONDS: Final = 10.0

#: How long the series of a worker stay after its last heartbeat; longer than any alert that is about it takes to fire.
KEEP_SECONDS: Final = 7200.0

#: How long a worker without heartbeats counts as alive after it answered a question, several rounds of which may fail.
ANSWER_SECONDS: Final = 180.0

#: Part of a full table that is forgotten at once, of those that are gone.
FORGOTTEN_SHARE: Final = 0.01

#: Heartbeats over which the clock skew is taken: messages are only ever late, so the largest difference is the truest.
SKEW_SAMPLES: Final = 8


@dataclass(slots=True, eq=False)
class Worker:
    """One node, ``name@host``."""

    name: str
    freq: float = HEARTBEAT_SECONDS
    pid: int | None = None
    #: How many processes we have seen answer to the name.
    boots: int = 0
    #: How often it came online: a process that lost its broker does so again.
    greetings: int = 0
    #: Time up to which it counts as alive, by our clock and without the times when the broker was away.
    alive_until: float = 0.0
    was_alive: bool = False
    #: When it was first shown.
    met_at: float = 0.0
    last_heartbeat: float | None = None
    graceful: bool = False
    #: Time from which on its goodbye is believed.
    leaves_at: float = 0.0
    version: str = ""
    pool: str = ""
    #: Version and pool that ``celery_worker_info`` shows.
    shown_info: tuple[str, str] | None = None
    slots: int = 0
    queues: tuple[ConsumedQueue, ...] = ()
    #: Held by this worker and not started: received, waiting for a slot or for their ETA. Value: Unix time from which
    #: they could start.
    reserved: dict[str, float] = field(default_factory=dict)
    running: dict[str, Task] = field(default_factory=dict)
    starts: Starts = field(default_factory=Starts)
    #: Of its newest word about itself.
    newest_word: Event | None = None
    sends_task_events: bool | None = None
    scheduled: int | None = None
    #: What its snapshots say, of which these three hold while they count.
    coverage: Coverage = field(default_factory=Coverage)
    told_running: list[RunningTasks] = field(default_factory=list)
    told_reserved: int | None = None
    told_scheduled: int | None = None
    #: Nothing was heard of it since an earlier process stopped, and what it said meanwhile is gone: perhaps goodbye.
    is_unheard: bool = False
    #: Whether it sends heartbeats: then these tell whether it lives, else snapshots do.
    sends_heartbeats: bool = False
    differences: deque[float] = field(default_factory=lambda: deque(maxlen=SKEW_SAMPLES))

    @property
    def running_count(self) -> int:
        """How many tasks it runs, as snapshots or else events tell."""
        return sum(told.number for told in self.told_running) if self.coverage.is_open else len(self.running)

    def is_alive(self, now: float) -> bool:
        """Say whether its heartbeats are fresh or, if it sends none, its last answer."""
        return self.alive_until > now and not (self.graceful and self.leaves_at <= now)

    def is_replaced_by(self, event: Event) -> bool:
        """
        Say whether another process than the one we know sent *event*, which is about the worker itself.

        A process that found its broker again says ``worker-online`` once more, with all it has counted. A new one has
        counted nothing yet; in a container it may well have the number of the one before.
        """
        if event.pid is not None and self.pid not in (None, event.pid):
            return True
        return event.type == "worker-online" and (not event.processed or event.processed < self.starts.processed)

    def live_until(self, time: float) -> None:
        """It gave a sign of life of its own. Before the first one, an answer had to do, which lasts for longer."""
        self.alive_until = time if self.last_heartbeat is None else max(self.alive_until, time)


class Workers:
    """All workers of one broker."""

    def __init__(self, metrics: WorkerMetrics, limit: int, dropped: Callable[[DropReason], None]) -> None:
        """*dropped* is told each time that a worker could not be followed, and once of each that is not shown."""
        self._metrics = metrics
        self._limit = limit
        self._dropped = dropped
        self._workers: dict[str, Worker] = {}
        self._silenced_by: set[str] = set()
        self._deaf_since: float | None = None
        self._heard_again_at = float("-inf")
        #: When it was last seen who is gone, and whether there may be some of them still: looking takes its time.
        self._looked_at = 0.0
        self._may_be_gone = True

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, name: str) -> Worker | None:
        """
        Return the worker, made known if it was not.

        None past the limit, unless another is gone and makes room, and for a name that no label can show.
        """
        worker = self._workers.get(name)
        if worker is None:
            if not is_fit(name):
                self._dropped("denied")
                return None
            if len(self._workers) >= self._limit:
                self._make_room()
            if len(self._workers) >= self._limit:
                self._dropped("limit")
                return None
            worker = self._workers[name] = Worker(name)
            if not self._metrics.is_shown(name):
                self._dropped("denied")
        return worker

    def _make_room(self) -> None:
        """Forget some of those that are gone, the longest first: who lives is worth more than who did."""
        if not self._may_be_gone:
            return
        self._may_be_gone = False
        gone = [worker for worker in self._workers.values() if not worker.is_alive(self._looked_at)]
        idle = [worker for worker in gone if not (worker.running or worker.told_running)]
        number = max(1, int(self._limit * FORGOTTEN_SHARE))
        for worker in nsmallest(number, idle, key=lambda worker: worker.alive_until):
            self._dropped("limit")
            self._forget(worker)
        self._may_be_gone = len(self._workers) < self._limit

    def clock(self, now: float) -> float:
        """Return the time by which liveness is judged: it stands while the broker is away."""
        return now if self._deaf_since is None else self._deaf_since

    def silenced(self, cause: str, now: float) -> None:
        """From *now* on nobody can be heard, for a *cause* that has to do with the broker."""
        if not self._silenced_by:
            self._deaf_since = now
        self._silenced_by.add(cause)

    def audible(self, cause: str, now: float) -> float:
        """The *cause* is gone; if it was the last, workers can be heard again. Return how long they could not."""
        self._silenced_by.discard(cause)
        if self._deaf_since is None or self._silenced_by:
            return 0.0
        seconds = now - self._deaf_since
        for worker in self._workers.values():
            if worker.alive_until > self._deaf_since:
                worker.alive_until += seconds + min(seconds, RECONNECT_SECONDS)
        self._deaf_since = None
        if self._workers:
            self._heard_again_at = now
        return seconds

    def measure_gap(self) -> None:
        """Something of what workers said may be gone: find out how much."""
        for worker in self._workers.values():
            worker.starts.measure_gap()

    def shift(self, seconds: float, now: float) -> None:
        """Move what is measured on our own clock by *seconds*. Nothing was heard later than *now*."""
        self._looked_at += seconds
        self._heard_again_at += seconds
        if self._deaf_since is not None:
            self._deaf_since += seconds
        for worker in self._workers.values():
            worker.alive_until += seconds
            worker.met_at = min(worker.met_at, now)
            worker.last_heartbeat = None if worker.last_heartbeat is None else min(worker.last_heartbeat, now)
            for boot in worker.coverage.boots:
                boot.heard_at = min(boot.heard_at, now)

    def heartbeat(self, worker: Worker, event: Event, now: float, *, live: bool) -> int:
        """
        Take in ``worker-heartbeat`` or ``worker-online``; return the starts lost in a gap that this one closes.

        Not *live* are events that waited for us in a queue: then the worker's own clock tells how old they are. A reply
        to a broadcast heartbeat has no ``active``, ``processed`` and ``loadavg``: it says nothing about them.
        """
        if worker.is_replaced_by(event):
            self._booted(worker)
        elif event.type == "worker-online":
            self._came_back(worker)
        worker.pid = event.pid if event.pid is not None else worker.pid
        if event.freq is not None and 0 < event.freq < KEEP_SECONDS and event.processed is not None:
            worker.freq = event.freq
        worker.sends_heartbeats = True
        worker.graceful = worker.is_unheard = False
        worker.version = event.sw_ver or worker.version
        heard_at = now if live else min(now, event.timestamp)
        worker.live_until(heard_at + 2 * worker.freq + MARGIN_SECONDS)
        worker.last_heartbeat = max(worker.last_heartbeat or 0.0, heard_at)
        if live:
            worker.differences.append(event.timestamp - now)
        self._show_load(worker, event)
        if event.processed is None:
            return 0
        lost = worker.starts.compare(event.processed)
        if worker.starts.are_silent:
            worker.sends_task_events = False
        return lost

    def offline(self, worker: Worker, now: float) -> None:
        """Take in ``worker-offline``: it finished what it had and said goodbye, or its broker was away."""
        worker.graceful = True
        is_after_outage = now - self._heard_again_at < RECONNECT_SECONDS + GOODBYE_SECONDS
        worker.leaves_at = now + (GOODBYE_SECONDS if is_after_outage else 0.0)
        worker.reserved.clear()

    def take(self, reading: WorkerReading) -> None:
        """Take in a worker's answers to ``inspect``."""
        worker = self.get(reading.worker)
        if worker is None:
            return
        if worker.last_heartbeat is None:
            worker.alive_until = reading.read_at + ANSWER_SECONDS
        worker.pool = reading.pool or worker.pool
        worker.scheduled = reading.scheduled
        if reading.queues is not None:
            worker.queues = reading.queues
        metrics, name = self._metrics, worker.name
        if reading.slots is not None:
            worker.slots = reading.slots
            metrics.slots.child(name).set(reading.slots)
        if reading.processed is not None and worker.last_heartbeat is None:
            metrics.tasks_processed.child(name).rise_to(reading.processed)
        if reading.main_max_memory_bytes is not None:
            metrics.main_max_memory.child(name).set(reading.main_max_memory_bytes)
        if reading.main_cpu_seconds is not None:
            metrics.main_cpu.child(name).rise_to(reading.main_cpu_seconds)

    def tell(self, worker: Worker, snapshot: WorkerSnapshot, now: float, *, live: bool, replaces: bool) -> None:
        """
        Take in what its newest snapshot says of the worker itself.

        It *replaces* what an earlier process told. Not *live* are snapshots that waited for us.
        """
        metrics, name = self._metrics, worker.name
        worker.is_unheard = False
        if replaces and not worker.sends_heartbeats:
            self._booted(worker)
        worker.sends_heartbeats = worker.sends_heartbeats and not replaces
        if not worker.sends_heartbeats:
            heard_at = now if live else min(now, snapshot.at)
            worker.graceful = snapshot.final
            worker.live_until(heard_at + 2 * snapshot.interval + MARGIN_SECONDS)
            worker.last_heartbeat = max(worker.last_heartbeat or 0.0, heard_at)
            if live:
                worker.differences.append(snapshot.at - now)
            metrics.tasks_processed.child(name).rise_to(snapshot.processed)
        worker.version = snapshot.celery or worker.version
        worker.pool = snapshot.pool or worker.pool
        worker.slots = worker.slots if snapshot.slots is None else snapshot.slots
        worker.queues = tuple(
            ConsumedQueue(queue, "", "") for queue in snapshot.queues if is_fit(queue) and not is_broadcast(queue)
        )
        worker.told_reserved, worker.told_scheduled = snapshot.reserved, snapshot.scheduled
        metrics.show(name, snapshot)

    def consumers(self, now: float, shown: Callable[[str], str]) -> dict[str, tuple[int, int]]:
        """Return, by what *shown* makes of a queue's name, how many living workers consume it and their slots."""
        found: dict[str, tuple[int, int]] = {}
        clock = self.clock(now)
        for worker in self._workers.values():
            if worker.is_alive(clock):
                for name in {shown(queue.name) for queue in worker.queues}:
                    count, slots = found.get(name, (0, 0))
                    found[name] = (count + 1, slots + worker.slots)
        return found

    def refresh(self, now: float) -> None:
        """Bring what depends on the time up to date, and forget workers that have been gone for long."""
        clock = self.clock(now)
        for worker in list(self._workers.values()):
            worker.met_at = worker.met_at or now
            last_sign = max(
                worker.last_heartbeat or max(worker.alive_until, worker.met_at),
                0.0,
                *(boot.heard_at for boot in worker.coverage.boots),
            )
            if now - last_sign > KEEP_SECONDS and not worker.running:
                self._forget(worker)
                continue
            if worker.last_heartbeat is not None:
                self._show_life(worker, worker.last_heartbeat, clock)
            self._show_held(worker, now, clock)
        self._metrics.refresh()

    def summary(self, now: float) -> list[dict[str, Any]]:
        """Return a row per worker for the status page, by name."""
        clock = self.clock(now)
        return [
            {
                "worker": name,
                "state": "up" if worker.is_alive(clock) else "stopped" if worker.graceful else "gone",
                "pool": worker.pool,
                "version": worker.version,
                "slots": worker.slots,
                "running": worker.running_count,
            }
            for name, worker in sorted(self._workers.items())
        ]

    def just_gone(self, now: float) -> list[Worker]:
        """Return the workers that were alive when last asked and are not any more."""
        clock = self._looked_at = self.clock(now)
        self._may_be_gone = True
        gone = []
        for worker in self._workers.values():
            alive = worker.is_alive(clock)
            if worker.was_alive and not alive:
                gone.append(worker)
            worker.was_alive = alive
        return gone

    def _booted(self, worker: Worker) -> None:
        """A new process answers to the name: its count begins at 0."""
        worker.boots += 1
        worker.greetings += 1
        worker.reserved.clear()
        worker.starts.begin_anew()
        worker.scheduled = None
        worker.differences.clear()

    def _came_back(self, worker: Worker) -> None:
        """The process lost its connection and has a new one: nobody may have heard what it did meanwhile."""
        worker.greetings += 1
        worker.reserved.clear()  # it has forgotten what it had not started
        worker.starts.measure_gap()

    def _show_load(self, worker: Worker, event: Event) -> None:
        metrics, name = self._metrics, worker.name
        if event.active is not None:
            metrics.tasks_active.child(name).set(event.active)
        if event.processed is not None:
            metrics.tasks_processed.child(name).rise_to(event.processed)
        if event.loadavg is not None:
            for period, load in zip(LOAD_PERIODS, event.loadavg, strict=True):
                metrics.load_average.child(name, period).set(load)

    def _show_life(self, worker: Worker, last_heartbeat: float, clock: float) -> None:
        metrics, name = self._metrics, worker.name
        alive = worker.is_alive(clock)
        metrics.show_up(name, is_up=alive)
        metrics.last_heartbeat.child(name).set(round(last_heartbeat, 3))
        metrics.shutdown_graceful.child(name).set(int(worker.graceful))
        if not alive:
            metrics.tasks_active.child(name).set(0)
            metrics.memory.remove(name)
            metrics.child_memory_max.remove(name)
        if worker.sends_task_events is not None:
            metrics.task_events_enabled.child(name).set(int(worker.sends_task_events))
        if worker.differences:
            metrics.clock_skew.child(name).set(round(max(worker.differences), 3))
        info = (worker.version, worker.pool)
        if worker.shown_info != info:
            self._forget_info(worker)
            worker.shown_info = info
        metrics.info.child(name, *info).set(1)

    def _show_held(self, worker: Worker, now: float, clock: float) -> None:
        """A worker that is gone holds nothing; one without heartbeats is taken at the word of its task events."""
        due = scheduled = 0
        if worker.last_heartbeat is None or worker.is_alive(clock):
            due = sum(1 for startable_at in worker.reserved.values() if startable_at <= now)
            scheduled = worker.scheduled if worker.scheduled is not None else len(worker.reserved) - due
            if worker.coverage.is_open:
                due = due if worker.told_reserved is None else worker.told_reserved
                scheduled = scheduled if worker.told_scheduled is None else worker.told_scheduled
        self._metrics.tasks_reserved.child(worker.name).set(due)
        self._metrics.tasks_scheduled.child(worker.name).set(scheduled)

    def _forget_info(self, worker: Worker) -> None:
        if worker.shown_info is not None:
            self._metrics.info.remove(worker.name, *worker.shown_info)

    def _forget(self, worker: Worker) -> None:
        self._forget_info(worker)
        self._metrics.forget(worker.name)
        del self._workers[worker.name]
