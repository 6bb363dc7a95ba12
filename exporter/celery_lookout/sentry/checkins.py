"""
Sentry's check-ins for periodic tasks, from what beat tells of its schedule.

A check-in says that beat sent the task, and Sentry notices by itself when one is missing. What came of the task is
told as a failure.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from typing import Any, Final

from ..snapshots import BeatSnapshot, Entry

#: Seconds after which it is too late: a check-in counts for the time at which Sentry gets it.
FRESH_SECONDS: Final = 60.0

#: Sentry knows no schedule below a minute. Entries that are sent more often check in about once a minute.
_LEAST_SECONDS: Final = 55.0

#: Entries remembered; a schedule has up to 1,000.
_ENTRIES_LIMIT: Final = 10_000

#: Minutes after its time at which Sentry misses one. Beat's snapshots come every few seconds.
_MARGIN_MINUTES: Final = 2

#: Characters of a monitor's name in addresses.
_SLUG: Final = 50


class CheckIns:
    """The check-ins of one broker's beats."""

    def __init__(self) -> None:
        #: Entry to when it was sent, as its last check-in told.
        self._told: dict[str, float] = {}

    def of(self, snapshot: BeatSnapshot, now: float) -> Iterator[dict[str, Any]]:
        """Yield a check-in for each entry that was sent since the last one, and just now."""
        if len(self._told) > _ENTRIES_LIMIT:
            self._told.clear()
        for entry in snapshot.entries:
            sent_at = entry.last_sent_at
            if sent_at is None or now - sent_at > FRESH_SECONDS:
                continue
            if sent_at - self._told.get(entry.entry, 0.0) >= _LEAST_SECONDS:
                self._told[entry.entry] = sent_at
                yield _check_in(entry)


def _check_in(entry: Entry) -> dict[str, Any]:
    check_in: dict[str, Any] = {
        "type": "check_in",
        "check_in_id": uuid.uuid4().hex,
        "monitor_slug": slug(entry.entry),
        "status": "ok",
    }
    schedule = _schedule(entry)
    if schedule is not None:
        check_in["monitor_config"] = {
            "schedule": schedule,
            "timezone": entry.timezone or "UTC",
            "checkin_margin": _MARGIN_MINUTES,
        }
    return check_in


def _schedule(entry: Entry) -> dict[str, Any] | None:
    """Return when the entry is due, in Sentry's words; None for what has none, as the rising of the sun."""
    if entry.crontab is not None:
        return {"type": "crontab", "value": entry.crontab}
    if entry.every is not None:
        return {"type": "interval", "value": max(round(entry.every / 60), 1), "unit": "minute"}
    return None


def slug(name: str) -> str:
    """Return *name* as Sentry has it in addresses; a name that has to be cut ends in a few digits of its own."""
    text = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")
    if text and len(text) <= _SLUG:
        return text
    digits = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{text[: _SLUG - 9]}-{digits}".lstrip("-")
