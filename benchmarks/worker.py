"""
What the worker package costs a worker: no-op tasks with it, without it, and with Celery's task events instead.

No-op tasks are the worst case: whatever a task does besides makes the share smaller. The variants take turns, so that a
noisy machine disturbs all alike, and a ratio is that of two runs that follow each other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from celery.signals import before_task_publish

from celery_lookout_signals._stamp import stamp
from tests.servers.workers import Client, Worker

TASKS: Final = 3000
CONCURRENCY: Final = 2

#: Options of the worker by the name of the variant; the first is what the others are held against.
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "nothing": {},
    "celery-lookout-signals": {"signals": {}},
    "task events (-E)": {"events": True},
}


@dataclass(frozen=True)
class Cost:
    """One variant, medians over the rounds."""

    worker_with: str
    tasks_per_second: float
    cpu_us_per_task: float
    #: Of the tasks per second without anything, in the same round.
    throughput_ratio: float
    #: The lowest and the highest of the rounds.
    lowest: float
    highest: float
    #: Sockets of the main process and its pool beyond those of the worker with nothing.
    more_sockets: float


@dataclass(frozen=True)
class _Run:
    rate: float
    cpu: float
    sockets: int


def measure(url: str, folder: Path, rounds: int) -> Iterator[Cost]:
    """Run all variants *rounds* times, taking turns, and yield what each costs."""
    runs: dict[str, list[_Run]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        # Whoever is first in a round is another one each time.
        names = list(VARIANTS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            runs[name].append(_run(url, folder, VARIANTS[name]))
    base = next(iter(runs.values()))
    for name, found in runs.items():
        ratios = [run.rate / plain.rate for run, plain in zip(found, base, strict=True)]
        yield Cost(
            worker_with=name,
            tasks_per_second=statistics.median(run.rate for run in found),
            cpu_us_per_task=statistics.median(run.cpu for run in found) / TASKS * 1e6,
            throughput_ratio=statistics.median(ratios),
            lowest=min(ratios),
            highest=max(ratios),
            more_sockets=statistics.median(run.sockets - plain.sockets for run, plain in zip(found, base, strict=True)),
        )


def _run(url: str, folder: Path, options: dict[str, Any]) -> _Run:
    """Let a fresh worker take ``TASKS`` no-ops from a full queue."""
    given = {"events": False, "sent_events": False, **options}
    with Client(url, folder, sent_events=False) as client, _stamping("signals" in options):
        client.app.amqp.queues.add("work")
        worker = Worker(url, folder, name="bench@host", concurrency=CONCURRENCY, queues=("warm", "work"), **given)
        worker.start()
        try:
            client.app.control.cancel_consumer("work", reply=True, timeout=1)
            client.wait(_fill(client, "warm", 200), seconds=60)
            last = _fill(client, "work", TASKS)
            processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
            used, started = _cpu(processes), time.monotonic()
            client.app.control.add_consumer("work")
            client.wait(last, seconds=120)
            seconds = time.monotonic() - started
            sockets = sum(len(process.net_connections()) for process in processes)
            return _Run(TASKS / seconds, _cpu(processes) - used, sockets)
        finally:
            worker.stop()


@contextmanager
def _stamping(wanted: bool) -> Iterator[None]:
    """Let the package work in this process, which publishes, as well."""
    if wanted:
        before_task_publish.connect(stamp, weak=False)
    yield
    before_task_publish.disconnect(stamp)


def _fill(client: Client, queue: str, count: int) -> Any:
    """Publish *count* no-ops without results and one task more, whose result, which is returned, comes last."""
    noop = client.app.tasks["sample.noop"]
    with client.app.producer_or_acquire() as producer:
        for _ in range(count):
            noop.apply_async(queue=queue, producer=producer, ignore_result=True)
    return client.send("add", 1, 1, queue=queue)


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
