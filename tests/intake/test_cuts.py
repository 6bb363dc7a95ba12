"""Connections that are cut at any byte: nothing but BrokerUnavailable comes of it, and nothing stays behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable, LookoutError
from celery_lookout.intake.amqp import AmqpEvents
from celery_lookout.intake.decode import EventDecoder
from celery_lookout.intake.redis import RedisEvents
from celery_lookout.intake.snapshots_amqp import AmqpSnapshots
from celery_lookout.intake.snapshots_redis import RedisSnapshots
from celery_lookout.intake.source import EventSource
from celery_lookout.probes.pidbox import Pidbox
from celery_lookout.probes.publishing import PublishingProbe
from celery_lookout.probes.rabbitmq import RabbitProbe
from celery_lookout.probes.redis import RedisProbe
from tests import conftest
from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy
from tests.servers.rabbitmq import RabbitServer

#: Rounds of cuts: each cuts every connection of one route, five on RabbitMQ and more on Redis.
ROUNDS = 40

#: Rounds after which everything there is will stay.
WARM_ROUNDS = 8

#: Bytes by which the process may grow over all further rounds.
GROWTH = 6 * 2**20


class Route:
    """A broker behind a proxy, and all of ours that keeps a connection to it."""

    def __init__(self, broker: conftest.Broker, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.server = broker.server
        self.vhost = broker.vhost
        port = urlsplit(broker.url).port
        behind = Broker(broker.url.replace(f":{port}", f":{proxy.port}"))
        decoder = EventDecoder(lambda _reason, _count: None)
        self.events: EventSource
        self.asking: list[Callable[[], object]]
        self.url = broker.url
        box = Pidbox(behind)
        if broker.kind == "redis":
            self.events = RedisEvents(behind, decoder)
            probe, stream = RedisProbe(behind), RedisSnapshots(behind)
            self.asking = [lambda: probe.collect(["celery"]), stream.read]
            self._closing = [probe.close, stream.close, box.close]
        else:
            self.events = AmqpEvents(behind, decoder)
            rabbit, queue = RabbitProbe(behind, broker.management_url), AmqpSnapshots(behind)
            publishing = PublishingProbe(behind)
            self.asking = [lambda: rabbit.collect(["celery"]), queue.read, publishing.is_blocked]
            self._closing = [rabbit.close, queue.close, publishing.close, box.close]
        self.asking.append(lambda: box.ask("ping", workers=["nobody@h"], timeout=0.01))

    def connect_and_read(self) -> None:
        """Connect, and read until that fails."""
        self.events.open()
        self.read_on()

    def read_on(self) -> None:
        """Read until that fails."""
        wait_until(lambda: self.events.read(0.0) is None, 5, "the connection holds")

    def ask_all(self) -> None:
        """Ask everything once; a question may meet the cut."""
        for ask in self.asking:
            with suppress(LookoutError):
                ask()

    def close(self) -> None:
        self.events.close()
        for close in self._closing:
            close()


@pytest.fixture
def route(broker: conftest.Broker) -> Iterator[Route]:
    port = urlsplit(broker.url).port
    assert port is not None
    with FaultProxy(port) as proxy:
        route = Route(broker, proxy)
        yield route
        route.close()


def test_a_handshake_cut_at_any_byte_is_an_outage_like_any_other(route: Route) -> None:
    before = route.proxy.bytes
    route.events.open()
    size = route.proxy.bytes - before
    route.events.close()
    assert size > 200
    for offset in (*range(1, 20), *range(20, size, max(size // 40, 1))):
        route.proxy.cut_after = route.proxy.bytes + offset
        with pytest.raises(BrokerUnavailable):
            route.connect_and_read()
        route.events.close()
    route.proxy.cut_after = None
    route.events.open()
    assert route.events.read(0.0)[0] == []


def test_asking_over_a_connection_that_was_cut_is_an_outage_like_any_other(route: Route) -> None:
    route.events.open()
    route.proxy.cut()
    with pytest.raises(BrokerUnavailable):
        wait_until(lambda: route.events.beat() is not None, 5, "the connection holds")  # type: ignore[func-returns-value]


@pytest.mark.redis
def test_a_connection_that_redis_closes_is_cut_too(redis_broker: conftest.Broker) -> None:
    events = RedisEvents(Broker(redis_broker.url), EventDecoder(lambda _reason, _count: None))
    events.open()
    wait_until(lambda: events.read(0.0)[1])
    with redis.Redis.from_url(redis_broker.url) as client:
        client.client_kill_filter(_type="pubsub")
    with pytest.raises(BrokerUnavailable, match="closed the event connection"):
        wait_until(lambda: events.read(0.0) is None, 5, "the connection holds")
    events.close()


@pytest.mark.redis
def test_half_a_message_is_nothing_to_the_next_connection(redis_broker: conftest.Broker) -> None:
    port, database = urlsplit(redis_broker.url).port, urlsplit(redis_broker.url).path[1:]
    assert port is not None
    refused: list[str] = []
    with FaultProxy(port) as proxy, redis.Redis.from_url(redis_broker.url) as client:
        behind = Broker(redis_broker.url.replace(f":{port}", f":{proxy.port}"))
        events = RedisEvents(behind, EventDecoder(lambda reason, _count: refused.append(reason)))

        def publish() -> None:
            """Publish something that is counted, once there is somebody to hear it."""
            wait_until(lambda: events.read(0.0)[1])
            client.publish(f"/{database}.celeryev/worker.heartbeat", b"x" * 1000)

        events.open()
        proxy.cut_after = proxy.bytes + 500
        publish()
        with pytest.raises(BrokerUnavailable):
            wait_until(lambda: events.read(0.0) is None, 5, "the connection holds")
        events.close()
        proxy.cut_after = None
        events.open()
        publish()
        wait_until(lambda: events.read(0.0)[1])
        events.close()
    assert refused == ["envelope"]


def test_two_hundred_cuts_leave_nothing_behind(route: Route) -> None:
    process = psutil.Process()
    files, threads, memory = [], [], 0
    for number in range(ROUNDS):
        route.events.open()
        route.ask_all()
        route.proxy.cut()
        with pytest.raises(BrokerUnavailable):
            route.read_on()
        route.events.close()
        if number >= WARM_ROUNDS:
            gc.collect()
            files.append(process.num_fds())
            threads.append(threading.active_count())
        if number == WARM_ROUNDS:
            memory = process.memory_info().rss
    assert route.proxy.connections >= 200
    # The proxy is in this process too, and may be some connections behind on a busy machine.
    assert min(files[-5:]) <= max(files[:5]), files
    assert min(threads[-5:]) <= max(threads[:5]), threads
    assert process.memory_info().rss - memory < GROWTH
    route.ask_all()
    if isinstance(route.server, RabbitServer):
        server, vhost = route.server, route.vhost
        wait_until(lambda: len(server.management("GET", f"vhosts/{vhost}/connections")) <= 4, 20)
        names = [queue["name"] for queue in server.management("GET", f"queues/{vhost}?columns=name")]
        assert len([name for name in names if name.startswith("celery-lookout-")]) <= 1, names
    else:
        with redis.Redis.from_url(route.url, decode_responses=True) as client:
            bound = client.smembers("_kombu.binding.reply.celery.pidbox")
            assert len(bound) <= 1, bound
