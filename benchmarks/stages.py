"""Where the CPU of an event goes, in process and without sockets: each stage on the bytes that a broker would send."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import msgspec

from celery_lookout.broker import Broker
from celery_lookout.events import Event
from celery_lookout.intake.amqp import AmqpEvents
from celery_lookout.intake.amqp_frames import FrameReader
from celery_lookout.intake.decode import MAX_BODY_BYTES, Envelope, EventDecoder
from celery_lookout.intake.redis import PARSE_BYTES, READ_BYTES, RedisEvents
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.state.cluster import Cluster, ClusterOptions

from .stream import Load, Message, amqp_bytes, redis_bytes

LOAD: Final = Load(20_000)

#: The least of so many is shown: what disturbs only adds.
ROUNDS: Final = 15

Chunks = Sequence[bytes]


@dataclass(frozen=True)
class Stages:
    """CPU microseconds per task event."""

    broker: str
    #: RESP, or AMQP frames.
    protocol: float
    #: kombu's message around the body, and base64; Redis only.
    envelope: float
    json: float
    #: What is refused, what is passed on.
    checks: float
    #: The in-flight table, counters and histograms.
    counting: float
    together: float


def measure() -> Iterator[Stages]:
    """Yield a row for each broker."""
    messages = list(LOAD.messages())
    events = sum(message.task_events for message in messages)
    chunks = _chunks(_pushed_by_redis(message) for message in messages)
    yield _stages("Redis", chunks, events, _resp, _opened, RedisEvents(Broker("redis://"), _decoder()))
    chunks = _chunks(_delivered_by_rabbitmq(tag, message) for tag, message in enumerate(messages, 1))
    yield _stages("RabbitMQ", chunks, events, _frames, None, AmqpEvents(Broker("amqp://"), _decoder()))


def _stages(
    broker: str,
    chunks: Chunks,
    events: int,
    parse: Callable[[Chunks], list[bytes]],
    unwrap: Callable[[list[bytes]], list[bytes]] | None,
    source: Any,
) -> Stages:
    def cost(stage: Callable[[], object]) -> float:
        return min(_cpu_seconds(stage) for _ in range(ROUNDS)) / events * 1e6

    messages = parse(chunks)
    bodies = messages if unwrap is None else unwrap(messages)
    decode = msgspec.json.Decoder(Event | list[Event]).decode
    protocol = cost(lambda: parse(chunks))
    envelope = 0.0 if unwrap is None else cost(lambda: unwrap(messages))
    json = cost(lambda: [decode(body) for body in bodies])
    read = cost(lambda: _read(source, chunks, None))
    together = cost(lambda: _read(source, chunks, Cluster(Scope(Registry()), ClusterOptions())))
    return Stages(broker, protocol, envelope, json, read - protocol - envelope - json, together - read, together)


def _cpu_seconds(stage: Callable[[], object]) -> float:
    started = time.thread_time()
    stage()
    return time.thread_time() - started


def _chunks(parts: Iterator[bytes]) -> Chunks:
    stream = b"".join(parts)
    return [stream[at : at + READ_BYTES] for at in range(0, len(stream), READ_BYTES)]


def _decoder() -> EventDecoder:
    def refused(reason: str, _count: int) -> None:
        raise AssertionError(f"refused our own message: {reason}")

    return EventDecoder(refused)


class _Wire:
    """Stands for the socket: each read gives the next chunk."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = iter(chunks)

    def read_into(self, buffer: bytearray) -> int:
        chunk = next(self._chunks, b"")
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _read(source: Any, chunks: Chunks, cluster: Cluster | None) -> None:
    """Let the source read all chunks, and the cluster, if there is one, count what comes of them."""
    source._wire = _Wire(chunks)  # noqa: SLF001  # all of the source but its socket is to be measured
    now = time.time()
    while True:
        events, more = source.read(now)
        if not more:
            return
        if cluster is not None:
            cluster.fold(events, now)


def _resp(chunks: Chunks) -> list[bytes]:
    parser = hiredis.Reader()
    found = []
    for chunk in chunks:
        for start in range(0, len(chunk), PARSE_BYTES):
            parser.feed(chunk, start, min(PARSE_BYTES, len(chunk) - start))
            while (reply := parser.gets()) is not False:
                found.append(reply[-1])
    return found


def _opened(messages: list[bytes]) -> list[bytes]:
    decode = msgspec.json.Decoder(Envelope).decode
    return [decode(message).body for message in messages]


def _frames(chunks: Chunks) -> list[bytes]:
    reader = FrameReader(1, MAX_BODY_BYTES)
    return [delivery.body or b"" for chunk in chunks for delivery in reader.feed(chunk)]


def _pushed_by_redis(message: Message) -> bytes:
    """Return what a subscriber to the pattern of all events gets when the message is published."""
    parser = hiredis.Reader()
    parser.feed(redis_bytes(message))
    _, channel, content = parser.gets()
    parts = (b"pmessage", b"/0.celeryev/*", channel, content)
    return b"*4\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _delivered_by_rabbitmq(tag: int, message: Message) -> bytes:
    """Return the frames of the delivery: those of the publication, with another method in front."""
    published = amqp_bytes(message)
    after_method = 8 + int.from_bytes(published[3:7], "big")
    key = message.routing_key.encode()
    method = struct.pack(">HHB14sQ?B8sB", 60, 60, 14, b"celery-lookout", tag, False, 8, b"celeryev", len(key)) + key
    return struct.pack(">BHI", 1, 1, len(method)) + method + b"\xce" + published[after_method:]
