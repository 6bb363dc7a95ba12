"""From exchange and routing key to queue, as the bindings of living workers tell."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ..events import Event
from ..readings import ConsumedQueue

#: Native delayed delivery (RabbitMQ) writes the delay in binary in front of the real routing key.
_DELAY_PREFIX: Final = re.compile(r"^(?:[01]\.){28}")

#: Routes remembered. Celery applications have a handful.
_LIMIT: Final = 10_000


class Routes:
    """What is known of how messages reach queues."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str], str] = {}
        self._by_key: dict[str, str] = {}

    def learn(self, queues: Iterable[ConsumedQueue]) -> None:
        """Remember the bindings of a worker's queues."""
        for queue in queues:
            if len(self._queues) < _LIMIT:
                self._queues[queue.exchange, queue.routing_key] = queue.name
                self._by_key[queue.routing_key] = queue.name

    def queue_of(self, exchange: str, routing_key: str) -> str | None:
        """Return the queue a message went to, None when no binding that we know says so."""
        known = self._queues.get((exchange, routing_key))
        if known is not None:
            return known
        if exchange == "":
            return routing_key or None  # the default exchange leads to the queue of that name
        real = _DELAY_PREFIX.sub("", routing_key)
        return None if real == routing_key else self._by_key.get(real)

    def queue_of_sent(self, event: Event) -> str | None:
        """Return the queue that a ``task-sent`` event names, by itself or through its route."""
        return event.queue or self.queue_of(event.exchange or "", event.routing_key or "")
