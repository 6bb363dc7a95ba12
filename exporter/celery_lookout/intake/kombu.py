"""
Events from any other transport that kombu can fan out on: memory, filesystem, MongoDB, Google Pub/Sub.

kombu's consumers block, so one thread drains them; a socket pair wakes the event loop as a real socket would.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from typing import Any, Final, NamedTuple
from uuid import uuid4

from ..broker import Broker, describe
from ..errors import BrokerUnavailable
from ..events import Event
from ..probes.raw_messages import body_of, is_compressed, leave_messages_alone, text_of
from .decode import MSGPACK_TYPES, EventDecoder

#: Messages that wait between the two threads. Past that the thread stops draining, and the broker keeps the rest.
WAITING_LIMIT: Final = 10_000

#: Messages decoded at a time.
BATCH: Final = 500

#: Seconds that the thread waits for messages at a time, and that the end waits for the thread.
DRAIN_SECONDS: Final = 1.0
FAREWELL_SECONDS: Final = 3.0

#: Transports on which Celery publishes events to a fanout exchange instead of a topic exchange.
_FANOUT_DRIVERS: Final = frozenset({"redis", "gcpubsub"})


class _Message(NamedTuple):
    body: bytes | None
    content_type: str | None
    content_encoding: str | None
    compressed: bool


class KombuEvents:
    """A consumer of the events of one broker, through kombu's own interface."""

    answers_beats = False
    loses_when_away = True
    live = True

    def __init__(self, broker: Broker, decoder: EventDecoder) -> None:
        self._broker = broker
        self._decoder = decoder
        self._waiting: deque[_Message] = deque()
        self._room = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._ours: socket.socket | None = None
        self._theirs: socket.socket | None = None

    def open(self) -> None:
        """Connect, subscribe and start draining. Raises BrokerUnavailable."""
        self._failure = None
        self._stop = threading.Event()
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        try:
            connection: Any = self._broker.connect()
            consumer = self._consumer(connection)
        except Exception as error:  # each transport has its own errors, and kombu names only some of them
            self.close()
            raise BrokerUnavailable(describe(self._broker, error)) from error
        self._thread = threading.Thread(
            target=self._drain, args=(connection, consumer, self._stop), daemon=True, name="kombu-events"
        )
        self._thread.start()

    def _consumer(self, connection: Any) -> Any:
        from kombu import Consumer, Exchange, Queue

        kind = "fanout" if connection.transport.driver_type in _FANOUT_DRIVERS else "topic"
        exchange = Exchange(self._broker.event_exchange, type=kind)
        queue = Queue(f"celeryev.lookout.{uuid4()}", exchange, routing_key="#", auto_delete=True, durable=False)
        channel = connection.channel()
        leave_messages_alone(channel)
        consumer = Consumer(channel, [queue], no_ack=True, on_message=self._hear)
        consumer.consume()
        return consumer

    def _hear(self, message: Any) -> None:
        self._waiting.append(
            _Message(
                body_of(message),
                text_of(message.content_type),
                text_of(message.content_encoding),
                is_compressed(message),
            )
        )
        self._wake()

    def _drain(self, connection: Any, consumer: Any, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                if len(self._waiting) >= WAITING_LIMIT:
                    self._room.clear()
                    self._room.wait(timeout=0.1)
                    continue
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=DRAIN_SECONDS)
        except Exception as error:  # noqa: BLE001  # the thread's edge: whatever it was, the listener connects again
            self._failure = describe(self._broker, error)
            self._wake()
        finally:
            with contextlib.suppress(Exception):
                consumer.cancel()
                # Most of these transports know no auto-delete: events would gather there, with nobody to read them.
                for queue in consumer.queues:
                    queue.delete()
            with contextlib.suppress(Exception):
                connection.release()

    def _wake(self) -> None:
        if self._theirs is not None:
            with contextlib.suppress(OSError):
                self._theirs.send(b"!")

    def fileno(self) -> int:
        """Return the socket that wakes the event loop."""
        if self._ours is None:
            raise BrokerUnavailable("not connected")
        return self._ours.fileno()

    def read(self, now: float) -> tuple[list[Event], bool]:
        """Return the events that are there, at most one batch of messages, and whether there may be more."""
        if self._ours is None:
            raise BrokerUnavailable("not connected")
        with contextlib.suppress(BlockingIOError):
            self._ours.recv(4096)
        events: list[Event] = []
        for _ in range(min(BATCH, len(self._waiting))):
            message = self._waiting.popleft()
            reason = self._objection(message)
            if reason is None:
                events += self._decoder.body(message.body or b"", now, msgpack=message.content_type in MSGPACK_TYPES)
            else:
                self._decoder.refuse(reason)
        self._room.set()
        if self._failure is not None and not events:
            raise BrokerUnavailable(self._failure)
        return events, bool(self._waiting)

    def _objection(self, message: _Message) -> str | None:
        if message.body is None:
            return "envelope"
        if message.compressed:
            return "compressed"
        return self._decoder.objection(message.content_type, message.content_encoding)

    def settle(self) -> None:
        """Nothing to acknowledge."""

    def beat(self) -> None:
        """Nothing to send: transports have their own ways, or none."""

    def farewell(self) -> None:
        """Stop the thread, and wait until it has left nothing of ours behind."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(FAREWELL_SECONDS)

    def close(self) -> None:
        """Stop the thread, without waiting for it."""
        self._stop.set()
        for end in (self._ours, self._theirs):
            if end is not None:
                end.close()
        self._ours = self._theirs = None
