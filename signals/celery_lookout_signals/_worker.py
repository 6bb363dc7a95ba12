"""
A worker's main process: it gathers the runs, knows what the runs cannot tell, and publishes snapshots.

Celery's ``Request`` lives here. So kills, hard limits and revocations are counted here, with task, queue, runtime and
trace: their pool process has nothing more to say. Celery's own timer calls us twice a second; we have no thread.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from . import _guard
from ._channel import Channel
from ._failures import KINDS, Limiter, class_name, fingerprint, shortened
from ._measure import meter_for
from ._pipe import Memory, Pipe
from ._processes import Processes
from ._queues import QueueNames
from ._records import ABORTED, UNMEASURED, Failure, Received, Run, run_key
from ._runs import Runs
from ._snapshot import Envelope, parts, wire_failures
from ._stamp import published, waits_from
from ._totals import Totals
from ._traces import trace_id_of

#: Seconds between two times at which the pipe is emptied.
TICK_SECONDS = 0.5

#: Seconds between two snapshots on transports where each message is paid for.
PLAIN_INTERVAL_SECONDS = 15.0

#: Seconds between two snapshots with all rows in them.
EVERYTHING_SECONDS = 300.0

#: Failures in one snapshot, and of one kind among them.
FAILURES_LIMIT = 20
FAILURES_OF_A_KIND = 5

#: What Celery calls a task that the worker does not have; the signal itself brings a KeyError.
NOT_REGISTERED = "celery.exceptions.NotRegistered"

#: Transports with events, on which snapshots are as frequent as wished.
_FREQUENT = frozenset({"amqp", "redis"})


#: A task id's :func:`run_key`, and the number of retries.
_Attempt = tuple[int, int]


class _Death(NamedTuple):
    """A run whose end the main process tells, unless the run itself has told it before."""

    request: Any
    run: Run


class WorkerSide:
    """Everything of one worker."""

    def __init__(self, controller: Any, *, interval: float, peak_memory: bool) -> None:
        self._app = app = controller.app
        self._peak_memory = peak_memory
        self._queues = QueueNames(app)
        self._pipe = Pipe()
        self._memory = Memory()
        self._heard: deque[Received | Run | _Death] = deque()
        #: Tasks received, by :func:`run_key`; Celery holds the requests, for as long as it has them.
        self._requests: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        #: Requests whose death was counted.
        self._dead: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Attempts whose start was counted before their end, because they take longer than a tick.
        self._started: set[_Attempt] = set()
        #: Attempts that told their end and still seem to run, since Celery has not heard of it.
        self._ended: set[_Attempt] = set()
        self._totals = Totals()
        self._limiter = Limiter()
        self._failures: list[Failure] = []
        self._failed = self._told = 0
        self._runs_lost = self._faults = 0
        self._processes = Processes()
        self._channel = Channel(app)
        self._envelope = Envelope("worker", controller.hostname)
        frequent = app.connection_for_write().transport.driver_type in _FREQUENT
        self._interval = interval if frequent else max(interval, PLAIN_INTERVAL_SECONDS)
        self._next_at = self._everything_at = 0.0
        #: The pool's kind, once there is one.
        self._pool: str | None = None
        self._slots: int | None = None
        self._counts = True
        self._consumer: Any = None
        #: The runs of tasks in this process: none where there is a pool of processes.
        self.runs: Runs | None = None
        self._busy = threading.Lock()

    # -- the life of the worker

    def announce(self) -> None:
        """Publish that we are here, before Celery takes the first task and before it forks."""
        self._publish(final=False)
        # Pool processes must not inherit the connection. And what is true of the pool is told as soon as it is known.
        self._channel.close()
        self._next_at = 0.0

    def follow(self, consumer: Any) -> None:
        """*consumer* is up, for the first time or again: its pool and its queues are the worker's."""
        self._consumer = consumer
        self._pool = kind = _kind_of(consumer.pool)
        self._counts = kind != "prefork" or not _spawns()
        self._slots = consumer.pool.num_processes
        self._processes.look(_children(consumer))
        if kind != "prefork" and self.runs is None:
            meter = meter_for(kind, slots=self._slots or 1, peak=self._peak_memory)
            self.runs = Runs(self._memory, meter, self._queues)

    def run_in_child(self) -> Runs:
        """Return what tells the runs of a pool process that was just forked."""
        return Runs(self._pipe, meter_for("prefork", slots=1, peak=self._peak_memory), self._queues)

    def tick(self) -> None:
        """Gather what has come, and publish when it is time."""
        self._work(final=False, now=False)

    def flush(self, *, final: bool) -> None:
        """Gather and publish at once."""
        self._work(final=final, now=True)

    def _work(self, *, final: bool, now: bool) -> None:
        # Only a cold shutdown, which comes as a signal in the middle of anything, can find us at work.
        if not self._busy.acquire(blocking=False):
            return
        try:
            self._gather()
            if not now:
                self._look_at_processes()
            if now or time.monotonic() >= self._next_at:
                self._publish(final=final)
        finally:
            self._busy.release()

    # -- what Celery tells

    def received(self, request: Any) -> None:
        """A message became a request: ``task_received``."""
        self._requests[run_key(request.id)] = request
        info = request.delivery_info
        redelivered = bool(isinstance(info, Mapping) and info.get("redelivered"))
        self._heard.append(Received(request.name, self._queues.name_of(info), redelivered))

    def died(self, task_id: str, error: BaseException, traceback: str) -> None:
        """
        A task failed in a way that its run could not tell: ``task_failure`` for a hard limit or a lost process.

        Celery 5.7 tells a hard limit twice.
        """
        request = self._requests.get(run_key(task_id))
        if request is None:
            return
        name = type(error).__name__
        now = time.time()
        # The death of a process is noticed seconds later.
        runtime = now - request.time_start if request.time_start and name != "WorkerLostError" else UNMEASURED
        run = self._run_of(request, "failed", name, now, runtime)
        self._heard.append(_Death(request, run))
        if self._limiter.admits(request.name, class_name(error)):
            self._failures.append(_failure(request, run, error, traceback))

    def revoked(self, fields: Mapping[str, Any], *, task: str, terminated: bool, expired: bool) -> None:
        """A task was revoked: ``task_revoked``. *fields* are those of its request."""
        request = self._requests.get(run_key(str(fields.get("id"))))
        outcome = "expired" if expired else "terminated" if terminated else "revoked"
        if request is None:  # before it was received
            queue = self._queues.name_of(fields.get("delivery_info"))
            self._heard.append(Run(task, queue, outcome, started=False))
        else:
            self._heard.append(_Death(request, self._run_of(request, outcome, "", time.time(), UNMEASURED)))

    def unknown(self, message: Any, task: str, task_id: str) -> None:
        """A message names a task that this worker does not have: ``task_unknown``."""
        queue = self._queues.name_of(message.delivery_info)
        now = time.time()
        self._heard.append(Run(task, queue, "failed", "NotRegistered", started=False, ended_at=now))
        if self._limiter.admits(task, NOT_REGISTERED):
            self._failures.append(
                Failure(
                    task_id=task_id,
                    task=task,
                    queue=queue,
                    retries=0,
                    at=now,
                    kind="unknown_task",
                    exception=NOT_REGISTERED,
                    traceback=f"{NOT_REGISTERED}: {task!r}",
                    fingerprint=fingerprint(task, NOT_REGISTERED, ""),
                    trace_id=trace_id_of(message.headers or {}),
                )
            )

    def _run_of(self, request: Any, outcome: str, exception: str, now: float, runtime: float) -> Run:
        return Run(
            task=request.name,
            queue=self._queues.name_of(request.delivery_info),
            outcome=outcome,
            exception=exception,
            key=run_key(request.id),
            retries=_retries(request),
            started=bool(request.time_start),
            ended_at=now,
            runtime=runtime,
            wait=_wait(request),
        )

    # -- gathering

    def _gather(self) -> None:
        """Count what was told. Runs first: what a run told of its end is true, whatever became of its process after."""
        for record in self._pipe.drain():
            self._count(record)
        for record in self._memory.drain():
            self._count(record)
        while self._heard:
            heard = self._heard.popleft()
            if isinstance(heard, Received):
                self._totals.count_received(heard)
            elif isinstance(heard, Run):
                self._count_run(heard)
            elif heard.request not in self._dead and (heard.run.key, heard.run.retries) not in self._ended:
                self._dead.add(heard.request)
                self._count_run(heard.run)
        self._count_starts()
        self._faults += _guard.take_faults()

    def _look_at_processes(self) -> None:
        """Count those that ended; not at the end of the worker, which they all go with."""
        children = _children(self._consumer)
        for pid in self._processes.look(children):
            self._pipe.forget(pid)
        self._slots = len(children) or self._slots

    def _count(self, record: Run | Failure) -> None:
        if isinstance(record, Failure):
            self._failures.append(record)
            return
        attempt = (record.key, record.retries)
        self._runs_lost += record.lost_before
        self._faults += record.faults
        if record.outcome == ABORTED:
            if attempt not in self._started:
                self._totals.row(record.task, record.queue).count_start(record.wait)
                self._started.add(attempt)
            return
        self._ended.add(attempt)
        self._count_run(record)

    def _count_run(self, run: Run) -> None:
        row = self._totals.row(run.task, run.queue)
        attempt = (run.key, run.retries)
        if attempt in self._started:
            self._started.discard(attempt)
        elif run.started:
            row.count_start(run.wait)
        row.count_end(run)
        self._failed += run.outcome == "failed"

    def _count_starts(self) -> None:
        """Count what runs already: an hour-long task has started, and waited, long before it ends."""
        running = {(run_key(request.id), _retries(request)): request for request in _active()}
        for attempt in running.keys() - self._started - self._ended:
            request = running[attempt]
            self._started.add(attempt)
            self._totals.row(request.name, self._queues.name_of(request.delivery_info)).count_start(_wait(request))
        # Whoever is not running any more has told its end, or nobody will.
        self._started &= running.keys()
        self._ended &= running.keys()

    # -- publishing

    def _publish(self, *, final: bool) -> None:
        now = time.monotonic()
        self._next_at = now + self._interval
        everything = final or now >= self._everything_at
        failures = self._pick_failures()
        fields = self._gauges() | {"running": self._running(), "failures": wire_failures(failures)}
        fields["failures_left_out"] = self._failed - self._told - len(failures)
        taken = True
        for part in parts(self._totals, everything=everything):
            body = self._envelope.wrap(fields | {"rows": part.wire()}, interval=self._interval, final=final)
            taken = self._channel.publish(body)
            if not taken:
                break
            part.was_taken()
            self._told += len(fields["failures"])
            fields |= {"running": None, "failures": []}
        if everything and taken:
            self._everything_at = now + EVERYTHING_SECONDS

    def _pick_failures(self) -> list[Failure]:
        """Return those of the failures since the last snapshot that are told, few of each kind."""
        failures, self._failures = self._failures, []
        kinds: dict[str, int] = {}
        picked: list[Failure] = []
        for failure in failures:
            kinds[failure.fingerprint] = kinds.get(failure.fingerprint, 0) + 1
            if kinds[failure.fingerprint] <= FAILURES_OF_A_KIND and len(picked) < FAILURES_LIMIT:
                picked.append(failure)
        return picked

    def _gauges(self) -> dict[str, Any]:
        from celery import __version__ as celery_version
        from celery.worker import state

        consumer, processes = self._consumer, self._processes
        usage = processes.usage()
        active = len(state.active_requests)
        return {
            "celery": celery_version,
            "pid": os.getpid(),
            "pool": self._pool,
            "slots": self._slots,
            "queues": self._queues.consumed(),
            "counts": self._counts,
            "processed": state.all_total_count[0],
            "active": active,
            "reserved": max(len(state.reserved_requests) - active, 0),
            "scheduled": 0 if consumer is None else _scheduled(consumer),
            "memory": usage.memory,
            "child_memory_max": usage.child_memory_max,
            "memory_limit": processes.memory_limit,
            "cpu_seconds": usage.cpu_seconds,
            "oom_kills": processes.oom_kills,
            "child_exits": dict(processes.exits),
            "runs_lost": self._runs_lost,
            "faults": self._faults,
        }

    def _running(self) -> list[list[Any]]:
        """Return what runs, by task and queue: how many, how many of them Celery has acknowledged, the oldest start."""
        rows: dict[tuple[str, str], list[Any]] = {}
        for request in _active():
            queue = self._queues.name_of(request.delivery_info)
            row = rows.setdefault((request.name, queue), [request.name, queue, 0, 0, request.time_start])
            row[2] += 1
            row[3] += bool(request.acknowledged)
            row[4] = min(row[4], request.time_start)
        return list(rows.values())


def _active() -> list[Any]:
    """Return the requests that run. Raises RuntimeError in the unlikely case that other threads leave us no moment."""
    from celery.worker import state

    for _ in range(100):
        with suppress(RuntimeError):  # a thread of the pool added one meanwhile
            return [request for request in list(state.active_requests) if request.time_start]
    raise RuntimeError("the set of active requests never stood still")


def _retries(request: Any) -> int:
    return int(request.request_dict.get("retries") or 0)


def _wait(request: Any) -> float:
    """Return the seconds that *request* waited until its body started; ``UNMEASURED`` when either end is not known."""
    fields = request.request_dict
    since = waits_from(published(fields), fields.get("eta"))
    return UNMEASURED if since is None or not request.time_start else max(request.time_start - since, 0.0)


def _failure(request: Any, run: Run, error: BaseException, traceback: str) -> Failure:
    name = class_name(error)
    text = traceback or f"{name}: {error}"
    return Failure(
        task_id=request.id,
        task=run.task,
        queue=run.queue,
        retries=run.retries,
        at=run.ended_at,
        kind=KINDS.get(run.exception, "exception"),
        exception=name,
        traceback=shortened(text),
        fingerprint=fingerprint(run.task, name, ""),
        runtime=None if run.runtime == UNMEASURED else round(run.runtime, 6),
        trace_id=trace_id_of(request.request_dict),
    )


def _kind_of(pool: Any) -> str:
    """Return the name by which Celery's command line knows the kind of *pool*, or that of its class."""
    module, name = type(pool).__module__, type(pool).__name__
    known = module.rpartition("celery.concurrency.")[2] if module.startswith("celery.concurrency.") else ""
    return {"thread": "threads"}.get(known, known) or name


def _spawns() -> bool:
    import billiard

    return billiard.get_start_method() != "fork"  # type: ignore[no-any-return]


def _children(consumer: Any) -> list[Any]:
    """Return billiard's processes; none where the pool has no processes."""
    pool = getattr(getattr(consumer, "pool", None), "_pool", None)
    processes = getattr(pool, "_pool", None)
    return [child for child in processes if hasattr(child, "exitcode")] if isinstance(processes, list) else []


def _scheduled(consumer: Any) -> int:
    """Return how many tasks are held for their ETA. Celery counts them since 5.7; before, they are in its timer."""
    from celery.worker import state
    from celery.worker.request import Request

    requests = getattr(state, "scheduled_requests", None)
    if requests is not None:
        return len(requests)
    entries = list(consumer.timer.schedule.queue)
    return sum(1 for _, _, entry in entries if entry.args and isinstance(entry.args[0], Request) and not entry.canceled)
