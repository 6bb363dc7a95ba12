"""
The publisher's side: when a message was published.

Celery writes that nowhere. We do, in a header for the worker and for whoever looks at the message on Redis, and in
AMQP's own property, which RabbitMQ shows as the time of the queue's head.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

#: Unix seconds with a fraction. Part of the wire format.
PUBLISHED_HEADER = "celery-lookout-published"

#: Unix time after which a stamp is nonsense.
LATEST = 1e11


def stamp(headers: Any = None, properties: Any = None, **_: Any) -> None:
    """
    Stamp a message that is about to be published (``before_task_publish``).

    Always overwrites: a retry inherits the headers of the attempt before it.
    """
    now = time.time()
    if isinstance(headers, dict):
        headers[PUBLISHED_HEADER] = round(now, 6)
    if isinstance(properties, dict):
        properties["timestamp"] = int(now)


def waits_from(published: float | None, eta: Any) -> float | None:
    """
    Return the Unix time from which a task waits: its publish time or its ETA, whichever is later; None if unstamped.

    *eta* is what the message has: ISO 8601 text, where no offset means UTC.
    """
    return None if published is None else max(published, _unix_time(eta))


def published(request: Mapping[str, Any]) -> float | None:
    """
    Return the stamp in the fields of a request; Celery has put headers among them, or under ``headers``.

    None for what is none: anybody may write anything there.
    """
    found = request.get(PUBLISHED_HEADER)
    if found is None:
        headers = request.get("headers")
        found = headers.get(PUBLISHED_HEADER) if isinstance(headers, Mapping) else None
    # Not a number fails the comparison.
    if isinstance(found, (int, float)) and not isinstance(found, bool) and 0 <= found < LATEST:
        return float(found)
    return None


def _unix_time(eta: Any) -> float:
    if not isinstance(eta, str):
        return 0.0
    try:
        moment = datetime.fromisoformat(eta.replace("Z", "+00:00"))  # Python before 3.11 does not know the Z
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
