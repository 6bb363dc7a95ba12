"""
A failure told in full, as it travels from ``state``, which finds it in events and snapshots, to ``sentry``.

Neither arguments nor results are in it; the exception's message is.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

FailureKind = Literal["exception", "soft_time_limit", "hard_time_limit", "worker_lost", "unknown_task", "lost"]

#: Of these a worker cannot tell well itself: the process that ran the task is gone, or there is no task.
KILLS: Final[frozenset[FailureKind]] = frozenset({"hard_time_limit", "worker_lost", "lost"})


class Failure(Struct, frozen=True, gc=False):
    """One attempt of a task that failed for good. What is not known is empty or None."""

    kind: FailureKind
    task_id: str
    task: str
    queue: str
    #: Node name, ``name@host``.
    worker: str
    #: 0 for the first attempt.
    retries: int
    #: Unix time by the worker's clock.
    at: float
    #: From a snapshot the class with its module, from an event ``repr()`` of the exception, which may hide the class.
    exception: str = ""
    #: As Python prints it, the raised exception and its message last. Its middle may be left out.
    traceback: str = ""
    #: Seconds that the task ran.
    runtime: float | None = None
    #: 32 hexadecimal digits.
    trace_id: str | None = None
    #: Of the Sentry event that the worker's own SDK sent.
    sentry_event_id: str | None = None
