"""
Beat: that it lives, and for each entry of its schedule when it was last sent and is next due.

Celery's own scheduler, django-celery-beat's and redbeat's have the same three things that we hold on to: ``tick``,
which beat calls again and again and which says how long to sleep until the next call; ``apply_async``, which sends an
entry; and ``schedule``. We wrap the first two on this one object. Beat then wakes up as often as it tells of itself, if
it would have slept longer; when entries are due is not touched.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from . import _guard
from ._channel import Channel
from ._guard import guarded
from ._snapshot import Envelope

#: Entries told of.
ENTRIES_LIMIT = 1000


class BeatSide:
    """Everything of one beat."""

    def __init__(self, service: Any, *, interval: float) -> None:
        self._scheduler = service.scheduler
        self._interval = interval
        self._channel = Channel(service.app)
        self._envelope = Envelope("beat", f"beat@{socket.gethostname()}")
        self._next_at = 0.0
        #: Entry to the Unix time at which it was sent last, since this process booted.
        self._sent: dict[str, float] = {}

    def follow(self) -> None:
        """Take our place beside the scheduler."""
        scheduler = self._scheduler
        scheduler.tick = self._beside_tick(scheduler.tick)
        scheduler.apply_async = self._beside_apply(scheduler.apply_async)

    def _beside_tick(self, tick: Callable[..., Any]) -> Callable[..., Any]:
        publish = guarded(self._publish_if_due)

        def tick_and_tell(*args: Any, **kwargs: Any) -> Any:
            seconds = tick(*args, **kwargs)
            publish()
            return min(seconds, self._interval) if isinstance(seconds, (int, float)) else seconds

        return tick_and_tell

    def _beside_apply(self, apply_async: Callable[..., Any]) -> Callable[..., Any]:
        note = guarded(self._note_sent)

        def apply_and_note(entry: Any, *args: Any, **kwargs: Any) -> Any:
            result = apply_async(entry, *args, **kwargs)
            note(entry)
            return result

        return apply_and_note

    def _note_sent(self, entry: Any) -> None:
        if len(self._sent) < ENTRIES_LIMIT or entry.name in self._sent:
            self._sent[entry.name] = time.time()

    def _publish_if_due(self) -> None:
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + self._interval
        entries = list(self._scheduler.schedule.values())
        told = [self._wire(entry) for entry in entries[:ENTRIES_LIMIT]]
        fields = {"entries": told, "entries_left_out": len(entries) - len(told)}
        self._channel.publish(self._envelope.wrap(fields, interval=self._interval, final=False))

    def _wire(self, entry: Any) -> dict[str, Any]:
        sent = self._sent.get(entry.name)
        if sent is None and entry.total_run_count and entry.last_run_at is not None:
            sent = entry.last_run_at.timestamp()  # by the beat before this one
        return {"entry": entry.name, "task": entry.task, "last_sent_at": sent, "next_due_at": self._due(entry)}

    @staticmethod
    def _due(entry: Any) -> float | None:
        try:
            left: float = entry.schedule.remaining_estimate(entry.last_run_at).total_seconds()
            return round(time.time() + left, 3)
        except Exception as error:  # noqa: BLE001  # schedules may be anybody's; one that fails costs its own due time
            _guard.note("next_due", error)
            return None
