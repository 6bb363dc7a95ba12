"""Reading events from a source, as a listener would."""

from __future__ import annotations

import time

from celery_lookout.intake.source import EventSource
from tests.servers.process import wait_until


def read(events: EventSource, count: int) -> list[str]:
    """Read at least *count* events and return their task ids."""
    found: list[str] = []

    def look() -> bool:
        found.extend(event.uuid for event in events.read(time.time())[0])
        return len(found) >= count

    wait_until(look)
    return found
