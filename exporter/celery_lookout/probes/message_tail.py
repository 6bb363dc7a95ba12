"""
What the end of a message on a Redis list tells: its task id and when it was published.

kombu writes an element as JSON with the keys ``body``, ``content-encoding``, ``content-type``, ``headers`` and
``properties`` in this order, so the last kilobyte holds the properties however large the task's arguments are. The
bytes come from whoever may write to the broker: what does not look right is not known, and nothing here raises.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..readings import QueueHead

#: Bytes looked at: properties take about 350, the rest shows our stamp at the end of the headers.
TAIL_BYTES = 1024

#: Our stamp among the headers, Unix seconds with a fraction. Written by ``celery_lookout_signals``.
PUBLISHED_HEADER = "celery-lookout-published"

_PROPERTIES = re.compile(r'"properties":\s*(?=\{)')
_STAMP = re.compile(rf'"{PUBLISHED_HEADER}":\s*([0-9]{{1,12}}(?:\.[0-9]{{1,9}})?)\s*[,}}]')
#: Seconds that a publisher's clock may be ahead of ours before its stamp is taken for nonsense.
FUTURE_SECONDS = 86_400.0
_TASK_ID_LIMIT = 255

_decoder = json.JSONDecoder()


def read_tail(tail: bytes, now: float) -> QueueHead:
    """
    Return what *tail*, the end of a list element, tells at Unix time *now*.

    The task id is the ``correlation_id``; the time comes from our header, else from the ``timestamp`` property.
    """
    text = tail[-TAIL_BYTES:].decode("utf-8", errors="replace")
    properties, before = _last_properties(text)
    stamp = _STAMP.search(before)
    published_at = _plausible(float(stamp[1]) if stamp else None, now) or _plausible(properties.get("timestamp"), now)
    return QueueHead(task_id=_task_id(properties.get("correlation_id")), published_at=published_at)


def _last_properties(text: str) -> tuple[dict[str, Any], str]:
    """Return the element's last member, if it is its properties, and the text before it."""
    for match in reversed(list(_PROPERTIES.finditer(text))):
        try:
            value, end = _decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        # Only the element's own member is followed by nothing but the closing brace.
        if isinstance(value, dict) and text[end:].strip() == "}":
            return value, text[: match.start()]
    return {}, ""


def _task_id(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _TASK_ID_LIMIT and value.isprintable() else None


def _plausible(value: object, now: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Not a number and the infinities fail the comparison, too.
    return float(value) if 0 < value <= now + FUTURE_SECONDS else None
