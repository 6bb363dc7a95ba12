"""
Beat: that it lives, and for each entry of its schedule when it was last sent and is next due.

Celery's own scheduler, django-celery-beat's and redbeat's have in common ``tick``, which beat calls again and again and
which says how long to sleep until the next call, and ``apply_async``, which sends an entry. We wrap both, on this one
object. Beat then wakes up in time to tell of itself, if it would have slept longer; when entries are due is untouched.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from ._channel import Channel
from ._guard import guarded
from ._snapshot import Envelope

_CRONTAB_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")

#: Entries told of.
ENTRIES_LIMIT = 1000


class _Planned(NamedTuple):
    """An entry of the schedule, Celery's or alike, and when it is next due: Unix time, None if that is not known."""

    entry: Any
    due_at: float | None


class BeatSide:
    """Everything of one beat."""

    def __init__(self, service: Any, *, interval: float) -> None:
        self._scheduler = scheduler = service.scheduler
        self._plan = _RedbeatPlan(scheduler) if _is_redbeat(scheduler) else _Plan(scheduler)
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
            if isinstance(seconds, (int, float)) and seconds > 0:
                return min(seconds, max(self._next_at - time.monotonic(), 0.001))
            return seconds

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
            self._sent[entry.name] = round(time.time(), 3)

    def _publish_if_due(self) -> None:
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + self._interval
        planned = list(self._plan.read())
        told = [self._wire(entry, due_at) for entry, due_at in planned[:ENTRIES_LIMIT]]
        fields = {"entries": told, "entries_left_out": len(planned) - len(told)}
        self._channel.publish(self._envelope.wrap(fields, interval=self._interval, final=False))

    def _wire(self, entry: Any, due_at: float | None) -> dict[str, Any]:
        sent = self._sent.get(entry.name)
        if sent is None and entry.total_run_count and entry.last_run_at is not None:
            sent = entry.last_run_at.timestamp()  # by the beat before this one
        told = {"entry": entry.name, "task": entry.task, "last_sent_at": sent, "next_due_at": due_at}
        with suppress(Exception):  # a schedule of somebody else's class
            told.update(_schedule(entry.schedule))
        return told


def _schedule(schedule: Any) -> dict[str, Any]:
    """Return when *schedule* is due, as far as it is a crontab or an interval."""
    fields = [getattr(schedule, f"_orig_{name}", None) for name in _CRONTAB_FIELDS]
    if all(isinstance(field, (str, int)) for field in fields):
        return {"crontab": " ".join(str(field).replace(" ", "") for field in fields), "timezone": str(schedule.tz)}
    return {"every": schedule.run_every.total_seconds()}


class _Plan:
    """The schedule of Celery's own scheduler, and of those that derive from it and keep its heap."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def read(self) -> Iterable[_Planned]:
        """Return all entries."""
        # Celery has worked out when each is due, by its rules, and keeps that as Unix time.
        due = {event[2].name: event[0] for event in self._scheduler._heap or ()}  # noqa: SLF001
        for entry in list(self._scheduler.schedule.values()):
            yield _Planned(entry, _rounded(due.get(entry.name)))


class _RedbeatPlan:
    """The schedule of redbeat, which keeps it in a sorted set on Redis: key of the entry, and when it is due."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        #: Entries by key, with the due time at which each was read. It moves when the entry is sent or changed.
        self._known: dict[str, _Planned] = {}

    def read(self) -> Iterable[_Planned]:
        """Return all entries, of which only those are read whose due time has moved: ``schedule`` has just the next."""
        from redbeat.schedulers import get_redis

        app = self._scheduler.app
        keys = get_redis(app).zrange(app.redbeat_conf.schedule_key, 0, -1, withscores=True)
        known = {}
        for key, due_at in keys:
            planned = self._known.get(key)
            if planned is None or planned.due_at != due_at:
                try:
                    planned = _Planned(self._scheduler.Entry.from_key(key, app=app), due_at)
                except KeyError:  # deleted meanwhile
                    continue
            known[key] = planned
        self._known = known
        return known.values()


def _is_redbeat(scheduler: Any) -> bool:
    return any(kind.__module__.startswith("redbeat.") for kind in type(scheduler).__mro__)


def _rounded(at: float | None) -> float | None:
    return None if at is None else round(at, 3)
