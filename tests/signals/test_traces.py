"""Ids of traces and Sentry events."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from celery_lookout_signals._traces import current_trace_id, sentry_event_id, trace_id_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"traceparent": PARENT}, TRACE),
        ({"headers": {"traceparent": PARENT}}, TRACE),
        # A version of the future may have more fields.
        ({"traceparent": f"cc-{TRACE}-00f067aa0ba902b7-01-more"}, TRACE),
        ({"sentry-trace": f"{OTHER}-00f067aa0ba902b7-1"}, OTHER),
        ({"sentry-trace": f"{OTHER}-00f067aa0ba902b7"}, OTHER),
        ({"headers": {"sentry-trace": f"{OTHER}-00f067aa0ba902b7"}}, OTHER),
        ({"traceparent": PARENT, "sentry-trace": f"{OTHER}-00f067aa0ba902b7"}, TRACE),
        ({"traceparent": "junk", "sentry-trace": f"{OTHER}-00f067aa0ba902b7"}, OTHER),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"00-{TRACE.upper()}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"00-{TRACE[:-1]}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": TRACE}, None),
        ({"traceparent": 17}, None),
        ({"traceparent": PARENT.encode()}, None),
        ({"headers": None}, None),
        ({"headers": ["traceparent"]}, None),
        ({}, None),
    ],
)
def test_a_trace_id_is_taken_from_the_headers(fields: dict[str, Any], found: str | None) -> None:
    assert trace_id_of(fields) == found


def test_the_current_span_of_opentelemetry_has_the_id() -> None:
    assert current_trace_id() is None
    with TracerProvider().get_tracer("tests").start_as_current_span("run") as span:
        assert current_trace_id() == format(span.get_span_context().trace_id, "032x")
    assert current_trace_id() is None


def test_without_opentelemetry_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    assert current_trace_id() is None
    assert "opentelemetry.trace" not in sys.modules


def sentry(*, active: bool = True, celery: object = "its integration") -> SimpleNamespace:
    """Return what we use of ``sentry_sdk`` 2."""
    client = SimpleNamespace(
        is_active=lambda: active, get_integration=lambda name: celery if name == "celery" else None
    )
    return SimpleNamespace(get_client=lambda: client, last_event_id=lambda: "an id")


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (sentry(), "an id"),
        (sentry(active=False), None),
        # Whatever the last Sentry event was, it was not sent for this failure.
        (sentry(celery=None), None),
        # Version 1 has no get_client.
        (SimpleNamespace(last_event_id=lambda: "an id"), None),
        (None, None),
    ],
    ids=["active", "inactive", "without Celery", "version 1", "not there"],
)
def test_the_id_of_the_sentry_event_is_that_of_the_workers_own_sdk(
    module: Any, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", module)
    assert sentry_event_id() == found
