"""
What one process of a worker told in its snapshots, and for which part of its life they speak.

A snapshot has totals since the process booted. What is counted of each total is kept as an interval, and whatever lies
outside of it is new. So snapshots may come twice, late or in any order, and the next one makes good for one that is
lost.
"""

from __future__ import annotations

import math
import sys
from typing import Final, TypeAlias

from ..events import Event
from ..snapshots import WorkerSnapshot
from .saved import SavedBoot, SavedTotals

#: Seconds without a snapshot after which none is expected any more; three intervals, if that is longer.
STALE_SECONDS: Final = 30.0

#: For each key of the wire, from where to where its total is counted.
Counted: TypeAlias = dict[str, tuple[float, float]]


def rise(counted: Counted, key: str, before: float, now: float) -> float:
    """Widen the interval of *key* until *before* and *now* are in it, and return by how much."""
    known = counted.get(key)
    if known is None:
        counted[sys.intern(key)] = (before, now)
        return now - before
    low, high = known
    counted[key] = (min(low, before), max(high, now))
    return max(now - high, 0) + max(low - before, 0)


class Boot:
    """One process of a worker. Times are by the worker's clock, except ``heard_at``."""

    __slots__ = (
        "at", "failures_left_out", "gap", "heard_at", "id", "interval", "is_final", "is_rebasing", "pid",
        "processed", "rebase_until", "rebased_at", "rows", "seq", "size", "started_at", "starts_at_close", "told_until",
    )  # fmt: skip

    def __init__(self, told: WorkerSnapshot | SavedBoot) -> None:
        """Of the first snapshot that was *told*, or of what was saved, of which the rest is for the caller."""
        self.id = told.boot
        self.started_at = told.started_at
        self.pid = told.pid
        self.interval = told.interval
        #: Of the newest snapshot.
        self.seq = 0
        self.at = 0.0
        self.processed = 0
        self.is_final = False
        self.heard_at = 0.0
        self.failures_left_out = 0
        #: Events up to this time count for nothing, since snapshots tell of them: infinite while snapshots come.
        self.told_until = 0.0
        #: By task and queue.
        self.rows: dict[tuple[str, str], Counted] = {}
        #: How many intervals that is.
        self.size = 0
        #: Of what was told up to here nothing counts, since events did. It moves on with the snapshots until one of
        #: them is from ``rebase_until`` or later.
        self.rebased_at = 0.0
        self.is_rebasing = False
        self.rebase_until = 0.0
        #: Of the worker's events, starts counted when snapshots stopped.
        self.starts_at_close = 0
        #: While it is being found out what was lost between events and snapshots: tasks that the worker had accepted
        #: and starts that were counted of its events, at the last snapshot that counted.
        self.gap: tuple[int, int] | None = None

    @property
    def is_open(self) -> bool:
        """Whether its snapshots come, and count."""
        return self.told_until == math.inf

    @property
    def patience_seconds(self) -> float:
        """How long to wait for the next snapshot."""
        return max(STALE_SECONDS, 3 * self.interval)

    def hear(self, snapshot: WorkerSnapshot, now: float) -> None:
        """Take in the head of its newest snapshot."""
        self.seq = snapshot.seq
        self.at = snapshot.at
        # A clock that was set back must not make events seem to be from before.
        self.started_at = min(self.started_at, snapshot.at)
        self.interval = snapshot.interval
        self.processed = snapshot.processed
        self.is_final = snapshot.final
        self.heard_at = now
        self.failures_left_out = max(self.failures_left_out, snapshot.failures_left_out)

    def untold_since(self, snapshot: WorkerSnapshot) -> int:
        """Return how many failures *snapshot* counts as told by none, and those before it did not."""
        if not self.seq and snapshot.seq > 1:
            return 0  # we cannot know how many it counted before
        return max(snapshot.failures_left_out - self.failures_left_out, 0)

    def counted(self, task: str, queue: str) -> Counted:
        """Return what is counted of a (task, queue)."""
        counted = self.rows.get((task, queue))
        if counted is None:
            counted = self.rows[sys.intern(task), sys.intern(queue)] = {}
        return counted

    def restore(self, totals: SavedTotals) -> None:
        """Take in what is counted of a (task, queue), or of a part of its keys."""
        counted = self.counted(totals.task, totals.queue)
        counted.update((sys.intern(key), interval) for key, interval in totals.counted.items())
        self.size += len(totals.counted)

    def rebase(self, at: float) -> None:
        """Let all that was told up to *at* count for nothing."""
        self.rebased_at = at
        self.rows.clear()
        self.size = 0

    def is_origin_of(self, event: Event) -> bool:
        """Say whether *event* can come from this process, and in a time when it still told snapshots."""
        if event.pid is not None and self.pid is not None and event.pid != self.pid:
            return False
        began_again = event.type == "worker-online" and event.processed == 0 and self.processed > 0
        if event.timestamp > self.at and (self.is_final or began_again):
            return False  # another process with the same number, as in containers
        return event.timestamp <= self.at + self.patience_seconds
