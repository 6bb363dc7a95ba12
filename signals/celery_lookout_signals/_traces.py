"""Ids that lead from a task to what others know of it, if they are there: a trace, and the Sentry event."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

#: The trace id, and flags of which the lowest says whether the trace is recorded.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-(?:[0-9a-f]{16}-([0-9a-f]{2}))?")
_SENTRY_TRACE = re.compile(r"([0-9a-f]{32})-(?:[0-9a-f]{16}-([01]))?")
_NO_TRACE = "0" * 32


class Trace(NamedTuple):
    """A trace that something belongs to."""

    #: 32 hexadecimal digits.
    id: str
    #: False where whoever began the trace decided that nobody keeps it.
    recorded: bool


def current_trace() -> Trace | None:
    """Return the trace of OpenTelemetry's current span; None where there is none, or no OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    with suppress(Exception):  # somebody else's library, in any version
        context = trace.get_current_span().get_span_context()
        if context.trace_id:
            return Trace(format(context.trace_id, "032x"), bool(context.trace_flags & 1))
    return None


def trace_of(request: Mapping[str, Any]) -> Trace | None:
    """Return the trace in the headers of a message, as the fields of its request have them."""
    for name, form in (("traceparent", _TRACEPARENT), ("sentry-trace", _SENTRY_TRACE)):
        text = request.get(name)
        if text is None and isinstance(request.get("headers"), Mapping):
            text = request["headers"].get(name)
        match = form.match(text) if isinstance(text, str) else None
        if match is not None and match[1] != _NO_TRACE:
            return Trace(match[1], match[2] is None or bool(int(match[2], 16) & 1))
    return None


def current_trace_id() -> str | None:
    """Return the id of the current trace, whether it is recorded or not."""
    trace = current_trace()
    return None if trace is None else trace.id


def trace_id_of(request: Mapping[str, Any]) -> str | None:
    """Return the id of a message's trace, whether it is recorded or not."""
    trace = trace_of(request)
    return None if trace is None else trace.id


def recorded_id(trace: Trace | None) -> str:
    """Return the id of *trace* for a link to it; empty where that would lead nowhere."""
    return trace.id if trace is not None and trace.recorded else ""


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
