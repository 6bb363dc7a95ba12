"""What is remembered of a task and its runs, until they are spans."""

from __future__ import annotations

from msgspec import Struct


class Attempt(Struct, gc=False):
    """One run of a task. Times are Unix times, 0 for "not yet"."""

    #: -1 as long as no event told.
    retries: int
    #: Tells it from the task's others: ``retries``, and more if the task was replaced.
    number: int
    parent_id: str | None = None
    name: str | None = None
    queue: str | None = None
    sent_at: float = 0.0
    publisher: str = ""
    received_at: float = 0.0
    started_at: float = 0.0
    worker: str = ""
    ended_at: float = 0.0
    state: str = ""
    #: Class of the exception that it failed with or retries for, or why it was revoked.
    reason: str = ""
    #: The span above is known; its id, 0 if there is none.
    is_placed: bool = False
    above: int = 0
    #: The span of its publishing is out.
    is_published: bool = False
    #: Its own span is out: nothing changes any more.
    is_done: bool = False

    @property
    def began_at(self) -> float:
        """When it was first heard of."""
        return self.sent_at or self.received_at or self.started_at

    @property
    def is_running(self) -> bool:
        """Whether it was started, and no end was heard."""
        return bool(self.started_at and not self.ended_at)


class Task(Struct, gc=False):
    """What is known of one task id."""

    task_id: str
    #: 0 until an event told its root.
    trace_id: int = 0
    #: In the order in which they were sent.
    attempts: list[Attempt] = []
    is_over: bool = False
    #: It was not dropped from a full table, although it was its turn.
    was_spared: bool = False


def last_running(attempts: list[Attempt]) -> Attempt | None:
    """Return the last attempt that a worker has and that is not over; one that was only sent, if there is no other."""
    last = None
    for attempt in reversed(attempts):
        if not attempt.ended_at:
            if attempt.received_at or attempt.started_at:
                return attempt
            last = last or attempt
    return last


def publisher(attempts: list[Attempt], at: float) -> int:
    """
    Return the number of the attempt that published something *at* that time.

    An attempt lasts from when it was sent until the next is sent, all by the clock of one machine. ``task-started``
    would be more to the point, but the main process writes its time down when the pool process is at work already.
    """
    found = attempts[0]
    for attempt in attempts:
        if attempt.began_at <= at:
            found = attempt
    return found.number
