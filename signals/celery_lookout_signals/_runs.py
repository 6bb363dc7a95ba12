"""
One run of a task, in the process that runs it: from ``task_prerun`` to ``task_postrun``.

A run may end without an outcome: its process was asked to go, or the task called ``sys.exit``. Then only its start is
told from here, and the main process learns what became of the task.
"""

from __future__ import annotations

import time
from typing import Any, Protocol, Union

from . import _guard
from ._failures import KINDS, Limiter, class_name, fingerprint, shortened
from ._measure import Meter
from ._messages import Message, Messages
from ._records import ABORTED, UNMEASURED, Failure, Run
from ._traces import current_trace, current_trace_id, recorded_id, sentry_event_id, trace_id_of, trace_of

#: Celery's states to outcomes in the words of the wire format. A rejection has two, see ``_rare_outcome``.
_OUTCOMES = {"SUCCESS": "succeeded", "FAILURE": "failed", "RETRY": "retried", "IGNORED": "ignored"}

#: Seconds from one exemplar of a kind of run to the next, in one process.
EXEMPLAR_SECONDS = 1.0

#: The same after a run that could not be one: its trace is not recorded, or there is none. A look takes microseconds.
NO_TRACE_SECONDS = 0.02

#: In between, exemplars are runs that took twice as long as the last one, but not less than this: the histogram's
#: shortest bucket is of runs that are alike.
SHORT_SECONDS = 0.005

#: Runs that take as long as this are all exemplars.
LONG_SECONDS = 1.0

#: Kinds of runs remembered by a process.
KINDS_LIMIT = 1000


class Sink(Protocol):
    """Where runs go."""

    def send(self, run: Run) -> None:
        """Hand *run* over, without waiting."""

    def send_failure(self, failure: Failure) -> None:
        """Hand *failure* over, without waiting."""


#: A run under way: its message, when it began by the Unix and by the monotonic clock, CPU seconds until then.
_Begun = tuple[Message, float, float, float]

#: What runs of one kind have in common: the task, and if they did not succeed, outcome and exception.
_Kind = Union[str, tuple[str, str, str]]

#: Of a kind, the monotonic time from which any run is an exemplar, and the seconds from which one is before.
_ANY = (0.0, 0.0)


class Runs:
    """The runs of one process."""

    def __init__(self, sink: Sink, meter: Meter, messages: Messages) -> None:
        self._sink = sink
        self._meter = meter
        self._messages = messages
        self._limiter = Limiter()
        self._begun: dict[str, _Begun] = {}
        self._exemplars: dict[_Kind, tuple[float, float]] = {}

    def begin(self, task: Any, task_id: str) -> None:
        """Take note of ``task_prerun``. A task that another one calls in place (``apply``) is part of that one."""
        request = task.request
        if request.is_eager or request.called_directly:
            return
        message = self._messages.read(vars(request))
        self._begun[task_id] = message, time.time(), time.monotonic(), self._meter.begin()

    def fail(self, task: Any, task_id: str, error: BaseException, traceback: str) -> None:
        """Tell of a failure in full, if it is one of few: ``task_failure`` of a run that is under way here."""
        begun = self._begun.get(task_id)
        name = class_name(error)
        if begun is None or not self._limiter.admits(task.name, name):
            return
        message, _, since, _ = begun
        self._sink.send_failure(
            Failure(
                task_id=task_id,
                task=task.name,
                queue=message.queue,
                retries=message.retries,
                at=time.time(),
                kind=KINDS.get(type(error).__name__, "exception"),
                exception=name,
                traceback=shortened(traceback),
                fingerprint=fingerprint(task.name, name, traceback),
                runtime=round(time.monotonic() - since, 6),
                trace_id=current_trace_id() or trace_id_of(vars(task.request)),
                sentry_event_id=sentry_event_id(),
                expected=isinstance(error, task.throws or ()),
            )
        )

    def end(self, task: Any, task_id: str, state: str | None, retval: Any) -> None:
        """Tell of a run that ended: ``task_postrun``. *retval* is what it returned or raised."""
        begun = self._begun.pop(task_id, None)
        faults = _guard.take_faults()
        if begun is None:
            if faults:  # one of them may be why
                self._sink.send(Run("", "", ABORTED, started=False, faults=faults))
            return
        message, started_at, since, cpu_before = begun
        now = time.monotonic()
        runtime = now - since
        cpu, growth, peak = self._meter.end(task.name)
        outcome = _OUTCOMES.get(state or "") or _rare_outcome(state, retval)
        run = Run(  # by position: by name takes thrice as long
            task.name,
            message.queue,
            outcome,
            "" if outcome == "succeeded" else _exception(outcome, retval),
            message.attempt,
            message.retries,
            True,  # it started
            time.time(),
            runtime,
            message.wait(started_at),
            UNMEASURED if self._meter.cpu_clock is None else max(cpu - cpu_before, 0.0),
            growth,
            peak,
            0,  # what was lost before it, which the pipe knows
            faults,
        )
        kind = task.name if outcome == "succeeded" else (task.name, outcome, run.exception)
        due, long = self._exemplars.get(kind, _ANY)
        if now >= due or runtime >= long:
            run = self._exemplify(run, kind, now, task_id, task.request)
        self._sink.send(run)

    def _exemplify(self, run: Run, kind: _Kind, now: float, task_id: str, request: Any) -> Run:
        """Return *run* as an exemplar, if its trace is known and recorded."""
        trace_id = recorded_id(current_trace() or trace_of(vars(request)))
        due, _ = self._exemplars.get(kind, _ANY)
        if now >= due:
            due = now + (EXEMPLAR_SECONDS if trace_id else NO_TRACE_SECONDS)
        if len(self._exemplars) >= KINDS_LIMIT:
            self._exemplars.clear()
        self._exemplars[kind] = due, min(max(2 * run.runtime, SHORT_SECONDS), LONG_SECONDS)
        return run._replace(trace_id=trace_id, task_id=str(task_id)) if trace_id else run

    def has(self, task_id: str) -> bool:
        """Say whether a run of this task is under way here."""
        return task_id in self._begun


def _rare_outcome(state: str | None, result: Any) -> str:
    if state == "REJECTED":
        return "requeued" if getattr(result, "requeue", False) else "rejected"
    return ABORTED


def _exception(outcome: str, result: Any) -> str:
    if outcome == "failed":
        return type(result).__name__
    if outcome == "retried":
        cause = getattr(result, "exc", None)
        return type(result if cause is None else cause).__name__
    return ""
