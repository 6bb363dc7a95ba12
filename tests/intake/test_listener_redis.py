"""A Redis that hangs, breaks and comes back, in the eyes of the listener."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import kombu
import pytest
import redis

from celery_lookout import broker as broker_module
from celery_lookout.broker import Broker
from celery_lookout.intake import listener as module
from celery_lookout.intake.decode import EventDecoder
from celery_lookout.intake.listener import Listener
from celery_lookout.intake.redis import RedisEvents
from tests import conftest
from tests.clusters import Watched
from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy

pytestmark = pytest.mark.redis


class Listening:
    """A listener that runs, and the way between it and its Redis."""

    def __init__(self, url: str, proxy: FaultProxy, executor: ThreadPoolExecutor) -> None:
        self.url = url
        self.proxy = proxy
        self.cluster = Watched(begun=False).cluster
        behind = Broker(url.replace(f":{urlsplit(url).port}", f":{proxy.port}"))
        self.source = RedisEvents(behind, EventDecoder(self.cluster.refused))
        self.listener = Listener(self.source, self.cluster, name="shop", executor=executor)

    @property
    def is_up(self) -> bool:
        return self.cluster.exporter.broker_up.value == 1

    @property
    def reconnects(self) -> float:
        return self.cluster.exporter.reconnects.value

    @property
    def heartbeats(self) -> float:
        return self.cluster.exporter.events.child("worker-heartbeat").value

    def publish(self) -> None:
        """Let a worker give a sign of life."""
        event = {"type": "worker-heartbeat", "timestamp": time.time(), "hostname": "w@h", "pid": 1, "freq": 2.0}
        with kombu.Connection(self.url) as connection:
            exchange = kombu.Exchange("celeryev", "fanout")
            kombu.Producer(connection.default_channel, exchange).publish(event, routing_key="worker.heartbeat")

    async def becomes(self, condition: Callable[[], object]) -> None:
        await asyncio.to_thread(wait_until, condition)


def pings(broker: conftest.Broker) -> int:
    """Return how often anybody has asked that Redis for a sign of life."""
    with redis.Redis.from_url(broker.url) as client:
        return int(client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0))


@pytest.fixture
def proxy(redis_broker: conftest.Broker) -> Iterator[FaultProxy]:
    port = urlsplit(redis_broker.url).port
    assert port is not None
    with FaultProxy(port) as proxy:
        yield proxy


@pytest.fixture
async def listening(
    redis_broker: conftest.Broker, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Listening]:
    """One that is connected, and waits for nothing longer than it must."""
    monkeypatch.setattr(broker_module, "SOCKET_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(module, "LAST_WAIT_SECONDS", 0.02)
    with ThreadPoolExecutor(1) as executor:
        listening = Listening(redis_broker.url, proxy, executor)
        running = asyncio.create_task(listening.listener.run())
        await listening.becomes(lambda: listening.is_up)
        yield listening
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_who_was_only_silent_is_heard_over_the_same_connection(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "SILENT_SECONDS", 1.5)
    listening.proxy.mode = "blackhole"
    await listening.becomes(lambda: not listening.is_up)
    await asyncio.to_thread(listening.publish)
    listening.proxy.mode = "pass"
    await listening.becomes(lambda: listening.is_up and listening.heartbeats == 1)
    await asyncio.to_thread(listening.publish)
    await listening.becomes(lambda: listening.heartbeats == 2)
    assert listening.reconnects == 0
    assert caplog.messages == ["broker is silent", "broker answers again"]


async def test_who_stays_silent_is_given_up(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(module, "ABANDONED_SECONDS", 1.5)
    listening.proxy.mode = "blackhole"
    await listening.becomes(lambda: listening.listener.problem)
    assert not listening.is_up
    assert "no answer for" in (listening.listener.problem or "")
    listening.proxy.mode = "pass"
    await listening.becomes(lambda: listening.is_up)
    assert (listening.reconnects, listening.listener.problem) == (1, None)
    await asyncio.to_thread(listening.publish)
    await listening.becomes(lambda: listening.heartbeats == 1)
    assert caplog.messages == [
        "broker is silent",
        "broker unavailable, trying again until it answers",
        "connected",
    ]


async def test_who_has_nothing_to_say_is_asked_and_not_taken_for_silent(
    listening: Listening, redis_broker: conftest.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 2.5)
    lost: list[float] = []
    monkeypatch.setattr(listening.cluster, "broker_lost", lost.append)
    before = pings(redis_broker)
    await listening.becomes(lambda: pings(redis_broker) >= before + 2)
    assert lost == []


async def test_a_new_connection_has_as_long_to_answer_as_any_other(
    listening: Listening, redis_broker: conftest.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the outage was: the silence that counts begins with the connection."""
    opened = RedisEvents.open

    def open_and_read(source: RedisEvents) -> None:
        opened(source)
        wait_until(lambda: source.read(0.0)[1])

    monkeypatch.setattr(RedisEvents, "open", open_and_read)
    listening.proxy.mode = "refuse"
    listening.proxy.cut()
    await listening.becomes(lambda: listening.listener.problem)
    listening.listener._heard_at = float("-inf")
    listening.proxy.mode = "pass"
    await listening.becomes(lambda: listening.is_up)
    before = pings(redis_broker)
    await listening.becomes(lambda: pings(redis_broker) > before)
    assert (listening.is_up, listening.reconnects) == (True, 1)


async def test_each_outage_is_told_once_and_begins_with_a_short_wait(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    waits: list[float] = []
    sleep = asyncio.sleep

    async def wait(seconds: float) -> None:
        waits.extend([seconds] if seconds >= 1 else [])  # the proxy sleeps, too
        await sleep(0)

    monkeypatch.setattr(module, "_wait_before", float)
    monkeypatch.setattr(asyncio, "sleep", wait)
    for _ in range(2):
        listening.proxy.mode = "refuse"
        listening.proxy.cut()
        await listening.becomes(lambda: len(waits) >= 3)
        listening.proxy.mode = "pass"
        await listening.becomes(lambda: listening.is_up)
        assert waits == list(range(1, len(waits) + 1))
        waits.clear()
    assert caplog.messages == ["broker unavailable, trying again until it answers"] * 2
