"""Spans made of the events of real workers: what hangs below what, and what a collector in trouble costs."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, group
from celery.result import GroupResult

from tests.conftest import Broker
from tests.servers.otlp import OtlpReceiver, Span
from tests.servers.process import free_port, wait_until
from tests.servers.workers import Client
from tests.signals import canvas_tasks

Start = Callable[..., Any]
Tree = tuple[str, list[Any]]

SPANS = "celery_exporter_spans_total"
SUCCESS = "celery_exporter_collector_success"


def trees(spans: list[Span]) -> list[Tree]:
    """Return the runs of each trace as a tree of names; each must hang below its publishing, and that below a run."""
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    assert len(by_id) == len(spans), "a span was sent twice"
    runs = sorted((span for span in spans if span.kind == "CONSUMER"), key=lambda span: span.started_at)
    nodes: dict[tuple[str, str], Tree] = {}
    roots: list[Tree] = []
    for run in runs:
        name = run.name.removeprefix("run/canvas.").removeprefix("run/sample.")
        nodes[run.trace_id, run.span_id] = (f"{name} {run.attributes['celery.state']}", [])
    for run in runs:
        publishing = by_id[run.trace_id, run.parent_span_id]
        assert publishing.name == run.name.replace("run/", "apply_async/")
        assert publishing.started_at <= run.started_at + 0.005
        above = publishing.parent_span_id
        (nodes[run.trace_id, above][1] if above else roots).append(nodes[run.trace_id, run.span_id])
    return roots


def line(*names: str) -> Tree:
    """Return a tree without branches."""
    first, *rest = names
    return first, [line(*rest)] if rest else []


def ordered(found: list[Tree]) -> list[Tree]:
    """Sort what ran side by side."""
    return sorted((name, ordered(below)) for name, below in found)


def pruned(found: list[Tree], name: str) -> list[Tree]:
    """Leave out what has this name."""
    return [(other, pruned(below, name)) for other, below in found if other != name]


def roots(result: Any) -> set[str]:
    """Return the ids of the traces of what was published."""
    if result.parent is not None:
        return roots(result.parent)
    if isinstance(result, GroupResult):
        return set().union(*(roots(child) for child in result.results))  # pyright: ignore[reportGeneralTypeIssues]  # a list since __init__
    return {result.id.replace("-", "")}


def test_every_root_is_one_trace(
    broker: Broker,
    otlp: OtlpReceiver,
    redis_broker: Broker,
    start_sidecar: Start,
    start_worker: Start,
    make_client: Start,
) -> None:
    sidecar = start_sidecar(f"shop={broker.url}", "--otlp.endpoint", otlp.url)
    conf = {"result_backend": redis_broker.url}
    client = make_client(broker.url, **conf)
    canvas_tasks.register(client.app)
    start_worker(broker.url, imports=[canvas_tasks.__name__], conf=conf, concurrency=4)

    def task(name: str, *args: Any) -> Any:
        return client.app.tasks[f"canvas.{name}"].s(*args)

    canvases = {
        "chain": task("add", 1, 2) | task("add", 3) | task("identity"),
        "group": group(task("identity", 1), task("identity", 2)),
        "chord in a chain": chain(
            task("identity", 1), group(task("publish"), task("add", 1) | task("identity")), task("gather")
        ),
        "retries": task("retry", 2, []),
        "failure": task("fail"),
        "replaced": task("replace", 1),
        "in vain": task("retry_in_vain"),
    }
    expected = {
        "chain": [line("add SUCCESS", "add SUCCESS", "identity SUCCESS")],
        "group": [line("identity SUCCESS"), line("identity SUCCESS")],
        "chord in a chain": [
            ("identity SUCCESS", [line("add SUCCESS", "identity SUCCESS"), line("publish SUCCESS", "add SUCCESS")])
        ],
        "retries": [line("retry RETRY", "retry RETRY", "retry SUCCESS")],
        "failure": [line("fail FAILURE")],
        "replaced": [line("replace IGNORED", "add SUCCESS", "add SUCCESS")],
        "in vain": [line("retry_in_vain RETRY", "retry_in_vain FAILURE")],
    }
    backend = client.app.backend
    # Nobody asks for results. One that the collector finds later would make the backend connect again, and closing the
    # client leaves the backend's connections open.
    backend.remove_pending_result = lambda result: result
    traces = {what: roots(canvas.apply_async()) for what, canvas in canvases.items()}
    backend.result_consumer.stop()
    backend.client.connection_pool.disconnect()
    runs = 1 + sum(str(expected).count(state) for state in ("SUCCESS", "RETRY", "FAILURE", "IGNORED"))
    otlp.wait_for(2 * runs)
    sidecar.wait_for(SPANS, 2 * runs, outcome="sent")
    assert {span.trace_id for span in otlp.spans} == set().union(*traces.values())
    text = sidecar.get("/metrics", Accept="application/openmetrics-text").body.decode()
    shown = re.findall(r'^(\w+)\{.*# \{trace_id="(\w+)"', text, re.MULTILINE)
    assert {trace_id for _, trace_id in shown} <= set().union(*traces.values())
    assert {name for name, _ in shown} >= {
        "celery_task_runtime_seconds_bucket",
        "celery_task_queue_wait_seconds_bucket",
        "celery_task_failed_total",
        "celery_task_exceptions_total",
    }
    for what, ids in traces.items():
        found = trees([span for span in otlp.spans if span.trace_id in ids])
        if what == "chord in a chain":
            # Its body hangs below what ended last.
            assert str(found).count("gather SUCCESS") == 1
            found = pruned(found, "gather SUCCESS")
        assert ordered(found) == ordered(expected[what]), what
    assert {span.resource["celery.broker"] for span in otlp.spans} == {"shop"}
    queues = Counter(span.attributes["messaging.destination.name"] for span in otlp.spans)
    assert queues == {"celery": 2 * runs}
    metrics = sidecar.metrics()
    assert metrics.by(SPANS, "outcome", "broker") == {("sent", "shop"): 2 * runs}
    assert metrics.get(SUCCESS, collector="otlp", broker="shop") == 1


def run(client: Client, count: int) -> None:
    client.wait(*[client.send("add", 1, 1) for _ in range(count)])


@pytest.mark.redis
@pytest.mark.parametrize("trouble", ["refuses", "hangs"])
def test_a_collector_in_trouble_costs_spans_and_nothing_else(
    trouble: str,
    otlp: OtlpReceiver,
    redis_broker: Broker,
    start_sidecar: Start,
    start_worker: Start,
    make_client: Start,
) -> None:
    client = make_client(redis_broker.url)
    start_worker(redis_broker.url)
    options = ["--otlp.endpoint", otlp.url, "--otlp.header", "api-key=very-secret"]
    sidecar = start_sidecar(redis_broker.url, *options)
    sidecar.wait_for(SUCCESS, 1, collector="otlp")
    assert sidecar.metrics().get(SPANS) == 0
    if trouble == "refuses":
        otlp.status = 503
    else:
        otlp.delay_seconds = 60.0
    run(client, 50)
    metrics = sidecar.wait_for("celery_task_succeeded_total", 50)
    assert metrics.get("celery_exporter_events_total", event="task-sent") == 50
    sidecar.wait_for(SUCCESS, 0, collector="otlp")
    wait_until(lambda: sidecar.value(SPANS, outcome="failed"), message="no span failed")
    assert sidecar.value("celery_exporter_collector_success", collector="queues") == 1
    run(client, 10)  # nobody waits for the collector
    assert sidecar.get("/metrics").seconds < 1
    sidecar.wait_for("celery_task_succeeded_total", 60)
    otlp.status, otlp.delay_seconds = 200, 0.0
    sidecar.wait_for(SUCCESS, 1, collector="otlp")
    sent = wait_until(lambda: sidecar.value(SPANS, outcome="sent"), message="nothing was sent")
    assert sent > 0
    sidecar.stop()
    log = sidecar.log.read_text()
    assert log.count('msg="collector failed"') == 1
    assert "very-secret" not in log
    assert "opentelemetry" not in log


@pytest.mark.redis
def test_at_the_end_what_is_left_is_sent(
    otlp: OtlpReceiver, redis_broker: Broker, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    client = make_client(redis_broker.url)
    start_worker(redis_broker.url)
    sidecar = start_sidecar(redis_broker.url, "--otlp.endpoint", otlp.url)
    run(client, 20)
    sidecar.wait_for("celery_task_succeeded_total", 20)
    sidecar.stop()
    assert len(otlp.wait_for(40)) == 40
    assert "not sent" not in sidecar.log.read_text()


@pytest.mark.redis
def test_at_the_end_nobody_waits_for_a_collector_that_is_away(
    redis_broker: Broker, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    client = make_client(redis_broker.url)
    start_worker(redis_broker.url)
    sidecar = start_sidecar(redis_broker.url, "--otlp.endpoint", f"http://127.0.0.1:{free_port()}")
    run(client, 20)
    sidecar.wait_for("celery_task_succeeded_total", 20)
    began = time.monotonic()
    sidecar.stop()
    assert time.monotonic() - began < 8
    assert 'msg="spans not sent before the end"' in sidecar.log.read_text()


@pytest.mark.redis
def test_without_the_option_there_is_nothing_of_it(redis_broker: Broker, start_sidecar: Start) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    metrics = start_sidecar(redis_broker.url, env=env).metrics()
    assert "spans" not in metrics.text
    assert not metrics.has(SUCCESS, collector="otlp")
