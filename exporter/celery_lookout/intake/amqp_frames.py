"""
AMQP 0-9-1 frames, as far as a consumer of events needs them.

py-amqp spends twenty microseconds on a delivery, most of it on objects that we do not look at. This reads the bytes
of ``basic.deliver``, its header and its body, and nothing else. Source: the AMQP 0-9-1 specification, sections 2.3
and 4.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from msgspec import Struct

from ..errors import BrokerUnavailable

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_FRAME_HEADER: Final = struct.Struct(">BHI")
_FRAME_END: Final = 0xCE
_METHOD_ID: Final = struct.Struct(">HH")
_CONTENT: Final = struct.Struct(">HHQH")  # class, weight, body size, property flags
_DELIVERY_TAG: Final = struct.Struct(">Q?")

_DELIVER: Final = (60, 60)
_CLOSED: Final = (20, 41)
#: Methods after which no more events come on this connection, and what they are called.
_ENDINGS: Final = {(10, 50): "connection.close", (20, 40): "channel.close", (60, 30): "basic.cancel"}
#: A memory or disk alarm; we only consume, and acknowledgements still pass.
_HARMLESS: Final = {(10, 60), (10, 61), (60, 21), (60, 11)}

HEARTBEAT: Final = _FRAME_HEADER.pack(_HEARTBEAT, 0, 0) + bytes([_FRAME_END])
_ACK: Final = struct.Struct(">BHIHHQ?B")
_CLOSE: Final = struct.Struct(">BHIHHHBHHB")

#: Bits of the property flags, in the order in which the properties follow.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13

#: A frame larger than what was negotiated means that we are out of step.
_FRAME_MAX: Final = 131_072 + 8

_OUT_OF_STEP: Final = "RabbitMQ's event connection is out of step"


class Properties(NamedTuple):
    """Of a message's properties, what decides whether we read its body."""

    content_type: str | None
    content_encoding: str | None
    #: The ``headers`` table as bytes: only searched, never decoded.
    headers: bytes


class Delivery(Struct, frozen=True, gc=False):
    """One message. ``body`` is None when it was larger than allowed and was not kept."""

    tag: int
    redelivered: bool
    properties: bytes
    body: bytes | None


def ack(channel: int, tag: int) -> bytes:
    """Return the frame that acknowledges every message up to *tag*."""
    return _ACK.pack(_METHOD, channel, 13, 60, 80, tag, True, _FRAME_END)


def bind(channel: int, queue: str, exchange: str, routing_key: str) -> bytes:
    """Return the frame that binds *queue*, for which the broker sends no answer."""
    names = b"".join(bytes([len(name)]) + name for name in map(str.encode, (queue, exchange, routing_key)))
    payload = _METHOD_ID.pack(50, 20) + bytes(2) + names + bytes([True]) + bytes(4)  # ticket, no-wait, no arguments
    return _FRAME_HEADER.pack(_METHOD, channel, len(payload)) + payload + bytes([_FRAME_END])


def close_channel(channel: int) -> bytes:
    """Return the frame that closes *channel* without a complaint."""
    return _CLOSE.pack(_METHOD, channel, 11, 20, 40, 200, 0, 0, 0, _FRAME_END)


def parse_properties(raw: bytes) -> Properties:
    """Read the flags and the first three properties. Raises ValueError when the bytes are too short."""
    try:
        flags = int.from_bytes(raw[:2], "big")
        at = 2
        texts: list[str | None] = []
        for bit in (_CONTENT_TYPE, _CONTENT_ENCODING):
            text = None
            if flags & bit:
                end = at + 1 + raw[at]
                text = raw[at + 1 : end].decode("utf-8", "replace")
                at = end
            texts.append(text)
        headers = b""
        if flags & _HEADERS:
            size = int.from_bytes(raw[at : at + 4], "big")
            headers = raw[at + 4 : at + 4 + size]
    except IndexError as error:
        raise ValueError("properties end early") from error
    return Properties(texts[0], texts[1], headers)


class FrameReader:
    """Puts deliveries together from the bytes of a connection, in the order they come."""

    def __init__(self, channel: int, body_limit: int) -> None:
        self._channel = channel
        self._body_limit = body_limit
        self._pending = b""
        self._tag = 0
        self._redelivered = False
        self._properties = b""
        self._missing = 0
        self._parts: list[bytes] | None = []
        #: Whether the broker has closed the channel as it was asked to.
        self.is_closed = False

    def feed(self, data: bytes) -> Iterator[Delivery]:
        """
        Yield the deliveries that *data* completes.

        Raises BrokerUnavailable when the broker ends the consumer, the channel or the connection, and on nonsense.
        """
        if self._pending:
            data = self._pending + data
        at, size, end = 0, 0, len(data)
        unpack = _FRAME_HEADER.unpack_from
        while end - at >= 8:  # a frame's header and its end mark
            kind, _, size = unpack(data, at)
            stop = at + 7 + size
            if size > _FRAME_MAX:
                raise BrokerUnavailable(_OUT_OF_STEP)
            if stop >= end:
                break
            if data[stop] != _FRAME_END:
                raise BrokerUnavailable(_OUT_OF_STEP)
            delivery = None
            try:
                if kind == _BODY:
                    delivery = self._body(data[at + 7 : stop])
                elif kind == _HEADER:
                    delivery = self._header(data[at + 7 : stop])
                elif kind == _METHOD:
                    self._method(data[at + 7 : stop])
            except (struct.error, IndexError) as error:  # a frame too short for what it says it is
                raise BrokerUnavailable(_OUT_OF_STEP) from error
            if delivery is not None:
                yield delivery
            at = stop + 1
        self._pending = data[at:]

    def _method(self, payload: bytes) -> None:
        method = _METHOD_ID.unpack_from(payload)
        if method == _DELIVER:
            after_consumer_tag = 5 + payload[4]
            self._tag, self._redelivered = _DELIVERY_TAG.unpack_from(payload, after_consumer_tag)
        elif method == _CLOSED:
            self.is_closed = True
        elif method in _ENDINGS:
            raise BrokerUnavailable(f"RabbitMQ sent {_ENDINGS[method]}{_reason(method, payload)}")
        elif method not in _HARMLESS:
            raise BrokerUnavailable(f"RabbitMQ sent the unexpected method {method}")

    def _header(self, payload: bytes) -> Delivery | None:
        _, _, size, _ = _CONTENT.unpack_from(payload)
        self._properties = payload[12:]
        self._missing = size
        self._parts = [] if size <= self._body_limit else None
        return self._finish() if size == 0 else None

    def _body(self, payload: bytes) -> Delivery | None:
        self._missing -= len(payload)
        if self._parts is not None:
            self._parts.append(payload)
        return self._finish() if self._missing <= 0 else None

    def _finish(self) -> Delivery:
        parts = self._parts
        body = None if parts is None else parts[0] if len(parts) == 1 else b"".join(parts)
        return Delivery(self._tag, self._redelivered, self._properties, body)


def _reason(method: tuple[int, int], payload: bytes) -> str:
    """Return the code and text of a close, ready to be appended."""
    if method == (60, 30):
        return ": the event queue was deleted"
    text = payload[7 : 7 + payload[6]].decode("utf-8", "replace")
    return f": {int.from_bytes(payload[4:6], 'big')} {text}"
