"""
Whether RabbitMQ takes messages.

When it runs short of memory or disk, RabbitMQ stops to read from every connection that publishes, and says so on that
connection only. So this one publishes, to an exchange that leads nowhere, and listens.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from ..broker import Broker
from .session import Session

EXCHANGE: Final = "celery-lookout.publishing"

#: Seconds that RabbitMQ has to say that it does not take a message: it does so at once.
ANSWER_SECONDS: Final = 0.05

_NEEDS: Final = f"The RabbitMQ user needs the rights to configure and write {EXCHANGE}"


class PublishingProbe:
    """A connection to one virtual host that is treated as those of workers and other publishers are."""

    def __init__(self, broker: Broker) -> None:
        self._session = Session(broker, needs=_NEEDS)
        self._channel: Any = None
        self._is_blocked = False

    def is_blocked(self) -> bool:
        """Say whether publishers are made to wait. Raises BrokerUnavailable and, for want of rights, ProbeFailed."""
        return self._session.call(self._listen)

    def _listen(self, channel: Any) -> bool:
        if channel is not self._channel:
            self._prepare(channel)
        if not self._is_blocked:
            channel.basic_publish(channel.prepare_message(b""), exchange=EXCHANGE)
        with suppress(TimeoutError):
            self._session.connection.drain_events(timeout=ANSWER_SECONDS)
        return self._is_blocked

    def _prepare(self, channel: Any) -> None:
        self._is_blocked = False
        amqp: Any = self._session.connection.connection
        amqp.on_blocked = lambda _: self._set_blocked(True)
        amqp.on_unblocked = lambda: self._set_blocked(False)
        channel.exchange_declare(EXCHANGE, "fanout", durable=False, auto_delete=False)
        self._channel = channel

    def _set_blocked(self, is_blocked: bool) -> None:
        self._is_blocked = is_blocked

    def close(self) -> None:
        """Close the connection; the probe can be used again."""
        self._session.close()
