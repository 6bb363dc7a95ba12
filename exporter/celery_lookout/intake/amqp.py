"""
Events from RabbitMQ: a durable, bounded queue of our own, acknowledged by hand.

Celery's own receivers declare an exclusive queue whose messages die after 5 seconds: whoever is away or slow loses
events without a word. Ours keeps them while the sidecar is stopped. py-amqp connects, does TLS, authenticates and
declares; then we read the socket ourselves.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, Final

from ..broker import Broker, describe
from ..errors import BrokerUnavailable
from ..events import Event
from .amqp_frames import HEARTBEAT, FrameReader, ack, bind, close_channel, parse_properties
from .decode import MAX_BODY_BYTES, MSGPACK_TYPES, EventDecoder
from .wire import Wire

if TYPE_CHECKING:
    import kombu

#: The version changes with any of the arguments below: RabbitMQ refuses to declare a queue with other arguments.
QUEUE_NAME: Final = "celery-lookout.events.v1"

#: Limits of the queue, for a sidecar that is away or slow. Past them RabbitMQ drops the oldest message. Times in ms.
QUEUE_ARGUMENTS: Final = {
    "x-max-length": 1_000_000,
    "x-max-length-bytes": 256 * 2**20,
    "x-message-ttl": 3_600_000,
    "x-expires": 6 * 3_600_000,
}

#: Seconds; the smallest that still forgives a pause of the machine. RabbitMQ sends a heartbeat every half of it.
HEARTBEAT_SECONDS: Final = 4

#: Messages RabbitMQ may send ahead of our acknowledgements: at 100 ms between reads, 200,000 messages a second.
PREFETCH: Final = 20_000

#: Seconds that RabbitMQ has to confirm that it has taken the last acknowledgement, and between two looks.
FAREWELL_SECONDS: Final = 3.0
_LOOK_SECONDS: Final = 0.01

#: Bytes read at a time. Some 600 events; about a millisecond of work.
READ_BYTES: Final = 256 * 1024

#: Bytes of properties up to which the verdict on them is kept. Celery's have some 100.
KEPT_BYTES: Final = 1024

#: Seconds between two bindings of the queue, which is what may be lost when somebody deletes the exchange.
BEATS_PER_BINDING: Final = 5

_CHANNEL: Final = 1


class AmqpEvents:
    """A consumer of the events of one RabbitMQ virtual host."""

    answers_beats = True
    loses_when_away = False

    def __init__(self, broker: Broker, decoder: EventDecoder, *, replica: str = "") -> None:
        """Each *replica* has a queue of its own: two on one queue would tear the events of a task apart."""
        self._broker = broker
        self._decoder = decoder
        self._queue = f"{QUEUE_NAME}.{replica}" if replica else QUEUE_NAME
        self._kombu: kombu.Connection | None = None
        self._wire: Wire | None = None
        self._frames = FrameReader(_CHANNEL, MAX_BODY_BYTES)
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._unsent = b""
        self._read_tag = 0
        self._settled_tag = 0
        self._backlog = 0
        self.live = True
        self._binding = bind(_CHANNEL, self._queue, broker.event_exchange, "#")
        self._beats = 0
        # Two messages of one worker have the same properties, to the byte: the verdict on them is worth keeping.
        self._judge = functools.lru_cache(maxsize=4096)(self._verdict)

    def open(self) -> None:
        """Connect, declare and consume. Raises BrokerUnavailable."""
        from amqp.exceptions import AccessRefused, AMQPError
        from kombu.exceptions import KombuError

        try:
            self._open()
        except (OSError, KombuError, AMQPError) as error:
            text = describe(self._broker, error)
            if isinstance(error, AccessRefused) and "access to" in text:  # it knows the password
                exchange = self._broker.event_exchange
                text += (
                    f". The RabbitMQ user needs the rights to configure and read {exchange}, and to configure, write"
                    f" and read {self._queue}"
                )
            raise BrokerUnavailable(text) from error

    def _open(self) -> None:
        self._kombu = self._broker.connect(heartbeat=HEARTBEAT_SECONDS)
        amqp: Any = self._kombu.connection
        channel = amqp.channel(_CHANNEL)
        exchange = self._broker.event_exchange
        channel.exchange_declare(exchange, "topic", durable=True, auto_delete=False)
        declared = channel.queue_declare(
            self._queue, durable=True, exclusive=False, auto_delete=False, arguments=QUEUE_ARGUMENTS
        )
        if declared.consumer_count:
            raise BrokerUnavailable(
                f"another sidecar reads the queue {self._queue}: give each its own with --replica NAME"
            )
        channel.queue_bind(self._queue, exchange, routing_key="#")
        channel.basic_qos(0, PREFETCH, a_global=False)
        self._frames = FrameReader(_CHANNEL, MAX_BODY_BYTES)
        self._unsent = b""
        self._read_tag = self._settled_tag = 0
        self._backlog = declared.message_count
        # Without waiting for the answer, so that py-amqp has read nothing that belongs to us.
        channel.basic_consume(self._queue, no_ack=False, exclusive=True, nowait=True, consumer_tag="celery-lookout")
        self._wire = Wire(amqp.transport.sock, self._broker)

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._open_wire().fileno()

    def read(self, now: float) -> tuple[list[Event], bool]:
        """Return the events that are there, at most one buffer full, and whether there may be more."""
        count = self._open_wire().read_into(self._buffer)
        if count == 0:
            return [], False
        events: list[Event] = []
        self.live = self._read_tag >= self._backlog
        for delivery in self._frames.feed(bytes(self._view[:count])):
            self._read_tag = delivery.tag
            if delivery.redelivered:
                self.live = False
            if delivery.body is None:
                self._decoder.refuse("too_large")
                continue
            judge = self._judge if len(delivery.properties) <= KEPT_BYTES else self._verdict
            reason, msgpack = judge(delivery.properties)
            if reason is None:
                events += self._decoder.body(delivery.body, now, msgpack=msgpack)
            else:
                self._decoder.refuse(reason)
        return events, True

    def _verdict(self, raw: bytes) -> tuple[str | None, bool]:
        """Return why a message with these properties is refused, or None, and whether its body is msgpack."""
        try:
            properties = parse_properties(raw)
        except ValueError:
            return "envelope", False
        if b"compression" in properties.headers:
            return "compressed", False
        reason = self._decoder.objection(properties.content_type, properties.content_encoding)
        return reason, properties.content_type in MSGPACK_TYPES

    def settle(self) -> None:
        """Acknowledge everything read so far, refused messages too: they would come back for ever."""
        if self._read_tag > self._settled_tag:
            self._settled_tag = self._read_tag
            self._send(ack(_CHANNEL, self._read_tag))

    def beat(self) -> None:
        """
        Send a heartbeat; RabbitMQ sends its own unasked.

        Now and then bind the queue again: who deletes the exchange takes the binding with it, and workers, who make
        the exchange anew, not the binding. Without an exchange RabbitMQ closes the channel.
        """
        self._beats += 1
        self._send(HEARTBEAT if self._beats % BEATS_PER_BINDING else self._binding)

    def _send(self, frame: bytes) -> None:
        """Send what can be sent now and keep the rest; the broker takes little from us, but it may be hung."""
        data = self._unsent + frame
        self._unsent = data[self._open_wire().write(data) :]

    def farewell(self) -> None:
        """
        Close the channel, and wait until RabbitMQ says so: by then it has taken the acknowledgements before that.

        Without it they could be lost with the connection. What comes meanwhile is delivered again.
        """
        deadline = time.monotonic() + FAREWELL_SECONDS
        self._unsent += close_channel(_CHANNEL)
        with contextlib.suppress(BrokerUnavailable):
            while time.monotonic() < deadline and not self._frames.is_closed:
                if self._unsent:
                    self._send(b"")
                count = self._open_wire().read_into(self._buffer)
                for _ in self._frames.feed(bytes(self._view[:count])):
                    pass
                if not count:
                    time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Let go of the connection. What was not acknowledged is delivered again."""
        self._wire = None
        connection, self._kombu = self._kombu, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.collect()

    def _open_wire(self) -> Wire:
        if self._wire is None:
            raise BrokerUnavailable("not connected")
        return self._wire
