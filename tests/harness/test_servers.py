"""The harness itself: what other tests rely on when they kill, freeze and restart things."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import Broker
from tests.servers.celery_versions import ROOT
from tests.servers.process import need, wait_until
from tests.servers.prometheus import PrometheusServer
from tests.servers.proxy import FaultProxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.sqs import SqsServer
from tests.servers.workers import Beat, Client, Worker


def no_retry() -> Retry:
    """The client retries in silence by default, which hides what these tests want to see."""
    return Retry(NoBackoff(), 0)


def test_tasks_run_on_every_broker(
    broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    start_worker(broker.url)
    client = make_client(broker.url)
    total, failure = client.send("add", 2, 3), client.send("fail")
    assert client.wait(total, failure) == ["SUCCESS", "FAILURE"]
    assert total.result == 5
    assert isinstance(failure.result, ValueError)


def test_tasks_run_on_sqs(
    sqs_broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    conf = {"broker_transport_options": sqs_broker.transport_options}
    start_worker(sqs_broker.url, conf=conf)
    client = make_client(sqs_broker.url, **conf)
    total, failure = client.send("add", 2, 3), client.send("fail")
    assert client.wait(total, failure) == ["SUCCESS", "FAILURE"]
    assert total.result == 5


def test_sqs_regions_are_private(sqs_broker: Broker, sqs_server: SqsServer, make_client: Callable[..., Client]) -> None:
    options = sqs_broker.transport_options
    client = make_client(sqs_broker.url, broker_transport_options=options)
    client.send("noop")
    assert [url.rpartition("/")[2] for url in sqs_server.client(options["region"]).list_queues()["QueueUrls"]] == [
        "celery"
    ]
    assert "QueueUrls" not in sqs_server.client("elsewhere-1").list_queues()


@pytest.mark.old_celery
@pytest.mark.redis
@pytest.mark.parametrize("celery", ["5.3.6", "5.5.3"])
def test_old_celery_runs_the_same_tasks(
    celery: str, redis_broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    worker = start_worker(redis_broker.url, celery=celery)
    client = make_client(redis_broker.url)
    assert client.wait(client.send("add", 1, 1)) == ["SUCCESS"]
    assert celery.encode() in worker.log.read_bytes()


@pytest.mark.redis
def test_worker_can_be_killed_and_restarted(
    redis_broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    worker = start_worker(redis_broker.url)
    worker.kill()
    assert not worker.is_running
    worker.restart()
    client = make_client(redis_broker.url)
    assert client.wait(client.send("noop")) == ["SUCCESS"]


@pytest.mark.redis
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_worker_runs_on_other_pools_and_queues(
    pool: str, redis_broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    worker = start_worker(redis_broker.url, name="other@host", pool=pool, queues=["celery", "mail"])
    client = make_client(redis_broker.url)
    assert client.wait(client.send("send_mail"), client.send("noop")) == ["SUCCESS", "SUCCESS"]
    worker.stop_cold()
    assert not worker.is_running


@pytest.mark.redis
def test_redis_priorities_are_lists_of_their_own(redis_broker: Broker, make_client: Callable[..., Client]) -> None:
    client = make_client(redis_broker.url, broker_transport_options={"priority_steps": [0, 5, 9]})
    for priority in (0, 5, 5):
        client.send("noop", priority=priority)
    with redis.Redis.from_url(redis_broker.url) as connection:
        assert connection.llen("celery") == 1
        assert connection.llen("celery\x06\x165") == 2


def test_beat_publishes_its_schedule(broker: Broker, tmp_path: Path, start_worker: Callable[..., Worker]) -> None:
    schedule = {"often": {"task": "sample.noop", "schedule": 0.2}}
    worker = start_worker(broker.url)
    with Beat(broker.url, tmp_path, schedule) as beat:
        wait_until(lambda: b"Task sample.noop" in worker.log.read_bytes(), message=beat.log_tail())


@pytest.mark.redis
def test_redis_databases_are_private(redis_broker: Broker, redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_broker.url) as connection:
        assert connection.dbsize() == 0
    assert redis_broker.url != redis_server.url()


@pytest.mark.redis
def test_redis_keeps_its_data_over_a_kill(own_redis: RedisServer) -> None:
    with redis.Redis.from_url(own_redis.url()) as connection:
        connection.set("key", "value")
        own_redis.kill()
        own_redis.restart()
        assert connection.get("key") == b"value"


@pytest.mark.redis
def test_paused_redis_accepts_and_stays_silent(own_redis: RedisServer) -> None:
    own_redis.pause()
    with redis.Redis.from_url(own_redis.url(), socket_timeout=0.2, retry=no_retry()) as connection:
        with pytest.raises(redis.TimeoutError):
            connection.ping()
        own_redis.resume()
        wait_until(connection.ping)


@pytest.mark.rabbitmq
def test_rabbitmq_users_see_only_their_virtual_host(rabbit_broker: Broker, rabbit_server: RabbitServer) -> None:
    assert rabbit_broker.vhost in [vhost["name"] for vhost in rabbit_server.management("GET", "vhosts")]
    assert rabbit_broker.vhost in rabbit_broker.management_url


@pytest.mark.rabbitmq
def test_rabbitmq_listens_on_loopback_only_and_keeps_queues_over_a_kill(own_rabbit: RabbitServer) -> None:
    own_rabbit.management("PUT", "queues/%2F/durable", {"durable": True})
    psutil = pytest.importorskip("psutil")
    listening = {
        connection.laddr.ip
        for pid in (own_rabbit.pid, own_rabbit.port_mapper.pid)
        for connection in psutil.Process(pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert "127.0.0.1" in listening
    assert listening <= {"127.0.0.1", "::1"}
    own_rabbit.kill()
    with pytest.raises(urllib.error.URLError):
        own_rabbit.management("GET", "overview")
    own_rabbit.restart()
    assert [queue["name"] for queue in own_rabbit.management("GET", "queues")] == ["durable"]


@pytest.mark.prometheus
def test_prometheus_answers(start_prometheus: Callable[[str], PrometheusServer]) -> None:
    prometheus = start_prometheus("global: {scrape_interval: 1s}\n")
    assert prometheus.query("vector(1)") == [({}, 1.0)]


@pytest.mark.redis
def test_proxy_passes_delays_and_cuts(redis_server: RedisServer) -> None:
    with (
        FaultProxy(redis_server.port) as proxy,
        redis.Redis(port=proxy.port, socket_timeout=0.3, retry=no_retry()) as connection,
    ):
        assert connection.ping()
        proxy.mode = "blackhole"
        with pytest.raises(redis.TimeoutError):
            connection.ping()
        proxy.mode = "pass"
        assert connection.ping()
        before = proxy.connections
        proxy.cut_after = proxy.bytes + 3
        with pytest.raises(redis.ConnectionError):
            connection.ping()
        proxy.cut_after = None
        assert connection.ping()
        assert proxy.connections > before
        connection.connection_pool.disconnect()
        proxy.mode = "refuse"
        with pytest.raises(redis.ConnectionError):
            connection.ping()


def test_missing_program_skips_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE_REAL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Thing not found: apt-get install thing"):
        need(None, "Thing", "apt-get install thing")
    monkeypatch.setenv("REQUIRE_REAL", "1")
    with pytest.raises(pytest.fail.Exception, match="Thing not found"):
        need(None, "Thing", "apt-get install thing")


_ORPHAN_MAKER = """
import pathlib, sys, time
from tests.servers.redis import RedisServer
print(RedisServer(pathlib.Path(sys.argv[1])).start().port, flush=True)
time.sleep(600)
"""


@pytest.mark.redis
def test_nothing_outlives_a_killed_test_run(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", _ORPHAN_MAKER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ}
    )
    assert run.stdout is not None
    with run.stdout:
        port = int(run.stdout.readline())
    run.send_signal(signal.SIGKILL)
    run.wait()

    def is_gone() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", port)) != 0

    wait_until(is_gone)
