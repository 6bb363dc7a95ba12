"""
What Celery knows and has no signal for: what runs, what is held, what kind of pool there is.

Read from ``celery.worker.state`` and pools, of Celery 5.3 to 5.7.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple


class Held(NamedTuple):
    """How many tasks a worker holds."""

    active: int
    #: Waiting for a slot.
    reserved: int
    #: Waiting for their ETA.
    scheduled: int


def held(consumer: Any) -> Held:
    """Return what the worker of *consumer* holds; None stands for a worker that has not connected yet."""
    from celery.worker import state

    active = len(state.active_requests)
    reserved = max(len(state.reserved_requests) - active, 0)
    return Held(active, reserved, 0 if consumer is None else _scheduled(consumer))


def processed() -> int:
    """Return how many tasks the worker has accepted since it booted."""
    from celery.worker import state

    return int(state.all_total_count[0])


def active() -> list[Any]:
    """Return the requests that run. Raises RuntimeError in the unlikely case that other threads leave us no moment."""
    from celery.worker import state

    for _ in range(100):
        with suppress(RuntimeError):  # a thread of the pool added one meanwhile
            return [request for request in list(state.active_requests) if request.time_start]
    raise RuntimeError("the set of active requests never stood still")


def kind_of(pool: Any) -> str:
    """Return the name by which Celery's command line knows the kind of *pool*, or that of its class."""
    module, name = type(pool).__module__, type(pool).__name__
    known = module.rpartition("celery.concurrency.")[2] if module.startswith("celery.concurrency.") else ""
    return {"thread": "threads"}.get(known, known) or name


def spawns() -> bool:
    import billiard

    return billiard.get_start_method() != "fork"  # type: ignore[no-any-return]


def children(consumer: Any) -> list[Any]:
    """Return billiard's processes; none where the pool has no processes."""
    pool = getattr(getattr(consumer, "pool", None), "_pool", None)
    processes = getattr(pool, "_pool", None)
    return [child for child in processes if hasattr(child, "exitcode")] if isinstance(processes, list) else []


def _scheduled(consumer: Any) -> int:
    """Return how many tasks are held for their ETA. Celery counts them since 5.7; before, they are in its timer."""
    from celery.worker import state
    from celery.worker.request import Request

    requests = getattr(state, "scheduled_requests", None)
    if requests is not None:
        return len(requests)
    entries = list(consumer.timer.schedule.queue)
    return sum(1 for _, _, entry in entries if entry.args and isinstance(entry.args[0], Request) and not entry.canceled)
