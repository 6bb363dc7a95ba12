"""
What is known of tasks in a worker's main process, and how it becomes totals.

Runs tell their own end, through the pipe. Celery's ``Request`` lives here: so kills, hard limits and revocations are
told from here, with task, queue, runtime and trace, for their pool process has nothing more to say.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from . import _guard
from ._failures import KINDS, Limiter, class_name, fingerprint, shortened
from ._internals import active
from ._messages import Messages
from ._pipe import Memory, Pipe
from ._queues import QueueNames
from ._records import ABORTED, NAME_LIMIT, UNMEASURED, Failure, Run
from ._totals import Totals
from ._traces import recorded_id, trace_id_of, trace_of

#: Failures in one snapshot, and of one kind among them.
FAILURES_LIMIT = 50
FAILURES_OF_A_KIND = 5

#: What Celery calls a task that the worker does not have; the signal itself brings a KeyError.
NOT_REGISTERED = "celery.exceptions.NotRegistered"


#: The main process took a message from the broker: the fields of its request, and what returns the request itself, or
#: None when it is gone.
_Received = tuple[Mapping[str, Any], Callable[[], Any]]


class Gatherer:
    """Hears of tasks at any time, from any thread, and counts when :meth:`gather` is called."""

    def __init__(self, queues: QueueNames, messages: Messages) -> None:
        self._queues = queues
        self._messages = messages
        #: From pool processes, and from runs in this process.
        self.pipe = Pipe()
        self.memory = Memory()
        self.totals = Totals()
        #: Runs that could not be handed over, and faults of ours, in all processes.
        self.runs_lost = self.faults = 0
        #: Failures counted.
        self.failed = 0
        self._received: deque[_Received] = deque()
        #: Ends that no run told: kills, revocations, tasks that are not known here.
        self._ends: deque[Run] = deque()
        #: Tasks received, by id, which Celery still held when they were counted; it alone keeps them.
        self._requests: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        #: Requests whose death was heard of.
        self._dead: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Attempts whose start was counted before their end, because they take longer than from one call to the next.
        self._started: set[int] = set()
        #: Attempts that told their end and still seem to run, since Celery has not heard of it.
        self._ended: set[int] = set()
        self._limiter = Limiter()
        self._failures: list[Failure] = []

    # -- hearing

    def received(self, request: Any) -> None:
        """A message became a request: ``task_received``. Read later, with others, which takes a third of the time."""
        self._received.append((request.request_dict, weakref.ref(request)))

    def died(self, task_id: str, error: BaseException, traceback: str) -> None:
        """
        A task failed in a way that its run could not tell: ``task_failure`` for a hard limit or a lost process.

        Celery 5.7 tells a hard limit twice.
        """
        request = self._request(task_id)
        if request is None or request in self._dead:
            return
        self._dead.add(request)
        name = type(error).__name__
        now = time.time()
        # The death of a process is noticed seconds later.
        runtime = now - request.time_start if request.time_start and name != "WorkerLostError" else UNMEASURED
        run = self._run_of(request, "failed", name, now, runtime)
        self._ends.append(run)
        if self._limiter.admits(run.task, class_name(error)):
            self._failures.append(_failure(request, run, error, traceback))

    def revoked(self, fields: Mapping[str, Any], *, task: str, terminated: bool, expired: bool) -> None:
        """A task was revoked: ``task_revoked``. *fields* are those of its request."""
        request = self._request(str(fields.get("id")))
        outcome = "expired" if expired else "terminated" if terminated else "revoked"
        if request is None:  # before it was received
            queue = self._queues.name_of(fields.get("delivery_info"))
            self._ends.append(Run(task, queue, outcome, started=False))
        elif request not in self._dead:
            self._dead.add(request)
            self._ends.append(self._run_of(request, outcome, "", time.time(), UNMEASURED))

    def unknown(self, message: Any, task: str, task_id: str) -> None:
        """A message names a task that this worker does not have: ``task_unknown``."""
        queue = self._queues.name_of(message.delivery_info)
        now = time.time()
        trace, told_id = trace_of(message.headers or {}), task_id[:NAME_LIMIT]
        run = Run(
            task=task,
            queue=queue,
            outcome="failed",
            exception="NotRegistered",
            started=False,
            ended_at=now,
            trace_id=recorded_id(trace),
            task_id=told_id,
        )
        self._ends.append(run)
        if self._limiter.admits(task, NOT_REGISTERED):
            self._failures.append(
                Failure(
                    task_id=told_id,
                    task=task[:NAME_LIMIT],
                    queue=queue,
                    retries=0,
                    at=now,
                    kind="unknown_task",
                    exception=NOT_REGISTERED,
                    traceback=f"{NOT_REGISTERED}: {task!r}",
                    fingerprint=fingerprint(task, NOT_REGISTERED, ""),
                    trace_id=None if trace is None else trace.id,
                )
            )

    def _request(self, task_id: str) -> Any:
        """Return the request of a task that was received, the latest of this id; None if there is none."""
        for _, find in reversed(list(self._received)):
            request = find()
            if request is not None and request.id == task_id:
                return request
        return self._requests.get(task_id)

    def _run_of(self, request: Any, outcome: str, exception: str, now: float, runtime: float) -> Run:
        message = self._messages.read(request.request_dict)
        return Run(
            task=message.task,
            queue=message.queue,
            outcome=outcome,
            exception=exception,
            attempt=message.attempt,
            retries=message.retries,
            started=bool(request.time_start),
            ended_at=now,
            runtime=runtime,
            wait=message.wait(request.time_start),
            trace_id=recorded_id(trace_of(request.request_dict)),
            task_id=str(request.id)[:NAME_LIMIT],
        )

    # -- counting

    def gather(self) -> None:
        """Count what was told. Runs before deaths: what a run told of its end is true, whatever became of it after."""
        ends = [self._ends.popleft() for _ in range(len(self._ends))]
        for fields, find in [self._received.popleft() for _ in range(len(self._received))]:
            message = self._messages.read(fields)
            self.totals.count_received(message.task, message.queue, redelivered=message.redelivered)
            request = find()
            if request is not None:
                self._requests[request.id] = request
            # What is known of the same attempt is of an earlier delivery, whose process died.
            self._started.discard(message.attempt)
            self._ended.discard(message.attempt)
        for record in self.pipe.drain():
            self._count(record)
        for record in self.memory.drain():
            self._count(record)
        for run in ends:
            if run.attempt not in self._ended:
                self._count_run(run)
        self._count_starts()
        self.faults += _guard.take_faults()

    def _count(self, record: Run | Failure) -> None:
        if isinstance(record, Failure):
            self._failures.append(record)
            return
        self.runs_lost += record.lost_before
        self.faults += record.faults
        if record.outcome == ABORTED:
            if record.started and record.attempt not in self._started:
                self.totals.row(record.task, record.queue).count_start(record.wait)
                self._started.add(record.attempt)
            return
        self._ended.add(record.attempt)
        self._count_run(record)

    def _count_run(self, run: Run) -> None:
        row = self.totals.row(run.task, run.queue)
        if run.attempt in self._started:
            self._started.discard(run.attempt)
        elif run.started:
            row.count_start(run.wait)
            if run.trace_id:
                row.exemplify_start(run.wait, run.trace_id, run.task_id, run.ended_at)
        row.count_end(run)
        if run.trace_id:
            row.exemplify_end(run)
        self.failed += run.outcome == "failed"

    def _count_starts(self) -> None:
        """Count what runs already: an hour-long task has started, and waited, long before it ends."""
        running = {}
        for request in active():
            message = self._messages.read(request.request_dict)
            running[message.attempt] = request, message
        for attempt in running.keys() - self._started - self._ended:
            request, message = running[attempt]
            self._started.add(attempt)
            row, wait = self.totals.row(message.task, message.queue), message.wait(request.time_start)
            row.count_start(wait)
            trace_id = recorded_id(trace_of(request.request_dict))
            if trace_id:
                row.exemplify_start(wait, trace_id, str(request.id)[:NAME_LIMIT], request.time_start)
        # Whoever is not running any more has told its end, or nobody will.
        self._started &= running.keys()
        self._ended &= running.keys()

    def pick_failures(self) -> list[Failure]:
        """Return those of the failures since the last snapshot that are told, few of each kind."""
        failures, self._failures = self._failures, []
        kinds: dict[str, int] = {}
        picked: list[Failure] = []
        for failure in failures:
            kinds[failure.fingerprint] = kinds.get(failure.fingerprint, 0) + 1
            if kinds[failure.fingerprint] <= FAILURES_OF_A_KIND and len(picked) < FAILURES_LIMIT:
                picked.append(failure)
        return picked


def _failure(request: Any, run: Run, error: BaseException, traceback: str) -> Failure:
    name = class_name(error)
    text = traceback or f"{name}: {error}"
    return Failure(
        task_id=request.id[:NAME_LIMIT],
        task=run.task[:NAME_LIMIT],
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
