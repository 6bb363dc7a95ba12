"""
A failure told in full, as it travels from ``state``, which finds it in events and snapshots, to ``sentry``.

Neither arguments nor results are in it; the exception's message is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeGuard, get_args

from msgspec import Struct

if TYPE_CHECKING:
    from .snapshots import BeatSnapshot

FailureKind = Literal["exception", "soft_time_limit", "hard_time_limit", "worker_lost", "unknown_task", "lost"]

_KINDS: Final = frozenset(get_args(FailureKind))

#: Characters of an exception or a traceback that are kept.
TEXT_LIMIT: Final = 32 * 1024

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
    #: Whether the task announces this class of exception (``throws``). Only snapshots tell.
    expected: bool = False


def is_kind(text: str) -> TypeGuard[FailureKind]:
    """Say whether *text*, which came over the network, is a kind of failure."""
    return text in _KINDS


def shortened(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return *text* with its middle left out if it has more than *limit* characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n  [… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


class FailureSink(Protocol):
    """Who wants to be told of what goes wrong, and of what beat does."""

    def take(self, failure: Failure) -> None:
        """Take one in, without waiting."""

    def take_untold(self, count: int) -> None:
        """Take note of failures that are counted and that a worker does not tell in full."""

    def take_beat(self, snapshot: BeatSnapshot, now: float) -> None:
        """Take in what beat tells, at *now*."""
