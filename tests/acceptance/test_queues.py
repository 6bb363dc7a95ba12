"""How deep and how old queues are, held against what was published."""

from __future__ import annotations

import time
from collections.abc import Callable

from kombu import Queue

from tests.conftest import Broker
from tests.servers.process import wait_until
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker


def management(broker: Broker) -> list[str]:
    """Options that lead the sidecar to the test's RabbitMQ, whose management port is not the usual one."""
    return ["--rabbitmq.management-url", broker.management_url] if broker.management_url else []


def test_messages_of_all_priorities_are_counted(
    broker: Broker, start_sidecar: Callable[..., Sidecar], make_client: Callable[..., Client]
) -> None:
    queues = [Queue("ranked", routing_key="ranked", max_priority=9)]
    client = make_client(broker.url, task_queues=queues, task_default_queue="ranked")
    for priority in (0, 3, 6, 9):
        for _ in range(10):
            client.send("noop", priority=priority)
    sidecar = start_sidecar(broker.url, "--queue", "ranked", *management(broker))
    metrics = sidecar.wait_for("celery_queue_length", 40, queue="ranked")
    if broker.kind == "redis":
        assert metrics.by("celery_queue_priority_length", "priority") == {(p,): 10 for p in ("0", "3", "6", "9")}
    assert metrics.by("celery_queue_length", "queue") == {("ranked",): 40}


def test_held_waiting_and_running_tasks_are_told_apart(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Fifty wait for their ETA in the worker, one runs, three wait in the queue: three numbers, not one."""
    sidecar = start_sidecar(broker.url, "--control.interval", "2", *management(broker))
    client = make_client(broker.url)
    start_worker(broker.url, name="one@host", concurrency=1, prefetch=1)
    for _ in range(50):
        client.send("noop", countdown=600)
    sidecar.wait_for("celery_task_received_total", 50)
    for _ in range(4):
        client.send("sleep_late", 120.0)
    sidecar.wait_for("celery_task_running", 1, task="sample.sleep_late", queue="celery")
    sidecar.wait_for("celery_queue_length", 3, queue="celery")
    sidecar.wait_for("celery_worker_tasks_scheduled", 50, worker="one@host")
    metrics = sidecar.wait_for("celery_worker_tasks_active", 1, worker="one@host")
    assert metrics.get("celery_worker_tasks_scheduled") == 50
    assert metrics.get("celery_task_running") == 1
    assert metrics.get("celery_queue_length") == 3
    assert metrics.get("celery_worker_tasks_reserved", worker="one@host") == 0
    unacked = "celery_broker_unacked" if broker.kind == "redis" else "celery_queue_unacked"
    sidecar.wait_for(unacked, 51)


def test_a_queue_outlives_its_workers_and_the_sidecar(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Scaled to zero is when the depth matters most."""
    first = start_sidecar(broker.url, *management(broker))
    client = make_client(broker.url, sent_events=False)
    worker = start_worker(broker.url, queues=("mail",))
    first.wait_for("celery_queue_workers", 1, queue="mail")
    worker.stop()
    for _ in range(7):
        client.send("noop", queue="mail")
    first.wait_for("celery_queue_length", 7, queue="mail")
    first.wait_for("celery_queue_workers", 0, queue="mail")
    first.stop()
    second = start_sidecar(broker.url, *management(broker))
    second.wait_for("celery_queue_workers", 0, queue="mail")
    metrics = second.wait_for("celery_queue_length", 7, queue="mail")
    assert metrics.get("celery_queue_workers", queue="mail") == 0
    assert metrics.get("celery_queue_consumers", queue="mail") == 0


def test_the_oldest_task_is_as_old_as_it_is(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Within 3 seconds of the truth, while the queue stands, while it moves, and when it is empty again."""
    sidecar = start_sidecar(broker.url, *management(broker))
    client = make_client(broker.url)
    first_sent = time.time()
    for _ in range(6):
        client.send("sleep", 0.5)
    wait_until(lambda: (sidecar.value("celery_queue_oldest_task_age_seconds", queue="celery") or 0) > 6, 20)
    age = sidecar.value("celery_queue_oldest_task_age_seconds", queue="celery")
    assert age is not None
    assert abs(age - (time.time() - first_sent)) < 3

    start_worker(broker.url, concurrency=1, prefetch=1)
    sidecar.wait_for("celery_task_succeeded_total", 6)
    later = time.time()
    client.send("sleep_late", 60.0)
    sidecar.wait_for("celery_task_running", 1, task="sample.sleep_late")
    for _ in range(3):
        client.send("noop", queue="celery")
    wait_until(lambda: (sidecar.value("celery_queue_oldest_task_age_seconds", queue="celery") or 0) > 4, 20)
    age = sidecar.value("celery_queue_oldest_task_age_seconds", queue="celery")
    assert age is not None
    assert age < time.time() - later + 1


def test_an_empty_queue_has_age_zero(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    sidecar = start_sidecar(broker.url, *management(broker))
    start_worker(broker.url, queues=("celery", "mail"))
    client = make_client(broker.url)
    client.wait(*[client.send("noop", queue="mail") for _ in range(20)])
    sidecar.wait_for("celery_queue_slots", 2, queue="mail")
    metrics = sidecar.wait_for("celery_queue_oldest_task_age_seconds", 0, queue="mail")
    assert metrics.get("celery_queue_length", queue="mail") == 0
    assert metrics.get("celery_queue_oldest_task_age_seconds", queue="mail") == 0
    assert metrics.get("celery_queue_consumers", queue="mail") == 1
    assert metrics.get("celery_queue_workers", queue="mail") == 1
