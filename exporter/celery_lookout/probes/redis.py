"""
Queue depth, the oldest ready message and unacknowledged messages on Redis and its kin.

Layout (kombu's Redis transport): a ready message is an element of the list ``{prefix}{queue}`` for priority step 0,
``{prefix}{queue}{sep}{step}`` for the others; producers push left, so the oldest is the last element. An empty queue
has no key. Messages delivered and not acknowledged lie in the hash ``unacked``, their delivery times in the sorted set
``unacked_index``, for the whole database and not per queue.

Keys are prefixed by hand: kombu's own client prefixes some commands and not others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import redis
from redis.exceptions import NoPermissionError

from ..broker import Broker, describe
from ..errors import ProbeFailed
from ..readings import BrokerReading, QueueHead, QueueReading
from .message_tail import TAIL_BYTES, read_tail
from .names import is_task_queue
from .session import Session

#: Returns only the end of the oldest element: a 5 MB message costs the network 1 KB.
_TAIL_SCRIPT = (
    f"local m = redis.call('LINDEX', KEYS[1], -1) if m then return string.sub(m, -{TAIL_BYTES}) end return false"
)

_NEEDS = "The Redis user needs +llen +hlen +zrange +lindex +eval +scan +smembers on the broker's keys"

#: Seconds after which looking for queue names stops and returns what it has: a million keys take about one.
_DISCOVERY_SECONDS = 10.0
_SCAN_COUNT = 1000
#: Queue names taken from one database; more would be somebody's mistake, or an attack.
_NAMES_LIMIT = 10_000


class RedisProbe:
    """Reads the queues of one Redis database. Never writes, and never touches a message."""

    def __init__(self, broker: Broker, *, clock: Callable[[], float] = time.time) -> None:
        self._broker = broker
        self._clock = clock
        self._session = Session(broker, needs=_NEEDS)
        #: Queues in which a priority other than 0 was ever seen.
        self._prioritised: set[str] = set()
        #: The server refuses EVAL: heads are fetched whole until the next reconnect.
        self._scripts_refused = False
        #: What Redis does not allow, by the part of the work that goes without it.
        self._refusals: dict[str, str] = {}
        #: The last ``discover()`` ran out of time: there may be more queues than it returned.
        self.discovery_incomplete = False

    @property
    def refusal(self) -> str | None:
        """Which right is missing for a part of what there is to see, while the rest is seen; None if none is."""
        return f"{next(iter(self._refusals.values()))}. {_NEEDS}" if self._refusals else None

    def _note(self, part: str, answers: Sequence[Any]) -> None:
        """Remember the first refusal for want of rights among *answers*, or that there is none any more."""
        refused = next((answer for answer in answers if isinstance(answer, NoPermissionError)), None)
        if refused is None:
            self._refusals.pop(part, None)
        else:
            self._refusals[part] = f"{part}: {describe(self._broker, refused)}"

    def collect(self, queue_names: Collection[str]) -> BrokerReading:
        """
        Read all *queue_names* in two round trips: the sizes, then the oldest message of what is not empty.

        A queue whose keys may not be read is left out. Raises ProbeFailed when nothing may be read, and
        BrokerUnavailable when Redis does not answer.
        """
        if not self._session.is_open:
            self._scripts_refused = False
        names = list(dict.fromkeys(queue_names))
        return self._session.call(lambda channel: self._collect(channel, names))

    def _collect(self, channel: Any, names: Sequence[str]) -> BrokerReading:
        client = redis.Redis(connection_pool=channel.pool)
        steps: list[int] = list(channel.priority_steps)
        prefix = channel.global_keyprefix
        keys = {name: [_list_key(channel, name, step) for step in steps] for name in names}
        pipe = client.pipeline(transaction=False)
        for name in names:
            for key in keys[name]:
                pipe.llen(key)
        pipe.hlen(prefix + channel.unacked_key)
        pipe.zrange(prefix + channel.unacked_index_key, 0, 0, withscores=True)
        *sizes, unacked, oldest = self._execute(pipe)
        self._note("unacknowledged messages", [unacked, oldest])
        by_queue = dict(zip(names, _chunks(sizes, len(steps)), strict=True))
        readable = {name: lengths for name, lengths in by_queue.items() if all(isinstance(n, int) for n in lengths)}
        if names and not readable:
            raise ProbeFailed(self._refusal(sizes))
        now = self._clock()
        filled = {
            name: [key for key, size in zip(keys[name], sizes, strict=True) if size] for name, sizes in readable.items()
        }
        heads = self._heads(client, filled, now)
        self._prioritised &= set(names)
        has_acks = bool(channel.ack_emulation)
        return BrokerReading(
            read_at=now,
            queues=tuple(self._reading(name, steps, sizes, heads[name]) for name, sizes in readable.items()),
            unacked=unacked if has_acks and isinstance(unacked, int) else None,
            oldest_unacked_at=_first_score(oldest) if has_acks else None,
            visibility_timeout_seconds=_seconds(channel.visibility_timeout) if has_acks else None,
        )

    def _reading(
        self, name: str, steps: Sequence[int], sizes: Sequence[int], heads: tuple[QueueHead, ...]
    ) -> QueueReading:
        if any(size for step, size in zip(steps, sizes, strict=True) if step):
            self._prioritised.add(name)
        return QueueReading(
            name=name,
            ready=sum(sizes),
            by_priority=dict(zip(steps, sizes, strict=True)) if name in self._prioritised else {},
            head=_oldest(heads),
            heads=heads,
        )

    def _heads(self, client: redis.Redis, keys: dict[str, list[str]], now: float) -> dict[str, tuple[QueueHead, ...]]:
        """Return per queue the oldest message of each list in *keys*, by name; lists emptied meanwhile are left out."""
        wanted = [(name, key) for name, list_keys in keys.items() for key in list_keys]
        elements = self._last_elements(client, [key for _, key in wanted])
        heads: dict[str, list[QueueHead]] = {name: [] for name in keys}
        for (name, _), element in zip(wanted, elements, strict=True):
            if isinstance(element, bytes):
                heads[name].append(read_tail(element, now))
        return {name: tuple(found) for name, found in heads.items()}

    def _last_elements(self, client: redis.Redis, keys: Sequence[str]) -> list[Any]:
        if not keys:
            return []
        if not self._scripts_refused:
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.eval(_TAIL_SCRIPT, 1, key)
            answers = self._execute(pipe)
            self._note("only the end of a queue's oldest message", answers)
            if not all(isinstance(answer, redis.ResponseError) for answer in answers):
                return answers
            self._scripts_refused = True
        # One at a time, so that only one message is held whole.
        elements = [self._whole_element(client, key) for key in keys]
        self._note("the oldest message of a queue", elements)
        return elements

    def _whole_element(self, client: redis.Redis, key: str) -> bytes | redis.ResponseError | None:
        try:
            element = client.lindex(key, -1)
        except redis.ResponseError as error:
            return error
        return element[-TAIL_BYTES:] if isinstance(element, bytes) else None

    @staticmethod
    def _execute(pipe: Any) -> list[Any]:
        """Run *pipe*; a command that the server refuses yields its error as the answer, a lost connection raises."""
        answers: list[Any] = pipe.execute(raise_on_error=False)
        return answers

    def _refusal(self, answers: Sequence[Any]) -> str:
        error = next(answer for answer in answers if isinstance(answer, Exception))
        return f"cannot read queue lengths: {describe(self._broker, error)}. {_NEEDS}"

    def discover(self) -> frozenset[str]:
        """
        Return the names of all queues that were ever bound, whether or not anybody consumes them now.

        kombu keeps one set per exchange, ``{prefix}_kombu.binding.{exchange}``, with members
        ``routing key, pattern, queue`` joined by its separator. Finding the sets walks over all keys of the database:
        call it at start and every few minutes.
        """
        self._scripts_refused = False  # they may be allowed by now
        with self._session.channel() as channel:
            client = redis.Redis(connection_pool=channel.pool)
            names: set[str] = set()
            refused: list[redis.ResponseError] = []
            for key in self._binding_sets(client, channel.global_keyprefix + "_kombu.binding."):
                try:
                    names.update(_queues_of(client, key, channel.sep))
                except redis.ResponseError as error:  # not a set, or not ours to read
                    refused.append(error)
                if len(names) >= _NAMES_LIMIT:
                    self.discovery_incomplete = True
                    break
            self._note("queues that nobody consumes", refused)
            return frozenset(sorted(names)[:_NAMES_LIMIT])

    def _binding_sets(self, client: redis.Redis, prefix: str) -> Iterator[bytes]:
        """Yield the keys of the binding sets of exchanges that lead to tasks."""
        stop_at = time.monotonic() + _DISCOVERY_SECONDS
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
        self.discovery_incomplete = False
        cursor: Any = 0
        while True:
            answer: Any = client.scan(cursor, match=pattern, count=_SCAN_COUNT)
            cursor, keys = answer
            for key in keys:
                exchange = key[len(prefix.encode()) :].decode(errors="replace")
                if exchange != self._broker.event_exchange and is_task_queue(exchange):
                    yield key
            if not cursor:
                return
            if time.monotonic() > stop_at:
                self.discovery_incomplete = True
                return

    def close(self) -> None:
        """Close the connection; the probe can be used again."""
        self._session.close()


def _list_key(channel: Any, name: str, step: int) -> str:
    return f"{channel.global_keyprefix}{name}{channel.sep}{step}" if step else f"{channel.global_keyprefix}{name}"


def _queues_of(client: redis.Redis, key: bytes, separator: str) -> Iterator[str]:
    members: Any = client.smembers(key)
    for member in members:
        name = member.decode(errors="replace").split(separator)[-1]
        if is_task_queue(name):
            yield name


def _oldest(heads: Sequence[QueueHead]) -> QueueHead | None:
    """Return the oldest of *heads*; an empty one when there are several and not all tell their age."""
    if len(heads) <= 1:
        return heads[0] if heads else None
    if any(head.published_at is None for head in heads):
        return QueueHead()
    return min(heads, key=lambda head: head.published_at or 0.0)


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _first_score(pairs: Any) -> float | None:
    """Return the score of the first of Redis's (member, score) *pairs*, None for an empty set or a refusal."""
    return float(pairs[0][1]) if isinstance(pairs, list) and pairs else None


def _seconds(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
