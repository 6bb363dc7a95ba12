"""
Snapshots after validation: what workers and beat tell of themselves.

``docs/wire.md`` tells what each field means. The decoder in ``intake`` makes these, ``state`` reads them. Lists, and
fields that can be null, may be missing as well.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

#: The version of the wire format that is understood.
VERSION: Final = 1

_Text = Annotated[str, Meta(max_length=255)]
_Name = Annotated[str, Meta(max_length=512)]
_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Time = Annotated[float, Meta(ge=0, le=1e11)]
_Seconds = Annotated[float, Meta(ge=0, le=1e12)]
#: Bytes that all runs had in memory, added up, are more than a float can count.
_Total = Annotated[int, Meta(ge=0, le=2**63 - 1)] | Annotated[float, Meta(ge=0, le=1e18)]


class Exemplar(Struct, frozen=True, array_like=True, gc=False):
    """One task that a total is about."""

    trace_id: _Text
    task_id: _Text
    value: _Seconds
    at: _Time


class Row(Struct, frozen=True, gc=False):
    """What a process counted of one (task, queue)."""

    task: _Name
    queue: _Text
    #: The total of each key when it was last sent, and now.
    totals: Annotated[dict[_Name, tuple[_Total, _Total]], Meta(max_length=600)]
    last_success_at: _Time | None = None
    last_failure_at: _Time | None = None
    #: Of some totals, the newest one.
    exemplars: Annotated[dict[_Name, Exemplar], Meta(max_length=600)] = {}


class Running(Struct, frozen=True, array_like=True, gc=False):
    """What runs of one (task, queue)."""

    task: _Name
    queue: _Text
    number: _Count
    #: So many of them will not be delivered again if the worker dies.
    acknowledged: _Count
    oldest_start: _Time


class Failure(Struct, frozen=True, gc=False):
    """A task that failed, told in full."""

    task_id: _Text
    task: _Name
    queue: _Text
    retries: _Count
    at: _Time
    kind: _Text
    exception: _Name
    traceback: Annotated[str, Meta(max_length=65_536)]
    fingerprint: _Text
    runtime: _Seconds | None = None
    trace_id: _Text | None = None
    sentry_event_id: _Text | None = None
    expected: bool = False


class Entry(Struct, frozen=True, gc=False):
    """One line of beat's schedule."""

    entry: _Name
    task: _Name
    last_sent_at: _Time | None = None
    next_due_at: _Time | None = None
    #: When it is due: five fields as of cron, or every so many seconds; neither for other schedules.
    crontab: _Text | None = None
    every: _Seconds | None = None
    #: Name of the zone that the schedule goes by.
    timezone: _Text | None = None


class Snapshot(Struct, frozen=True, tag_field="kind"):
    """What every snapshot has. Times are Unix time by the sender's clock."""

    v: _Count
    node: Annotated[str, Meta(min_length=1, max_length=255)]
    #: Made anew at each start of the process.
    boot: Annotated[str, Meta(min_length=1, max_length=255)]
    seq: _Count
    at: _Time
    started_at: _Time
    interval: Annotated[float, Meta(gt=0, le=3600)]
    final: bool


class WorkerSnapshot(Snapshot, frozen=True, tag="worker"):
    """What a worker tells."""

    #: Whether ``rows`` tell of all tasks.
    counts: bool
    #: Tasks accepted since boot.
    processed: _Count
    celery: _Text = ""
    pid: _Count | None = None
    pool: _Text | None = None
    slots: _Count | None = None
    queues: Annotated[tuple[_Text, ...], Meta(max_length=1000)] = ()
    active: _Count | None = None
    reserved: _Count | None = None
    scheduled: _Count | None = None
    memory: _Count | None = None
    child_memory_max: _Count | None = None
    memory_limit: _Count | None = None
    cpu_seconds: _Seconds | None = None
    oom_kills: _Count | None = None
    child_exits: Annotated[dict[_Text, _Count], Meta(max_length=20)] = {}
    runs_lost: _Count = 0
    faults: _Count = 0
    running: Annotated[tuple[Running, ...], Meta(max_length=10_000)] | None = None
    rows: Annotated[tuple[Row, ...], Meta(max_length=1000)] = ()
    failures: Annotated[tuple[Failure, ...], Meta(max_length=100)] = ()
    failures_left_out: _Count = 0


class BeatSnapshot(Snapshot, frozen=True, tag="beat"):
    """What beat tells."""

    entries: Annotated[tuple[Entry, ...], Meta(max_length=1000)] = ()
    entries_left_out: _Count = 0


AnySnapshot: TypeAlias = WorkerSnapshot | BeatSnapshot
