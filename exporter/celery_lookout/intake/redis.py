"""
Events from Redis and Valkey: pub/sub.

kombu and redis-py open the connection (URL, ACL, TLS, Sentinel, unix socket). After the subscription we read the
socket ourselves with hiredis: one read for all that came, which costs a fifth of taking messages one by one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import hiredis

from ..broker import Broker, describe
from ..errors import BrokerUnavailable
from ..events import Event
from .decode import EventDecoder
from .wire import Wire

if TYPE_CHECKING:
    import kombu

#: Bytes read at a time. Some 400 events; about a millisecond of work.
READ_BYTES: Final = 256 * 1024

#: Bytes parsed at a time. After each message hiredis moves all that is left, so more would only be moved about.
PARSE_BYTES: Final = 16 * 1024

_PING: Final = b"*1\r\n$4\r\nPING\r\n"


class RedisEvents:
    """A subscription to the event channels of one Redis database."""

    answers_beats = True
    loses_when_away = True
    live = True

    def __init__(self, broker: Broker, decoder: EventDecoder) -> None:
        self._broker = broker
        self._decoder = decoder
        self._kombu: kombu.Connection | None = None
        self._connection: Any = None
        self._wire: Wire | None = None
        self._parser = hiredis.Reader()
        self._buffer = bytearray(READ_BYTES)
        self._heard = False
        self._subscribed = False
        self._subscription = ""

    def open(self) -> None:
        """Connect and subscribe. Raises BrokerUnavailable."""
        from kombu.exceptions import KombuError
        from redis.exceptions import RedisError

        try:
            self._open()
        except (OSError, KombuError, RedisError) as error:
            self.close()
            raise BrokerUnavailable(describe(self._broker, error)) from error

    def _open(self) -> None:
        self._kombu = self._broker.connect()
        channel: Any = self._kombu.channel()
        verb, name = subscription(channel, self._broker.event_exchange)
        self._connection = channel.pool.make_connection()
        self._connection.connect()
        self._connection.send_command(verb, name)
        self._subscription = f"{verb} {name}"
        sock = self._connection._sock  # noqa: SLF001  # redis-py has no public way to hand over its socket
        self._wire = Wire(sock, self._broker)
        self._parser = hiredis.Reader()
        self._subscribed = False

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._open_wire().fileno()

    def read(self, now: float) -> tuple[list[Event], bool]:
        """Return the events that are there, at most one buffer full, and whether there may be more."""
        count = self._open_wire().read_into(self._buffer)
        if count == 0:
            return [], False
        self._heard = True
        return self._parsed(count, now), True

    def _parsed(self, count: int, now: float) -> list[Event]:
        events: list[Event] = []
        decode, parser = self._decoder.redis_message, self._parser
        try:
            for start in range(0, count, PARSE_BYTES):
                # Its annotation forgets that it takes any buffer.
                parser.feed(self._buffer, start, min(PARSE_BYTES, count - start))  # type: ignore[arg-type]
                while (reply := parser.gets()) is not False:
                    if isinstance(reply, list) and len(reply) >= 3 and reply[0] in (b"pmessage", b"message"):
                        events += decode(reply[-1], now)
                    elif not isinstance(reply, hiredis.ReplyError):
                        self._subscribed = True  # the first answer confirms it
                    elif not self._subscribed:
                        raise BrokerUnavailable(f"Redis refused {self._subscription}, so there are no events: {reply}")
                    # Else it refuses a PING, which is a sign of life: unable to save, it refuses all but reading.
        except (hiredis.ProtocolError, TypeError) as error:  # TypeError: a message that is no bytes
            raise BrokerUnavailable(f"the event connection is out of step: {error}") from error
        return events

    def settle(self) -> None:
        """Nothing to acknowledge: pub/sub forgets at once."""

    def beat(self) -> None:
        """Ask for a reply, unless something came since the last time. A subscriber may send PING."""
        if self._heard:
            self._heard = False
            return
        self._open_wire().write(_PING)

    def farewell(self) -> None:
        """Nothing to say."""

    def close(self) -> None:
        """Let go of the connections."""
        subscriber, self._connection, self._wire = self._connection, None, None
        connection, self._kombu = self._kombu, None
        with contextlib.suppress(OSError):
            if subscriber is not None:
                subscriber.disconnect()
            if connection is not None:
                connection.collect()

    def _open_wire(self) -> Wire:
        if self._wire is None:
            raise BrokerUnavailable("not connected")
        return self._wire


def subscription(channel: Any, exchange: str) -> tuple[str, str]:
    """
    Return the command and the channel or pattern on which workers publish their events.

    Source: ``kombu.transport.redis.Channel._publish``: pub/sub ignores databases, so a prefix stands for the number;
    with ``fanout_patterns`` the routing key follows the exchange.
    """
    name = f"{channel.global_keyprefix or ''}{channel.keyprefix_fanout or ''}{exchange}"
    if not channel.fanout_patterns:
        return "SUBSCRIBE", name
    literal = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in name)
    return "PSUBSCRIBE", f"{literal}/*"
