"""
A finished span, as it travels from the table to the exporter, and how it is made of an attempt.

What the attributes are called is in OpenTelemetry's conventions for messaging; ``celery.…`` is as in its
instrumentation of Celery.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from .ids import publish_span_id, run_span_id
from .records import Attempt, Task

Attribute = str | int

_REASONS: Final = {
    "FAILURE": "error.type",
    "RETRY": "celery.retry.reason",
    "REVOKED": "celery.revoked.reason",
}


class Span(Struct, frozen=True, gc=False):
    """
    One span. Times are Unix times by the sender's clock; they may be equal, and never run backwards.

    Neither arguments nor results are in it, nor the message of an exception.
    """

    kind: Literal["publish", "run"]
    name: str
    trace_id: int
    span_id: int
    #: 0 for the first of its trace.
    parent_id: int
    started_at: float
    ended_at: float
    #: The class of the exception that the task failed with; empty if it did not.
    error: str
    attributes: dict[str, Attribute]


def published(task: Task, attempt: Attempt, system: str) -> Span | None:
    """Return the span of an attempt's publishing; None when it is not known of what task."""
    name = _name(task, attempt)
    if name is None:
        return None
    return Span(
        kind="publish",
        name=f"apply_async/{name}",
        trace_id=task.trace_id,
        span_id=publish_span_id(task.task_id, attempt.number),
        parent_id=attempt.above,
        started_at=attempt.sent_at,
        ended_at=attempt.sent_at,
        error="",
        attributes=_attributes(task, attempt, system, name, "apply_async", "send", attempt.publisher),
    )


def ran(task: Task, attempt: Attempt, system: str) -> Span | None:
    """Return the span of an attempt that ended; None when it is not known of what task."""
    name = _name(task, attempt)
    if name is None:
        return None
    attributes = _attributes(task, attempt, system, name, "run", "process", attempt.worker)
    attributes["celery.state"] = attempt.state
    if attempt.reason:
        attributes[_REASONS[attempt.state]] = attempt.reason
    return Span(
        kind="run",
        name=f"run/{name}",
        trace_id=task.trace_id,
        span_id=run_span_id(task.task_id, attempt.number),
        parent_id=publish_span_id(task.task_id, attempt.number) if attempt.is_published else attempt.above,
        started_at=attempt.started_at,
        ended_at=max(attempt.started_at, attempt.ended_at),
        error=attempt.reason if attempt.state == "FAILURE" else "",
        attributes=attributes,
    )


def _attributes(
    task: Task, attempt: Attempt, system: str, name: str, action: str, operation: str, hostname: str
) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {
        "messaging.system": system,
        "messaging.operation.name": action,
        "messaging.operation.type": operation,
        "messaging.message.id": task.task_id,
        "celery.action": action,
        "celery.task_name": name,
        "celery.retries": max(attempt.retries, 0),
        "celery.hostname": hostname,
    }
    if attempt.queue:
        attributes["messaging.destination.name"] = attempt.queue
    return attributes


def _name(task: Task, attempt: Attempt) -> str | None:
    if not task.trace_id:
        return None
    return attempt.name or next((other.name for other in task.attempts if other.name), None)
