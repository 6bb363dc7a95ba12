"""What is told in full of a task that failed or was lost, for whoever forwards it."""

from __future__ import annotations

import re
from typing import Final

from ..events import Event
from ..failures import Failure, FailureKind, shortened
from ..metrics.limits import UNKNOWN
from .exceptions import TERMINATIONS
from .records import Row, Task

#: What kind of failure a class of exception is, where it is not simply an exception.
_KINDS: Final[dict[str, FailureKind]] = {**TERMINATIONS, "NotRegistered": "unknown_task"}

_NOT_REGISTERED: Final = re.compile(r"NotRegistered\('([^'\\]{1,255})'\)")


def failed(event: Event, task: Task, raised: str, trace_id: str | None) -> Failure:
    """Return what a ``task-failed`` tells of *task*; *raised* is the bare class of its exception."""
    name = task.row.series.task
    # The only event of a task that no worker knows has its name just there, unless its publisher told.
    named = _NOT_REGISTERED.fullmatch(event.exception or "") if name == UNKNOWN else None
    return Failure(
        kind=_KINDS.get(raised, "exception"),
        task_id=event.uuid,
        task=name if named is None else named[1],
        queue=task.row.queue.name,
        worker=event.hostname,
        retries=max(task.retries, 0),
        at=event.timestamp,
        exception=shortened(event.exception or ""),
        traceback=shortened(event.traceback or ""),
        runtime=max(event.timestamp - task.started_at, 0.0) if task.started_at else None,
        trace_id=trace_id,
    )


def lost(task_id: str, row: Row, worker: str, started_at: float, now: float, retries: int = 0) -> Failure:
    """Return what is told of a task that went with *worker*, or of several of one kind without their ids."""
    return Failure(
        kind="lost",
        task_id=task_id,
        task=row.series.task,
        queue=row.queue.name,
        worker=worker,
        retries=retries,
        at=now,
        runtime=max(now - started_at, 0.0),
    )
