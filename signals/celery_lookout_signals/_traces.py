"""Ids that lead from a failure to what others know of it, if they are there: a trace, and the Sentry event."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-")
_SENTRY_TRACE = re.compile(r"([0-9a-f]{32})-")
_NO_TRACE = "0" * 32


def current_trace_id() -> str | None:
    """Return the trace id of OpenTelemetry's current span; None where there is none, or no OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    with suppress(Exception):  # somebody else's library, in any version
        trace_id = format(trace.get_current_span().get_span_context().trace_id, "032x")
        return None if trace_id == _NO_TRACE else trace_id
    return None


def trace_id_of(request: Mapping[str, Any]) -> str | None:
    """Return the trace id in the headers of a message, as the fields of its request have them."""
    for name, form in (("traceparent", _TRACEPARENT), ("sentry-trace", _SENTRY_TRACE)):
        text = request.get(name)
        if text is None and isinstance(request.get("headers"), Mapping):
            text = request["headers"].get(name)
        match = form.match(text) if isinstance(text, str) else None
        if match is not None and match[1] != _NO_TRACE:
            return match[1]
    return None


def sentry_event_id() -> str | None:
    """
    Return the id of the Sentry event that the worker's own SDK has just sent.

    Only right inside ``task_failure`` in the process that ran the task: elsewhere it is some older event's.
    """
    sentry = sys.modules.get("sentry_sdk")
    if sentry is None:
        return None
    with suppress(Exception):
        if sentry.get_client().is_active() and sentry.get_client().get_integration("celery") is not None:
            return sentry.last_event_id()  # type: ignore[no-any-return]
    return None
