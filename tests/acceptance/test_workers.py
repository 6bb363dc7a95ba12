"""Workers come, go, and vanish."""

from __future__ import annotations

from collections.abc import Callable

from tests.conftest import Broker
from tests.servers.process import wait_until
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker


def test_two_workers_on_one_host_are_two(
    broker: Broker, start_sidecar: Callable[..., Sidecar], start_worker: Callable[..., Worker]
) -> None:
    sidecar = start_sidecar(broker.url)
    start_worker(broker.url, name="one@host")
    start_worker(broker.url, name="two@host", concurrency=3)
    sidecar.wait_for("celery_worker_slots", 5)
    metrics = sidecar.wait_for("celery_queue_workers", 2, queue="celery")
    assert metrics.by("celery_worker_up", "worker") == {("one@host",): 1, ("two@host",): 1}
    assert metrics.by("celery_worker_slots", "worker") == {("one@host",): 2, ("two@host",): 3}
    assert metrics.by("celery_worker_info", "worker", "version", "pool").keys() == {
        ("one@host", "5.7.0", "prefork"),
        ("two@host", "5.7.0", "prefork"),
    }
    assert metrics.get("celery_worker_main_max_memory_bytes", worker="one@host") > 10e6  # type: ignore[operator]


def test_a_stopped_worker_is_graceful_and_a_killed_one_stays_visible(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    sidecar = start_sidecar(broker.url)
    stopped = start_worker(broker.url, name="stopped@host", queues=("celery",))
    killed = start_worker(broker.url, name="killed@host", queues=("mail",), concurrency=1)
    sidecar.wait_for("celery_worker_up", 2)
    make_client(broker.url).send("sleep", 300.0, queue="mail")
    sidecar.wait_for("celery_task_running", 1, queue="mail")

    stopped.stop()
    killed.kill()

    sidecar.wait_for("celery_worker_shutdown_graceful", 1, worker="stopped@host")
    metrics = sidecar.wait_for("celery_worker_up", 0, worker="killed@host")
    assert metrics.get("celery_worker_up", worker="stopped@host") == 0
    assert metrics.get("celery_worker_shutdown_graceful", worker="killed@host") == 0
    assert metrics.get("celery_worker_tasks_active", worker="killed@host") == 0
    if broker.kind == "redis":  # takes a minute, and nothing in it is the broker's
        metrics = sidecar.wait_for("celery_task_lost_total", 1, seconds=90, task="sample.sleep", queue="mail")
        assert metrics.get("celery_task_running", queue="mail") == 0
        assert metrics.has("celery_worker_up", worker="killed@host")


def test_task_events_are_switched_on_where_they_are_off(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Only when asked to, for workers that were there and for those that come later."""
    start_worker(broker.url, name="before@host", events=False, queues=("celery",))
    sidecar = start_sidecar(broker.url, "--control.enable-events")
    start_worker(broker.url, name="after@host", events=False, queues=("mail",))
    sidecar.wait_for("celery_worker_slots", 4)
    client = make_client(broker.url)
    client.wait(*[client.send("noop", queue=queue) for queue in ("celery", "mail") for _ in range(5)])
    sidecar.wait_for("celery_task_succeeded_total", 10)
    sidecar.wait_for("celery_worker_task_events_enabled", 2)


def test_missing_task_events_are_said_once_and_left_off(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    sidecar = start_sidecar(broker.url)
    start_worker(broker.url, name="quiet@host", events=False)
    sidecar.wait_for("celery_worker_up", 1)
    client = make_client(broker.url)
    client.wait(*[client.send("noop") for _ in range(5)])
    sidecar.wait_for("celery_worker_task_events_enabled", 0, worker="quiet@host")
    assert sidecar.value("celery_worker_tasks_processed_total", worker="quiet@host") == 5
    assert sidecar.value("celery_task_received_total", task="sample.noop") == 0
    wait_until(lambda: "send no task events" in sidecar.log.read_text())
    client.wait(*[client.send("noop") for _ in range(5)])
    sidecar.wait_for("celery_worker_tasks_processed_total", 10, worker="quiet@host")
    assert sidecar.log.read_text().count("send no task events") == 1
    assert b"start them with -E" in sidecar.get("/").body
