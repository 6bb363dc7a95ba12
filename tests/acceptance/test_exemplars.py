"""
From a number to its trace.

Publisher and worker have OpenTelemetry's own instrumentation, a receiver takes their spans, and Prometheus gives back
what the sidecar showed: the same trace ids.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import families
from tests.conftest import Broker
from tests.servers.celery_versions import ROOT
from tests.servers.otlp import OtlpReceiver, Span
from tests.servers.process import wait_until
from tests.servers.prometheus import PrometheusServer, quick_config
from tests.servers.sidecar import Metrics, Sidecar
from tests.servers.workers import Client, Worker

pytestmark = pytest.mark.prometheus

APP = "tests.servers.traced_app"

#: Tasks and their arguments; each is published once.
TASKS: list[tuple[str, list[Any]]] = [
    ("add", [1, 2]),
    ("sleep", [1.1]),
    ("fail", []),
    ("retry_then_succeed", []),
    ("kill_self", []),
    ("hard_limit", [60.0]),
]

#: The series that show each task, without buckets' bounds: family and the labels that tell of how it ended.
EXPECTED: dict[str, set[tuple[str, str]]] = {
    "add": {("runtime", "succeeded"), ("wait", "")},
    "sleep": {("runtime", "succeeded"), ("wait", "")},
    "fail": {("runtime", "failed"), ("wait", ""), ("failed", ""), ("exceptions", "ValueError")},
    "retry_then_succeed": {("runtime", "retried"), ("runtime", "succeeded"), ("wait", "")},
    "kill_self": {
        ("wait", ""), ("failed", ""), ("exceptions", "WorkerLostError"), ("terminations", "worker_lost"),
    },
    "hard_limit": {
        ("runtime", "failed"), ("wait", ""), ("failed", ""), ("exceptions", "TimeLimitExceeded"),
        ("terminations", "hard_time_limit"),
    },
}  # fmt: skip

FAMILIES = {
    "runtime": ("celery_task_runtime_seconds_bucket", "outcome"),
    "wait": ("celery_task_queue_wait_seconds_bucket", ""),
    "failed": ("celery_task_failed_total", ""),
    "exceptions": ("celery_task_exceptions_total", "exception"),
    "terminations": ("celery_task_terminations_total", "reason"),
}

#: Task, family, label: the exemplars of that series, as pairs of trace id and task id.
Exemplars = dict[tuple[str, str, str], set[tuple[str, str]]]


def publish(broker_url: str, folder: Path, otlp: OtlpReceiver, tasks: list[tuple[str, list[Any]]]) -> dict[str, str]:
    """Publish *tasks* from a process of its own, and return their ids."""
    env = {
        "SAMPLE_BROKER": broker_url,
        "SAMPLE_RESULTS": str(folder / "results"),
        "SAMPLE_SIGNALS": "{}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.url,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'signals'}",
    }
    command = [sys.executable, "-m", APP, json.dumps(tasks)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(zip((task for task, _ in tasks), json.loads(done.stdout), strict=True))


def scraped(sidecar: Sidecar) -> Exemplars:
    """Return what ``/metrics`` shows to somebody who asks for OpenMetrics."""
    text = sidecar.get("/metrics", Accept="application/openmetrics-text; version=1.0.0").body.decode()
    found: Exemplars = {}
    for family, (name, label) in FAMILIES.items():
        for sample in (sample for one in families(text, openmetrics=True) for sample in one.samples):
            if sample.name == name and sample.exemplar is not None:
                key = (sample.labels["task"].removeprefix("sample."), family, sample.labels.get(label, ""))
                found.setdefault(key, set()).add(_ids(sample.exemplar.labels))
    return found


def stored(prometheus: PrometheusServer) -> Exemplars:
    """Return what Prometheus has kept of it."""
    found: Exemplars = {}
    now = time.time()
    for family, (name, label) in FAMILIES.items():
        for one in prometheus.api("query_exemplars", query=name, start=str(now - 600), end=str(now + 60)):
            labels = one["seriesLabels"]
            key = (labels["task"].removeprefix("sample."), family, labels.get(label, ""))
            found.setdefault(key, set()).update(_ids(exemplar["labels"]) for exemplar in one["exemplars"])
    return found


def refused(prometheus: PrometheusServer) -> float | None:
    """Return how many exemplars Prometheus would not take because they were older than what it had."""
    with urllib.request.urlopen(f"{prometheus.url}/metrics", timeout=10) as response:
        return Metrics(response.read().decode()).get("prometheus_tsdb_exemplar_out_of_order_exemplars_total")


def traces_of(otlp: OtlpReceiver) -> dict[str, str]:
    """Return the trace of each task id, as the publisher's spans tell."""
    produced = [span for span in otlp.spans if span.kind == "PRODUCER"]
    return {span.attributes["messaging.message.id"]: span.trace_id for span in produced}


def exemplars_of(ids: dict[str, tuple[str, str]]) -> Exemplars:
    """Return the exemplars of tasks with these trace and task ids."""
    return {(task, *series): {ids[task]} for task in ids for series in EXPECTED[task]}


def _ids(labels: dict[str, str]) -> tuple[str, str]:
    return labels["trace_id"], labels["task_id"]


def test_a_number_leads_to_the_trace_of_a_task(
    broker: Broker,
    otlp: OtlpReceiver,
    tmp_path: Path,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
    start_prometheus: Callable[..., PrometheusServer],
) -> None:
    """Also where the process that ran the task was killed, and so could send no span."""
    sidecar = start_sidecar(broker.url)
    prometheus = start_prometheus(
        quick_config("celery-lookout", f"127.0.0.1:{sidecar.port}"), options=["--enable-feature=exemplar-storage"]
    )
    start_worker(
        broker.url, name="w@host", concurrency=3, events=False, sent_events=False, signals={"interval": 0.5}, app=APP,
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": otlp.url},
    )  # fmt: skip
    ids = publish(broker.url, tmp_path, otlp, TASKS)
    client = make_client(broker.url)
    client.wait(*(client.app.AsyncResult(task_id) for task_id in ids.values()), seconds=60)
    untraced = client.send("noop")

    traces = traces_of(otlp)
    expected = exemplars_of({task: (traces[task_id], task_id) for task, task_id in ids.items()})
    # Whose publisher has no instrumentation: its trace begins with the run, and no header tells of it.
    [run] = otlp.wait_for(1, name="run/sample.noop")
    expected["noop", "runtime", "succeeded"] = {(run.trace_id, untraced.id)}
    wait_until(lambda: scraped(sidecar) == expected, 20, "not the exemplars that were expected")
    wait_until(lambda: stored(prometheus) == expected, 20, "not the exemplars that were expected")
    assert refused(prometheus) == 0
    assert len({trace_id for shown in expected.values() for trace_id, _ in shown}) == len(TASKS) + 1
    assert_runs_are_in_the_same_traces(otlp, {task: traces[task_id] for task, task_id in ids.items()})


def assert_runs_are_in_the_same_traces(otlp: OtlpReceiver, traces: dict[str, str]) -> None:
    runs: dict[str, list[Span]] = {task: [] for task in traces}
    for span in otlp.spans:
        if span.kind == "CONSUMER":
            runs.setdefault(span.name.removeprefix("run/sample."), []).append(span)
    for task, trace_id in traces.items():
        assert {span.trace_id for span in runs[task]} <= {trace_id}
    assert {task: len(runs[task]) for task in ("add", "sleep", "fail", "retry_then_succeed", "kill_self")} == {
        "add": 1, "sleep": 1, "fail": 1, "retry_then_succeed": 3, "kill_self": 0,
    }  # fmt: skip


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_other_pools_have_them_as_well(
    pool: str,
    redis_broker: Broker,
    otlp: OtlpReceiver,
    tmp_path: Path,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
) -> None:
    """By the header that the publisher sets, if nothing else."""
    sidecar = start_sidecar(redis_broker.url)
    start_worker(redis_broker.url, name="w@host", pool=pool, events=False, sent_events=False, signals={"interval": 0.5})
    ids = publish(redis_broker.url, tmp_path, otlp, [("add", [1, 2]), ("fail", [])])
    traces = traces_of(otlp)
    expected = exemplars_of({task: (traces[task_id], task_id) for task, task_id in ids.items()})
    wait_until(lambda: scraped(sidecar) == expected, 20, "not the exemplars that were expected")
