"""
OTLP over HTTP, with OpenTelemetry's own exporter. The one module that imports it, and only with ``--otlp.endpoint``.

What its environment variables say is left alone, but for proxies and certificates: they are meant for the application,
and its headers for somebody else than the collector named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .. import __version__
from ..errors import ProbeFailed, SettingsError
from .options import OtlpOptions
from .spans import Span

try:
    import requests
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.sdk.version import __version__ as sdk_version
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
except ImportError as error:
    raise SettingsError(
        '--otlp.endpoint needs OpenTelemetry\'s exporter: pip install "celery-lookout[otlp]"'
    ) from error

#: Seconds for one batch, further attempts included: the exporter waits 1 s, then 2 s, between them. A poll has 20 s.
TIMEOUT_SECONDS: Final = 5.0

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_KINDS: Final = {"publish": SpanKind.PRODUCER, "run": SpanKind.CONSUMER}
_UNSET: Final = Status(StatusCode.UNSET)
#: Headers without which there is no request.
_NEEDED: Final = frozenset(
    {"accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "user-agent"}
)


class OtlpSender:
    """Sends the spans of one broker."""

    def __init__(self, options: OtlpOptions, broker: str | None) -> None:
        self._shown = options.shown
        self._session = _Session(options.headers)
        self._exporter = OTLPSpanExporter(
            endpoint=options.endpoint,
            headers=dict(options.headers),
            timeout=TIMEOUT_SECONDS,
            compression=Compression.Gzip,
            session=self._session,
        )
        # Not Resource.create(), which adds what the environment says of another program.
        self._resource = Resource(
            {
                "service.name": options.service_name,
                "telemetry.sdk.language": "python",
                "telemetry.sdk.name": "opentelemetry",
                "telemetry.sdk.version": sdk_version,
                **({} if broker is None else {"celery.broker": broker}),
            }
        )
        self._scope = InstrumentationScope("celery-lookout", __version__)

    def send(self, spans: Sequence[Span]) -> None:
        """Send them. Raises ProbeFailed, with what the collector answered, when it did not take them."""
        self._session.outcome = "nothing was sent"
        result = self._exporter.export([self._readable(span) for span in spans])
        if result is not SpanExportResult.SUCCESS or self._session.outcome:
            raise ProbeFailed(f"{self._shown}: {self._session.outcome or 'not taken'}")

    def close(self) -> None:
        """Close the connection; an attempt that waits for the next gives up."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations

    def _readable(self, span: Span) -> ReadableSpan:
        parent = None
        if span.parent_id:
            parent = SpanContext(span.trace_id, span.parent_id, is_remote=True, trace_flags=_SAMPLED)
        return ReadableSpan(
            span.name,
            context=SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else _UNSET,
            start_time=_nanoseconds(span.started_at),
            end_time=_nanoseconds(span.ended_at),
            instrumentation_scope=self._scope,
        )


def _nanoseconds(at: float) -> int:
    return round(at * 1e6) * 1000  # what is left of a float is noise


class _Session(requests.Session):
    """Sends no header but those meant for the collector, follows it nowhere else, and remembers what came of it."""

    def __init__(self, headers: Any) -> None:
        super().__init__()
        self._allowed = _NEEDED | {name.lower() for name in headers}
        #: Empty when the last request was answered as it should.
        self.outcome = ""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send one request, for the exporter. Its own log says more than is good: URLs, and headers."""
        for name in [name for name in request.headers if name.lower() not in self._allowed]:
            del request.headers[name]
        # Else the headers would go wherever the answer says.
        kwargs["allow_redirects"] = False
        try:
            response = super().send(request, **kwargs)
        except Exception as error:
            self.outcome = type(error).__name__
            raise
        self.outcome = "" if response.ok and response.status_code < 300 else f"status {response.status_code}"
        return response
