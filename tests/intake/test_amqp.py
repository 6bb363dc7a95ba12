"""The end of a connection to RabbitMQ: what was counted is acknowledged for sure, and the rest comes again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import kombu
import pytest

from celery_lookout.broker import Broker
from celery_lookout.intake.amqp import FAREWELL_SECONDS, AmqpEvents
from celery_lookout.intake.decode import EventDecoder
from tests import conftest
from tests.clusters import Watched
from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy

pytestmark = pytest.mark.rabbitmq

#: Some buffers full.
EVENTS = 1_500


@pytest.fixture
def proxy(rabbit_broker: conftest.Broker) -> Iterator[FaultProxy]:
    """A slow way to the broker."""
    with FaultProxy(rabbit_broker.server.port) as proxy:
        proxy.latency = 0.2
        yield proxy


@pytest.fixture
def events(rabbit_broker: conftest.Broker, proxy: FaultProxy) -> Iterator[AmqpEvents]:
    """The queue of events over the slow way, with many in it."""
    url = rabbit_broker.url.replace(f":{rabbit_broker.server.port}/", f":{proxy.port}/")
    events = AmqpEvents(Broker(url), EventDecoder(Watched().cluster.refused))
    events.open()
    publish(rabbit_broker.url, EVENTS)
    yield events
    events.close()


def publish(url: str, count: int) -> None:
    with kombu.Connection(url) as connection, connection.channel() as channel:
        exchange = kombu.Exchange("celeryev", "topic", channel=channel)
        for number in range(count):
            body = {"type": "task-succeeded", "timestamp": time.time(), "hostname": "w@h", "uuid": str(number)}
            exchange.publish(exchange.Message(json.dumps(body), content_type="application/json"), "task.succeeded")


def read(events: AmqpEvents, count: int) -> list[str]:
    """Read at least *count* events and return their task ids."""
    found: list[str] = []

    def look() -> bool:
        found.extend(event.uuid for event in events.read(time.time())[0])
        return len(found) >= count

    wait_until(look)
    return found


def test_what_was_settled_does_not_come_again_and_the_rest_does(events: AmqpEvents, proxy: FaultProxy) -> None:
    """Even if all that is on its way is lost when we leave, as it can be when the connection is reset."""
    before = read(events, 100)
    events.settle()
    events.farewell()
    events.close()
    proxy.cut()
    events.open()
    after = read(events, EVENTS - len(before))
    assert [*before, *after] == [str(number) for number in range(EVENTS)]


def test_what_waited_or_comes_again_is_not_of_now(events: AmqpEvents, rabbit_broker: conftest.Broker) -> None:
    live = []

    def look(count: int) -> None:
        read(events, count)
        live.append(events.live)

    look(EVENTS)
    events.close()
    events.open()
    events._backlog = 0  # RabbitMQ may put back what it had sent after it has told us how much waits
    look(EVENTS)
    events.settle()
    events.farewell()
    events.close()
    publish(rabbit_broker.url, 2)
    events.open()
    look(2)
    publish(rabbit_broker.url, 1)
    look(1)
    assert live == [True, False, False, True]


def test_a_broker_that_hangs_does_not_keep_us(events: AmqpEvents, proxy: FaultProxy) -> None:
    read(events, 1)
    events.settle()
    proxy.mode = "blackhole"
    before = time.monotonic()
    events.farewell()
    assert time.monotonic() - before < FAREWELL_SECONDS + 5


def test_without_a_connection_there_is_nothing_to_say(events: AmqpEvents) -> None:
    events.close()
    events.farewell()
