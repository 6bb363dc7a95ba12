"""The worker package and the sidecar together: counts without events, and nothing twice with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Broker
from tests.servers.celery_versions import NEWEST
from tests.servers.sidecar import Metrics, Sidecar
from tests.servers.workers import Client, Worker

pytestmark = pytest.mark.usefixtures("stamped")

#: What a worker is told: snapshots every second instead of every five, so that tests need not wait for them.
OFTEN = {"interval": 1.0}


def by(metrics: Metrics, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    return metrics.by(f"celery_task_{name}", *labels)


@pytest.mark.parametrize("events", [False, True], ids=["without events", "with events"])
@pytest.mark.parametrize("celery", [pytest.param("5.3.6", marks=pytest.mark.old_celery), NEWEST])
def test_every_outcome_is_counted_exactly(
    broker: Broker,
    celery: str,
    events: bool,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    sidecar = start_sidecar(broker.url)
    client = make_client(broker.url, sent_events=events)
    start_worker(
        broker.url, name="w@host", celery=celery, queues=("celery", "mail"), concurrency=3, events=events,
        sent_events=events, signals=OFTEN,
    )  # fmt: skip
    results = [client.send("add", n, 1) for n in range(400)]
    results += [client.send("send_mail") for _ in range(100)]
    results += [client.send("fail") for _ in range(20)]
    results += [client.send("kill_self") for _ in range(5)]
    results += [client.send("hard_limit", 60.0) for _ in range(3)]
    for _ in range(5):
        client.send("ignore")
        client.send("reject")
    client.wait(*results, seconds=90)
    metrics = sidecar.wait_for("celery_task_failed_total", 28, seconds=20)
    metrics = sidecar.wait_for("celery_task_rejected_total", 5, seconds=20)
    metrics = sidecar.wait_for("celery_task_succeeded_total", 500, seconds=20)

    published = {
        ("sample.add", "celery"): 400,
        ("sample.send_mail", "mail"): 100,
        ("sample.fail", "celery"): 20,
        ("sample.kill_self", "celery"): 5,
        ("sample.hard_limit", "celery"): 3,
        ("sample.ignore", "celery"): 5,
        ("sample.reject", "celery"): 5,
    }
    row = ("task", "queue")
    assert by(metrics, "received_total", *row) == published
    assert by(metrics, "started_total", *row) == published
    assert by(metrics, "sent_total", *row) == (published if events else {})
    assert by(metrics, "queue_wait_seconds_count", *row) == published
    assert by(metrics, "succeeded_total", *row) == {("sample.add", "celery"): 400, ("sample.send_mail", "mail"): 100}
    assert by(metrics, "exceptions_total", "task", "exception") == {
        ("sample.fail", "ValueError"): 20,
        ("sample.kill_self", "WorkerLostError"): 5,
        ("sample.hard_limit", "TimeLimitExceeded"): 3,
    }
    assert by(metrics, "failed_total", *row) == {key: n for key, n in published.items() if key[0] in (
        "sample.fail", "sample.kill_self", "sample.hard_limit")}  # fmt: skip
    assert by(metrics, "terminations_total", "task", "reason") == {
        ("sample.kill_self", "worker_lost"): 5,
        ("sample.hard_limit", "hard_time_limit"): 3,
    }
    assert by(metrics, "ignored_total", *row) == {("sample.ignore", "celery"): 5}
    assert by(metrics, "rejected_total", "task", "requeue") == {("sample.reject", "false"): 5}
    assert by(metrics, "runtime_seconds_count", "task", "outcome") == {
        ("sample.add", "succeeded"): 400,
        ("sample.send_mail", "succeeded"): 100,
        ("sample.fail", "failed"): 20,
        ("sample.hard_limit", "failed"): 3,
    }
    for nothing in ("retried_total", "revoked_total", "retries_exhausted_total", "redelivered_total", "lost_total"):
        assert by(metrics, nothing, "task") == {}
    assert by(metrics, "running", "task") == {}
    assert metrics.by("celery_exporter_queue_resolution_total", "source")["snapshot",] == sum(published.values())
    assert metrics.get("celery_worker_signals_runs_lost_total", worker="w@host") == 0
    assert metrics.get("celery_worker_signals_faults_total", worker="w@host") == 0
    assert metrics.get("celery_exporter_snapshots_invalid_total") == 0


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_other_pools_are_counted_as_well(
    broker: Broker,
    pool: str,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Kills and hard limits are for pools of processes."""
    sidecar = start_sidecar(broker.url)
    client = make_client(broker.url)
    start_worker(broker.url, name="w@host", pool=pool, queues=("celery", "mail"), signals=OFTEN)
    results = [client.send("add", n, 1) for n in range(100)]
    results += [client.send("send_mail") for _ in range(50)]
    results += [client.send("fail") for _ in range(10)]
    results += [client.send("retry_then_succeed") for _ in range(3)]
    for _ in range(5):
        client.send("ignore")
        client.send("reject")
    client.wait(*results, seconds=60)
    metrics = sidecar.wait_for("celery_task_rejected_total", 5)
    metrics = sidecar.wait_for("celery_task_succeeded_total", 153)
    started = {
        ("sample.add", "celery"): 100,
        ("sample.send_mail", "mail"): 50,
        ("sample.fail", "celery"): 10,
        ("sample.retry_then_succeed", "celery"): 9,
        ("sample.ignore", "celery"): 5,
        ("sample.reject", "celery"): 5,
    }
    row = ("task", "queue")
    assert by(metrics, "started_total", *row) == started
    assert by(metrics, "queue_wait_seconds_count", *row) == started
    assert by(metrics, "exceptions_total", "task", "exception") == {("sample.fail", "ValueError"): 10}
    assert by(metrics, "retry_exceptions_total", "task", "exception") == {("sample.retry_then_succeed", "Temporary"): 6}
    assert by(metrics, "ignored_total", *row) == {("sample.ignore", "celery"): 5}
    assert by(metrics, "rejected_total", "task", "requeue") == {("sample.reject", "false"): 5}


def test_memory_and_cpu_name_the_task_that_takes_them(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    sidecar = start_sidecar(broker.url)
    client = make_client(broker.url)
    start_worker(broker.url, name="w@host", concurrency=1, events=False, signals=OFTEN)
    results: list[Any] = []
    for _ in range(21):
        results += [client.send("leak", 1), client.send("noop")]
    results += [client.send("allocate", 60) for _ in range(3)] + [client.send("burn", 0.5) for _ in range(4)]
    client.wait(*results, seconds=60)
    metrics = sidecar.wait_for("celery_task_succeeded_total", 49)

    def mean_peak(task: str) -> float:
        name = "celery_task_peak_memory_bytes"
        total, count = metrics.get(f"{name}_sum", task=task), metrics.get(f"{name}_count", task=task)
        assert total is not None
        assert count
        return total / count

    # The processes leak 20 MB on the way: no-ops ran in all sizes.
    assert mean_peak("sample.allocate") - mean_peak("sample.noop") >= 60 * 2**20
    growth = by(metrics, "memory_growth_bytes_total", "task")
    assert growth.pop(("sample.leak",)) >= 20 * 2**20  # the first run is not held against it
    assert sum(growth.values()) < 2**20, growth
    burnt = metrics.get("celery_task_cpu_seconds_total", task="sample.burn")
    assert burnt == pytest.approx(2.0, rel=0.2)
