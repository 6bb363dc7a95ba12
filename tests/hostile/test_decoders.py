"""Every decoder on its own: nothing raises but what its caller expects, and of what is good nothing is lost."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import struct
from collections import Counter
from typing import Any

import kombu
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_lookout.amqp_messages import handle_frames
from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable, ProbeFailed
from celery_lookout.intake.amqp import KEPT_BYTES, AmqpEvents
from celery_lookout.intake.decode import MAX_BATCH, REASONS, EventDecoder
from celery_lookout.intake.kombu import KombuEvents
from celery_lookout.intake.redis import RedisEvents
from celery_lookout.intake.snapshots_kombu import QUEUE, KombuSnapshots
from celery_lookout.metrics.exposition import Exposition
from celery_lookout.metrics.registry import Registry
from celery_lookout.probes.control import ControlProbe
from celery_lookout.probes.management import Management
from celery_lookout.probes.message_tail import read_tail
from celery_lookout.probes.pidbox import Pidbox
from celery_lookout.probes.rabbitmq import _head
from celery_lookout.probes.raw_messages import body_of, is_compressed, leave_messages_alone, text_of
from tests import conftest
from tests.clusters import families
from tests.hostile.damage import as_bytes, damaged, recorded_bodies, values
from tests.intake.test_amqp_frames import frame, message
from tests.servers.process import wait_until

NOW = recorded_bodies()[0][0]
EVENT = {"type": "worker-heartbeat", "hostname": "w@h", "timestamp": NOW, "pid": 1}

quickly = settings(max_examples=100, deadline=None)


class Intake:
    """A decoder and what it refused."""

    def __init__(self) -> None:
        self.refused = Counter[str]()
        self.decoder = EventDecoder(self._refuse, accept_msgpack=True)

    def _refuse(self, reason: str, count: int) -> None:
        assert reason in REASONS
        self.refused[reason] += count


def envelope(body: Any) -> dict[str, Any]:
    """Return kombu's message on Redis around *body*."""
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"hostname": "w@h"},
        "properties": {"body_encoding": "base64", "delivery_tag": "x", "delivery_info": {}, "priority": 0},
    }


@quickly
@given(st.integers(0, 2**32))
def test_a_damaged_envelope_is_read_or_counted(seed: int) -> None:
    chance = random.Random(seed)
    at, body = chance.choice(recorded_bodies())
    intake = Intake()
    events = intake.decoder.redis_message(as_bytes(damaged(envelope(body), chance), chance), at)
    assert events or sum(intake.refused.values()) or body == []


@quickly
@given(st.integers(0, 2**32))
def test_good_events_survive_those_that_travel_with_them(seed: int) -> None:
    chance = random.Random(seed)
    intake = Intake()
    good = [{**EVENT, "hostname": f"good{number}@h"} for number in range(chance.randint(0, 4))]
    bad = [damaged(EVENT, chance, wounds=4) for _ in range(chance.randint(1, 4))]
    batch = good + bad
    chance.shuffle(batch)
    text = json.dumps(batch)
    events = intake.decoder.body(text.encode(), NOW)
    if _is_no_json(text):
        assert events or sum(intake.refused.values()) > 0
    else:
        assert len(events) + sum(intake.refused.values()) == len(batch)
        assert {event["hostname"] for event in good} <= {event.hostname for event in events}


def _is_no_json(text: str) -> bool:
    """NaN and infinity are none: then it cannot be known where one event ends."""
    return any(odd in text for odd in ("NaN", "Infinity"))


def test_of_doubled_keys_the_last_counts() -> None:
    intake = Intake()
    [event] = intake.decoder.body(json.dumps(EVENT).encode()[:-1] + b', "hostname": "other@h"}', NOW)
    assert event.hostname == "other@h"


def test_a_batch_of_bad_events_is_looked_at_twice_and_not_more() -> None:
    """Work grows with the size of a message, and no faster."""
    calls = Counter[str]()

    class Counting:
        def __init__(self, decoder: Any) -> None:
            self._decoder = decoder

        def decode(self, data: Any) -> Any:
            calls["bytes"] += len(memoryview(data))
            return self._decoder.decode(data)

    intake = Intake()
    intake.decoder._json = tuple(Counting(decoder) for decoder in intake.decoder._json)  # type: ignore[assignment]
    body = json.dumps([{"type": "task-sent", "timestamp": NOW, "retries": "x" * 300}] * MAX_BATCH).encode()
    assert intake.decoder.body(body, NOW) == []
    assert intake.refused == {"field": MAX_BATCH}
    assert calls["bytes"] <= 4 * len(body)


def pmessage(data: bytes) -> bytes:
    """Return what Redis sends for one event."""
    parts = (b"pmessage", b"/0.celeryev/*", b"/0.celeryev/worker.heartbeat", data)
    return b"*4\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def hear(source: RedisEvents, data: bytes) -> int:
    source._buffer[: len(data)] = data
    return len(source._parsed(len(data), NOW))


GOOD = pmessage(json.dumps(envelope(EVENT)).encode())


@quickly
@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from([b"*", b"$", b":", b"-", b"+", b"4", b"-1", b"\r\n", GOOD])).map(b"".join)
)
@example(b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n:5\r\n")
@example(b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n*0\r\n")
@example(b"*4\r\n$8\r\npmessage\r\n$-1\r\n$-1\r\n$-1\r\n")
@example(b"*1\r\n" * 60)
@example(b"$99999999999999999999\r\n")
def test_any_bytes_of_redis_give_events_or_the_connection_up(data: bytes) -> None:
    source = RedisEvents(Broker("redis://localhost"), Intake().decoder)
    with contextlib.suppress(BrokerUnavailable):
        hear(source, data[:4096])


@quickly
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_one_wrong_byte_from_redis(position: int, byte: int) -> None:
    intake = Intake()
    source = RedisEvents(Broker("redis://localhost"), intake.decoder)
    with contextlib.suppress(BrokerUnavailable):
        assert hear(source, GOOD[:position] + bytes([byte]) + GOOD[position + 1 :]) <= 1
        assert sum(intake.refused.values()) <= 1


class Wired:
    """A connection to RabbitMQ on which *data* comes with every read."""

    data = b""

    def read_into(self, buffer: bytearray) -> int:
        buffer[: len(self.data)] = self.data
        return len(self.data)


def test_properties_that_end_early_cost_their_own_message_only() -> None:
    """A fault would make RabbitMQ deliver it again, for ever."""
    intake, wire = Intake(), Wired()
    source = AmqpEvents(Broker("amqp://localhost"), intake.decoder)
    source._wire = wire  # type: ignore[assignment]
    good = message(2, json.dumps(EVENT).encode())
    wire.data = message(1, b"{}").replace(frame(2, _small_header()), frame(2, _header(b"\x80\0"))) + good
    assert len(source.read(NOW)[0]) == 1
    assert intake.refused == {"envelope": 1}


def test_properties_that_are_never_the_same_are_not_remembered() -> None:
    """Each message may have headers of a hundred kilobytes that no other has."""
    wire = Wired()
    source = AmqpEvents(Broker("amqp://localhost"), Intake().decoder)
    source._wire = wire  # type: ignore[assignment]
    for number in range(10):
        text = f"{number:04d}".encode() * 250 + b"x" * 25
        table = b"\x01aS" + struct.pack(">I", len(text)) + text
        properties = struct.pack(">H", 1 << 13) + struct.pack(">I", len(table)) + table
        assert len(properties) > KEPT_BYTES
        wire.data = message(number + 1, b"{}").replace(frame(2, _small_header()), frame(2, _header(properties)))
        source.read(NOW)
    assert source._judge.cache_info().currsize == 0
    wire.data = message(11, b"{}")
    source.read(NOW)
    assert source._judge.cache_info().currsize == 1


def _small_header() -> bytes:
    return message(1, b"{}").split(b"\xce")[1][7:]


def _header(properties: bytes) -> bytes:
    return _small_header()[:12] + properties


@quickly
@given(st.binary(max_size=80), st.integers(0, 3))
def test_properties_that_py_amqp_cannot_read_are_left_away(properties: bytes, size: int) -> None:
    delivered: list[Any] = []

    class Connection:
        bytes_recv = 0

    on_frame = handle_frames(Connection(), lambda *args: delivered.append(args[3]))
    on_frame((1, 1, struct.pack(">HH", 60, 60)))
    on_frame((2, 1, struct.pack(">HHQ", 60, 0, size) + properties))
    if size:
        on_frame((3, 1, b"x" * size))
    assert len(delivered) == 1


raw_messages = st.one_of(
    values,
    st.integers(0, 2**32).map(lambda seed: damaged(envelope(EVENT), random.Random(seed), wounds=4)),
    st.fixed_dictionaries(
        {"body": values, "properties": st.just({"delivery_tag": "x", "body_encoding": None})},
        optional={"headers": values, "content-type": values, "content-encoding": values},
    ),
)


@quickly
@given(raw_messages)
@example({"body": 10**12, "properties": {"delivery_tag": "x"}})
@example({"body": "\ud800", "properties": {"delivery_tag": "x"}, "headers": ["compression"], "content-type": ["x"]})
def test_whatever_lies_in_a_queue_is_a_message(raw: Any) -> None:
    channel = kombu.Connection("memory://").channel()
    leave_messages_alone(channel)
    found = channel.Message(raw, channel=channel)
    assert isinstance(body_of(found), bytes | None)
    assert isinstance(text_of(found.content_type), str | None)
    assert isinstance(is_compressed(found), bool)


#: Of a transport that keeps messages as JSON, what is none.
NO_MESSAGES: tuple[Any, ...] = (
    17, "x", [], {}, {"body": 10**12, "properties": {"delivery_tag": "a"}}, {"properties": {"delivery_tag": "b"}},
    {"body": "{}", "content-type": ["application/json"], "properties": {"delivery_tag": "c"}},
    {"body": "e30=", "headers": [], "properties": {"delivery_tag": "d", "body_encoding": "rot13"}},
)  # fmt: skip


def test_what_is_no_message_costs_no_event() -> None:
    intake = Intake()
    source = KombuEvents(Broker("memory://hostile"), intake.decoder)
    source.open()
    try:
        with kombu.Connection("memory://hostile") as connection:
            channel: Any = connection.channel()
            [name] = [queue for queue in channel.queues if queue.startswith("celeryev.lookout.")]
            for raw in (*NO_MESSAGES, envelope(EVENT)):
                channel._put(name, raw)
        heard = wait_until(lambda: source.read(NOW)[0], 10, "the good event did not come")
        assert heard is not None
        assert len(heard) == 1
        assert sum(intake.refused.values()) == len(NO_MESSAGES)
    finally:
        source.close()


def test_what_is_no_message_costs_no_snapshot() -> None:
    source = KombuSnapshots(Broker("memory://hostile"))
    with kombu.Connection("memory://hostile") as connection:
        channel: Any = connection.channel()
        channel.queue_declare(QUEUE)
        for raw in (*NO_MESSAGES, envelope({"v": 1})):
            channel._put(QUEUE, raw)
        messages = source.read()
    source.close()
    assert len(messages) == len(NO_MESSAGES) + 1
    assert messages[-1].body == b'{"v": 1}'
    assert messages[-1].content_type == "application/json"


@quickly
@given(raw_messages, st.sampled_from(["ticket", None, 5]))
def test_any_answer_is_taken_or_counted(raw: Any, ticket: Any) -> None:
    pidbox = Pidbox(Broker("memory://"))
    pidbox._ticket = "ticket"
    if isinstance(raw, dict):
        raw["headers"] = {"ticket": ticket}
    channel = kombu.Connection("memory://").channel()
    leave_messages_alone(channel)
    pidbox._on_reply(channel.Message(raw, channel=channel))
    assert len(pidbox._replies) + pidbox.invalid_replies == 1


@pytest.mark.redis
def test_garbage_among_answers_costs_no_answer(redis_broker: conftest.Broker) -> None:
    """Kombu reads the JSON around an answer before we see it, and revives what it finds in there."""
    import redis

    pidbox = Pidbox(Broker(redis_broker.url))
    assert pidbox.ask("ping", timeout=0.1) == {}
    garbage = (b"", b"{", b"\xff", b"[]", b"5", b'{"__type__": "decimal", "__value__": "x"}', b"[" * 100_000)
    with redis.Redis.from_url(redis_broker.url) as client:
        client.lpush(pidbox._reply_queue.name, *garbage)
        assert pidbox.ask("ping", timeout=1.0) == {}
        assert client.llen(pidbox._reply_queue.name) == 0
    assert pidbox.invalid_replies == len(garbage)
    pidbox.close()


STATS = {
    "pid": 7, "total": {"add": 3},
    "pool": {"implementation": "celery.concurrency.prefork:TaskPool", "max-concurrency": 2, "processes": [8, 9]},
    "autoscaler": {"current": 2}, "rusage": {"utime": 1.5, "stime": 0.5, "maxrss": 1000},
    "prefetch_count": 8,
}  # fmt: skip
TASK = {"id": "a", "name": "add", "delivery_info": {"exchange": "", "routing_key": "celery"}, "time_start": NOW}
ANSWERS = {
    "stats": STATS,
    "active_queues": [{"name": "celery", "exchange": {"name": "celery"}, "routing_key": "celery"}],
    "conf": {"worker_prefetch_multiplier": 4},
    "scheduled": [{"eta": "x", "request": TASK}],
    "active": [TASK],
    "reserved": [TASK],
    "query_task": {"a": ["active", TASK]},
    "enable_events": {"ok": "done"},
}


@quickly
@given(st.integers(0, 2**32))
def test_damaged_answers_of_workers_are_read_or_counted(seed: int) -> None:
    chance = random.Random(seed)
    probe = ControlProbe(Broker("redis://localhost"))

    def ask(command: str, *_: Any, **__: Any) -> dict[str, msgspec.Raw]:
        answer = damaged(ANSWERS[command], chance, wounds=3) if chance.random() < 0.7 else ANSWERS[command]
        return {"w@h": msgspec.Raw(json.dumps(answer).encode())}

    probe._pidbox.ask = ask  # type: ignore[method-assign]
    for _ in range(3):
        for reading in probe.collect(["w@h"]):
            assert reading.scheduled is None or reading.scheduled >= 0
            assert reading.slots is None or reading.slots >= 0
        probe.active(["w@h"], reserved=True)
        for question in (lambda: probe.held("w@h", ["a", "b"]), lambda: probe.enable_events("w@h")):
            with contextlib.suppress(ProbeFailed):
                question()


ROW = {
    "name": "celery",
    "messages_ready": 3,
    "messages_unacknowledged": 0,
    "head_message_timestamp": int(NOW),
    "exclusive": False,
}


@quickly
@given(
    st.binary(max_size=40)
    | st.integers(0, 2**32).map(lambda seed: as_bytes(damaged([ROW, ROW], random.Random(seed)), random.Random(seed)))
)
@example(b"[" * 100_000)
@example(json.dumps([ROW | {"head_message_timestamp": int(NOW * 1000)}]).encode())
@example(b"\xff")
def test_any_answer_of_the_management_api_is_read_or_told(body: bytes) -> None:
    management = Management("localhost", 15672, "/", "Basic x")
    Management._get, kept = (lambda *_: (200, body)), Management._get  # type: ignore[method-assign]
    try:
        for row in management.queues():
            head = _head(row, NOW)
            assert head is None or 0 < (head.published_at or 0) <= NOW + 86_400
    except ProbeFailed:
        pass
    finally:
        Management._get = kept  # type: ignore[method-assign]


@quickly
@given(
    st.binary(max_size=200)
    | st.integers(0, 2**32).map(
        lambda seed: as_bytes(damaged(envelope(EVENT), random.Random(seed)), random.Random(seed))
    )
)
@example(b'{"properties": {"properties": ' * 300)
def test_any_end_of_a_message_is_read(tail: bytes) -> None:
    head = read_tail(tail, NOW)
    assert head.published_at is None or 0 < head.published_at <= NOW + 86_400


PARTS = (
    "application/openmetrics-text", "text/plain", "*/*", "version=", "1.0.0", "0.0.4", "99", "abc", ";", ",", "q=0",
    "escaping=", "allow-utf-8", " ", "=", "é", "1." * 50, "9" * 5000,
)  # fmt: skip
accepts = st.lists(st.sampled_from(PARTS) | st.text(max_size=9), max_size=9).map("".join)


@quickly
@given(accepts, accepts)
@example("application/openmetrics-text;version=abc", "gzip;q=x")
@example("text/plain;version=1.0.0é", "")
def test_any_scraper_is_answered(accept: str, accept_encoding: str) -> None:
    scrape = Exposition(Registry()).scrape(accept, accept_encoding)
    assert scrape.body
    assert "\n" not in scrape.headers["Content-Type"]
    if "Content-Encoding" not in scrape.headers:
        openmetrics = scrape.headers["Content-Type"].startswith("application/openmetrics-text")
        assert families(scrape.body.decode(), openmetrics=openmetrics)
