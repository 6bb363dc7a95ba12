"""
What a cluster is made of, as plain records: what ``saving`` writes and ``restoring`` reads.

Records refer to rows and workers by the number in which these came, from 0. Times are Unix times; those of our own
clock are moved on when they are restored, as if it had stood still meanwhile. A change here, in ``metrics.kept``, or in
the meaning of a field is a new ``checkpoint.VERSION``.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from ..events import Event
from ..metrics.kept import Kept

_Text = Annotated[str, Meta(max_length=1024)]
_Id = Annotated[str, Meta(max_length=255)]
_Index = Annotated[int, Meta(ge=0, le=2**32)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Signed = Annotated[int, Meta(ge=-(2**62), le=2**62)]
_Time = Annotated[float, Meta(ge=-1e12, le=1e12)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Total = _Count | Annotated[float, Meta(ge=0, le=1e18)]
_Unseen = tuple[_Signed, _Signed]


class SavedClock(Struct, frozen=True, array_like=True, tag="clock"):
    """When it was saved, and since when nobody could be heard; None while the broker answered."""

    saved_at: _Time
    deaf_since: _Time | None


class SavedQueue(Struct, frozen=True, array_like=True, tag="queue"):
    """A queue that is known, as the broker calls it."""

    name: _Text


class SavedRoute(Struct, frozen=True, array_like=True, tag="route"):
    """A binding."""

    exchange: _Text
    routing_key: _Text
    queue: _Text


class SavedRow(Struct, frozen=True, array_like=True, tag="row"):
    """A (task, queue), as they are shown."""

    task: _Text
    queue: _Text


class SavedRunning(Struct, frozen=True, array_like=True, gc=False):
    """What a worker runs of one row, as its snapshot told."""

    row: _Index
    number: _Count
    acknowledged: _Count
    oldest_start: _Time


class SavedBoot(Struct, frozen=True, array_like=True, tag="boot"):
    """A process of the worker before it, see ``boots.Boot``. ``told_until`` is None while its snapshots count."""

    boot: _Id
    started_at: _Time
    pid: _Count | None
    interval: Annotated[float, Meta(gt=0, le=3600)]
    seq: _Count
    at: _Time
    processed: _Count
    is_final: bool
    heard_at: _Time
    failures_left_out: _Count
    told_until: _Time | None
    rebased_at: _Time
    is_rebasing: bool
    rebase_until: _Time
    starts_at_close: _Count
    gap: tuple[_Count, _Count] | None


class SavedTotals(Struct, frozen=True, array_like=True, tag="totals"):
    """From where to where the totals of a (task, queue) of the boot before it are counted."""

    task: _Text
    queue: _Text
    counted: dict[_Text, tuple[_Total, _Total]]


class SavedWorker(Struct, frozen=True, array_like=True, tag="worker"):
    """A worker, see ``workers.Worker``. ``held``: events of which it is not known whether they count."""

    name: _Id
    freq: Annotated[float, Meta(gt=0, le=1e6)]
    pid: _Count | None
    boots: _Count
    alive_until: _Time
    was_alive: bool
    met_at: _Time
    last_heartbeat: _Time | None
    graceful: bool
    version: _Text
    pool: _Text
    slots: _Count
    queues: tuple[tuple[_Text, _Text, _Text], ...]
    starts: _Count
    counted_from: _Signed | None
    processed: _Count
    unseen: Annotated[tuple[_Unseen, ...], Meta(max_length=10)]
    before_gap: _Unseen | None
    quiet_share: _Share
    sends_task_events: bool | None
    starts_at_heartbeat: _Count
    silent_heartbeats: _Count
    sends_heartbeats: bool
    told_running: tuple[SavedRunning, ...]
    counted_until: _Time
    counted_starts: _Count
    held: tuple[Event, ...]


class SavedTask(Struct, frozen=True, array_like=True, tag="task", gc=False):
    """
    A task, see ``records.Task``.

    ``runs``: its worker runs it. ``reserved_at`` is when it could start, while the worker only holds it.
    ``unreceived`` is since when it waits in its row's queue, ``next_unreceived`` in that of its next row.
    """

    id: _Id
    row: _Index
    next_row: _Index | None
    worker: _Index | None
    retries: Annotated[int, Meta(ge=-1, le=2**53)]
    received_at: _Time
    started_at: _Time
    ended: bool
    final_at: _Time
    requeued: bool
    before: tuple[_Time, _Time] | None
    retried_at: _Time
    first_sent: bool
    sent_retries: Annotated[int, Meta(ge=-1, le=2**53)]
    waits_from: _Time
    next_waits_from: _Time
    waited: bool
    runs: bool
    reserved_at: _Time | None
    unreceived: _Time | None
    next_unreceived: _Time | None


class SavedHeld(Struct, frozen=True, array_like=True, tag="held"):
    """Events that wait for their ``task-sent``, each with whether it counts or is only noted."""

    id: _Id
    events: tuple[tuple[bool, Event], ...]


class SavedEnded(Struct, frozen=True, array_like=True, tag="ended", gc=False):
    """A task that is forgotten a while after *at*, unless something comes of it."""

    at: _Time
    id: _Id


class SavedVanished(Struct, frozen=True, array_like=True, tag="vanished"):
    """A process of a worker that is gone, see ``cluster._Vanished``. ``told`` is None if it is what the worker told."""

    due: _Time
    worker: _Index
    boots: _Count | None
    at: _Time
    told: tuple[SavedRunning, ...] | None


class SavedBeat(Struct, frozen=True, array_like=True, tag="beat"):
    """A beat that is followed; what its schedule did comes with its next snapshot."""

    name: _Id
    heard_at: _Time


SavedRecord: TypeAlias = (
    Kept
    | SavedClock
    | SavedQueue
    | SavedRoute
    | SavedRow
    | SavedWorker
    | SavedBoot
    | SavedTotals
    | SavedTask
    | SavedHeld
    | SavedEnded
    | SavedVanished
    | SavedBeat
)
