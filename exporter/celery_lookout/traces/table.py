"""
The life of each task as spans, from its events.

Of a run there is one span, from ``task-started`` to its end; of each publishing that ``task-sent`` told of there is one
without duration, and the run hangs below it: the gap between the two is the wait in the queue. That is how
OpenTelemetry's own instrumentation of Celery draws it.

What hangs below what:

- a task below the run, of its parent, that published it: the last one sent before it was;
- another attempt below the one that retries, and so does the task that one was replaced with;
- everything with one root in one trace.

Events come late, twice, out of order or never, and ids of parents are looked up in other tasks' events. So what
is complete is left alone for a moment before it becomes a span. An attempt ends once. One that has no end, although a
later attempt has one, ended when that was sent.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice, pairwise, takewhile
from typing import Final, NamedTuple

from ..events import Event
from ..state.exceptions import exception_class
from ..state.tasks import EVICTED_SHARE, NOT_FAILURES
from .ids import run_span_id, trace_id
from .records import Attempt, Task, last_running, publisher
from .spans import Span, published, ran

#: Tasks remembered, some 1,000 bytes each. Those that wait in a queue are told again when a worker receives them.
TASKS_LIMIT: Final = 100_000

#: Seconds between an event and the span it completes. ``task-sent``, and what the parent's worker says, travel on
#: other connections; on RabbitMQ 0.7 was the longest seen.
SETTLE_SECONDS: Final = 2.0

#: What settles at a time; past that the oldest becomes a span as it is.
SETTLING_LIMIT: Final = 100_000

#: Finished spans that wait to be sent, some 800 bytes each; what comes on top is dropped.
QUEUE_LIMIT: Final = 20_000

#: Seconds for which a task that ended is remembered: for its children, and for who asks for its trace.
ENDED_SECONDS: Final = 60.0

#: A longer runtime is nobody's.
LONGEST_SECONDS: Final = 86_400.0 * 365

#: Attempts of a task that are remembered.
ATTEMPTS_LIMIT: Final = 8

#: Names of tasks, queues and workers that are kept once and not with each attempt.
TEXTS_LIMIT: Final = 10_000

#: What a replacement adds to the number of a run: more than there can be retries.
_REPLACEMENT: Final = 2**54

log = logging.getLogger(__name__)


class _Settling(NamedTuple):
    """What is to be done with an attempt when its moment is over."""

    due: float
    task: Task
    attempt: Attempt
    is_end: bool


class SpanTable:
    """
    Makes spans of one broker's events.

    *system* is OpenTelemetry's name of the broker's kind. *queue_of* returns the queue that a ``task-sent`` names.
    *dropped* is called with a number of spans that will never be sent: there was no room, or nobody told to what task
    they belong.
    """

    def __init__(
        self,
        *,
        system: str,
        queue_of: Callable[[Event], str | None],
        dropped: Callable[[int], None],
        limit: int = TASKS_LIMIT,
    ) -> None:
        self._system = system
        self._queue_of = queue_of
        self._dropped = dropped
        self._limit = limit
        self._tasks: dict[str, Task] = {}
        self._settling: deque[_Settling] = deque()
        self._over: deque[tuple[float, str]] = deque()
        self._finished: deque[Span] = deque()
        self._texts: dict[str, str] = {}
        self._faults: set[type[Exception]] = set()
        self._now = 0.0
        self._handlers: dict[str, Callable[[Event], None]] = {
            "task-sent": self._sent,
            "task-received": self._received,
            "task-started": self._started,
            "task-succeeded": partial(self._end, "SUCCESS"),
            "task-failed": self._failed,
            "task-retried": self._retried,
            "task-revoked": self._revoked,
            "task-rejected": self._rejected,
            "task-cancelled": self._put_back,
        }

    @property
    def waiting(self) -> int:
        """How many finished spans wait to be sent."""
        return len(self._finished)

    def fold(self, batch: Iterable[Event], now: float) -> None:
        """Take in events read at *now*."""
        self.tick(now)
        handlers = self._handlers
        for event in batch:
            handle = handlers.get(event.type)
            if handle is not None:
                try:
                    handle(event)
                except Exception as error:  # noqa: BLE001  # a fault of ours costs a span, not the intake of events
                    self._fault(error)

    def tick(self, now: float) -> None:
        """Do what is due at *now*. Call it about once a second, also when nothing comes in."""
        if now < self._now:  # the clock was set back
            self._shift(now - self._now)
        self._now = now
        settling, over = self._settling, self._over
        while settling and (settling[0].due <= now or len(settling) > SETTLING_LIMIT):
            self._settle(settling.popleft())
        while over and now - over[0][0] > ENDED_SECONDS:
            task_id = over.popleft()[1]
            task = self._tasks.get(task_id)
            if task is not None and task.is_over:
                del self._tasks[task_id]

    def _shift(self, seconds: float) -> None:
        self._settling = deque(one._replace(due=one.due + seconds) for one in self._settling)
        self._over = deque((at + seconds, task_id) for at, task_id in self._over)

    def flush(self) -> None:
        """Let nothing settle any longer: this is the end."""
        while self._settling:
            self._settle(self._settling.popleft())

    def take(self, number: int) -> list[Span]:
        """Return up to *number* finished spans, the oldest first; they are the caller's from now on."""
        finished = self._finished
        return [finished.popleft() for _ in range(min(number, len(finished)))]

    def trace_id_of(self, task_id: str) -> str | None:
        """Return the trace of a task as 32 hexadecimal digits; None of one that is not, or not any more, known."""
        task = self._tasks.get(task_id)
        return None if task is None or not task.trace_id else format(task.trace_id, "032x")

    # -- events

    def _sent(self, event: Event) -> None:
        task = self._task(event)
        attempt = self._attempt(event, task, is_sent=True)
        if attempt is None or attempt.is_done or attempt.sent_at:
            return
        queue = self._queue_of(event)
        attempt.queue = None if queue is None else self._shared(queue)
        attempt.name = self._shared(event.name) if event.name else attempt.name
        attempt.publisher = self._shared(event.hostname)
        attempt.sent_at = event.timestamp
        if attempt.is_placed:
            self._publish(task, attempt)

    def _received(self, event: Event) -> None:
        attempt = self._attempt(event, self._task(event), is_sent=False)
        if attempt is not None and not attempt.received_at:
            attempt.received_at = event.timestamp
            attempt.name = attempt.name or (self._shared(event.name) if event.name else None)

    def _started(self, event: Event) -> None:
        attempts = self._task(event).attempts
        at = event.timestamp
        if any(attempt.started_at == at for attempt in attempts):
            return
        open_ones = [attempt for attempt in attempts if not attempt.ended_at]
        if open_ones:
            attempt = next((attempt for attempt in open_ones if not attempt.started_at), open_ones[-1])
            if at > attempt.started_at:  # otherwise told twice; later means that it was delivered again
                attempt.started_at = at
                attempt.worker = self._shared(event.hostname)

    def _failed(self, event: Event) -> None:
        raised = exception_class(event.exception, event.traceback)
        if raised not in NOT_FAILURES:
            self._end("FAILURE", event, raised)

    def _revoked(self, event: Event) -> None:
        self._end("REVOKED", event, "expired" if event.expired else "terminated" if event.terminated else "revoked")

    def _rejected(self, event: Event) -> None:
        if event.requeue:
            self._put_back(event)
        else:
            self._end("REJECTED", event)

    def _put_back(self, event: Event) -> None:
        """The worker gave the task away unfinished: there will be another delivery, or nothing."""
        task = self._tasks.get(event.uuid)
        attempt = last_running(task.attempts) if task is not None else None
        if attempt is not None and event.timestamp >= attempt.started_at:
            attempt.started_at = 0.0

    def _retried(self, event: Event) -> None:
        task = self._task(event)
        attempt = next((attempt for attempt in task.attempts if not attempt.ended_at), None)
        self._close(event, task, attempt, "RETRY", exception_class(event.exception, event.traceback))

    def _end(self, state: str, event: Event, reason: str = "") -> None:
        task = self._task(event)
        if self._close(event, task, last_running(task.attempts), state, reason):
            task.is_over = True
            self._over.append((self._now, event.uuid))

    def _close(self, event: Event, task: Task, attempt: Attempt | None, state: str, reason: str) -> bool:
        """End *attempt*; return False if there is none, or the event was heard before."""
        if attempt is None or any(other.ended_at == event.timestamp for other in task.attempts):
            return False
        if not attempt.started_at or attempt.worker != event.hostname:
            # The start was not heard, or is that of another delivery.
            runtime = event.runtime or 0.0
            attempt.started_at = event.timestamp - (runtime if 0 < runtime < LONGEST_SECONDS else 0.0)
            attempt.worker = self._shared(event.hostname)
        attempt.ended_at = event.timestamp
        attempt.state = state
        attempt.reason = reason
        self._settle_later(task, attempt, is_end=True)
        return True

    # -- records

    def _task(self, event: Event) -> Task:
        """Return the task's record, made if there is none, with the trace if the event tells it."""
        task = self._tasks.get(event.uuid)
        if task is None:
            if len(self._tasks) >= self._limit:
                self._evict()
            task = self._tasks[event.uuid] = Task(event.uuid)
            if event.name is None:
                self._add(task, Attempt(-1, 0))
        if not task.trace_id and event.name is not None:
            task.trace_id = trace_id(event.root_id or event.uuid)
        return task

    def _add(self, task: Task, attempt: Attempt) -> Attempt:
        if len(task.attempts) >= ATTEMPTS_LIMIT:
            gone = task.attempts.pop(0)
            self._dropped(int(gone.is_running))
        task.is_over = False
        task.attempts.append(attempt)
        self._settle_later(task, attempt, is_end=False)
        return attempt

    def _attempt(self, event: Event, task: Task, *, is_sent: bool) -> Attempt | None:
        """
        Return the attempt that a ``task-sent`` or ``task-received`` is about, made if it is new; None if it is too old.

        A task that is replaced goes on under its id, as something else below its own former children, or itself.
        """
        retries = event.retries or 0
        parent_id = event.parent_id if event.root_id else None  # without a root it is in no other's trace
        same = 0
        for attempt in reversed(task.attempts):
            if attempt.retries == -1 and attempt.state == "RETRY" and retries:
                attempt.retries = attempt.number = retries - 1
                continue
            if attempt.retries == -1 and not 0 < attempt.ended_at < event.timestamp:
                attempt.retries = attempt.number = retries
                attempt.parent_id = parent_id
                attempt.is_placed = False
                self._settle_later(task, attempt, is_end=False)
                return attempt
            if attempt.retries != retries:
                continue
            if attempt.parent_id == parent_id and not (is_sent and 0 < attempt.sent_at < event.timestamp):
                return attempt
            same += 1
            if attempt.is_running:
                attempt.ended_at, attempt.state = event.timestamp, "IGNORED"
                self._settle_later(task, attempt, is_end=True)
        if task.attempts and not same and retries < task.attempts[-1].retries:
            return None
        return self._add(task, Attempt(retries, retries + same * _REPLACEMENT, parent_id))

    def _evict(self) -> None:
        """
        Drop the oldest records. What waits is told again; what runs is spared once, since then its span is lost.

        Not twice, since there are tasks of which no end is told.
        """
        count = max(1, int(self._limit * EVICTED_SHARE))
        while len(self._tasks) > self._limit - count:
            for task_id in list(islice(self._tasks, count)):
                task = self._tasks.pop(task_id)
                if any(attempt.is_running for attempt in task.attempts):
                    if task.was_spared:
                        self._dropped(1)
                    else:
                        task.was_spared = True
                        self._tasks[task_id] = task

    def _shared(self, text: str) -> str:
        """Return an equal text that others have, too: few different ones are in very many events."""
        texts = self._texts
        if len(texts) >= TEXTS_LIMIT:
            texts.clear()
        return texts.setdefault(text, text)

    # -- spans

    def _settle_later(self, task: Task, attempt: Attempt, *, is_end: bool) -> None:
        self._settling.append(_Settling(self._now + SETTLE_SECONDS, task, attempt, is_end))

    def _settle(self, settling: _Settling) -> None:
        try:
            if settling.is_end:
                self._finish(settling.task, settling.attempt)
            else:
                self._place(settling.task, settling.attempt)
        except Exception as error:  # noqa: BLE001  # as in ``fold``
            self._fault(error)

    def _place(self, task: Task, attempt: Attempt) -> None:
        """Find what the attempt hangs below, while that is known, and tell that it was published."""
        if attempt.is_placed:
            return
        attempt.above = self._above(task, attempt)
        attempt.is_placed = True
        if attempt.sent_at:
            self._publish(task, attempt)

    def _above(self, task: Task, attempt: Attempt) -> int:
        if attempt.retries > 0:
            return run_span_id(task.task_id, attempt.number - 1)
        if attempt.parent_id is None:
            return 0
        if attempt.parent_id == task.task_id:
            earlier = list(takewhile(lambda other: other is not attempt, task.attempts))
            return run_span_id(task.task_id, earlier[-1].number) if earlier else 0
        parent = self._tasks.get(attempt.parent_id)
        if parent is None:
            return run_span_id(attempt.parent_id, 0)
        if parent.trace_id not in (0, task.trace_id):
            return 0
        return run_span_id(parent.task_id, publisher(parent.attempts, attempt.began_at))

    def _publish(self, task: Task, attempt: Attempt) -> None:
        attempt.is_published = True
        self._queue(published(task, attempt, self._system))

    def _finish(self, task: Task, attempt: Attempt) -> None:
        """Make the span of an attempt that ended; if it is the last, also of those that no event ended."""
        if attempt.state != "RETRY":
            for earlier, later in pairwise(task.attempts):
                if earlier is attempt:
                    break
                if earlier.is_running:
                    earlier.ended_at = later.began_at
                    earlier.state = "RETRY" if later.retries > earlier.retries else "IGNORED"
                    self._run(task, earlier)
        self._run(task, attempt)

    def _run(self, task: Task, attempt: Attempt) -> None:
        self._place(task, attempt)
        attempt.is_done = True
        self._queue(ran(task, attempt, self._system))

    def _queue(self, span: Span | None) -> None:
        if span is not None and len(self._finished) < QUEUE_LIMIT:
            self._finished.append(span)
        else:
            self._dropped(1)

    def _fault(self, error: Exception) -> None:
        self._dropped(1)
        if type(error) not in self._faults:
            self._faults.add(type(error))
            log.error("fault while making a span", exc_info=error)
