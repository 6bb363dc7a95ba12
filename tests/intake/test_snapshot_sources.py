"""Snapshots on real brokers: each is read once, over restarts too, and the next process learns who sends them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import amqp
import kombu
import pytest
import redis

from celery_lookout import broker as module
from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable, LookoutError, ProbeFailed
from celery_lookout.intake.snapshot_source import CHUNK, NAME, SHOWN_AGAIN_SECONDS, Message, SnapshotSource
from celery_lookout.intake.snapshots_amqp import QUEUE_ARGUMENTS, AmqpSnapshots
from celery_lookout.intake.snapshots_kombu import QUEUE, KombuSnapshots, SqsSnapshots
from celery_lookout.intake.snapshots_redis import RedisSnapshots
from tests import conftest
from tests.servers.redis import RedisServer

GROUP = "celery-lookout"


def bodies(messages: list[Message], *, old: bool = False) -> list[str]:
    return [message.body.decode() for message in messages if message.is_old == old]


def waiting(on_rabbit: Channel) -> int:
    with kombu.Connection(on_rabbit.broker.url) as connection:
        return int(connection.default_channel.queue_declare(NAME, passive=True).message_count)


def drain(source: SnapshotSource) -> list[Message]:
    found = []
    while messages := source.read():
        found += messages
    return found


class Channel:
    """A broker's channel for snapshots as workers use it, and the sidecar's sources for it."""

    def __init__(self, broker: conftest.Broker) -> None:
        self.broker = Broker(broker.url)
        self.clock = 1000.0
        self._sources: list[SnapshotSource] = []

    def source(self, replica: str = "") -> SnapshotSource:
        """Return a source such as a new process has."""
        made: SnapshotSource = (
            RedisSnapshots(self.broker, replica=replica)
            if self.broker.kind == "redis"
            else AmqpSnapshots(self.broker, replica=replica, monotonic=lambda: self.clock)
        )
        self._sources.append(made)
        return made

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def write(self, *texts: str) -> None:
        if self.broker.kind == "redis":
            with redis.Redis.from_url(self.broker.url) as client:
                for text in texts:
                    client.xadd(NAME, {"body": text})
            return
        with kombu.Connection(self.broker.url) as connection:
            exchange = kombu.Exchange(NAME, "fanout", durable=True)
            queue = kombu.Queue(NAME, exchange, durable=True, queue_arguments=QUEUE_ARGUMENTS)
            queue(connection.default_channel).declare()
            producer = kombu.Producer(connection.default_channel, exchange)
            for text in texts:
                producer.publish(text, content_type="application/json", content_encoding="utf-8")


@pytest.fixture
def channel(broker: conftest.Broker) -> Iterator[Channel]:
    channel = Channel(broker)
    yield channel
    channel.close()


@pytest.fixture
def on_redis(redis_broker: conftest.Broker) -> Iterator[Channel]:
    channel = Channel(redis_broker)
    yield channel
    channel.close()


@pytest.fixture
def on_rabbit(rabbit_broker: conftest.Broker) -> Iterator[Channel]:
    channel = Channel(rabbit_broker)
    yield channel
    channel.close()


def test_what_waited_is_read_in_order_and_once(channel: Channel) -> None:
    channel.write("a", "b")
    source = channel.source()
    assert bodies(drain(source)) == ["a", "b"]
    channel.write("c")
    assert bodies(drain(source)) == ["c"]
    assert source.read() == []


def test_more_than_a_chunk_is_read_to_the_end(channel: Channel) -> None:
    texts = [str(number) for number in range(CHUNK * 2 + 1)]
    channel.write(*texts)
    source = channel.source()
    first = source.read()
    assert len(first) <= CHUNK
    assert bodies([*first, *drain(source)]) == texts


def test_a_new_process_reads_on_and_is_shown_what_was_read_last(channel: Channel) -> None:
    channel.write("a", "b")
    first = channel.source()
    drain(first)
    first.settle()
    first.close()
    channel.write("c")
    second = channel.source()
    read = drain(second)
    assert bodies(read) == ["c"]
    assert set(bodies(read, old=True)) >= {"a", "b"}
    channel.write("d")
    assert drain(second) == [Message(b"d")]


def test_what_was_read_long_ago_is_not_shown_again(on_rabbit: Channel) -> None:
    on_rabbit.write("a", "aa")
    first = on_rabbit.source()
    drain(first)
    on_rabbit.clock += SHOWN_AGAIN_SECONDS + 1
    on_rabbit.write("b")
    drain(first)
    first.settle()
    first.close()
    assert bodies(drain(on_rabbit.source()), old=True) == ["b"]


def test_only_the_last_seconds_of_a_stream_are_shown_again(on_redis: Channel) -> None:
    drain(on_redis.source())
    with redis.Redis.from_url(on_redis.broker.url) as client:
        for number in range(3 * CHUNK):
            client.xadd(NAME, {"body": str(number)}, id=f"{number * 1000 + 1}-0")
        client.xgroup_create(NAME, GROUP, id="$")
    shown = bodies(drain(on_redis.source()), old=True)
    assert shown[-1] == str(3 * CHUNK - 1)
    assert CHUNK <= len(shown) < 3 * CHUNK


def test_each_replica_reads_everything(channel: Channel) -> None:
    replica = channel.source("b")
    drain(replica)  # on RabbitMQ this is when its queue is made
    channel.write("a")
    assert bodies(drain(channel.source())) == ["a"]
    assert bodies(drain(replica)) == ["a"]


def test_a_lost_connection_loses_no_snapshot(channel: Channel) -> None:
    source = channel.source()
    channel.write("a")
    drain(source)
    source._session._connection.collect()  # type: ignore[attr-defined]
    channel.write("b")
    assert "b" in bodies(drain(source))


def test_a_broker_that_is_not_there_is_said_to_be_unavailable() -> None:
    for source in (RedisSnapshots(Broker("redis://127.0.0.1:1/0")), AmqpSnapshots(Broker("amqp://127.0.0.1:1//"))):
        with pytest.raises(BrokerUnavailable):
            source.read()


# -- Redis


def test_a_database_without_snapshots_stays_empty(on_redis: Channel) -> None:
    source = on_redis.source()
    assert source.read() == []
    source.close()
    with redis.Redis.from_url(on_redis.broker.url) as client:
        assert client.keys() == []


def test_one_poll_of_a_stream_with_nothing_new_is_one_round_trip(on_redis: Channel) -> None:
    on_redis.write("a")
    source = on_redis.source()
    drain(source)
    with redis.Redis.from_url(on_redis.broker.url) as client:
        before = client.info("stats")["total_commands_processed"]
        source.read()
        assert client.info("stats")["total_commands_processed"] - before <= 2  # ours, and this very question


def test_a_killed_sidecar_leaves_nothing_behind_for_its_successor_to_gather(on_redis: Channel) -> None:
    on_redis.write("a")
    for _ in range(3):
        drain(on_redis.source())
    with redis.Redis.from_url(on_redis.broker.url) as client:
        [group] = client.xinfo_groups(NAME)
        assert (group["name"], group["consumers"], group["pending"]) == (GROUP.encode(), 1, 0)


@pytest.mark.parametrize("what", ["stream", "group"])
def test_a_stream_that_went_away_is_read_when_it_comes_back(what: str, on_redis: Channel) -> None:
    source = on_redis.source()
    on_redis.write("a")
    drain(source)
    with redis.Redis.from_url(on_redis.broker.url) as client:
        client.delete(NAME) if what == "stream" else client.xgroup_destroy(NAME, GROUP)
    if what == "stream":
        assert source.read() == []
    on_redis.write("b")
    assert "b" in bodies(drain(source))


def test_the_prefix_of_all_keys_is_the_streams_too(on_redis: Channel) -> None:
    prefixed = Broker(on_redis.broker.url, transport_options={"global_keyprefix": "shop:"})
    with redis.Redis.from_url(prefixed.url) as client:
        client.xadd(f"shop:{NAME}", {"body": "a"})
    source = RedisSnapshots(prefixed)
    assert bodies(drain(source)) == ["a"]
    source.close()


def test_an_entry_without_a_body_is_an_empty_one(on_redis: Channel) -> None:
    with redis.Redis.from_url(on_redis.broker.url) as client:
        client.xadd(NAME, {"mood": "good"})
    assert bodies(drain(on_redis.source())) == [""]


def test_a_key_of_another_type_is_a_failure_and_not_touched(on_redis: Channel) -> None:
    with redis.Redis.from_url(on_redis.broker.url) as client:
        client.set(NAME, "mine")
        with pytest.raises(ProbeFailed):
            on_redis.source().read()
        assert client.get(NAME) == b"mine"


def test_missing_rights_on_redis_are_named(own_redis: RedisServer) -> None:
    with redis.Redis.from_url(own_redis.url()) as admin:
        admin.execute_command("ACL", "SETUSER", "reader", "reset", "on", ">secret", "+ping", "+exists", "%R~*")
        admin.xadd(NAME, {"body": "a"})
    source = RedisSnapshots(Broker(own_redis.url().replace("://", "://reader:secret@")))
    with pytest.raises(ProbeFailed, match=r"\+xreadgroup"):
        source.read()
    source.close()


def test_a_redis_that_hangs_is_waited_for_and_no_longer(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SOCKET_TIMEOUT_SECONDS", 0.2)
    source = RedisSnapshots(Broker(own_redis.url()))
    source.read()
    own_redis.pause()
    with pytest.raises(BrokerUnavailable):
        source.read()
    own_redis.resume()
    assert source.read() == []
    source.close()


# -- RabbitMQ


def test_what_comes_again_over_a_new_connection_is_new(on_rabbit: Channel) -> None:
    """It may have been lost on its way to us."""
    source = on_rabbit.source()
    on_rabbit.write("a", "b")
    drain(source)
    source._session._drop()  # type: ignore[attr-defined]
    assert bodies(drain(source)) == ["a", "b"]
    on_rabbit.clock += SHOWN_AGAIN_SECONDS + 1
    source.settle()
    source.close()
    assert waiting(on_rabbit) == 0


def test_what_was_read_over_one_connection_is_not_acknowledged_over_the_next(on_rabbit: Channel) -> None:
    """RabbitMQ closes the channel of who acknowledges what it did not send there."""
    source = on_rabbit.source()
    on_rabbit.write("a", "b")
    drain(source)
    on_rabbit.clock += SHOWN_AGAIN_SECONDS + 1
    source.settle()
    on_rabbit.write("c")
    drain(source)
    source._session._drop()  # type: ignore[attr-defined]
    on_rabbit.clock += SHOWN_AGAIN_SECONDS / 2 + 1
    assert bodies(drain(source)) == ["c"]
    on_rabbit.clock += SHOWN_AGAIN_SECONDS / 2
    source.settle()
    assert drain(source) == []
    source._session._drop()  # type: ignore[attr-defined]
    on_rabbit.clock += SHOWN_AGAIN_SECONDS
    source.settle()
    assert bodies(drain(source)) == ["c"]


def test_a_queue_that_was_deleted_is_made_anew(on_rabbit: Channel) -> None:
    source = on_rabbit.source()
    source.read()
    with kombu.Connection(on_rabbit.broker.url) as connection:
        connection.default_channel.queue_delete(NAME)
    with pytest.raises(ProbeFailed, match="NOT_FOUND") as failure:
        source.read()
    assert "rights" not in str(failure.value)
    assert source.read() == []
    assert waiting(on_rabbit) == 0


def test_properties_of_a_message_are_read_without_its_body(on_rabbit: Channel) -> None:
    source = on_rabbit.source()
    source.read()
    with kombu.Connection(on_rabbit.broker.url) as connection:
        producer = kombu.Producer(connection.default_channel, kombu.Exchange(NAME, "fanout", durable=True))
        producer.publish({"a": 1}, serializer="json", compression="zlib")
        producer.publish({"a": 1}, serializer="pickle")
        producer.publish(b"\xff", content_type="application/json", content_encoding="utf-8")
    compressed, pickled, odd = drain(source)
    assert compressed.is_compressed
    assert not compressed.body.startswith(b"{")
    assert pickled.content_type == "application/x-python-serialize"
    assert odd.body == b"\xff"


def test_both_sides_declare_the_same_queue(on_rabbit: Channel) -> None:
    """RabbitMQ refuses to declare a queue again with other arguments."""
    drain(on_rabbit.source())
    on_rabbit.write("a")
    with kombu.Connection(on_rabbit.broker.url) as connection:
        declared = connection.default_channel.queue_declare(NAME, passive=True)
    assert declared.message_count == 1


def test_a_queue_with_other_arguments_is_a_failure(on_rabbit: Channel) -> None:
    with kombu.Connection(on_rabbit.broker.url) as connection:
        connection.default_channel.queue_declare(NAME, durable=True, auto_delete=False)
    with pytest.raises(LookoutError, match="PRECONDITION_FAILED"):
        on_rabbit.source().read()


def test_missing_rights_on_rabbitmq_are_named(rabbit_broker: conftest.Broker) -> None:
    server: Any = rabbit_broker.server
    rights = {"configure": "^$", "write": "^$", "read": "^$"}
    server.management("PUT", f"permissions/{rabbit_broker.vhost}/{rabbit_broker.vhost}", rights)
    source = AmqpSnapshots(Broker(rabbit_broker.url))
    with pytest.raises(ProbeFailed, match="configure, write and read celery-lookout"):
        source.read()
    source.close()


# -- other transports


@pytest.fixture
def files(tmp_path: Path) -> Broker:
    folders = ("data_folder_in", "data_folder_out", "control_folder")
    return Broker("filesystem://", transport_options=dict.fromkeys(folders, str(tmp_path)))


def publish(broker: Broker, *texts: str, **options: Any) -> None:
    with broker.connection() as connection:
        producer = kombu.Producer(connection.default_channel)
        kombu.Queue(QUEUE, kombu.Exchange(""))(connection.default_channel).declare()
        for text in texts:
            producer.publish(text, routing_key=QUEUE, **{"content_type": "application/json", **options})


def test_a_queue_of_kombu_is_read_once_and_its_bodies_stay_as_they_are(files: Broker) -> None:
    source = KombuSnapshots(files)
    assert source.read() == []
    publish(files, "a", "b")
    publish(files, "c" * 100, compression="zlib")
    # Of messages of the same millisecond the file system keeps no order.
    compressed, a, b = sorted(drain(source), key=lambda message: (not message.is_compressed, message.body))
    assert (a, b) == (Message(b"a"), Message(b"b"))
    assert compressed.is_compressed
    assert b"ccc" not in compressed.body
    assert source.read() == []
    source.close()


@pytest.fixture
def sqs(sqs_broker: conftest.Broker) -> Broker:
    return Broker(sqs_broker.url, transport_options=sqs_broker.transport_options)


def sqs_queues(sqs_broker: conftest.Broker) -> list[str]:
    server: Any = sqs_broker.server
    urls = server.client(sqs_broker.transport_options["region"]).list_queues().get("QueueUrls", [])
    return [url.rpartition("/")[2] for url in urls]


def test_on_sqs_no_queue_is_made_where_no_worker_made_one(sqs: Broker, sqs_broker: conftest.Broker) -> None:
    source = SqsSnapshots(sqs)
    assert source.read() == []
    assert sqs_queues(sqs_broker) == []
    publish(sqs, "a", "b")
    assert sorted(bodies(drain(source))) == ["a", "b"]
    assert source.read() == []
    source.close()
    again = SqsSnapshots(sqs)
    assert again.read() == []
    again.close()


def test_on_sqs_a_queue_that_is_not_among_the_predefined_is_not_looked_for(sqs_broker: conftest.Broker) -> None:
    predefined = {"celery": {"url": "http://127.0.0.1:1/1/celery"}}
    source = SqsSnapshots(
        Broker(sqs_broker.url, transport_options={**sqs_broker.transport_options, "predefined_queues": predefined})
    )
    assert source.read() == []
    source.close()


def test_who_only_looks_takes_nothing_away(files: Broker) -> None:
    publish(files, "a")
    with contextlib.closing(KombuSnapshots(files, acknowledge=False)) as guest:
        assert bodies(drain(guest)) == ["a"]
    with contextlib.closing(KombuSnapshots(files)) as source:
        assert bodies(drain(source)) == ["a"]


SOURCES: dict[str, Callable[[Broker], SnapshotSource]] = {
    "redis": RedisSnapshots, "amqp": AmqpSnapshots, "kombu": KombuSnapshots,
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_that_was_never_used_can_be_closed(kind: str) -> None:
    url = {"redis": "redis://127.0.0.1:1/0", "amqp": "amqp://127.0.0.1:1//", "kombu": "memory://"}[kind]
    source = SOURCES[kind](Broker(url))
    source.settle()
    source.close()


class Raw(amqp.Message):  # type: ignore[misc]  # untyped
    """A message whose properties are what *raw* says, right or wrong."""

    raw = b""

    def _serialize_properties(self) -> bytes:
        return self.raw


def in_tables(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return table


@pytest.mark.parametrize(
    "properties",
    [
        pytest.param(struct.pack(">H", 1 << 15) + b"\x02\xff\xfe", id="content type that is no UTF-8"),
        pytest.param(
            struct.pack(">HI", 1 << 13, 11) + b"\x01aT" + struct.pack(">Q", 2**63), id="time past the year 9999"
        ),
        pytest.param(struct.pack(">HI", 1 << 13, len(in_tables(1500))) + in_tables(1500), id="tables in tables"),
        pytest.param(struct.pack(">H", 1 << 14) + b"\x08punycode", id="a codec that takes hours"),
    ],
)
def test_a_message_that_nobody_can_read_holds_up_no_other(properties: bytes, on_rabbit: Channel) -> None:
    """RabbitMQ would deliver it again after each connection that breaks on it, for a quarter of an hour."""
    on_rabbit.write("a")
    with kombu.Connection(on_rabbit.broker.url) as connection:
        body: Any = b"a" * 500_000 + b"-" + b"aa" * 500_000
        evil = Raw(body)
        evil.raw = properties
        channel: Any = connection.default_channel
        channel.basic_publish(evil, exchange=NAME)
    on_rabbit.write("b")
    messages = drain(on_rabbit.source())
    assert [message.body for message in messages if len(message.body) == 1] == [b"a", b"b"]
    [unread] = [message for message in messages if len(message.body) > 1]
    assert unread.content_type is None
