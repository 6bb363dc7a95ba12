"""Who receives spans: OTLP over HTTP, in the test process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.servers.process import wait_until
from tests.servers.receiver import Receiver, Request

#: In a second. An integer, because a Unix time in nanoseconds is too long for a float to hold.
NANOSECONDS = 1_000_000_000

Kind = Literal["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]


@dataclass(frozen=True)
class Link:
    """Another span that a span points to; identifiers in hex."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class SpanEvent:
    """What happened at one time within a span."""

    name: str
    #: Unix seconds.
    at: float
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    """One span as it was sent; identifiers in hex, times in Unix seconds."""

    trace_id: str
    span_id: str
    #: Empty for a root.
    parent_span_id: str
    name: str
    kind: Kind
    started_at: float
    ended_at: float
    attributes: Mapping[str, Any]
    status: Literal["UNSET", "OK", "ERROR"]
    status_message: str
    events: tuple[SpanEvent, ...]
    links: tuple[Link, ...]
    #: The attributes of the resource, such as ``service.name``.
    resource: Mapping[str, Any]
    #: The name of the instrumentation that made it.
    scope: str


class OtlpReceiver(Receiver):
    """Keep the spans that are sent to ``endpoint`` and were answered 200; with ``status`` it refuses, as 503 or 429."""

    content_type = "application/x-protobuf"

    def __init__(self) -> None:
        super().__init__()
        #: In the order of arrival; what is sent twice is here twice.
        self.spans: list[Span] = []

    @property
    def url(self) -> str:
        """The base URL, as for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        """The URL of traces."""
        return f"{self.url}/v1/traces"

    def wait_for(self, count: int, *, seconds: float = 20.0, name: str = "") -> list[Span]:
        """Wait for at least *count* spans, of one name or at all, and return them."""

        def found() -> list[Span]:
            return [span for span in list(self.spans) if name in {"", span.name}]

        wait_until(lambda: len(found()) >= count, seconds, f"fewer than {count} spans {name}".rstrip())
        return found()

    def accepts(self, path: str) -> bool:
        return path == "/v1/traces"

    def take(self, request: Request) -> bytes:
        try:
            message = ExportTraceServiceRequest.FromString(request.body)
        except DecodeError as error:
            raise ValueError(str(error)) from error
        self.spans += [
            _span(span, _attributes(group.resource.attributes), scoped.scope.name)
            for group in message.resource_spans
            for scoped in group.scope_spans
            for span in scoped.spans
        ]
        # An empty ExportTraceServiceResponse: everything was accepted.
        return b""


def _span(span: trace_pb2.Span, resource: Mapping[str, Any], scope: str) -> Span:
    kind: Any = trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
    status: Any = trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_")
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        name=span.name,
        kind=kind,
        started_at=span.start_time_unix_nano / NANOSECONDS,
        ended_at=span.end_time_unix_nano / NANOSECONDS,
        attributes=_attributes(span.attributes),
        status=status,
        status_message=span.status.message,
        events=tuple(
            SpanEvent(event.name, event.time_unix_nano / NANOSECONDS, _attributes(event.attributes))
            for event in span.events
        ),
        links=tuple(Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links),
        resource=resource,
        scope=scope,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case kind:
            return getattr(value, kind)
