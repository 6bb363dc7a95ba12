"""
Queues: how deep, how old, who consumes them.

Depth and heads come from broker readings. What readings lack for the age of the oldest message, the publish time,
comes from the tasks that were sent and not yet received.
"""

from __future__ import annotations

from collections import Counter as Counting
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from ..metrics.limits import UNKNOWN, LabelBudget
from ..metrics.queues import BrokerMetrics, QueueMetrics
from ..metrics.registry import OTHER, Counter
from ..readings import BrokerReading, QueueHead, QueueReading

#: Seconds after which numbers of a broker that no longer answers are withdrawn: a gap is better than a stale number.
STALE_SECONDS: Final = 30.0

#: A task sent longer ago than this is surely in the broker's count, which RabbitMQ's statistics delay by 5 seconds.
SETTLED_SECONDS: Final = 15.0


#: How many waiting tasks are looked at for one that is due; those before it wait for their ETA.
LOOK_AHEAD: Final = 10_000


class Queue:
    """One queue. ``unreceived`` has the tasks on their way: task id to Unix time from which they wait, oldest first."""

    __slots__ = (
        "head_since", "heads", "is_whole", "name", "priorities", "ready", "slo_eligible", "slo_seconds",
        "slo_violations", "unreceived",
    )  # fmt: skip

    def __init__(self, name: str, metrics: QueueMetrics, slo_seconds: float | None) -> None:
        self.name = name
        #: Whether all the broker's queues that go by this name are read.
        self.is_whole = True
        self.unreceived: dict[str, float] = {}
        self.ready: int | None = None
        self.heads: tuple[QueueHead, ...] = ()
        #: Priorities that are shown.
        self.priorities: frozenset[int] = frozenset()
        #: Since when the first of ``heads`` is the first.
        self.head_since = 0.0
        self.slo_seconds = slo_seconds
        self.slo_eligible: Counter | None = None
        self.slo_violations: Counter | None = None
        if slo_seconds is not None:
            metrics.latency_slo.child(name).set(slo_seconds)
            self.slo_eligible = metrics.slo_eligible.child(name)
            self.slo_violations = metrics.slo_violations.child(name)

    def count_wait(self, seconds: float) -> None:
        """Hold a start that waited *seconds* against the SLO, if there is one."""
        if self.slo_eligible is not None and self.slo_violations is not None and self.slo_seconds is not None:
            self.slo_eligible.inc()
            if seconds > self.slo_seconds:
                self.slo_violations.inc()

    def count_waits(self, longer_than: float, count: int) -> None:
        """Hold *count* starts against the SLO that waited longer than a bucket's lower edge; by more, nobody knows."""
        if self.slo_eligible is not None and self.slo_violations is not None and self.slo_seconds is not None:
            self.slo_eligible.inc(count)
            if longer_than >= self.slo_seconds:
                self.slo_violations.inc(count)

    def take(self, reading: QueueReading, read_at: float) -> list[str]:
        """Take in what the broker shows; return the ids of tasks that it has no more and that nobody received."""
        self.ready = reading.ready
        gone = self._forget_gone(read_at)
        heads = reading.heads or ((reading.head,) if reading.head else ())
        if not heads or not self.heads or heads[0].task_id != self.heads[0].task_id:
            self.head_since = read_at
        self.heads = heads
        self.priorities |= reading.by_priority.keys()
        return gone

    def _forget_gone(self, read_at: float) -> list[str]:
        """Drop tasks that the broker has no more and nobody received: purged, expired, or no event told."""
        excess = max(len(self.unreceived) - (self.ready or 0), 0)
        settled = read_at - SETTLED_SECONDS
        gone = [task_id for task_id, since in islice(self.unreceived.items(), excess) if since < settled]
        for task_id in gone:
            del self.unreceived[task_id]
        return gone

    def oldest_age(self, now: float) -> float | None:
        """Return the age in seconds of the oldest ready message, 0 when there is none, None when it cannot be known."""
        if not self.ready:
            return None if self.ready is None else 0.0
        since = self._oldest_since(now)
        return None if since is None else max(now - since, 0.0)

    def _oldest_since(self, now: float) -> float | None:
        named = [head for head in self.heads if head.task_id is not None]
        known = [self.unreceived.get(head.task_id or "", head.published_at) for head in named]
        if named and None not in known:
            return min(since for since in known if since is not None)
        # RabbitMQ does not show its head, and on Redis the head of one priority may be unknown to us.
        sent = next((since for since in islice(self.unreceived.values(), LOOK_AHEAD) if since <= now), None)
        stamped = [head.published_at for head in self.heads if head.task_id is None] if sent is None else []
        found = [since for since in (*known, sent, *stamped) if since is not None]
        if found:
            return min(found)
        return self.head_since if named else None  # a lower bound


def _together(name: str, readings: Sequence[QueueReading]) -> QueueReading:
    """Return what several queues of the broker are that go by one *name*; what one of them does not tell is None."""
    if len(readings) == 1:
        return replace(readings[0], name=name)
    by_priority: Counting[int] = Counting()
    for one in readings:
        by_priority.update(one.by_priority)
    unacked = [one.unacked for one in readings if one.unacked is not None]
    consumers = [one.consumers for one in readings if one.consumers is not None]
    return QueueReading(
        name,
        sum(one.ready for one in readings),
        by_priority,
        unacked=sum(unacked) if len(unacked) == len(readings) else None,
        consumers=sum(consumers) if len(consumers) == len(readings) else None,
        heads=tuple(head for one in readings for head in one.heads or ((one.head,) if one.head else ())),
    )


class Queues:
    """All queues of one broker. Those found once stay, also when the last worker has left."""

    def __init__(
        self,
        metrics: QueueMetrics,
        broker_metrics: BrokerMetrics,
        budget: LabelBudget,
        slos: Mapping[str, float],
        *,
        limit: int,
    ) -> None:
        """*limit* is how many are read; *budget* has as many names for them, which several may share."""
        self._metrics = metrics
        self._broker_metrics = broker_metrics
        self._budget = budget
        self._slos = slos
        self._limit = limit
        self._queues: dict[str, Queue] = {}
        #: Queues that are read, as the broker calls them, each with the name that it is shown by.
        self._followed: dict[str, str] = {}
        self._oldest_unacked_at: float | None = None
        self._read_at: float | None = None
        self._broker_counts_consumers = False
        self._holds_unacked = False
        for name in slos:
            self.get(name)

    def get(self, name: str) -> Queue:
        """Return the queue, made known if it was not; one that may not be shown by name is the shared ``_other``."""
        shown = self._budget.admit(name)
        queue = self._shown_as(shown)
        if name not in self._followed and shown not in (OTHER, UNKNOWN):
            if len(self._followed) < self._limit:
                self._followed[name] = shown
            else:
                queue.is_whole = False
        return queue

    def keep(self, name: str) -> Queue:
        """Return the queue that an earlier process showed as *name*; what the broker calls it is another matter."""
        return self._shown_as(self._budget.keep(name))

    def _shown_as(self, shown: str) -> Queue:
        queue = self._queues.get(shown)
        if queue is None:
            queue = self._queues[shown] = Queue(shown, self._metrics, self._slos.get(shown))
        return queue

    @property
    def is_plain(self) -> bool:
        """Whether a queue is either shown as it is called or as ``_other``."""
        return self._budget.is_plain

    def shown(self, name: str) -> str:
        """Return what a known queue is shown as."""
        return self._followed.get(name, OTHER)

    def names(self) -> frozenset[str]:
        """Return the names of all known queues, as the broker calls them."""
        return frozenset(self._followed)

    def waiting(self) -> dict[str, int]:
        """Return how many messages are ready in each queue that has any."""
        return {name: queue.ready for name, queue in self._queues.items() if queue.ready}

    def take(self, reading: BrokerReading) -> list[str]:
        """Take in a poll of the broker; return the ids of tasks that it has no more and that nobody received."""
        self._read_at = reading.read_at
        self._oldest_unacked_at = reading.oldest_unacked_at
        self._show_broker(reading)
        parts: dict[str, list[QueueReading]] = {}
        for one in reading.queues:
            queue = self.get(one.name)
            if queue.name != OTHER and queue.is_whole:  # a sum over some queues at some times would be no number
                parts.setdefault(queue.name, []).append(one)
        gone: list[str] = []
        for name, readings in parts.items():
            together = _together(name, readings)
            gone += self._queues[name].take(together, reading.read_at)
            self._show_queue(together)
        for queue in self._queues.values():
            if queue.ready is not None and queue.name not in parts:
                self._withdraw(queue)
        return gone

    def _show_broker(self, reading: BrokerReading) -> None:
        metrics = self._broker_metrics
        self._holds_unacked = reading.unacked is not None
        for bound, value in (
            (metrics.unacked, reading.unacked),
            (metrics.visibility_timeout, reading.visibility_timeout_seconds),
            (metrics.delayed, reading.delayed),
        ):
            if value is None:
                bound.remove()
            else:
                bound.child().set(value)

    def _show_queue(self, reading: QueueReading) -> None:
        self._metrics.length.child(reading.name).set(reading.ready)
        for priority, ready in reading.by_priority.items():
            self._metrics.priority_length.child(reading.name, str(priority)).set(ready)
        if reading.unacked is None:  # RabbitMQ, while its management API does not answer
            self._metrics.unacked.remove(reading.name)
        else:
            self._metrics.unacked.child(reading.name).set(reading.unacked)
        if reading.consumers is not None:
            self._broker_counts_consumers = True
            self._metrics.consumers.child(reading.name).set(reading.consumers)

    def shift(self, seconds: float) -> None:
        """Move what is measured on our own clock by *seconds*."""
        if self._read_at is not None:
            self._read_at += seconds
        for queue in self._queues.values():
            queue.head_since += seconds

    def refresh(self, now: float, workers: Mapping[str, tuple[int, int]] | None) -> None:
        """
        Bring what depends on the time up to date.

        *workers* has, for each queue, how many living workers consume it and their slots together; None when workers
        cannot be asked.
        """
        if self._read_at is not None and now - self._read_at > STALE_SECONDS:
            self._withdraw_all()
        for queue in self._queues.values():
            if queue.name in (OTHER, UNKNOWN):
                continue
            age = queue.oldest_age(now)
            if age is None:
                self._metrics.oldest_age.remove(queue.name)
            else:
                self._metrics.oldest_age.child(queue.name).set(round(age, 3))
            if workers is not None:
                self._show_consumers(queue.name, *workers.get(queue.name, (0, 0)))
        if self._read_at is not None and self._holds_unacked:
            held_since = self._oldest_unacked_at
            self._broker_metrics.oldest_unacked_age.child().set(
                0 if held_since is None else round(max(now - held_since, 0.0), 3)
            )

    def _show_consumers(self, name: str, workers: int, slots: int) -> None:
        self._metrics.workers.child(name).set(workers)
        self._metrics.slots.child(name).set(slots)
        if not self._broker_counts_consumers:
            self._metrics.consumers.child(name).set(workers)

    def summary(self, now: float, workers: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
        """Return a row per queue for the status page, by name."""
        return [
            {
                "queue": name,
                "length": queue.ready,
                "oldest_task_age_seconds": None if (age := queue.oldest_age(now)) is None else round(age, 1),
                "workers": workers.get(name, (0, 0))[0],
                "slots": workers.get(name, (0, 0))[1],
            }
            for name, queue in sorted(self._queues.items())
            if name not in (OTHER, UNKNOWN)
        ]

    def _withdraw(self, queue: Queue) -> None:
        queue.ready = None
        metrics = self._metrics
        for bound in (metrics.length, metrics.unacked, metrics.oldest_age):
            bound.remove(queue.name)
        if self._broker_counts_consumers:
            metrics.consumers.remove(queue.name)
        for priority in queue.priorities:
            metrics.priority_length.remove(queue.name, str(priority))
        queue.priorities = frozenset()

    def _withdraw_all(self) -> None:
        self._read_at = None
        for queue in self._queues.values():
            self._withdraw(queue)
        for bound in (
            self._broker_metrics.unacked,
            self._broker_metrics.oldest_unacked_age,
            self._broker_metrics.delayed,
        ):
            bound.remove()
