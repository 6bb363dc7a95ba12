"""
Snapshots from any other transport that kombu knows: a queue, read message by message.

Such a queue cannot be shared: of two sidecars each gets a part of the snapshots.
"""

from __future__ import annotations

from typing import Any, Final

from ..broker import Broker
from ..probes.raw_messages import body_of, is_compressed, leave_messages_alone, text_of
from ..probes.session import Session
from .snapshot_source import CHUNK, Message

#: Without the dots that some transports do not allow.
QUEUE: Final = "celery-lookout-signals-v1"


class KombuSnapshots:
    """The queue of one broker. Who does not *acknowledge* leaves the messages to others."""

    def __init__(self, broker: Broker, *, acknowledge: bool = True) -> None:
        self._session = self._make_session(broker)
        self._acknowledge = acknowledge
        self._channel: Any = None

    @staticmethod
    def _make_session(broker: Broker) -> Session:
        return Session(broker)

    def read(self) -> list[Message]:
        """Return messages until the queue is empty."""
        return self._session.call(self._read)

    def _read(self, channel: Any) -> list[Message]:
        if channel is not self._channel:
            leave_messages_alone(channel)
            self._channel = channel
        messages: list[Message] = []
        while len(messages) < CHUNK and (raw := channel.basic_get(QUEUE)) is not None:
            if self._acknowledge:
                channel.basic_ack(raw.delivery_tag)
            messages.append(Message(body_of(raw) or b"", text_of(raw.content_type), is_compressed(raw)))
        return messages

    def settle(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


class SqsSnapshots(KombuSnapshots):
    """The queue on Amazon SQS. kombu creates a queue when it looks into one that is not there: this looks first."""

    @staticmethod
    def _make_session(broker: Broker) -> Session:
        from botocore.exceptions import ClientError

        from ..probes.sqs import client_config

        # An empty answer would come after ten seconds else.
        options: dict[str, Any] = {"wait_time_seconds": 0, "client-config": client_config(broker)}
        return Session(
            broker,
            needs=f"The sidecar needs sqs:ReceiveMessage and sqs:DeleteMessage for {QUEUE}",
            refusals=(ClientError,),
            **options,
        )

    def _read(self, channel: Any) -> list[Message]:
        return super()._read(channel) if channel is self._channel or self._exists(channel) else []

    @staticmethod
    def _exists(channel: Any) -> bool:
        name = channel.canonical_queue_name(QUEUE)
        if channel.predefined_queues:
            return name in channel.predefined_queues
        client = channel.sqs(queue=name)
        try:
            client.get_queue_url(QueueName=name)
        except client.exceptions.QueueDoesNotExist:
            return False
        return True
