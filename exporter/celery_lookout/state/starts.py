"""
The starts of a worker: those we heard of, held against the number that its heartbeats tell.

What is missing after a gap, and was not missing before, is lost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ..events import Event

#: Heartbeats over which a worker's count is held against ours, or found silent: events overtake each other a little.
SETTLING_HEARTBEATS: Final = 2


def comes_again(event: Event, newest: Event | None) -> bool:
    """
    Say whether *event* was heard before, given the *newest* one of its kind from the same worker.

    Celery's logical clock begins anew with each process and the worker's own clock may be set, so an event is old only
    if both say so. To be asked of what waited in a queue: a forged time must not silence what a worker says now.
    """
    return (
        newest is not None
        and event.timestamp <= newest.timestamp
        and event.clock is not None
        and newest.clock is not None
        and event.clock <= newest.clock
    )


class Unseen(NamedTuple):
    """Starts that a worker had counted and we had not seen, when it had ``processed`` so many."""

    starts: int
    processed: int


@dataclass(slots=True, eq=False)
class Starts:
    """The starts of one process of a worker."""

    #: Those we saw since ``counted_from``, which was the worker's own count then.
    seen: int = 0
    counted_from: int | None = None
    #: The worker's own count, as it told last.
    processed: int = 0
    newest: Event | None = None
    #: How many we did not see, at the last heartbeats. Events overtake each other: the least is true.
    unseen: deque[Unseen] = field(default_factory=lambda: deque(maxlen=SETTLING_HEARTBEATS))
    #: The least of them before the gap that is being measured; None while there is none.
    before_gap: Unseen | None = None
    #: Part of its starts that we do not see in ordinary operation: of tasks with ``send_events = False``.
    quiet_share: float = 0.0
    #: Those seen by the last heartbeat, and the heartbeats since in which the worker counted starts and we saw none.
    seen_at_heartbeat: int = 0
    silent_heartbeats: int = 0

    @property
    def are_silent(self) -> bool:
        """Whether the worker counts starts and nobody hears of them: its task events are off."""
        return self.silent_heartbeats > SETTLING_HEARTBEATS

    def hear(self, event: Event, *, live: bool) -> None:
        """Count ``task-started``, unless it comes again: those of a process come in the order of its clock."""
        if live or not comes_again(event, self.newest):
            self.seen += 1
            self.newest = event

    def begin_anew(self) -> None:
        """A new process counts from 0."""
        self.seen = self.seen_at_heartbeat = self.silent_heartbeats = self.processed = self.counted_from = 0
        self.newest = None
        self.unseen.clear()
        if self.before_gap is not None:
            self.before_gap = Unseen(0, 0)

    def measure_gap(self) -> None:
        """Begin to measure what was lost; a gap that follows at once belongs to the one before."""
        if self.before_gap is None and self.unseen:
            self.before_gap = least = min(self.unseen)
            counted = least.processed - (self.counted_from or 0)
            self.quiet_share = min(max(least.starts / counted, 0.0), 1.0) if counted > 0 else 0.0
        self.unseen.clear()

    def compare(self, processed: int) -> int:
        """Hold the worker's count in a heartbeat against ours; return the starts lost in a gap that this one closes."""
        if self.counted_from is None or processed < self.processed:
            self.counted_from = processed - self.seen
        self._judge_silence(processed)
        self.processed = processed
        self.unseen.append(Unseen(processed - self.counted_from - self.seen, processed))
        before = self.before_gap
        if before is None or len(self.unseen) < SETTLING_HEARTBEATS:
            return 0
        self.before_gap = None
        least = min(self.unseen)
        lost = max(round(least.starts - before.starts - self.quiet_share * (least.processed - before.processed)), 0)
        self.counted_from += lost
        self.unseen.clear()
        self.unseen.append(Unseen(least.starts - lost, least.processed))
        return lost

    def _judge_silence(self, processed: int) -> None:
        if self.seen != self.seen_at_heartbeat:
            self.silent_heartbeats = 0
        elif processed > self.processed or self.silent_heartbeats:
            self.silent_heartbeats += 1
        self.seen_at_heartbeat = self.seen
