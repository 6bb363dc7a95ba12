"""Spans as OpenTelemetry's exporter sends them: what is in a request, and what becomes of a bad answer."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from celery_lookout import logs
from celery_lookout.errors import ProbeFailed
from celery_lookout.traces.ids import publish_span_id, run_span_id
from celery_lookout.traces.options import OtlpOptions
from celery_lookout.traces.otlp import TIMEOUT_SECONDS, OtlpSender
from celery_lookout.traces.table import SpanTable
from tests.clusters import EPOCH, failed, received, sent, started, succeeded
from tests.servers.celery_versions import ROOT
from tests.servers.otlp import OtlpReceiver
from tests.servers.process import free_port

PARENT, CHILD = "aaaaaaaa-0000-4000-8000-aaaaaaaaaaaa", "bbbbbbbb-0000-4000-8000-bbbbbbbbbbbb"


@pytest.fixture
def sender(otlp: OtlpReceiver) -> Iterator[OtlpSender]:
    sender = OtlpSender(OtlpOptions.read(otlp.url, ["api-key=secret"], "shop"), "mail")
    yield sender
    sender.close()


def table() -> SpanTable:
    """Return a table with the spans of a task that succeeded and its child that failed."""
    table = SpanTable(system="redis", queue_of=lambda event: event.queue, dropped=lambda number: None)
    table.fold(
        [
            sent(1, uuid=PARENT, root_id=PARENT),
            received(1.1, uuid=PARENT, root_id=PARENT),
            started(1.25, uuid=PARENT),
            sent(1.5, uuid=CHILD, root_id=PARENT, parent_id=PARENT, name="mul"),
            received(1.6, uuid=CHILD, root_id=PARENT, parent_id=PARENT, name="mul"),
            started(1.75, uuid=CHILD),
            failed(2, uuid=CHILD, exception="ValueError('no message')"),
            succeeded(2.5, uuid=PARENT),
        ],
        EPOCH + 3,
    )
    table.flush()
    return table


def test_spans_as_the_collector_gets_them(otlp: OtlpReceiver, sender: OtlpSender) -> None:
    sender.send(table().take(10))
    spans = {span.name: span for span in otlp.spans}
    trace = PARENT.replace("-", "")
    assert {span.trace_id for span in otlp.spans} == {trace}
    parents = {span.name: span.parent_span_id for span in otlp.spans}
    assert parents == {
        "apply_async/add": "",
        "run/add": f"{publish_span_id(PARENT, 0):016x}",
        "apply_async/mul": f"{run_span_id(PARENT, 0):016x}",
        "run/mul": f"{publish_span_id(CHILD, 0):016x}",
    }
    publish, run, bad = spans["apply_async/add"], spans["run/add"], spans["run/mul"]
    assert (publish.kind, publish.started_at, publish.ended_at) == ("PRODUCER", EPOCH + 1, EPOCH + 1)
    assert (run.kind, run.started_at, run.ended_at, run.status) == ("CONSUMER", EPOCH + 1.25, EPOCH + 2.5, "UNSET")
    assert (bad.status, bad.status_message) == ("ERROR", "ValueError")
    assert bad.attributes["error.type"] == "ValueError"
    assert run.attributes["messaging.message.id"] == PARENT
    assert b"no message" not in otlp.raw
    assert run.scope == "celery-lookout"
    assert run.resource.keys() == {
        "service.name", "celery.broker", "telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version",
    }  # fmt: skip
    assert (run.resource["service.name"], run.resource["celery.broker"]) == ("shop", "mail")
    assert otlp.requests[0].headers["api-key"] == "secret"


def test_a_broker_without_a_name_is_not_named(otlp: OtlpReceiver) -> None:
    sender = OtlpSender(OtlpOptions.read(otlp.url, [], "celery"), None)
    sender.send(table().take(10))
    sender.close()
    assert "celery.broker" not in otlp.spans[0].resource


def test_nothing_is_a_question_too(otlp: OtlpReceiver, sender: OtlpSender) -> None:
    sender.send([])
    assert [request.status for request in otlp.requests] == [200]
    otlp.status = 400
    with pytest.raises(ProbeFailed, match=r"^http://127.0.0.1:\d+/v1/traces: status 400$"):
        sender.send([])


def test_the_environment_of_the_application_is_not_ours(otlp: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret,x-other=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.0001")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "app")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=app")
    sender = OtlpSender(OtlpOptions.read(otlp.url, ["X-Own=1"], "celery"), None)
    sender.send(table().take(10))
    sender.close()
    assert b"secret" not in otlp.raw
    assert otlp.requests[0].headers["x-own"] == "1"
    assert otlp.spans[0].resource["service.name"] == "celery"
    assert "team" not in otlp.spans[0].resource


def test_a_collector_that_sends_us_elsewhere_is_not_followed(otlp: OtlpReceiver, sender: OtlpSender) -> None:
    with OtlpReceiver() as elsewhere:
        otlp.status = 307
        otlp.headers["Location"] = elsewhere.endpoint
        with pytest.raises(ProbeFailed, match="status 307"):
            sender.send(table().take(10))
        assert elsewhere.requests == []


@pytest.mark.parametrize("status", [401, 503])
def test_a_refusal_is_told_without_secrets(
    status: int, otlp: OtlpReceiver, sender: OtlpSender, caplog: pytest.LogCaptureFixture
) -> None:
    otlp.status = status
    with pytest.raises(ProbeFailed, match=f": status {status}$"):
        sender.send(table().take(10))
    assert "secret" not in caplog.text


def test_a_busy_collector_is_tried_again(otlp: OtlpReceiver, sender: OtlpSender) -> None:
    otlp.status = 503
    otlp.headers["Retry-After"] = "0.2"
    timer = threading.Timer(0.5, lambda: setattr(otlp, "status", 200))
    timer.start()
    sender.send(table().take(10))
    timer.join()
    assert len(otlp.spans) == 4
    assert len(otlp.requests) > 1


def test_nobody_there_is_told_in_time() -> None:
    sender = OtlpSender(OtlpOptions.read(f"http://127.0.0.1:{free_port()}", [], "celery"), None)
    began = time.monotonic()
    with pytest.raises(ProbeFailed, match="ConnectionError"):
        sender.send(table().take(10))
    assert time.monotonic() - began < TIMEOUT_SECONDS + 1
    sender.close()


def test_a_slow_collector_is_given_up(otlp: OtlpReceiver, sender: OtlpSender, monkeypatch: pytest.MonkeyPatch) -> None:
    otlp.delay_seconds = TIMEOUT_SECONDS * 4
    began = time.monotonic()
    with pytest.raises(ProbeFailed, match="Timeout"):
        sender.send(table().take(10))
    assert time.monotonic() - began < TIMEOUT_SECONDS + 2


def test_its_own_log_is_silent(otlp: OtlpReceiver) -> None:
    """Our poller tells of it once; OpenTelemetry would each time."""
    before = logging.getLogger("opentelemetry").level
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.set_up("debug", "logfmt")
        assert not logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").isEnabledFor(
            logging.ERROR
        )
    finally:
        logging.getLogger("opentelemetry").setLevel(before)
        root.handlers[:] = handlers
        root.setLevel(level)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "exporter")}
    )


def test_nothing_of_it_is_loaded_without_the_option() -> None:
    code = (
        "import sys, celery_lookout.app, celery_lookout.doctor\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'opentelemetry', 'requests', 'google'})"
    )
    assert python(code).stdout == "set()\n"


def test_without_the_extra_the_option_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http'] = None\n"
        "sys.argv = ['celery-lookout', 'serve', '--broker', 'redis://127.0.0.1:1', '--web.listen-address', ':0',\n"
        "    '--otlp.endpoint', 'http://127.0.0.1:4318']\n"
        "from celery_lookout.cli import main; main()"
    )
    done = python(code)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        'celery-lookout: error: --otlp.endpoint needs OpenTelemetry\'s exporter: pip install "celery-lookout[otlp]"'
    )
