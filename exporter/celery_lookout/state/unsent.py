"""Events of tasks that nobody told us were sent: they wait a moment, since ``task-sent`` can come last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from msgspec import Struct

from ..events import Event

#: Seconds an event waits for the ``task-sent`` of its task. On RabbitMQ 0.7 was the longest seen, and reading pauses.
HOLD_SECONDS: Final = 1.25

#: Tasks held at a time; past that the one held longest is counted as it is.
HELD_LIMIT: Final = 100_000

#: Without any ``task-sent`` for this long, publishers do not send it, and nothing is held.
SENT_EXPECTED_SECONDS: Final = 60.0

#: An event, and what is to be done with it.
Put: TypeAlias = tuple[Callable[[Event], None], Event]


class _Held(Struct):
    since: float
    events: list[Put]


class Unsent:
    """The events that wait, by task, those that wait longest first."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._sent_heard_at: float | None = None

    def items(self) -> Iterator[tuple[str, list[Put]]]:
        """Yield task ids, each with its events."""
        return ((task_id, held.events) for task_id, held in self._held.items())

    def hear_sent(self, now: float) -> None:
        """A ``task-sent`` came: publishers send it."""
        self._sent_heard_at = now

    def put_aside(self, event: Event, handle: Callable[[Event], None], now: float) -> bool:
        """Hold the event of an unknown task until its ``task-sent`` comes; return False when none is expected."""
        held = self._held.get(event.uuid)
        if held is None:
            if self._sent_heard_at is None or now - self._sent_heard_at >= SENT_EXPECTED_SECONDS:
                return False
            held = self._held[event.uuid] = _Held(now, [])
        held.events.append((handle, event))
        return True

    def restore(self, task_id: str, events: list[Put], since: float) -> None:
        """Go on holding what an earlier process held."""
        self._held[task_id] = _Held(since, events)

    def pop(self, task_id: str) -> list[Put]:
        """Return what is held of the task, and hold it no more."""
        held = self._held.pop(task_id, None)
        return [] if held is None else held.events

    def due(self, now: float) -> list[str]:
        """Return the tasks whose events have waited long enough; all at once, since the front of a dict is slow."""
        if self._sent_heard_at is None:
            self._sent_heard_at = now  # publishers get the benefit of the doubt at first
        excess = len(self._held) - HELD_LIMIT
        due: list[str] = []
        for task_id, held in self._held.items():
            if now - held.since < HOLD_SECONDS and len(due) >= excess:
                break
            due.append(task_id)
        return due

    def shift(self, seconds: float) -> None:
        """Move what is measured on our own clock by *seconds*."""
        if self._sent_heard_at is not None:
            self._sent_heard_at += seconds
        for held in self._held.values():
            held.since += seconds
