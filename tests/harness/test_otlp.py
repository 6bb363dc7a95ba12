"""The receiver of spans, against the exporter that everybody uses."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tests.servers.otlp import OtlpReceiver


def context(span_id: int) -> SpanContext:
    return SpanContext(0xABC, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def span(name: str, span_id: int, *, parent: int = 0) -> ReadableSpan:
    return ReadableSpan(
        name,
        context(span_id),
        context(parent) if parent else None,
        Resource({"service.name": "mail"}),
        {"messaging.system": "celery", "retries": 2, "parts": ("a", "b")},
        links=[Link(context(9), {"of": "group"})],
        kind=SpanKind.CONSUMER,
        status=Status(StatusCode.ERROR, "boom"),
        start_time=1_800_000_000_250_000_000,
        end_time=1_800_000_001_500_000_000,
        instrumentation_scope=InstrumentationScope("lookout"),
    )


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_spans_are_kept_as_sent(otlp: OtlpReceiver, compression: Compression) -> None:
    exporter = OTLPSpanExporter(otlp.endpoint, headers={"x-token": "seen"}, compression=compression)
    assert exporter.export([span("run", 2, parent=1), span("root", 1)]) is SpanExportResult.SUCCESS
    exporter.shutdown()  # type: ignore[no-untyped-call]
    run, root = otlp.wait_for(2)
    assert (run.trace_id, run.span_id, run.parent_span_id) == (f"{0xABC:032x}", f"{2:016x}", f"{1:016x}")
    assert (root.name, root.parent_span_id) == ("root", "")
    assert (run.kind, run.status, run.status_message, run.scope) == ("CONSUMER", "ERROR", "boom", "lookout")
    assert (run.started_at, run.ended_at) == (1_800_000_000.25, 1_800_000_001.5)
    assert run.attributes == {"messaging.system": "celery", "retries": 2, "parts": ["a", "b"]}
    assert run.resource["service.name"] == "mail"
    assert [(link.span_id, link.attributes) for link in run.links] == [(f"{9:016x}", {"of": "group"})]
    assert otlp.requests[0].headers["x-token"] == "seen"
    assert b"messaging.system" in otlp.raw


def test_refused_spans_are_not_kept(otlp: OtlpReceiver) -> None:
    """Its client tries again until its own time is up; a later one gets through."""
    otlp.status = 503
    exporter = OTLPSpanExporter(otlp.endpoint, timeout=0.3)
    assert exporter.export([span("run", 2)]) is SpanExportResult.FAILURE
    assert (otlp.spans, otlp.requests[0].status) == ([], 503)
    otlp.status = 200
    assert exporter.export([span("run", 2)]) is SpanExportResult.SUCCESS
    exporter.shutdown()  # type: ignore[no-untyped-call]
    assert len(otlp.spans) == 1


def test_a_slow_answer_is_not_waited_for_at_the_end() -> None:
    with OtlpReceiver() as otlp:
        otlp.delay_seconds = 60
        exporter = OTLPSpanExporter(otlp.endpoint, timeout=0.3)
        assert exporter.export([span("run", 2)]) is SpanExportResult.FAILURE
        exporter.shutdown()  # type: ignore[no-untyped-call]
        begun = time.monotonic()
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(("path", "status"), [("/v1/traces", 400), ("/v1/metrics", 404)])
def test_what_is_no_trace_is_refused(otlp: OtlpReceiver, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(otlp.url + path, data=b"\xff"), timeout=5)
    with refused.value:
        assert refused.value.code == status
    assert otlp.spans == []
