"""Brokers hang, die and come back; the sidecar is stopped and started. Scrapes go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from celery_lookout.broker import SOCKET_TIMEOUT_SECONDS
from tests.conftest import Broker
from tests.servers.process import wait_until
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker

Server = RedisServer | RabbitServer


@pytest.fixture(
    params=[pytest.param("redis", marks=pytest.mark.redis), pytest.param("amqp", marks=pytest.mark.rabbitmq)]
)
def own_server(request: pytest.FixtureRequest) -> Server:
    """A broker for this test alone, of each kind in turn."""
    server: Server = request.getfixturevalue("own_redis" if request.param == "redis" else "own_rabbit")
    return server


def test_a_hung_broker_hangs_no_scrape(
    own_server: Server,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Twenty seconds of silence: every scrape is answered at once, and afterwards nothing is missing."""
    url = own_server.url()
    sidecar = start_sidecar(url)
    start_worker(url)
    client = make_client(url)
    client.wait(*[client.send("noop") for _ in range(10)])
    sidecar.wait_for("celery_task_succeeded_total", 10)

    own_server.pause()
    frozen_until = time.monotonic() + 20
    slowest = 0.0
    states = []
    while time.monotonic() < frozen_until:
        answer = sidecar.get("/metrics")
        assert answer.status == 200
        assert sidecar.get("/-/healthy").status == 200
        slowest = max(slowest, answer.seconds)
        states.append(b"celery_exporter_broker_up 0" in answer.body)
        time.sleep(0.2)
    own_server.resume()

    assert slowest < 0.1
    assert states[-1], "broker_up did not fall to 0"
    sidecar.wait_for("celery_exporter_broker_up", 1)
    client.wait(*[client.send("noop") for _ in range(10)])
    metrics = sidecar.wait_for("celery_task_succeeded_total", 20)
    assert metrics.get("celery_worker_up", worker="worker@host") == 1
    print(f"slowest scrape while the broker hung: {slowest * 1000:.1f} ms")


def test_a_killed_broker_is_found_again(
    own_server: Server,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    url = own_server.url()
    sidecar = start_sidecar(url)
    worker = start_worker(url)
    client = make_client(url)
    client.wait(*[client.send("noop") for _ in range(10)])
    sidecar.wait_for("celery_task_succeeded_total", 10)
    worker.stop()

    own_server.kill()
    sidecar.wait_for("celery_exporter_broker_up", 0)
    own_server.start()
    restarted = time.monotonic()

    sidecar.wait_for("celery_exporter_broker_up", 1, seconds=15)
    worker.start()
    client = make_client(url, task_publish_retry=True)
    client.wait(*[client.send("noop") for _ in range(10)])
    metrics = sidecar.wait_for("celery_task_succeeded_total", 20, seconds=15)
    assert metrics.get("celery_exporter_broker_reconnects_total") == 1
    assert sidecar.is_running
    print(f"counting again {time.monotonic() - restarted:.1f} s after the restart")


@pytest.mark.rabbitmq
def test_rabbitmq_keeps_what_happens_while_the_sidecar_is_stopped(
    rabbit_broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    first = start_sidecar(rabbit_broker.url)
    start_worker(rabbit_broker.url)
    client = make_client(rabbit_broker.url)
    client.wait(*[client.send("noop") for _ in range(5)])
    first.wait_for("celery_task_succeeded_total", 5)
    first.stop()
    assert first.process is not None
    assert first.process.returncode == 0

    client.wait(*[client.send("add", n, n) for n in range(300)], seconds=60)
    second = start_sidecar(rabbit_broker.url)

    metrics = second.wait_for("celery_task_succeeded_total", 300, task="sample.add")
    for name in ("sent", "received", "started", "succeeded"):
        assert metrics.by(f"celery_task_{name}_total", "task", "queue") == {("sample.add", "celery"): 300}
    assert metrics.get("celery_task_queue_wait_seconds_count") == 300


@pytest.mark.redis
def test_starts_missed_on_redis_are_counted_as_lost(
    own_redis: RedisServer,
    tmp_path: Path,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """The worker's own count tells how many starts nobody could hear; nothing is lost silently."""
    url = own_redis.url()
    sidecar = start_sidecar(url)
    start_worker(url)
    client = make_client(url)
    client.wait(*[client.send("noop") for _ in range(10)])
    sidecar.wait_for("celery_worker_tasks_processed_total", 10)
    sidecar.wait_for("celery_task_succeeded_total", 10)
    # Two more heartbeats, from which the sidecar knows that it heard every start until now.
    heartbeat = "celery_worker_last_heartbeat_timestamp_seconds"
    heard_at = sidecar.value(heartbeat) or 0
    wait_until(lambda: (sidecar.value(heartbeat) or 0) > heard_at + 3)

    sidecar.pause()
    with redis.Redis.from_url(url) as connection:
        connection.client_kill_filter(_type="pubsub", skipme=False, laddr=None)
    client.wait(*[client.send("noop") for _ in range(30)])
    sidecar.resume()

    sidecar.wait_for("celery_exporter_broker_reconnects_total", 1)
    metrics = sidecar.wait_for("celery_exporter_events_lost_total", 30)
    assert metrics.get("celery_task_started_total", task="sample.noop") == 10


@pytest.mark.redis
def test_a_stopped_sidecar_leaves_nothing_on_redis(
    redis_broker: Broker, start_sidecar: Callable[..., Sidecar], start_worker: Callable[..., Worker]
) -> None:
    start_worker(redis_broker.url)
    with redis.Redis.from_url(redis_broker.url) as connection:
        before = _contents(connection)
        sidecar = start_sidecar(redis_broker.url)
        sidecar.wait_for("celery_worker_slots", 2)
        sidecar.stop()
        assert _contents(connection) == before


def _contents(connection: redis.Redis) -> set[tuple[str, str | bytes]]:
    """Return the members of every set: what kombu remembers of queues lies there."""
    names = [key.decode() for key in connection.scan_iter(_type="set")]
    return {(name, member) for name in names for member in connection.smembers(name)}


def test_brokers_do_not_disturb_each_other(
    redis_broker: Broker,
    own_redis: RedisServer,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """One of two named brokers hangs; the other's numbers go on, under its name."""
    sidecar = start_sidecar(
        *("", "--broker", f"shop={redis_broker.url}", "--broker", f"mail={own_redis.url()}"),
        *("--control.interval", "1", "--probe.interval", "1"),
    )
    own_redis.pause()
    sidecar.wait_for("celery_exporter_broker_up", 0, broker="mail")
    start_worker(redis_broker.url)
    client = make_client(redis_broker.url)
    client.wait(*[client.send("noop") for _ in range(10)])
    sidecar.wait_for("celery_task_succeeded_total", 10, broker="shop")
    sidecar.wait_for("celery_queue_workers", 1, broker="shop", queue="celery")
    metrics = sidecar.metrics()
    own_redis.resume()
    for collector in ("queues", "workers", "snapshots"):
        assert metrics.get("celery_exporter_collector_success", broker="shop", collector=collector) == 1
    # An answer of the other broker would have been waited for as long.
    duration = metrics.get("celery_exporter_collector_duration_seconds", broker="shop", collector="queues")
    assert (duration or 0) < SOCKET_TIMEOUT_SECONDS
    assert metrics.get("celery_exporter_broker_up", broker="shop") == 1
    assert metrics.get("celery_task_succeeded_total", broker="mail") is None


def test_a_broker_that_is_not_there_at_the_start_is_waited_for(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.kill()
    sidecar = Sidecar(own_redis.url(), tmp_path / "sidecar")
    sidecar.launch()
    try:
        wait_until(lambda: _answers(sidecar))
        assert sidecar.get("/-/healthy").status == 200
        assert sidecar.get("/-/ready").status == 503
        assert b"celery_exporter_broker_up 0" in sidecar.get("/metrics").body
        own_redis.start()
        wait_until(lambda: sidecar.get("/-/ready").status == 200)
    finally:
        sidecar.kill()


def _answers(sidecar: Sidecar) -> bool:
    try:
        return sidecar.get("/-/healthy").status == 200
    except OSError:
        return False


@pytest.mark.rabbitmq
def test_two_sidecars_do_not_tear_the_events_of_one_queue_apart(
    rabbit_broker: Broker,
    tmp_path: Path,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """The second says what to do; with a name of its own it hears everything, as the first does."""
    first = start_sidecar(rabbit_broker.url)
    intruder = Sidecar(rabbit_broker.url, tmp_path / "intruder")
    intruder.launch()
    try:
        wait_until(lambda: "--replica" in intruder.log.read_text())
        assert intruder.get("/-/ready").status == 503
    finally:
        intruder.kill()
    second = start_sidecar(rabbit_broker.url, "--replica", "b")
    start_worker(rabbit_broker.url)
    client = make_client(rabbit_broker.url)
    client.wait(*[client.send("noop") for _ in range(20)])
    for sidecar in (first, second):
        sidecar.wait_for("celery_task_succeeded_total", 20)
