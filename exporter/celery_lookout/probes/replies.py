"""
The parts that are read of workers' answers to remote control, for Celery 5.3 to 5.7.

Fields of an answer that are not named here are skipped by the decoder. Source: ``celery.worker.control`` and the
``info`` methods of ``celery.concurrency``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..readings import ConsumedQueue
from .names import NAME_LIMIT, is_broadcast, is_fit

#: Characters of any text in an answer.
TEXT_LIMIT = 255

Text = Annotated[str, msgspec.Meta(max_length=TEXT_LIMIT)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Number = Annotated[float, msgspec.Meta(ge=0, le=2**53)]

#: Celery's module names, where they are not what users type after ``--pool``.
_POOL_NAMES = {"thread": "threads"}


class Pool(msgspec.Struct, frozen=True, rename={"max_concurrency": "max-concurrency"}):
    """``stats.pool``: ``implementation`` is ``module:class``; only prefork and solo list ``processes``."""

    implementation: Text | None = None
    max_concurrency: Count | None = None
    processes: Annotated[tuple[int, ...], msgspec.Meta(max_length=100_000)] | None = None


class Autoscaler(msgspec.Struct, frozen=True):
    """``stats.autoscaler``, present with ``--autoscale``."""

    current: Count | None = None


class Usage(msgspec.Struct, frozen=True):
    """``stats.rusage`` of the main process: seconds, and KiB as Linux counts them."""

    utime: Number = 0.0
    stime: Number = 0.0
    maxrss: Count = 0


class Stats(msgspec.Struct, frozen=True):
    """The answer to ``stats``."""

    pid: Count
    total: Annotated[dict[str, Count], msgspec.Meta(max_length=100_000)] | None = None
    pool: Pool | str | None = None
    autoscaler: Autoscaler | None = None
    #: ``"N/A"`` where the platform has none.
    rusage: Usage | str | None = None
    prefetch_count: Count | None = None

    @property
    def pool_name(self) -> str | None:
        """The pool as users name it: prefork, threads, solo, gevent or eventlet."""
        if not isinstance(self.pool, Pool) or not self.pool.implementation:
            return None
        module = self.pool.implementation.partition(":")[0].rpartition(".")[2]
        return _POOL_NAMES.get(module, module) or None

    @property
    def slots(self) -> int | None:
        """
        How many tasks run at once.

        ``max-concurrency`` is what the pool started with, which ``--autoscale`` and ``pool_grow`` leave behind;
        prefork's list of processes follows them.
        """
        if self.autoscaler is not None and self.autoscaler.current is not None:
            return self.autoscaler.current
        if not isinstance(self.pool, Pool):
            return None
        return len(self.pool.processes) if self.pool.processes else self.pool.max_concurrency

    @property
    def max_memory_bytes(self) -> int | None:
        """The largest memory that the main process ever had."""
        return self.rusage.maxrss * 1024 if isinstance(self.rusage, Usage) and self.rusage.maxrss else None

    @property
    def cpu_seconds(self) -> float | None:
        """Processor time of the main process since it started."""
        return self.rusage.utime + self.rusage.stime if isinstance(self.rusage, Usage) else None


class Settings(msgspec.Struct, frozen=True):
    """The one setting that is read from the answer to ``conf``."""

    worker_prefetch_multiplier: Number | None = None


class Exchange(msgspec.Struct, frozen=True):
    """A queue's exchange; the default one has no name."""

    name: str | None = None


class Queue(msgspec.Struct, frozen=True):
    """One element of the answer to ``active_queues``."""

    name: str
    exchange: Exchange | None = None
    routing_key: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the queue has a lasting name that is fit for a label."""
        return is_fit(self.name) and not is_broadcast(self.name) and all(len(t) <= NAME_LIMIT for t in self._route)

    @property
    def reading(self) -> ConsumedQueue:
        """The queue as ``state`` takes it."""
        exchange, routing_key = self._route
        return ConsumedQueue(name=self.name, exchange=exchange, routing_key=routing_key)

    @property
    def _route(self) -> tuple[str, str]:
        return (self.exchange.name or "") if self.exchange else "", self.routing_key or ""


class Route(msgspec.Struct, frozen=True):
    """``delivery_info`` of a task."""

    exchange: Text | None = None
    routing_key: Text | None = None


class Task(msgspec.Struct, frozen=True):
    """One element of the answers to ``active`` and ``reserved``, without its arguments."""

    id: Text
    name: Text
    delivery_info: Route | None = None
    #: Unix time; 0 or null before the task starts.
    time_start: Number | None = None


class Scheduled(msgspec.Struct, frozen=True):
    """One element of the answer to ``scheduled``."""

    request: Task


class Outcome(msgspec.Struct, frozen=True):
    """The answer to a command that does something: one of the two."""

    ok: str | None = None
    error: str | None = None
