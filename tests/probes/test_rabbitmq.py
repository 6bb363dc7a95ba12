from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest

from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable, ProbeFailed, SettingsError
from celery_lookout.probes.management import Management
from celery_lookout.probes.rabbitmq import MANAGEMENT_RETRY_SECONDS, RabbitProbe
from celery_lookout.readings import BrokerReading, QueueHead, QueueReading
from tests import conftest
from tests.servers.process import free_port, wait_until
from tests.servers.rabbitmq import RabbitServer
from tests.servers.workers import Client, Worker

pytestmark = pytest.mark.rabbitmq

MakeProbe = Callable[..., RabbitProbe]


@pytest.fixture
def make_probe() -> Iterator[MakeProbe]:
    """Return a function that makes a probe, by default with the management API: ``make_probe(rabbit_broker)``."""
    probes: list[RabbitProbe] = []

    def make(broker: conftest.Broker, **options: Any) -> RabbitProbe:
        options.setdefault("management_url", broker.management_url)
        probes.append(RabbitProbe(Broker(options.pop("url", broker.url)), **options))
        return probes[-1]

    yield make
    for probe in probes:
        probe.close()


@pytest.fixture
def channel(rabbit_broker: conftest.Broker) -> Iterator[Any]:
    """A channel to declare queues and publish with."""
    with kombu.Connection(rabbit_broker.url) as connection:
        yield connection.channel()


def by_name(reading: BrokerReading) -> dict[str, QueueReading]:
    return {queue.name: queue for queue in reading.queues}


def test_ready_messages_are_counted_at_once(
    rabbit_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client]
) -> None:
    """The management API would still say 0, or what it said a moment ago."""
    client, probe = make_client(rabbit_broker.url), make_probe(rabbit_broker)

    def becomes(count: int) -> None:
        wait_until(lambda: by_name(probe.collect(["busy"]))["busy"].ready == count, seconds=0.5)

    for sent in range(1, 6):
        client.send("noop", queue="busy")
        becomes(sent)
    with client.app.connection_for_write() as connection:
        connection.default_channel.queue_purge("busy")
    becomes(0)


def test_a_missing_queue_is_asked_for_less_and_less(
    rabbit_broker: conftest.Broker,
    make_probe: MakeProbe,
    make_client: Callable[..., Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RabbitMQ logs an error for each question; a queue that appears is found all the same."""
    seconds = 0.0
    probe = make_probe(rabbit_broker, management_url=nowhere(), monotonic=lambda: seconds)
    asked: list[str] = []
    declare = probe._declare

    def declare_and_note(name: str) -> Any:
        asked.append(name)
        return declare(name)

    monkeypatch.setattr(probe, "_declare", declare_and_note)
    for _ in range(300):
        seconds += 2
        probe.collect(["late"])
    assert 10 < asked.count("late") < 20
    assert asked.count("celery_delayed_27") == 2
    make_client(rabbit_broker.url).send("noop", queue="late")
    found: dict[str, QueueReading] = {}
    for _ in range(31):
        seconds += 2
        found = by_name(probe.collect(["late"]))
    assert found["late"].ready == 1


def test_a_missing_queue_that_the_management_api_shows_is_asked_for_at_once(
    rabbit_broker: conftest.Broker, make_probe: MakeProbe, channel: Any
) -> None:
    probe = make_probe(rabbit_broker, monotonic=lambda: 0.0)
    assert probe.collect(["late"]).queues == ()
    channel.queue_declare(queue="late", durable=True, auto_delete=False)
    wait_until(lambda: by_name(probe.collect(["late"])))


def test_a_missing_queue_does_not_break_the_others(
    rabbit_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client], channel: Any
) -> None:
    """Nor does one that belongs to another connection alone."""
    client = make_client(rabbit_broker.url)
    client.send("noop", queue="first")
    client.send("noop", queue="last")
    channel.queue_declare(queue="gone", exclusive=True)
    readings = by_name(make_probe(rabbit_broker).collect(["first", "missing", "gone", "last"]))
    assert {name: reading.ready for name, reading in readings.items()} == {"first": 1, "last": 1}


def test_unacknowledged_messages_and_consumers_are_told_per_queue(
    rabbit_broker: conftest.Broker,
    make_probe: MakeProbe,
    make_client: Callable[..., Client],
    start_worker: Callable[..., Worker],
) -> None:
    start_worker(rabbit_broker.url, concurrency=1, prefetch=1)
    client, probe = make_client(rabbit_broker.url), make_probe(rabbit_broker)
    for _ in range(4):
        client.send("sleep_late", 60)
    client.send("noop", queue="idle")

    def settled() -> bool:
        readings = by_name(probe.collect(["celery", "idle"]))
        return (readings["celery"].unacked, readings["idle"].unacked) == (1, 0)

    wait_until(settled)
    readings = by_name(probe.collect(["celery", "idle"]))
    assert (readings["celery"].ready, readings["celery"].consumers) == (3, 1)
    assert (readings["idle"].ready, readings["idle"].consumers) == (1, 0)
    assert probe.management_problem is None


def test_queues_are_found_without_plumbing(
    rabbit_broker: conftest.Broker,
    make_probe: MakeProbe,
    start_worker: Callable[..., Worker],
    channel: Any,
) -> None:
    start_worker(rabbit_broker.url, queues=["celery", "mail"]).stop()
    for name in ("celery-lookout.events.v1", "celery_delayed_3", "x_celery_delayed_27", "bcast.4f", "reply.x"):
        channel.queue_declare(queue=name, durable=True, auto_delete=False)
    channel.queue_declare(queue="alone", exclusive=True)
    assert make_probe(rabbit_broker).discover() == {"celery", "mail"}


def test_a_quorum_queue_is_read(rabbit_broker: conftest.Broker, make_probe: MakeProbe, channel: Any) -> None:
    channel.queue_declare(queue="quorum", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    publish(channel, "quorum", 3)
    probe = make_probe(rabbit_broker)
    wait_until(lambda: by_name(probe.collect(["quorum"]))["quorum"].ready == 3)
    assert probe.discover() == {"quorum"}


def test_the_head_tells_its_time_only_while_nothing_is_unacknowledged(
    rabbit_broker: conftest.Broker, make_probe: MakeProbe, channel: Any
) -> None:
    """RabbitMQ counts delivered messages in: a long-running task would look like a queue that does not move."""
    probe, old, young = make_probe(rabbit_broker), int(time.time()) - 600, int(time.time()) - 10
    channel.queue_declare(queue="aged", durable=True, auto_delete=False)
    publish(channel, "aged", 1, timestamp=old)
    publish(channel, "aged", 1, timestamp=young)
    wait_until(lambda: by_name(probe.collect(["aged"]))["aged"].head == QueueHead(published_at=float(old)))

    message = channel.basic_get("aged")
    wait_until(lambda: by_name(probe.collect(["aged"]))["aged"].unacked == 1)
    assert by_name(probe.collect(["aged"]))["aged"].head is None

    channel.basic_ack(message.delivery_tag)
    wait_until(lambda: by_name(probe.collect(["aged"]))["aged"].head == QueueHead(published_at=float(young)))


def test_messages_without_a_time_have_no_head(
    rabbit_broker: conftest.Broker, make_probe: MakeProbe, channel: Any
) -> None:
    probe = make_probe(rabbit_broker)
    channel.queue_declare(queue="plain", durable=True, auto_delete=False)
    publish(channel, "plain", 1)
    wait_until(lambda: by_name(probe.collect(["plain"]))["plain"].unacked == 0)
    assert by_name(probe.collect(["plain"]))["plain"].head is None


@pytest.mark.parametrize("management", [True, False])
def test_delayed_messages_are_summed(
    rabbit_broker: conftest.Broker, make_probe: MakeProbe, channel: Any, management: bool
) -> None:
    probe = make_probe(rabbit_broker, **({} if management else {"management_url": nowhere()}))
    assert probe.collect([]).delayed is None
    for level in range(28):
        channel.queue_declare(queue=f"celery_delayed_{level}", durable=True, auto_delete=False)
    publish(channel, "celery_delayed_5", 2)
    publish(channel, "celery_delayed_27", 1)
    fresh = make_probe(rabbit_broker, **({} if management else {"management_url": nowhere()}))
    wait_until(lambda: fresh.collect([]).delayed == 3)


def test_without_the_tag_everything_but_details_is_read(
    rabbit_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client]
) -> None:
    server = rabbit_broker.server
    assert isinstance(server, RabbitServer)
    server.management("PUT", f"users/{rabbit_broker.vhost}", {"password": f"{rabbit_broker.vhost}-secret", "tags": ""})
    make_client(rabbit_broker.url).send("noop", queue="busy")

    now = 1000.0
    probe = make_probe(rabbit_broker, monotonic=lambda: now)
    assert probe.collect(["busy", "missing"]).queues == (QueueReading("busy", ready=1, consumers=0),)
    assert probe.management_problem is not None
    assert "'management'" in probe.management_problem
    assert "secret" not in probe.management_problem
    assert probe.discover() == frozenset()

    # It is tried again after a while, not at every poll.
    server.management(
        "PUT", f"users/{rabbit_broker.vhost}", {"password": f"{rabbit_broker.vhost}-secret", "tags": "monitoring"}
    )
    assert probe.discover() == frozenset()
    now += MANAGEMENT_RETRY_SECONDS
    wait_until(lambda: probe.discover() == {"busy"})
    assert probe.management_problem is None


def test_an_absent_management_api_is_named(rabbit_broker: conftest.Broker, make_probe: MakeProbe) -> None:
    probe = make_probe(rabbit_broker, management_url=nowhere())
    assert probe.collect(["missing"]).queues == ()
    assert "no answer" in (probe.management_problem or "")


def test_a_broker_that_refuses_is_unavailable(rabbit_broker: conftest.Broker, make_probe: MakeProbe) -> None:
    wrong = rabbit_broker.url.replace("-secret", "-guess")
    with pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED") as failure:
        make_probe(rabbit_broker, url=wrong).collect(["celery"])
    assert "guess" not in str(failure.value)


def test_a_hung_rabbitmq_is_given_up_within_ten_seconds(own_rabbit: RabbitServer) -> None:
    probe = RabbitProbe(Broker(own_rabbit.url()), own_rabbit.management_url)
    probe.collect(["celery"])
    own_rabbit.pause()
    for hung in (probe, RabbitProbe(Broker(own_rabbit.url()), own_rabbit.management_url)):
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            hung.collect(["celery"])
        assert time.monotonic() - started < 10
    own_rabbit.resume()
    assert probe.collect(["celery"]).queues == ()
    probe.close()


@pytest.mark.parametrize(
    ("broker_url", "management_url", "expected"),
    [
        ("amqp://ada:x%40y@rabbit/shop", None, ("rabbit", 15672, "shop", False)),
        ("amqp://rabbit//", None, ("rabbit", 15672, "/", False)),
        ("amqps://ada:x@rabbit/shop", None, ("rabbit", 15671, "shop", True)),
        ("amqp://ada:x@rabbit/shop", "http://eve:y@other:8080/rabbit/", ("other", 8080, "shop", False)),
        ("amqp://ada:x@rabbit/shop", "https://other", ("other", 15671, "shop", True)),
    ],
)
def test_the_management_api_is_located(broker_url: str, management_url: str | None, expected: object) -> None:
    found = Management.locate(Broker(broker_url), management_url)
    assert (found.host, found.port, found.vhost, found.tls is not None) == expected
    assert "Basic" not in repr(found)


@pytest.mark.parametrize("url", ["rabbit:15672", "http://", "http://host:port", "ftp://host"])
def test_a_bad_management_url_stops_the_program(url: str) -> None:
    with pytest.raises(SettingsError, match=r"--rabbitmq\.management-url"):
        RabbitProbe(Broker("amqp://localhost"), url)


def test_an_answer_that_is_no_list_of_queues_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    management = Management.locate(Broker("amqp://localhost"), None)
    for body in (b"", b"{}", b"[1]", b'[{"name": 7}]', b"[" * 100_000, b"\xff"):
        monkeypatch.setattr(Management, "_get", lambda self, target, body=body: (200, body))
        with pytest.raises(ProbeFailed, match="not RabbitMQ's list"):
            management.queues()


def publish(channel: Any, queue: str, count: int, **properties: Any) -> None:
    for _ in range(count):
        kombu.Producer(channel).publish({}, exchange="", routing_key=queue, delivery_mode=1, **properties)


def nowhere() -> str:
    return f"http://127.0.0.1:{free_port()}"
