"""Every outcome, counted exactly per task and queue, from real workers of the oldest and the newest Celery."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Broker
from tests.servers.celery_versions import NEWEST
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker


@pytest.mark.parametrize("celery", [pytest.param("5.3.6", marks=pytest.mark.old_celery), NEWEST])
def test_every_outcome_is_counted_exactly(
    broker: Broker,
    celery: str,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    sidecar = start_sidecar(broker.url)
    client = make_client(broker.url)
    start_worker(broker.url, name="main@host", celery=celery, queues=("celery", "mail"), concurrency=3)

    # Four that are revoked while they wait behind a task that keeps the only slot of another worker busy.
    start_worker(broker.url, name="slow@host", celery=celery, queues=("slow",), concurrency=1, prefetch=1)
    results = [client.send("sleep", 4.0, queue="slow")]
    sidecar.wait_for("celery_task_started_total", 1, task="sample.sleep", queue="slow")
    revoked = [client.send("noop", queue="slow") for _ in range(4)]
    client.app.control.revoke([result.id for result in revoked])

    results += [client.send("add", n, 1) for n in range(200)]
    results += [client.send("send_mail", queue="mail") for _ in range(150)]
    results += [client.send("fail") for _ in range(20)]
    results += [client.send("retry_then_succeed") for _ in range(10)]
    results += [client.send("retry_exhaust", queue="mail") for _ in range(5)]
    results += [client.send("hard_limit", 60.0) for _ in range(3)]
    results += [client.send("kill_self") for _ in range(2)]
    client.wait(*results, *revoked, seconds=60)

    sidecar.wait_for("celery_task_failed_total", 30)
    metrics = sidecar.wait_for("celery_task_revoked_total", 4, reason="revoked")
    rows = {
        "celery_task_sent_total": {"retry_then_succeed": 30, "retry_exhaust": 15},
        "celery_task_received_total": {"retry_then_succeed": 30, "retry_exhaust": 15},
        "celery_task_started_total": {"retry_then_succeed": 30, "retry_exhaust": 15, "noop": 0},
    }
    published = {
        ("add", "celery"): 200,
        ("send_mail", "mail"): 150,
        ("fail", "celery"): 20,
        ("retry_then_succeed", "celery"): 10,
        ("retry_exhaust", "mail"): 5,
        ("hard_limit", "celery"): 3,
        ("kill_self", "celery"): 2,
        ("sleep", "slow"): 1,
        ("noop", "slow"): 4,
    }
    for name, exceptions in rows.items():
        expected = {(f"sample.{task}", queue): exceptions.get(task, n) for (task, queue), n in published.items()}
        counted = metrics.by(name, "task", "queue")
        if name == "celery_task_received_total":
            # Celery drops a revoked message without a word, unless it had received it before the revocation.
            assert 0 <= counted.pop(("sample.noop", "slow"), 0) <= 4
            del expected["sample.noop", "slow"]
        assert counted == {key: n for key, n in expected.items() if n}, name

    def tasks(**counts: int) -> dict[tuple[str, str], int]:
        queues = dict(published.keys())
        return {(f"sample.{task}", queues[task]): n for task, n in counts.items()}

    by = metrics.by
    assert by("celery_task_succeeded_total", "task", "queue") == tasks(
        add=200, send_mail=150, retry_then_succeed=10, sleep=1
    )
    assert by("celery_task_failed_total", "task", "queue") == tasks(fail=20, retry_exhaust=5, hard_limit=3, kill_self=2)
    assert by("celery_task_retried_total", "task", "queue") == tasks(retry_then_succeed=20, retry_exhaust=10)
    assert by("celery_task_retries_exhausted_total", "task", "queue") == tasks(retry_exhaust=5)
    assert by("celery_task_revoked_total", "task", "queue", "reason") == {("sample.noop", "slow", "revoked"): 4}
    assert by("celery_task_exceptions_total", "task", "exception") == {
        ("sample.fail", "ValueError"): 20,
        ("sample.retry_exhaust", "Temporary"): 5,
        ("sample.hard_limit", "TimeLimitExceeded"): 3,
        ("sample.kill_self", "WorkerLostError"): 2,
    }
    assert by("celery_task_terminations_total", "task", "reason") == {
        ("sample.hard_limit", "hard_time_limit"): 3,
        ("sample.kill_self", "worker_lost"): 2,
    }
    assert by("celery_task_retry_exceptions_total", "exception") == {("Temporary",): 30}
    assert by("celery_task_redelivered_total", "task") == {}
    assert by("celery_task_lost_total", "task") == {}
    assert by("celery_task_running", "task") == {}
    assert by("celery_task_rejected_total", "task") == {}
    waits = by("celery_task_queue_wait_seconds_count", "task", "queue")
    assert waits == by("celery_task_started_total", "task", "queue")
    runs = by("celery_task_runtime_seconds_count", "task", "outcome")
    assert runs == {
        ("sample.add", "succeeded"): 200,
        ("sample.send_mail", "succeeded"): 150,
        ("sample.sleep", "succeeded"): 1,
        ("sample.retry_then_succeed", "succeeded"): 10,
        ("sample.retry_then_succeed", "retried"): 20,
        ("sample.retry_exhaust", "retried"): 10,
        ("sample.retry_exhaust", "failed"): 5,
        ("sample.fail", "failed"): 20,
        ("sample.hard_limit", "failed"): 3,
    }
    assert metrics.get("celery_exporter_events_invalid_total") == 0
    # A worker asked at its first sight may have told of a task before our eyes fell on its task-sent.
    sources = by("celery_exporter_queue_resolution_total", "source")
    assert sources.keys() <= {("sent",), ("inspect",)}
    assert sum(sources.values()) == sum(published.values())


def test_a_backlog_keeps_its_queue_and_its_wait(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Five thousand tasks wait before the worker starts; all are labelled right, and none lacks its wait."""
    sidecar = start_sidecar(broker.url)
    client = make_client(broker.url, result_backend=None)
    with client.app.producer_or_acquire() as producer:
        for _ in range(5_000):
            client.app.tasks["sample.noop"].apply_async(queue="mail", producer=producer, ignore_result=True)
    sidecar.wait_for("celery_queue_length", 5_000, queue="mail")
    start_worker(broker.url, queues=("mail",), concurrency=2, prefetch=100, conf={"task_ignore_result": True})
    metrics = sidecar.wait_for("celery_task_succeeded_total", 5_000, seconds=120)
    for name in ("sent", "received", "started", "succeeded"):
        assert metrics.by(f"celery_task_{name}_total", "task", "queue") == {("sample.noop", "mail"): 5_000}
    assert metrics.by("celery_task_queue_wait_seconds_count", "queue") == {("mail",): 5_000}
    assert metrics.get("celery_exporter_tasks_evicted_total") == 0


def test_without_task_sent_the_only_queue_of_the_worker_counts(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Nobody publishes task-sent: a worker of one queue gives it away, one of two does not, and nobody guesses."""
    sidecar = start_sidecar(broker.url)
    client = make_client(broker.url, sent_events=False)
    start_worker(broker.url, name="single@host", queues=("mail",), sent_events=False)
    start_worker(broker.url, name="double@host", queues=("celery", "other"), sent_events=False)
    sidecar.wait_for("celery_queue_workers", 1, queue="mail")
    sidecar.wait_for("celery_queue_workers", 1, queue="other")
    client.wait(*[client.send("noop", queue="mail") for _ in range(5)], *[client.send("add", 1, 1) for _ in range(7)])
    metrics = sidecar.wait_for("celery_task_succeeded_total", 12)
    assert metrics.by("celery_task_succeeded_total", "task", "queue") == {
        ("sample.noop", "mail"): 5,
        ("sample.add", "unknown"): 7,
    }
    assert metrics.by("celery_exporter_queue_resolution_total", "source") == {("worker",): 5, ("unknown",): 7}
    assert metrics.by("celery_task_queue_wait_seconds_count", "queue") == {}
