"""
Whose word counts: for each worker either its events or its snapshots, never both.

A worker publishes its first snapshot before it connects and sends any event. So an event of a process that nobody knows
yet raises a question which the next poll of the snapshots answers for sure. Until then the events of that worker
are held, and nothing else is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..events import Event
from ..snapshots import WorkerSnapshot
from .boots import STALE_SECONDS, Boot

if TYPE_CHECKING:
    from .workers import Worker

#: Events held at a time, of all workers together: some seconds' worth. Past that a worker is judged by what is known.
HELD_LIMIT: Final = 20_000

#: Processes of one worker that are remembered: the one that runs, and the one before, of which something may come late.
BOOTS_KEPT: Final = 2


@dataclass(slots=True, eq=False)
class Coverage:
    """What is known of one worker's snapshots."""

    #: The oldest first.
    boots: list[Boot] = field(default_factory=list)
    #: Whether an event was ever judged, and whether none waits for that.
    is_known: bool = False
    is_settled: bool = False
    #: The last poll that had begun when the question was raised; a later one answers it.
    asked_in: int = 0
    held: list[Event] = field(default_factory=list)
    #: Of the worker's events that counted: the time of the latest by the worker's clock, and how many were starts.
    counted_until: float = 0.0
    counted_starts: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the worker's snapshots count, and its events do not."""
        return bool(self.boots) and self.boots[-1].is_open

    def boot(self, snapshot: WorkerSnapshot) -> Boot | None:
        """Return the process that *snapshot* is of, made known if it was not; None for one long gone."""
        for boot in self.boots:
            if boot.id == snapshot.boot:
                return boot
        if len(self.boots) >= BOOTS_KEPT and snapshot.started_at <= self.boots[0].started_at:
            return None
        boot = Boot(snapshot)
        self.boots = sorted([*self.boots, boot], key=lambda boot: boot.started_at)[-BOOTS_KEPT:]
        return boot

    def boot_at(self, timestamp: float) -> Boot | None:
        """Return the process that lived at that time, by the worker's clock."""
        for boot in reversed(self.boots):
            if boot.started_at <= timestamp:
                return boot
        return None

    def open(self, boot: Boot, snapshot: WorkerSnapshot) -> int:
        """
        Let the snapshots of *boot* count, of which *snapshot* is the newest.

        If its events counted since the last one, what the snapshots tell of that time counts for nothing, up to the
        first that is later than all these events. Return how many starts neither of the two has counted, once that is
        known.
        """
        if not boot.is_open:
            boot.told_until = math.inf
            if self.counted_until > (boot.at or boot.started_at):
                boot.gap = (boot.processed, boot.starts_at_close) if boot.seq else None
                boot.is_rebasing = True
                # A clock that jumped, or a forged event, must not put it off for ever.
                boot.rebase_until = min(self.counted_until, snapshot.at + STALE_SECONDS)
        if boot.is_rebasing:
            boot.rebase(snapshot.at)
            boot.is_rebasing = snapshot.at < boot.rebase_until
        elif boot.gap is not None:
            (processed, starts), boot.gap = boot.gap, None
            return max(boot.processed - processed - (self.counted_starts - starts), 0)
        return 0

    def close(self, boot: Boot) -> None:
        """No more snapshots of *boot* are expected: from the last one on, events count."""
        boot.told_until = boot.at
        boot.starts_at_close = self.counted_starts


class Precedence:
    """
    Lets each task event of a worker count, or be noted only.

    *count* has what to do with an event of each type, *note* is for those that do not count. *lose* is told of a worker
    whose process was replaced by one without snapshots; *fault* of an event that was held and then could not be
    counted, for a fault of ours.
    """

    def __init__(
        self,
        *,
        count: Mapping[str, Callable[[Event], None]],
        note: Callable[[Event], None],
        lose: Callable[[Worker], None],
        fault: Callable[[Event, Exception], None],
    ) -> None:
        self._count = count
        self._note = note
        self._lose = lose
        self._fault = fault
        #: Called when a poll of the snapshots should not wait for its time. Nobody reads them while it is None.
        self.hurry: Callable[[], None] | None = None
        self._polls = 0
        self._waiting: dict[str, Worker] = {}
        self._held = 0

    def is_waiting(self, worker: Worker) -> bool:
        """Say whether it is not known at present whose word counts."""
        return worker.name in self._waiting

    def hear(self, worker: Worker, event: Event) -> None:
        """Let a task event count, be noted, or wait."""
        coverage = worker.coverage
        if not coverage.is_settled and self.hurry is not None:
            (self._hold if worker.name in self._waiting else self._ask)(worker, event)
            return
        timestamp = event.timestamp
        if coverage.boots:
            boot = coverage.boot_at(timestamp)
            if boot is not None and timestamp <= boot.told_until:
                self._note(event)
                return
        coverage.counted_until = max(coverage.counted_until, timestamp)
        if event.type == "task-started":
            coverage.counted_starts += 1
        self._count[event.type](event)

    def meet(self, worker: Worker, event: Event) -> None:
        """See whether an event of the worker itself is of a new process. Call it before it is taken in."""
        is_new = event.type == "worker-online" or (event.pid is not None and worker.pid not in (None, event.pid))
        if self.hurry is not None and (is_new or not worker.coverage.is_known):
            self._ask(worker, event)

    def restore(self, worker: Worker, held: Iterable[Event]) -> None:
        """Go on holding events that an earlier process *held* of the worker: the first poll of the snapshots tells."""
        worker.coverage.held.extend(held)
        if worker.coverage.held:
            self._waiting[worker.name] = worker
            self._held += len(worker.coverage.held)

    def poll_begins(self) -> int:
        """Return the number of the poll of the snapshots that begins now."""
        self._polls += 1
        return self._polls

    def poll_ends(self, number: int) -> None:
        """Judge all workers that waited for this poll: it is over, and what it brought is taken in."""
        for worker in [worker for worker in self._waiting.values() if worker.coverage.asked_in < number]:
            self._settle(worker)

    @staticmethod
    def close_silent(workers: Iterable[Worker], now: float, works_since: float) -> None:
        """Expect no more snapshots of those that sent none for long, in a time in which they would have been read."""
        for worker in workers:
            for boot in worker.coverage.boots:
                if boot.is_open and now - max(boot.heard_at, works_since) > boot.patience_seconds:
                    worker.coverage.close(boot)

    def _ask(self, worker: Worker, event: Event) -> None:
        worker.coverage.is_settled = False
        worker.coverage.asked_in = self._polls
        self._waiting[worker.name] = worker
        self._hold(worker, event)
        if self.hurry is not None:
            self.hurry()

    def _hold(self, worker: Worker, event: Event) -> None:
        worker.coverage.held.append(event)
        self._held += 1
        if self._held > HELD_LIMIT:
            self._settle(worker)

    def _settle(self, worker: Worker) -> None:
        coverage = worker.coverage
        self._waiting.pop(worker.name, None)
        held, coverage.held = coverage.held, []
        self._held -= len(held)
        coverage.is_settled = True
        for event in held:
            is_of_task = event.type.startswith("task-")
            if not is_of_task or not coverage.is_known:
                coverage.is_known = True
                boot = coverage.boot_at(event.timestamp)
                if boot is not None and boot.is_open and not boot.is_origin_of(event):
                    coverage.close(boot)
                    self._lose(worker)
            if is_of_task:
                try:
                    self.hear(worker, event)
                except Exception as error:  # noqa: BLE001  # as in Cluster.fold
                    self._fault(event, error)
