"""
The connection of a probe: opened when first needed, kept between polls, dropped on any error.

Everything here is about waiting and failing well. What is asked over the connection is left to the probes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from kombu.connection import Connection

from ..broker import SOCKET_TIMEOUT_SECONDS, Broker, describe
from ..errors import BrokerUnavailable, LookoutError, ProbeFailed

T = TypeVar("T")

#: Refusals that no right would change: Redis is out of memory, cannot save, or has become a replica; on RabbitMQ
#: somebody deleted what is asked for.
_NOT_FOR_WANT_OF_RIGHTS = re.compile(r"'maxmemory'|MISCONF|read only replica|UNBLOCKED|NOT_FOUND")


class Session:
    """
    One kombu connection with a bounded wait everywhere.

    *needs* says which rights the probe needs, for the message when the broker refuses something. *refusals* are the
    errors that say so, where they are not the transport's channel errors. *options* go over the broker's transport
    options. A session belongs to one thread at a time.
    """

    def __init__(
        self, broker: Broker, *, needs: str = "", refusals: tuple[type[Exception], ...] = (), **options: Any
    ) -> None:
        self.broker = broker
        self._needs = needs
        self._refusals = refusals
        self._settings = replace(broker, transport_options={**broker.transport_options, **options})
        self._connection: Connection | None = None
        self._channel: Any = None
        self._timed_out = False

    @property
    def is_open(self) -> bool:
        """Whether a connection is kept; it may have died since."""
        return self._connection is not None

    @property
    def connection(self) -> Connection:
        """The kombu connection; only inside ``channel()``."""
        if self._connection is None:
            raise BrokerUnavailable(f"{self.broker.masked_url}: the connection is closed")
        return self._connection

    @property
    def current_channel(self) -> Any:
        """The channel lent at present."""
        return self._channel

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """
        Lend the channel, after opening it if need be; any exception inside closes the connection.

        Raises BrokerUnavailable when the broker cannot be reached or stops answering, ProbeFailed when it refuses.
        """
        if self._channel is None:
            self._open()
        try:
            yield self._channel
        except LookoutError:
            self._drop()
            raise
        except Exception as error:  # noqa: BLE001 - the edge: kombu lets every driver raise what it likes
            # A refusal closes a channel, or is an answer of Redis; anything else is the connection's fault.
            refused = isinstance(error, self._refusals or self.connection.channel_errors)
            # Redis and boto have TimeoutErrors of their own.
            self._timed_out = type(error).__name__.endswith(("TimeoutError", "timeout"))
            self._drop()
            raise self._translated(error, refused=refused) from None

    def call(self, question: Callable[[Any], T]) -> T:
        """
        Return what *question* returns for the channel, asking again if the kept connection turns out to be dead.

        A broker that hangs is not asked twice. Raises as ``channel()`` does.
        """
        kept = self.is_open
        try:
            with self.channel() as channel:
                return question(channel)
        except BrokerUnavailable:
            if not kept or self._timed_out:
                raise
        with self.channel() as channel:
            return question(channel)

    def close(self) -> None:
        """Take leave of the broker; never raises."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(Exception):  # a broken connection has the right to break while closing
                connection.release()

    def _drop(self) -> None:
        """Let a connection go that failed."""
        connection, channel = self._connection, self._channel
        self._connection = self._channel = None
        if connection is None:
            return
        with suppress(Exception):
            # kombu's Redis channel would wait for the answer to the blocking read that it left behind.
            if (reader := getattr(vars(channel).get("client"), "connection", None)) is not None:
                reader.disconnect()
        with suppress(Exception):
            # Over AMQP this does not wait for the server's farewell, which a hung one never sends.
            connection.collect(socket_timeout=SOCKET_TIMEOUT_SECONDS)

    def _open(self) -> None:
        try:
            self._connection = self._settings.connect()
            self._channel = self._connection.channel()
        except Exception as error:  # noqa: BLE001 - the same edge
            self._drop()
            raise self._translated(error, refused=isinstance(error, self._refusals)) from None

    def _translated(self, error: Exception, *, refused: bool) -> LookoutError:
        text = describe(self.broker, error)
        if not refused:
            return BrokerUnavailable(text)
        needs = "" if _NOT_FOR_WANT_OF_RIGHTS.search(text) else self._needs
        return ProbeFailed(f"{text.rstrip('.')}. {needs}".rstrip())
