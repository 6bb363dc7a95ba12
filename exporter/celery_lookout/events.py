"""
An event after validation.

This is the one shape in which events travel through the program; ``docs/events.md`` tells who sends which fields. The
decoder in ``intake`` makes them, ``state`` reads them. Arguments and results are not decoded at all.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

_Id = Annotated[str, Meta(max_length=255)]
_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Name = Annotated[str, Meta(max_length=512)]
#: So that a sum of them stays a number.
_Number = Annotated[float, Meta(ge=-1e12, le=1e12)]

#: What Celery 5.3 to 5.7 sends. Anything else (a task's own ``send_event``) is counted and otherwise left alone.
TASK_EVENTS: Final = (
    "task-sent", "task-received", "task-started", "task-succeeded", "task-failed", "task-retried", "task-revoked",
    "task-rejected", "task-cancelled",
)  # fmt: skip
WORKER_EVENTS: Final = ("worker-online", "worker-heartbeat", "worker-offline")
EVENT_TYPES: Final = TASK_EVENTS + WORKER_EVENTS


class Event(Struct, frozen=True, gc=False, kw_only=True):
    """
    One event. Fields that its type does not carry keep their default.

    ``timestamp`` is Unix time by the sender's clock, and UTC whatever ``utcoffset`` says. The fields stand in the order
    in which Celery writes them, since the decoder looks for the next field behind the last one.
    Source: Celery user guide, "Event Reference"; ``celery.worker.request`` and ``celery.worker.heartbeat``.
    """

    #: Node name of the worker; for ``task-sent`` the publisher, which is unbounded and never a label.
    hostname: _Id = ""
    #: Not used, as ``clock``, but an event in which they are no numbers is not Celery's.
    utcoffset: _Number | None = None
    pid: _Count | None = None
    clock: _Count | None = None

    # task events
    uuid: _Id = ""
    #: The task that all this began with, and the one that published this; for spans alone.
    root_id: _Id | None = None
    parent_id: _Id | None = None
    name: _Name | None = None
    retries: _Count | None = None
    #: ISO 8601, or None for "as soon as possible".
    eta: Annotated[str, Meta(max_length=64)] | None = None
    queue: _Id | None = None
    exchange: _Id | None = None
    routing_key: _Id | None = None
    #: Seconds. None when the pool process died after it stored its result.
    runtime: _Number | None = None
    #: ``repr()`` of the exception; hides the class for kills, see ``state.exceptions``.
    exception: str | None = None
    traceback: str | None = None
    requeue: bool | None = None
    terminated: bool | None = None
    expired: bool | None = None

    # worker events
    #: Seconds between heartbeats.
    freq: _Number | None = None
    active: _Count | None = None
    processed: _Count | None = None
    loadavg: tuple[_Number, _Number, _Number] | None = None
    sw_ver: _Id | None = None

    timestamp: float
    type: _Name
