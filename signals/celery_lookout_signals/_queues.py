"""
Which queue a message came from.

Celery does not say: a worker sees the exchange and the routing key. Mostly Celery publishes to the default exchange,
where the routing key is the queue's name; else the bindings of the queues that this worker consumes tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

UNKNOWN = "unknown"

#: Native delayed delivery (RabbitMQ) writes the delay in binary in front of the real routing key.
_DELAY_PREFIX = re.compile(r"^(?:[01]\.){28}")

#: Routes remembered; an application has a handful, one that makes up routing keys has any number.
_LIMIT = 1000


class QueueNames:
    """Finds the names of queues for one application."""

    def __init__(self, app: Any) -> None:
        self._app = app
        #: By exchange and routing key, as messages have them.
        self._known: dict[tuple[str, str], str] = {}

    def consumed(self) -> list[str]:
        """Return the names of the queues that this worker consumes, without its shares of broadcasts."""
        return sorted(name for name, queue in list(self._app.amqp.queues.consume_from.items()) if not queue.alias)

    def name_of(self, delivery_info: Any) -> str:
        """Return the name of the queue, ``unknown`` where no binding or more than one fits."""
        if not isinstance(delivery_info, dict):
            return UNKNOWN
        route = delivery_info.get("exchange") or "", delivery_info.get("routing_key") or ""
        try:
            return self._known[route]
        except (KeyError, TypeError):  # the latter of what is no text
            return self._look_up(str(route[0]), str(route[1]))

    def _look_up(self, exchange: str, routing_key: str) -> str:
        name = self._find(exchange, routing_key)
        # A queue that is added later may make a route known.
        if name != UNKNOWN and len(self._known) < _LIMIT:
            self._known[exchange, routing_key] = name
        return name

    def _find(self, exchange: str, routing_key: str) -> str:
        if not exchange:
            return routing_key or UNKNOWN
        queues = self._app.amqp.queues
        real_key = _DELAY_PREFIX.sub("", routing_key)
        delayed = real_key != routing_key
        for names in (queues.consume_from, queues):
            # The queue of a broadcast has another name in each worker, and one that they share.
            fits = [
                queue.alias or queue.name
                for queue in list(names.values())  # another thread may add one
                if any(
                    (delayed or bound == exchange) and _matches(kind, pattern, real_key)
                    for bound, kind, pattern in _bindings(queue)
                )
            ]
            if fits:
                return str(fits[0]) if len(fits) == 1 else UNKNOWN
        return real_key if delayed and real_key in queues else UNKNOWN


def _bindings(queue: Any) -> Iterable[tuple[str, str, str]]:
    """Yield the exchange, its type and the routing key of each binding of *queue*, a kombu Queue."""
    if queue.exchange is not None:
        yield queue.exchange.name, queue.exchange.type, queue.routing_key or ""
    for binding in queue.bindings or ():
        yield binding.exchange.name, binding.exchange.type, binding.routing_key or ""


def _words(key: str) -> list[str]:
    return key.split(".") if key else []


def _matches(exchange_type: str, pattern: str, routing_key: str) -> bool:
    if exchange_type == "fanout":
        return True
    if exchange_type == "topic":
        # In AMQP * is one word and # any number of them, none included. Each word is matched with a dot behind it.
        wild = {"#": r"(?:[^.]*\.)*", "*": r"[^.]+\."}
        expression = "".join(wild.get(word) or re.escape(f"{word}.") for word in _words(pattern))
        return re.fullmatch(expression, "".join(f"{word}." for word in _words(routing_key))) is not None
    return pattern == routing_key
