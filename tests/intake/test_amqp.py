"""Our queue on RabbitMQ: what was counted is acknowledged for sure, the rest comes again, and nobody else reads it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from amqp.exceptions import AccessRefused

from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable
from celery_lookout.intake import amqp as module
from celery_lookout.intake.amqp import FAREWELL_SECONDS, QUEUE_NAME, AmqpEvents
from celery_lookout.intake.amqp_frames import HEARTBEAT
from celery_lookout.intake.decode import EventDecoder
from tests import conftest
from tests.clusters import Watched
from tests.intake.reading import read
from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy

pytestmark = pytest.mark.rabbitmq

#: Some buffers full.
EVENTS = 1_500
ALL = [str(number) for number in range(EVENTS)]


@pytest.fixture
def proxy(rabbit_broker: conftest.Broker) -> Iterator[FaultProxy]:
    """A way to the broker that can be slow."""
    with FaultProxy(rabbit_broker.server.port) as proxy:
        yield proxy


@pytest.fixture
def events(rabbit_broker: conftest.Broker, proxy: FaultProxy) -> Iterator[AmqpEvents]:
    """The queue of events over that way, with many in it."""
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


def leave(events: AmqpEvents) -> None:
    """End the connection as a sidecar does that is stopped."""
    events.settle()
    events.farewell()
    events.close()


def come_back(events: AmqpEvents) -> None:
    """Connect again, as soon as RabbitMQ has noticed that the connection before is gone."""

    def opened() -> bool:
        with contextlib.suppress(BrokerUnavailable):
            events.open()
            return True
        events.close()
        return False

    wait_until(opened)


def waiting(events: AmqpEvents) -> int:
    """Connect once more, and return how many messages wait for us."""
    come_back(events)
    return events._backlog


def fill_the_way(events: AmqpEvents) -> None:
    """Send until a broker that reads nothing takes no more."""
    for _ in range(10_000):
        if events._unsent:
            return
        events._send(HEARTBEAT * 1000)
    pytest.fail("it takes everything, or what it does not take is forgotten")


def test_what_was_settled_does_not_come_again_and_the_rest_does(events: AmqpEvents, proxy: FaultProxy) -> None:
    """Even if all that is on its way is lost when we leave, as it can be when the connection is reset."""
    proxy.latency = 0.2
    before = read(events, 800)
    leave(events)
    proxy.cut()
    proxy.latency = 0.0
    come_back(events)
    after = read(events, EVENTS - len(before))
    assert [*before, *after] == ALL
    leave(events)
    assert waiting(events) == 0  # acknowledged too, though counted anew from 1


def test_what_a_hung_broker_does_not_take_it_takes_later(events: AmqpEvents, proxy: FaultProxy) -> None:
    read(events, EVENTS)
    proxy.mode = "blackhole"
    fill_the_way(events)
    events.settle()
    proxy.mode = "pass"

    def taken() -> bool:
        events.beat()
        return not events._unsent

    wait_until(taken)
    leave(events)
    assert waiting(events) == 0


def test_what_a_lost_connection_did_not_take_is_not_for_the_next(events: AmqpEvents, proxy: FaultProxy) -> None:
    """There, the same number stands for another message."""
    read(events, EVENTS)
    proxy.mode = "blackhole"
    fill_the_way(events)
    events.settle()
    events.close()
    proxy.cut()
    proxy.mode = "pass"
    come_back(events)
    events.beat()
    assert read(events, EVENTS) == ALL
    events.close()
    assert waiting(events) == EVENTS


def test_half_a_message_is_not_continued_on_the_next_connection(events: AmqpEvents) -> None:
    events._buffer = bytearray(1000)
    events._view = memoryview(events._buffer)
    wait_until(lambda: events.read(time.time())[1] and events._frames._pending)
    events.close()
    come_back(events)
    assert read(events, 3)[:3] == ALL[:3]


def test_rabbitmq_sends_no_more_than_we_can_take(
    events: AmqpEvents, rabbit_broker: conftest.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent and not acknowledged does not count for the limits of the queue."""
    leave(events)
    monkeypatch.setattr(module, "PREFETCH", 100)
    come_back(events)
    assert len(read(events, 100)) == 100
    with kombu.Connection(rabbit_broker.url) as connection:
        assert connection.default_channel.queue_declare(QUEUE_NAME, passive=True).message_count == EVENTS - 100
    events.settle()
    assert len(read(events, 100)) == 100


def test_nobody_else_can_read_our_queue(events: AmqpEvents, rabbit_broker: conftest.Broker) -> None:
    """Not even one who looked whether somebody reads it before we did."""
    assert read(events, 1)
    with kombu.Connection(rabbit_broker.url) as connection:
        channel: Any = connection.default_channel
        with pytest.raises(AccessRefused, match="exclusive"):
            channel.basic_consume(QUEUE_NAME)


def test_the_queue_is_kept_within_bounds(events: AmqpEvents, rabbit_broker: conftest.Broker) -> None:
    """Other arguments need another name: RabbitMQ would refuse them to the next release."""
    server: Any = rabbit_broker.server
    queue = server.management("GET", f"queues/{rabbit_broker.vhost}/{QUEUE_NAME}?columns=durable,arguments")
    assert QUEUE_NAME == "celery-lookout.events.v1"
    assert queue["durable"]
    assert queue["arguments"] == {
        "x-max-length": 1_000_000,
        "x-max-length-bytes": 268_435_456,
        "x-message-ttl": 3_600_000,
        "x-expires": 21_600_000,
    }


def test_what_waited_or_comes_again_is_not_of_now(events: AmqpEvents, rabbit_broker: conftest.Broker) -> None:
    live = []

    def look(count: int) -> None:
        read(events, count)
        live.append(events.live)

    look(EVENTS)
    events.close()
    come_back(events)
    events._backlog = 0  # RabbitMQ may put back what it had sent after it has told us how much waits
    look(EVENTS)
    leave(events)
    publish(rabbit_broker.url, 2)
    come_back(events)
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
