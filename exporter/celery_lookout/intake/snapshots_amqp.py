"""
Snapshots from RabbitMQ: a durable, bounded queue of our own, acknowledged some seconds late.

What is not acknowledged when the connection ends comes again, marked as redelivered: it shows the next process which
workers send snapshots.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..broker import Broker
from ..probes.raw_messages import body_of, leave_messages_alone
from ..probes.session import Session
from .snapshot_source import CHUNK, NAME, SHOWN_AGAIN_SECONDS, Message

#: As workers declare it: RabbitMQ refuses to declare a queue with other arguments. Times in ms.
QUEUE_ARGUMENTS: Final = {
    "x-max-length": 2_000,
    "x-max-length-bytes": 64 * 2**20,
    "x-message-ttl": 900_000,
    "x-expires": 6 * 3_600_000,
}

_NEEDS: Final = f"The RabbitMQ user needs the rights to configure, write and read {NAME}"


class AmqpSnapshots:
    """
    The queue of one virtual host. A second sidecar needs a queue of its own, which *replica* names.

    One that is only *passing* has its queue as long as it is there, with nothing in it from before.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        replica: str = "",
        passing: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = Session(broker, needs=_NEEDS)
        self._queue = f"{NAME}.{replica}" if replica else NAME
        self._lasting = not passing
        self._monotonic = monotonic
        self._channel: Any = None
        self._connections = 0
        #: Delivery tags of what was read, with the time.
        self._unacknowledged: deque[tuple[int, float]] = deque()

    def read(self) -> list[Message]:
        """Return messages until the queue is empty."""
        return self._session.call(self._read)

    def _read(self, channel: Any) -> list[Message]:
        if channel is not self._channel:
            self._declare(channel)
        messages: list[Message] = []
        while len(messages) < CHUNK and (raw := channel.basic_get(self._queue)) is not None:
            self._unacknowledged.append((raw.delivery_tag, self._monotonic()))
            headers = raw.properties.get("application_headers") or {}
            messages.append(
                Message(
                    body_of(raw) or b"",
                    raw.properties.get("content_type"),
                    "compression" in headers,
                    # On a later connection it is what this process has read, and counting it again is no harm.
                    raw.delivery_info["redelivered"] and self._connections == 1,
                )
            )
        return messages

    def _declare(self, channel: Any) -> None:
        leave_messages_alone(channel)
        channel.exchange_declare(NAME, "fanout", durable=True, auto_delete=False)
        channel.queue_declare(
            self._queue,
            durable=self._lasting,
            exclusive=not self._lasting,
            auto_delete=not self._lasting,
            arguments=QUEUE_ARGUMENTS,
        )
        channel.queue_bind(self._queue, NAME)
        self._channel = channel
        self._connections += 1
        self._unacknowledged.clear()

    def settle(self) -> None:
        """Acknowledge what was read some while ago."""
        due = 0
        while self._unacknowledged and self._monotonic() - self._unacknowledged[0][1] > SHOWN_AGAIN_SECONDS:
            due = self._unacknowledged.popleft()[0]
        if due and self._session.is_open:
            with self._session.channel() as channel:
                channel.basic_ack(due, multiple=True)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()
