"""What a message says of itself. Main process and pool processes read it alike, and so know it by the same key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ._queues import UNKNOWN, QueueNames
from ._records import UNMEASURED, whole
from ._stamp import published, waits_from


class Message(NamedTuple):
    """One message that carries a task."""

    #: A number for this delivery of the message, the same in all processes forked from one. Not the task's id alone:
    #: retries and repeated deliveries have it too, and a task that replaces itself hands it on.
    attempt: int
    #: The registered name, whatever a ``shadow`` shows in Celery's logs and events.
    task: str
    queue: str
    retries: int
    #: Whether the broker delivered it before.
    redelivered: bool
    #: Unix time; None if it was not stamped.
    waits_from: float | None

    def wait(self, started_at: float | None) -> float:
        """Return the seconds until the body started at *started_at*; ``UNMEASURED`` when either end is not known."""
        since = self.waits_from
        return UNMEASURED if since is None or not started_at else max(started_at - since, 0.0)


class Messages:
    """Reads messages of one application."""

    def __init__(self, queues: QueueNames) -> None:
        self._queues = queues

    def read(self, fields: Mapping[str, Any]) -> Message:
        """
        Return what *fields* say: those of a task's request, in either process.

        Runs twice for every task, so plain cases come first. What is odd does no harm: anybody may write a header.
        """
        stamp = published(fields)
        eta = fields.get("eta")
        info = fields.get("delivery_info")
        retries = fields.get("retries")
        retries = whole(retries) if retries else 0
        redelivered = isinstance(info, dict) and bool(info.get("redelivered"))
        return Message(
            hash((fields.get("id"), stamp, retries, redelivered)),
            fields.get("task") or UNKNOWN,
            self._queues.name_of(info),
            retries,
            redelivered,
            stamp if eta is None else waits_from(stamp, eta),
        )
