"""RabbitMQ's bytes, cut anywhere, damaged anywhere: deliveries come out whole, or the connection is given up."""

from __future__ import annotations

import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lookout.errors import BrokerUnavailable
from celery_lookout.intake.amqp_frames import (
    HEARTBEAT,
    Delivery,
    FrameReader,
    Properties,
    ack,
    close_channel,
    parse_properties,
)

LIMIT = 1000

#: Flags, content type, content encoding, and a headers table with one string.
PROPERTIES = (
    struct.pack(">H", 0xE000)
    + b"\x10application/json"
    + b"\x05utf-8"
    + b"\x00\x00\x00\x11\x08hostnameS\x00\x00\x00\x03w@h"
)


def frame(kind: int, payload: bytes, channel: int = 1) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def method(class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    return frame(1, struct.pack(">HH", class_id, method_id) + arguments)


def deliver(tag: int, *, redelivered: bool = False) -> bytes:
    return method(60, 60, b"\x0ecelery-lookout" + struct.pack(">Q?", tag, redelivered) + b"\x08celeryev\x0btask.multi")


def header(size: int) -> bytes:
    return frame(2, struct.pack(">HHQ", 60, 0, size) + PROPERTIES)


def message(tag: int, *parts: bytes, redelivered: bool = False) -> bytes:
    """One delivery whose body comes in *parts*, a frame for each."""
    bodies = b"".join(frame(3, part) for part in parts)
    return deliver(tag, redelivered=redelivered) + header(sum(map(len, parts))) + bodies


STREAM = b"".join(
    [
        message(1, b'{"type":"task-sent"}'),
        frame(8, b"", channel=0),
        message(2, b"[1,", b"2,", b"3]", redelivered=True),
        message(3),
        method(10, 60, b"\x03low"),
        message(4, b"x" * (LIMIT + 1)),
        message(5, b"y" * LIMIT),
    ]
)

DELIVERIES = [
    Delivery(1, False, PROPERTIES, b'{"type":"task-sent"}'),
    Delivery(2, True, PROPERTIES, b"[1,2,3]"),
    Delivery(3, False, PROPERTIES, b""),
    Delivery(4, False, PROPERTIES, None),
    Delivery(5, False, PROPERTIES, b"y" * LIMIT),
]


def read(*chunks: bytes) -> list[Delivery]:
    reader = FrameReader(1, LIMIT)
    return [delivery for chunk in chunks for delivery in reader.feed(chunk)]


def test_deliveries_come_out_whole() -> None:
    """A body over several frames, an empty one, one too large to keep; heartbeats and alarms between them."""
    assert read(STREAM) == DELIVERIES


def test_the_stream_may_be_cut_anywhere() -> None:
    for position in range(len(STREAM) + 1):
        assert read(STREAM[:position], STREAM[position:]) == DELIVERIES, position


def test_the_stream_may_come_byte_by_byte() -> None:
    assert read(*(bytes([byte]) for byte in STREAM)) == DELIVERIES


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_the_stream_may_be_cut_into_any_pieces(positions: list[int]) -> None:
    edges = [0, *sorted(positions), len(STREAM)]
    assert read(*(STREAM[start:end] for start, end in itertools.pairwise(edges))) == DELIVERIES


def test_properties_read_from_a_delivery() -> None:
    assert parse_properties(PROPERTIES) == Properties("application/json", "utf-8", b"\x08hostnameS\x00\x00\x00\x03w@h")
    assert parse_properties(b"\x00\x00") == Properties(None, None, b"")
    assert parse_properties(struct.pack(">H", 0x1000) + b"\x02") == Properties(None, None, b"")


@given(st.binary(max_size=60))
def test_any_properties_are_read_or_refused_with_a_value_error(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_properties(raw)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (
            method(10, 50, struct.pack(">H", 320) + b"\x11CONNECTION_FORCED" + b"\0\0\0\0"),
            "RabbitMQ sent connection.close: 320 CONNECTION_FORCED",
        ),
        (
            method(20, 40, struct.pack(">H", 406) + b"\x0dPRECONDITION!" + b"\0\x3c\0\x50"),
            "RabbitMQ sent channel.close: 406 PRECONDITION!",
        ),
        (method(60, 30, b"\x0ecelery-lookout\x01"), "RabbitMQ sent basic.cancel: the event queue was deleted"),
        (method(90, 10), "RabbitMQ sent the unexpected method (90, 10)"),
    ],
)
def test_the_broker_may_end_it_and_says_why(ending: bytes, reason: str) -> None:
    reader = FrameReader(1, LIMIT)
    feed = reader.feed(message(1, b"{}") + ending)
    assert next(feed) == Delivery(1, False, PROPERTIES, b"{}")
    with pytest.raises(BrokerUnavailable) as raised:
        next(feed)
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    "harmless",
    [
        method(10, 60, b"\x06memory"),
        method(10, 61),
        method(60, 21, b"\x0ecelery-lookout"),
        method(60, 11),
        frame(8, b"", channel=0),
    ],
)
def test_alarms_and_late_answers_pass(harmless: bytes) -> None:
    assert read(harmless + message(1, b"{}")) == [Delivery(1, False, PROPERTIES, b"{}")]


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(frame(3, b"{}")[:-1] + b"\x00", id="wrong end mark"),
        pytest.param(struct.pack(">BHI", 3, 1, 10**9) + b"x", id="frame larger than negotiated"),
        pytest.param(frame(1, b""), id="method without a number"),
        pytest.param(frame(1, b"\x00\x3c"), id="half a method number"),
        pytest.param(method(60, 60), id="deliver without arguments"),
        pytest.param(method(60, 60, b"\xff123"), id="deliver with a tag that is too long"),
        pytest.param(method(10, 50), id="close without a reason"),
        pytest.param(frame(2, b"\x00\x3c\x00"), id="half a header"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", id="another protocol"),
    ],
)
def test_nonsense_gives_the_connection_up(damaged: bytes) -> None:
    with pytest.raises(BrokerUnavailable):
        read(damaged)


def test_bodies_too_large_are_not_kept_in_memory() -> None:
    reader = FrameReader(1, LIMIT)
    list(reader.feed(deliver(1) + header(2**40)))
    for _ in range(100):
        assert list(reader.feed(frame(3, b"x" * 100_000))) == []
    assert sum(len(part) for part in reader._parts or ()) == 0


def _feed_all(*chunks: bytes) -> None:
    with contextlib.suppress(BrokerUnavailable):
        read(*chunks)


@given(st.lists(st.binary(max_size=100), max_size=4))
def test_any_bytes_raise_nothing_but_broker_unavailable(chunks: list[bytes]) -> None:
    _feed_all(*chunks)


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 8, 9]), st.binary(max_size=40)), max_size=6))
def test_any_frames_raise_nothing_but_broker_unavailable(frames: list[tuple[int, bytes]]) -> None:
    _feed_all(*(frame(kind, payload) for kind, payload in frames))


@given(
    st.sampled_from([(60, 60), (10, 50), (20, 40), (60, 30), (10, 60), (60, 21)]), st.binary(max_size=40), st.booleans()
)
def test_any_arguments_raise_nothing_but_broker_unavailable(
    name: tuple[int, int], arguments: bytes, body: bool
) -> None:
    _feed_all(method(*name, arguments), *([header(2), frame(3, b"{}")] if body else []))


@given(st.integers(0, len(STREAM) - 1), st.integers(0, 255))
def test_one_wrong_byte_raises_nothing_but_broker_unavailable(position: int, byte: int) -> None:
    _feed_all(STREAM[:position] + bytes([byte]) + STREAM[position + 1 :])


def test_acknowledgement_covers_all_up_to_its_tag() -> None:
    assert ack(1, 7) == method(60, 80, struct.pack(">QB", 7, 1))


def test_heartbeat_frame() -> None:
    assert frame(8, b"", channel=0) == HEARTBEAT


def test_the_channel_is_closed_and_the_answer_understood() -> None:
    arguments = struct.pack(">HBHH", 200, 0, 0, 0)
    assert close_channel(1) == method(20, 40, arguments)
    reader = FrameReader(1, LIMIT)
    assert len(list(reader.feed(message(1, b"{}")))) == 1
    assert not reader.is_closed
    assert list(reader.feed(method(20, 41))) == []
    assert reader.is_closed
