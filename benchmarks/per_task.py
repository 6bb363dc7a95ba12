"""
What a task costs the sidecar, by the way in which it hears of it: Celery's events, or snapshots of the worker package.

The workers are simulated, as this machine could not run so many tasks: events are those of ``stream``, snapshots are
made by the package's own code from runs that nobody ran.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from celery import Celery

from celery_lookout_signals._channel import Channel
from celery_lookout_signals._records import Run
from celery_lookout_signals._snapshot import Envelope, parts
from celery_lookout_signals._totals import Totals

from .exporters import Measured
from .ingest import Publisher
from .stream import QUEUES, Load

WORKERS: Final = 10
NAMES: Final = 50
#: Seconds after which the sidecar has surely read the last snapshot, and counted the last event.
POLL_SECONDS: Final = 2.0
#: Seconds between two snapshots of one worker.
INTERVAL: Final = 5.0

_SUCCEEDED: Final = re.compile(rb"^celery_task_(?:succeeded|failed)_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class PerTask:
    """One way of hearing at one rate."""

    heard_by: str
    tasks_per_second: int
    cpu_us_per_task: float
    core_percent: float
    #: Tasks that were not counted.
    lost: int


class _Worker:
    """A worker that counts tasks nobody ran and tells of them."""

    def __init__(self, number: int, channel: Channel) -> None:
        self._totals = Totals()
        self._channel = channel
        self._envelope = Envelope("worker", f"worker{number}@bench")
        self._number = itertools.count(number)

    def run(self, tasks: int) -> None:
        """Count *tasks* more."""
        for number in itertools.islice(self._number, tasks):
            task, queue = f"shop.tasks.step_{number % NAMES}", QUEUES[number % len(QUEUES)]
            row = self._totals.row(task, queue)
            self._totals.count_received(task, queue, redelivered=False)
            row.count_start(0.02)
            row.count_end(
                Run(task, queue, "succeeded", runtime=0.0125, cpu=0.01, peak=60_000_000, ended_at=time.time())
            )

    def tell(self) -> None:
        """Publish what was counted."""
        for part in parts(self._totals, everything=False):
            gauges = {"celery": "5.7.0", "pid": 1, "pool": "prefork", "slots": 8, "queues": list(QUEUES)}
            gauges |= {
                "counts": True,
                "processed": 0,
                "active": 1,
                "reserved": 4,
                "scheduled": 0,
                "memory": 500_000_000,
            }
            fields = {**gauges, "rows": part.wire(), "running": [], "failures": [], "failures_left_out": 0}
            assert self._channel.publish(self._envelope.wrap(fields, interval=INTERVAL, final=False))
            part.was_taken()


def measure(start: Callable[[], Measured], url: str, rates: tuple[int, ...], seconds: float) -> Iterator[PerTask]:
    """Measure both ways at each of *rates*, in tasks per second."""
    for rate in rates:
        for name, publish in (("events", _by_events), ("snapshots", _by_snapshots)):
            measured = start()
            try:
                publish(url, 50, 2 * INTERVAL)  # until all series are there
                time.sleep(POLL_SECONDS)
                counted, used, began = _counted(measured), measured.cpu_seconds(), time.monotonic()
                tasks = publish(url, rate, seconds)
                time.sleep(POLL_SECONDS)
                busy, took = measured.cpu_seconds() - used, time.monotonic() - began
                yield PerTask(name, rate, busy / tasks * 1e6, busy / took * 100, tasks - _counted(measured) + counted)
            finally:
                measured.server.discard()


def _by_events(url: str, rate: int, seconds: float) -> int:
    events: int = Publisher(url, Load(int(rate * seconds) * 4, rate * 4)).run()["events"]
    return events // 4


def _by_snapshots(url: str, rate: int, seconds: float) -> int:
    channel = Channel(Celery(broker=url))
    workers = [_Worker(number, channel) for number in range(WORKERS)]
    each = int(rate * INTERVAL / WORKERS)
    began, told = time.monotonic(), 0
    # One after the other, as workers that were not started together.
    for worker in itertools.cycle(workers):
        due = told * INTERVAL / WORKERS
        if due >= seconds:
            break
        time.sleep(max(began + due - time.monotonic(), 0))
        worker.run(each)
        worker.tell()
        told += 1
    channel.close()
    return told * each


def _counted(measured: Measured) -> int:
    return int(sum(float(value) for value in _SUCCEEDED.findall(measured.scrape()[1])))
