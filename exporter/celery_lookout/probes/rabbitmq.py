"""
Queue depth, consumers and what is held back on RabbitMQ.

Passive declaration tells the ready messages and consumers of a queue at this moment, to any user. The management API
adds what AMQP does not tell (unacknowledged messages, the head's time, the names of queues) to users who may read it;
its own counts of ready messages are seconds old and are not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..broker import Broker
from ..errors import ProbeFailed
from ..readings import BrokerReading, QueueHead, QueueReading
from .management import Management, QueueRow
from .message_tail import FUTURE_SECONDS
from .names import DELAYED, is_task_queue
from .session import Session

#: Seconds before the management API is tried again after it failed, which doubles up to the second number: a restart is
#: soon over, and refusals should not fill its log.
MANAGEMENT_FIRST_SECONDS = 5.0
MANAGEMENT_RETRY_SECONDS = 300.0

#: Seconds before a queue that did not exist is asked for again, which doubles up to the second number: RabbitMQ logs an
#: error each time. A queue that the management API shows is asked for at once.
MISSING_FIRST_SECONDS = 2.0
MISSING_LAST_SECONDS = 60.0

#: Seconds before AMQP is asked again whether the queues of native delayed delivery exist.
_DELAYED_RETRY_SECONDS = 300.0
#: Queues of native delayed delivery, most used first; kombu declares all of them or none.
_DELAYED_LEVELS = 28


class RabbitProbe:
    """Reads the queues of one virtual host. Declares nothing, and never touches a message."""

    def __init__(
        self,
        broker: Broker,
        management_url: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises SettingsError when *management_url* is no URL; None tries the broker's host."""
        self._management = Management.locate(broker, management_url)
        self._clock = clock
        self._monotonic = monotonic
        self._session = Session(broker)
        self._management_retry_at = float("-inf")
        self._management_wait = MANAGEMENT_FIRST_SECONDS
        self._delayed_retry_at = float("-inf")
        #: Queues that did not exist: when to ask again, and how long that wait is.
        self._missing: dict[str, tuple[float, float]] = {}
        #: Why the management API is not used at present, None while it is. The caller logs it when it changes.
        self.management_problem: str | None = None

    def collect(self, queue_names: Collection[str]) -> BrokerReading:
        """
        Read all *queue_names*; those that do not exist are left out.

        Raises BrokerUnavailable when RabbitMQ does not answer. Trouble with the management API is no failure: its
        fields are None and ``management_problem`` says why.
        """
        now = self._monotonic()
        names = [name for name in dict.fromkeys(queue_names) if self._missing.get(name, (now, 0.0))[0] <= now]
        # AMQP first: when RabbitMQ hangs, its management API need not be waited for as well.
        declared = self._session.call(lambda channel: self._find_all(channel, names, now))
        read_at = self._clock()
        rows = self._rows()
        for name in self._missing.keys() & (rows or {}):
            del self._missing[name]
        delayed = self._session.call(lambda _: self._delayed_by_declaring()) if rows is None else _delayed(rows)
        queues = tuple(_reading(name, found, (rows or {}).get(name), read_at) for name, found in declared.items())
        return BrokerReading(read_at=read_at, queues=queues, delayed=delayed)

    def discover(self) -> frozenset[str]:
        """Return the names of all queues that may hold tasks; none without the management API."""
        rows = self._rows() or {}
        return frozenset(row.name for row in rows.values() if not row.exclusive and is_task_queue(row.name))

    def close(self) -> None:
        """Close the connection; the probe can be used again."""
        self._session.close()

    def _rows(self) -> Mapping[str, QueueRow] | None:
        """Return what the management API says, by queue name; None while it is out of use."""
        if self._monotonic() < self._management_retry_at:
            return None
        try:
            rows = self._management.queues()
        except ProbeFailed as error:
            self.management_problem = str(error)
            self._management_retry_at = self._monotonic() + self._management_wait
            self._management_wait = min(self._management_wait * 2, MANAGEMENT_RETRY_SECONDS)
            return None
        self.management_problem = None
        self._management_wait = MANAGEMENT_FIRST_SECONDS
        return {row.name: row for row in rows}

    def _find_all(self, channel: Any, names: Collection[str], now: float) -> dict[str, Any]:
        if not names:
            channel.basic_qos(0, 0, a_global=False)  # changes nothing, and shows whether RabbitMQ answers
        return {name: found for name in names if (found := self._find(name, now))}

    def _find(self, name: str, now: float) -> Any:
        """As ``_declare``, and remember what does not exist."""
        found = self._declare(name)
        if found is not None:
            self._missing.pop(name, None)
        else:
            wait = self._missing.get(name, (0.0, MISSING_FIRST_SECONDS / 2))[1] * 2
            self._missing[name] = (now + min(wait, MISSING_LAST_SECONDS), min(wait, MISSING_LAST_SECONDS))
        return found

    def _declare(self, name: str) -> Any:
        """Return the counts of queue *name*, None if it does not exist or belongs to another connection alone."""
        try:
            return self._session.current_channel.queue_declare(queue=name, passive=True)
        except self._session.connection.channel_errors:
            return None  # RabbitMQ closed the channel along with the answer, and py-amqp has opened it again

    def _delayed_by_declaring(self) -> int | None:
        """Return the sum over the delayed delivery queues; None where there are none (a prefix hides them)."""
        if self._monotonic() < self._delayed_retry_at:
            return None
        total = 0
        for level in reversed(range(_DELAYED_LEVELS)):
            declared = self._declare(f"celery_delayed_{level}")
            if declared is None:
                self._delayed_retry_at = self._monotonic() + _DELAYED_RETRY_SECONDS
                return None
            total += declared.message_count
        return total


def _reading(name: str, declared: Any, row: QueueRow | None, now: float) -> QueueReading:
    return QueueReading(
        name=name,
        ready=declared.message_count,
        unacked=row.messages_unacknowledged if row else None,
        consumers=declared.consumer_count,
        head=_head(row, now) if row and declared.message_count else None,
    )


def _delayed(rows: Mapping[str, QueueRow]) -> int | None:
    levels = [row for name, row in rows.items() if DELAYED.match(name)]
    return sum(row.messages_ready or 0 for row in levels) if levels else None


def _head(row: QueueRow, now: float) -> QueueHead | None:
    """
    Return the head of a queue with ready messages.

    RabbitMQ's head may be a message that was delivered and not acknowledged, so it counts only when there is none.
    """
    if row.messages_unacknowledged != 0 or not isinstance(row.head_message_timestamp, int):
        return None
    published_at = row.head_message_timestamp
    # Publishers write what they like: milliseconds, say.
    return QueueHead(published_at=float(published_at)) if 0 < published_at <= now + FUTURE_SECONDS else None
