"""More than there is room for, or time: what the sidecar shows, what it counts as lost, and the memory it takes."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import closing

import pytest
import redis
from benchmarks.stream import Load, Message, redis_bytes

from tests.conftest import Broker
from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker

MIB = 2**20


def publish(port: int, messages: Iterable[Message]) -> None:
    """Publish events as Celery would, on database 0, and return when Redis has taken them all."""
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.sendall(b"CLIENT REPLY OFF\r\n")
        for message in messages:
            connection.sendall(redis_bytes(message))
        connection.sendall(b"CLIENT REPLY ON\r\nPING\r\n")
        answer = b""
        while b"PONG" not in answer:
            answer += connection.recv(4096)


def heartbeats(workers: int, processed: int = 0) -> list[Message]:
    return [Load._heartbeat(number, processed, time.time()) for number in range(workers)]


def memory(sidecar: Sidecar) -> float:
    return sidecar.value("process_resident_memory_bytes") or 0


@pytest.mark.redis
def test_a_sidecar_too_slow_for_redis_stays_small_shows_its_lag_and_counts_what_it_lost(
    own_redis: RedisServer, start_sidecar: Callable[..., Sidecar]
) -> None:
    """Redis drops it as a slow subscriber. Starts heard and starts lost are all that there were."""
    load = Load(events=40_000, workers=5)
    tasks = load.events // 4
    with redis.Redis.from_url(own_redis.url()) as connection:
        connection.config_set("client-output-buffer-limit", "pubsub 2mb 2mb 1")
    with FaultProxy(own_redis.port) as proxy:
        sidecar = start_sidecar(f"redis://127.0.0.1:{proxy.port}/0")
        for _ in range(2):
            publish(own_redis.port, heartbeats(5))
        sidecar.wait_for("celery_exporter_events_total", 10, event="worker-heartbeat")
        before = memory(sidecar)

        proxy.rate = 1_000_000
        publish(own_redis.port, load.messages())
        wait_until(lambda: (sidecar.value("celery_exporter_event_lag_seconds") or 0) > 1.0)
        proxy.rate = 0
        wait_until(lambda: (sidecar.value("celery_exporter_broker_reconnects_total") or 0) > 0)
        for _ in range(3):
            publish(own_redis.port, heartbeats(5, tasks // 5))

        def all_told() -> bool:
            metrics = sidecar.metrics()
            lost = metrics.get("celery_exporter_events_lost_total") or 0
            return lost > 0 and (metrics.get("celery_task_started_total") or 0) + lost == tasks

        wait_until(all_told, 30)
        assert memory(sidecar) - before < 60 * MIB


@pytest.mark.rabbitmq
def test_events_that_a_full_queue_on_rabbitmq_dropped_are_counted_as_lost(
    rabbit_broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    server = rabbit_broker.server
    assert isinstance(server, RabbitServer)
    sidecar = start_sidecar(rabbit_broker.url)
    start_worker(rabbit_broker.url)
    client = make_client(rabbit_broker.url)
    client.wait(*[client.send("noop") for _ in range(10)])
    sidecar.wait_for("celery_task_succeeded_total", 10)
    heartbeat = "celery_worker_last_heartbeat_timestamp_seconds"
    heard_at = sidecar.wait_for("celery_worker_tasks_processed_total", 10).get(heartbeat) or 0
    wait_until(lambda: (sidecar.value(heartbeat) or 0) > heard_at + 3)
    policy = {"pattern": "^celery-lookout.events", "definition": {"max-length": 10}, "apply-to": "queues"}
    server.management("PUT", f"policies/{rabbit_broker.vhost}/short", policy)

    sidecar.pause()
    (name,) = [
        consumer["channel_details"]["connection_name"]
        for consumer in server.management("GET", f"consumers/{rabbit_broker.vhost}")
        if consumer["consumer_tag"] == "celery-lookout"
    ]
    server.management("DELETE", "connections/" + name.replace(" ", "%20").replace(">", "%3E"))
    client.wait(*[client.send("noop") for _ in range(60)])
    sidecar.resume()

    sidecar.wait_for("celery_exporter_broker_reconnects_total", 1)

    def all_told() -> bool:
        metrics = sidecar.metrics()
        lost = metrics.get("celery_exporter_events_lost_total") or 0
        return lost > 0 and (metrics.get("celery_task_started_total") or 0) + lost == 70

    wait_until(all_told, 30)


def total(text: str, series: str) -> float:
    """Add up the series that begin so. Parsing the whole page in Python takes seconds where there are many."""
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series))


def wait_for_total(sidecar: Sidecar, series: str, value: float) -> str:
    """Wait until the series that begin so add up to *value*, and return the page that says so."""
    text = ""

    def reached() -> bool:
        nonlocal text
        text = sidecar.get("/metrics").body.decode()
        return total(text, series) == value

    wait_until(reached, 30)
    return text


@pytest.mark.redis
def test_a_thousand_workers_and_five_thousand_task_names_stay_within_their_limits(
    own_redis: RedisServer, start_sidecar: Callable[..., Sidecar]
) -> None:
    sidecar = start_sidecar(own_redis.url(), "--limit.task-names", "500")
    publish(own_redis.port, heartbeats(1))
    before = total(wait_for_total(sidecar, "celery_worker_up{", 1), "celery_exporter_series ")
    for _ in range(3):
        publish(own_redis.port, heartbeats(1000))
    text = wait_for_total(sidecar, "celery_worker_up{", 1000)
    each = len([line for line in text.splitlines() if 'worker="worker7@bench"' in line])
    assert total(text, "celery_exporter_series ") - before == 999 * each

    publish(own_redis.port, Load(events=20_000, names=5000).messages())
    text = wait_for_total(sidecar, "celery_task_started_total{", 5000)
    lines = [line for line in text.splitlines() if line.startswith("celery_task_started_total{")]
    assert len([line for line in lines if 'task="_other"' not in line]) == 500
    assert total(text, 'celery_task_started_total{task="_other"') == 4500
    assert total(text, 'celery_exporter_label_values_dropped_total{label="task",reason="limit"}') == 4500
    assert total(text, "process_resident_memory_bytes") < 150 * MIB


@pytest.mark.redis
def test_more_tasks_in_flight_than_may_be_are_evicted_and_counted(
    own_redis: RedisServer, start_sidecar: Callable[..., Sidecar]
) -> None:
    sidecar = start_sidecar(own_redis.url(), "--limit.tasks-in-flight", "5000")
    sent = [message for message in Load(events=100_000).messages() if message.routing_key == "task.sent"]
    publish(own_redis.port, sent[:5000])
    before = total(wait_for_total(sidecar, "celery_exporter_tasks_tracked", 5000), "process_resident_memory_bytes")
    publish(own_redis.port, sent[5000:])
    text = wait_for_total(sidecar, "celery_task_sent_total{", 25_000)
    tracked = total(text, "celery_exporter_tasks_tracked")
    assert 4950 <= tracked <= 5000
    assert total(text, "celery_exporter_tasks_evicted_total") == 25_000 - tracked
    assert total(text, "process_resident_memory_bytes") - before < 8 * MIB
