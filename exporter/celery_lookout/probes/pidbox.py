"""
Celery's remote control, as a client: ask workers, gather their answers.

The protocol is that of ``kombu.pidbox``: a JSON command on the fanout exchange ``{control_exchange}.pidbox``, and
answers ``{worker: reply}`` on a queue of our own behind the direct exchange ``reply.{control_exchange}.pidbox``, told
apart by the header ``ticket``. It is spoken here rather than through kombu's ``Mailbox`` because answers are untrusted:
kombu would decompress and decode them unseen, wait its time limit once per answer, and keep what comes late.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Collection, Mapping
from typing import Any
from uuid import uuid4

import msgspec
from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer, Producer

from ..broker import Broker, describe
from ..errors import ProbeFailed
from .names import is_fit
from .raw_messages import body_of, leave_messages_alone
from .session import Session

#: Largest answer of one worker, in bytes. ``active`` and ``query_task`` carry task arguments, which we skip unread.
_REPLY_LIMIT = 16 * 1024 * 1024
#: Answers to one question; Celery clusters of this size ask only part of their workers at a time.
_REPLIES_LIMIT = 10_000

_NEEDS = {
    "amqp": (
        "Remote control needs the rights to configure and write celery.pidbox, to configure and read"
        " reply.celery.pidbox, and to configure, write and read celery-lookout-.*"
    ),
    "redis": (
        "Remote control needs +brpop +llen +exists +del +sadd +srem +zadd +zrem +zrangebyscore +time +multi +exec"
        " +evalsha +script|load +script|exists, to read and write _kombu.binding* and celery-lookout*, and +publish on"
        " the channel of the pidbox"
    ),
}

#: Seconds after which a broker may delete our reply queue once nobody reads it (we were killed).
_REPLY_QUEUE_EXPIRES = 60.0

#: Numbers that Python writes into JSON and JSON does not have: the default of a Celery setting is infinite.
_NOT_JSON = re.compile(rb"NaN|Infinity")

log = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Pidbox:
    """Asks the workers of one broker. Keeps one connection, and one reply queue that it deletes when it closes."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        # Without acknowledgement emulation kombu's Redis transport leaves other consumers' unacknowledged messages
        # alone. With it, merely waiting for an answer would redeliver what is older than *our* visibility timeout.
        options: dict[str, Any] = {"ack_emulation": False} if broker.kind == "redis" else {}
        self._session = Session(broker, needs=_NEEDS.get(broker.kind, ""), **options)
        namespace = broker.control_exchange
        self._exchange = Exchange(f"{namespace}.pidbox", type="fanout", durable=False, delivery_mode="transient")
        self._reply_exchange = Exchange(
            f"reply.{namespace}.pidbox", type="direct", durable=False, delivery_mode="transient"
        )
        self._reply_queue = self._new_reply_queue()
        self._consumer: Consumer | None = None
        self._ticket = ""
        self._replies: dict[str, msgspec.Raw] = {}
        #: Answers refused since the start: not JSON, compressed, too large, or of the wrong shape.
        self.invalid_replies = 0

    def ask(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        workers: Collection[str] | None = None,
        timeout: float = 1.0,
    ) -> dict[str, msgspec.Raw]:
        """
        Send *command* to *workers*, or to all when None, and return the undecoded answers by worker name.

        Returns as soon as each of *workers* has answered; to all, it waits *timeout* seconds. Who does not answer in
        time is left out. Raises ProbeFailed when the broker has no remote control or does not allow it,
        BrokerUnavailable when it does not answer.
        """
        if workers is not None and not workers:
            return {}
        try:
            return self._session.call(lambda channel: self._ask(channel, command, arguments or {}, workers, timeout))
        finally:
            self._ticket, self._replies = "", {}

    def _ask(
        self,
        channel: Any,
        command: str,
        arguments: Mapping[str, Any],
        workers: Collection[str] | None,
        timeout: float,
    ) -> dict[str, msgspec.Raw]:
        if self._consumer is None or self._consumer.channel is not channel:
            self._listen(channel)
        if self._broker.kind == "redis":
            # FLUSHALL takes the binding away, unseen by kombu. And if Redis does not take it, being out of memory, then
            # it would not take an answer either: a worker of Celery ends at that, so it had better not be asked.
            channel._queue_bind(self._reply_exchange.name, self._reply_queue.routing_key, None, self._reply_queue.name)  # noqa: SLF001
        self._drain(0.0)  # renews the reply queue's lease, and throws away what came late
        self._ticket, self._replies = str(uuid4()), {}
        self._publish(channel, command, arguments, workers, timeout)
        deadline = time.monotonic() + timeout
        asked = set(workers) if workers is not None else None
        while (left := deadline - time.monotonic()) > 0 and len(self._replies) < _REPLIES_LIMIT:
            if not self._drain(left) or (asked is not None and asked <= self._replies.keys()):
                break
        if not self._replies and self._broker.kind == "amqp":
            # Silent workers, or a dead broker? Publishing over AMQP does not tell.
            self._reply_queue(channel).queue_declare(passive=True)
        return {name: reply for name, reply in self._replies.items() if asked is None or name in asked}

    def _new_reply_queue(self) -> Queue:
        name = f"celery-lookout-{uuid4()}"
        return Queue(
            f"{name}.{self._reply_exchange.name}",
            exchange=self._reply_exchange,
            routing_key=name,
            durable=False,
            exclusive=True,
            auto_delete=True,
            expires=_REPLY_QUEUE_EXPIRES,
        )

    def _listen(self, channel: Any) -> None:
        if not self._session.connection.supports_exchange_type("fanout"):
            raise ProbeFailed(f"{self._broker.masked_url}: no remote control on this transport, not even for Celery")
        leave_messages_alone(channel)
        if self._broker.kind == "amqp":
            # RabbitMQ locks the queue of a connection that was cut until it notices the cut itself.
            self._reply_queue = self._new_reply_queue()
        self._exchange(channel).declare()
        self._consumer = Consumer(
            channel,
            [self._reply_queue],
            no_ack=True,
            accept=["json"],
            on_message=self._on_reply,
            on_decode_error=self._on_undecodable,
        )
        self._consumer.consume()
        if self._broker.kind == "redis" and hasattr(channel, "maybe_refresh_binding_expiry"):
            # Since 5.7 kombu deletes what consumers left behind. Where it may not, it only logs a traceback a minute.
            channel.maybe_refresh_binding_expiry()

    def _publish(
        self,
        channel: Any,
        command: str,
        arguments: Mapping[str, Any],
        workers: Collection[str] | None,
        timeout: float,
    ) -> None:
        message = {
            "method": command,
            "arguments": dict(arguments),
            "destination": sorted(workers) if workers is not None else None,
            "pattern": None,
            "matcher": None,
            "ticket": self._ticket,
            "reply_to": {"exchange": self._reply_exchange.name, "routing_key": self._reply_queue.routing_key},
        }
        Producer(channel, auto_declare=False).publish(
            message,
            exchange=self._exchange.name,
            headers={"clock": 0, "expires": time.time() + timeout},
            serializer="json",
            retry=False,
        )

    def _drain(self, seconds: float) -> bool:
        """Take one answer from the broker within *seconds*; return whether there was one."""
        try:
            # kombu takes 0 for "no limit" on some transports.
            self._session.connection.drain_events(timeout=max(seconds, 0.001))
        except TimeoutError:
            return False
        except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
            # On Redis kombu reads the JSON around a message, and revives what is in it, before it asks us.
            self.invalid_replies += 1
        return True

    def _on_reply(self, message: Any) -> None:
        ticket = message.headers.get("ticket")
        if isinstance(ticket, str) and ticket != self._ticket:
            return  # late, or not for us
        reply = _checked(message) if ticket else None
        if reply is None:
            self.invalid_replies += 1
        else:
            self._replies.update(reply)

    def _on_undecodable(self, _message: Any, _error: Exception) -> None:
        self.invalid_replies += 1

    def close(self) -> None:
        """Delete the reply queue and close the connection; the pidbox can be used again."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None and self._session.is_open:
            try:
                consumer.cancel()
                self._reply_queue(self._session.current_channel).delete()
            except self._session.connection.channel_errors as error:
                log.warning(
                    "the way to our reply queue is left on the broker",
                    extra={"error": describe(self._broker, error), "mend": _NEEDS.get(self._broker.kind)},
                )
            except Exception:  # the broker may be gone; RabbitMQ's queue goes with the connection anyway
                log.debug("the reply queue could not be deleted", exc_info=True)
        self._session.close()


def _checked(message: Any) -> dict[str, msgspec.Raw] | None:
    """Return the one worker's answer in *message*, None if it is not fit to be read."""
    body = body_of(message)
    if message.content_type != "application/json" or body is None or len(body) > _REPLY_LIMIT:
        return None
    try:
        reply = _decode(body) if not _NOT_JSON.search(body) else _decode_python(body)
    except (ValueError, RecursionError):  # ValueError: every decoder's errors derive from it
        return None
    if len(reply) != 1:
        return None
    name = next(iter(reply))
    return reply if is_fit(name) else None


def _decode_python(body: bytes) -> dict[str, msgspec.Raw]:
    """Return the answer in *body* with null for the numbers that JSON does not have."""
    return _decode(msgspec.json.encode(json.loads(body, parse_constant=lambda _: None)))
