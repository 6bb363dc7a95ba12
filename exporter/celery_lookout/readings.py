"""
What a probe brings back: plain facts with the time they were read, for ``state`` to take in.

Everything that could not be known is None, never 0. Probes make these; only ``state`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class QueueHead:
    """The oldest ready message of a queue."""

    task_id: str | None = None
    #: Unix time at which it was published, if the publisher stamped it.
    published_at: float | None = None


@dataclass(frozen=True, slots=True)
class QueueReading:
    """One queue as the broker shows it."""

    name: str
    #: Ready messages over all priorities.
    ready: int
    #: Ready messages per priority; empty where priorities are not in use.
    by_priority: Mapping[int, int] = field(default_factory=dict)
    #: Delivered and not acknowledged, where the broker tells per queue.
    unacked: int | None = None
    consumers: int | None = None
    #: None when the broker does not show it, or when the queue is empty.
    head: QueueHead | None = None
    #: Redis: the oldest of each priority. With several of which one is not stamped, ``head`` tells nothing, while
    #: whoever remembers when these tasks were sent still finds the oldest.
    heads: tuple[QueueHead, ...] = ()


@dataclass(frozen=True, slots=True)
class BrokerReading:
    """All queues of one broker at one moment."""

    read_at: float
    queues: tuple[QueueReading, ...] = ()
    #: Redis: messages delivered and not acknowledged, over all queues of the database.
    unacked: int | None = None
    #: Redis: Unix time at which the longest-held of them was delivered.
    oldest_unacked_at: float | None = None
    visibility_timeout_seconds: float | None = None
    #: RabbitMQ native delayed delivery: messages that wait in the ``celery_delayed_*`` queues.
    delayed: int | None = None


@dataclass(frozen=True, slots=True)
class ConsumedQueue:
    """A queue that a worker consumes, with the route that leads to it."""

    name: str
    exchange: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class ActiveTask:
    """A task that a worker holds: it runs, or was received and waits for a free slot or for its ETA."""

    task_id: str
    name: str
    exchange: str
    routing_key: str
    #: Unix time, None while it is not running.
    started_at: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerReading:
    """One worker's answers to ``inspect``. Fields are None when it did not answer that question."""

    worker: str
    read_at: float
    pool: str | None = None
    slots: int | None = None
    #: Tasks held for their ETA; None where it cannot be derived (static or unlimited prefetch).
    scheduled: int | None = None
    processed: int | None = None
    main_max_memory_bytes: int | None = None
    main_cpu_seconds: float | None = None
    queues: tuple[ConsumedQueue, ...] | None = None
