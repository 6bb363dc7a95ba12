"""Queue depth on every transport that has no probe of its own, as far as kombu can tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from ..broker import Broker
from ..errors import ProbeFailed
from ..readings import BrokerReading, QueueReading
from .session import Session

#: Transports on which asking kombu for a queue may create it, or always answers 0.
_UNSAFE = frozenset({"gcpubsub", "confluentkafka", "kafka"})


class KombuProbe:
    """Reads queue lengths by passive declaration. A queue that the transport does not know is left out."""

    def __init__(self, broker: Broker, *, clock: Callable[[], float] = time.time) -> None:
        self._scheme = broker.scheme
        self._clock = clock
        self._session = Session(broker)

    def collect(self, queue_names: Collection[str]) -> BrokerReading:
        """
        Read the number of ready messages of each of *queue_names*.

        Raises ProbeFailed on transports that cannot tell, BrokerUnavailable when the broker does not answer.
        """
        if self._scheme in _UNSAFE:
            raise ProbeFailed(
                f"queue length is not available over {self._scheme}://: use the service's own metrics for it"
            )
        with self._session.channel() as channel:
            readings = [self._read(channel, name) for name in dict.fromkeys(queue_names)]
        return BrokerReading(read_at=self._clock(), queues=tuple(reading for reading in readings if reading))

    def _read(self, channel: Any, name: str) -> QueueReading | None:
        try:
            declared = channel.queue_declare(queue=name, passive=True)
        except self._session.connection.channel_errors:
            return None
        return QueueReading(name=name, ready=declared.message_count)

    def discover(self) -> frozenset[str]:
        """Return no names: kombu has no way to list a broker's queues."""
        return frozenset()

    def close(self) -> None:
        """Close the connection; the probe can be used again."""
        self._session.close()
