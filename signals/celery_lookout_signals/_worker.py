"""
A worker's main process: it lets tasks be counted, and publishes what was counted.

Celery's own timer calls us twice a second; we have no thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from ._channel import Channel
from ._gatherer import Gatherer
from ._internals import active, children, held, kind_of, processed, spawns
from ._measure import meter_for
from ._messages import Messages
from ._processes import Processes
from ._queues import QueueNames
from ._records import NAME_LIMIT
from ._runs import Runs
from ._snapshot import Envelope, parts, wire_failures

#: Seconds between two times at which the pipe is emptied.
TICK_SECONDS = 0.5

#: Seconds between two snapshots on transports where each message is paid for.
PLAIN_INTERVAL_SECONDS = 15.0

#: Seconds between two snapshots with all rows in them.
EVERYTHING_SECONDS = 300.0

#: Transports with events, on which snapshots are as frequent as wished.
_FREQUENT = frozenset({"amqp", "redis"})


class WorkerSide:
    """Everything of one worker."""

    def __init__(self, controller: Any, *, interval: float, peak_memory: bool, on_runs: Callable[[Runs], None]) -> None:
        app = controller.app
        self.pid = os.getpid()
        self._peak_memory = peak_memory
        self._on_runs = on_runs
        self._queues = QueueNames(app)
        self._messages = Messages(self._queues)
        self.tasks = Gatherer(self._queues, self._messages)
        self._processes = Processes()
        self._channel = Channel(app)
        self._envelope = Envelope("worker", controller.hostname)
        frequent = app.connection_for_write().transport.driver_type in _FREQUENT
        self._interval = interval if frequent else max(interval, PLAIN_INTERVAL_SECONDS)
        self._next_at = self._everything_at = 0.0
        self._failures_told = 0
        self._busy = threading.Lock()
        #: These three are known once the worker is connected.
        self._consumer: Any = None
        self._pool: str | None = None
        self._slots: int | None = None
        self._counts = True
        self._runs_here = False

    def announce(self) -> None:
        """Publish that we are here, before Celery takes the first task and before it forks."""
        self._publish()
        # Pool processes must not inherit the connection. And what is true of the pool is told as soon as it is known.
        self._channel.close()
        self._next_at = 0.0

    def follow(self, consumer: Any) -> None:
        """*consumer* is up, for the first time or again: its pool is the worker's."""
        self._consumer = consumer
        self._pool = kind = kind_of(consumer.pool)
        self._counts = kind != "prefork" or not spawns()
        self._slots = consumer.pool.num_processes
        self._processes.look(children(consumer))
        if kind != "prefork" and not self._runs_here:
            self._runs_here = True
            meter = meter_for(kind, slots=self._slots or 1, peak=self._peak_memory)
            self._on_runs(Runs(self.tasks.memory, meter, self._messages))

    def run_in_child(self) -> Runs:
        """Return what tells the runs of a pool process that was just forked."""
        return Runs(self.tasks.pipe, meter_for("prefork", slots=1, peak=self._peak_memory), self._messages)

    def tick(self) -> None:
        """Gather what has come, and publish when it is time."""
        self._work()

    def flush(self, *, final: bool) -> None:
        """Gather and publish at once, for it may be the last time; *final* says goodbye."""
        self._work(final=final, last=True)

    def _work(self, *, final: bool = False, last: bool = False) -> None:
        # Only a cold shutdown, which comes as a signal in the middle of anything, can find us at work.
        if not self._busy.acquire(blocking=False):
            return
        try:
            self.tasks.gather()
            if not last:
                self._look_at_processes()
            if last or time.monotonic() >= self._next_at:
                self._publish(final=final, last=last)
        finally:
            self._busy.release()

    def _look_at_processes(self) -> None:
        """Count those that ended; not at the end of the worker, which they all go with."""
        found = children(self._consumer)
        for pid in self._processes.look(found):
            self.tasks.pipe.forget(pid)
        self._slots = len(found) or self._slots

    def _publish(self, *, final: bool = False, last: bool = False) -> None:
        now = time.monotonic()
        self._next_at = now + self._interval
        everything = final or now >= self._everything_at
        failures = self.tasks.pick_failures()
        fields = self._gauges() | {"running": self._running(), "failures": wire_failures(failures)}
        fields["failures_left_out"] = max(self.tasks.failed - self._failures_told - len(failures), 0)
        taken = True
        for part in parts(self.tasks.totals, everything=everything):
            body = self._envelope.wrap(fields | {"rows": part.wire()}, interval=self._interval, final=final)
            taken = self._channel.publish(body, last=last)
            if not taken:
                break
            part.was_taken()
            self._failures_told += len(fields["failures"])
            fields |= {"running": None, "failures": []}
        if everything and taken:
            self._everything_at = now + EVERYTHING_SECONDS

    def _gauges(self) -> dict[str, Any]:
        from celery import __version__ as celery_version

        processes = self._processes
        return {
            "celery": celery_version,
            "pid": self.pid,
            "pool": self._pool,
            "slots": self._slots,
            "queues": self._queues.consumed(),
            "counts": self._counts,
            "processed": processed(),
            **held(self._consumer)._asdict(),
            **processes.usage()._asdict(),
            "memory_limit": processes.memory_limit,
            "oom_kills": processes.oom_kills,
            "child_exits": dict(processes.exits),
            "runs_lost": self.tasks.runs_lost,
            "faults": self.tasks.faults,
        }

    def _running(self) -> list[list[Any]]:
        """Return what runs, by task and queue: how many, how many of them Celery has acknowledged, the oldest start."""
        rows: dict[tuple[str, str], list[Any]] = {}
        for request in active():
            message = self._messages.read(request.request_dict)
            task, queue = message.task[:NAME_LIMIT], message.queue[:NAME_LIMIT]
            row = rows.setdefault((task, queue), [task, queue, 0, 0, request.time_start])
            row[2] += 1
            row[3] += bool(request.acknowledged)
            row[4] = min(row[4], request.time_start)
        return list(rows.values())
