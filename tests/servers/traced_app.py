"""
The sample application with OpenTelemetry in it, which sends spans to ``OTEL_EXPORTER_OTLP_ENDPOINT``.

Run as a module it publishes: the argument is JSON, a list of a task's short name and its arguments for each message;
the task ids are printed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor


def instrument(**_: Any) -> None:
    """Trace this process; spans are sent one by one, so that a kill takes none with it that has ended."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]


# Before the worker package, whose handler then is connected last.
worker_process_init.connect(instrument, weak=False)

from tests.servers.sample_app import app  # noqa: E402  # see above


def main() -> None:
    instrument()
    ids = [app.tasks[f"sample.{task}"].apply_async(args=arguments).id for task, arguments in json.loads(sys.argv[1])]
    print(json.dumps(ids))


if __name__ == "__main__":
    main()
