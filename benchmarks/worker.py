"""
What the worker package costs a worker: no-op tasks with it, without it, and with Celery's task events instead.

No-op tasks are the worst case: whatever a task does besides makes the share smaller. A worker of each variant is there
all the time, and they take turns at a batch of tasks every few seconds: a machine whose speed changes disturbs all
alike, and a ratio is that of two batches that follow each other.
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

#: Tasks of a batch. In each round every worker has one.
TASKS: Final = 3000
WARM_TASKS: Final = 200
CONCURRENCY: Final = 2

#: Seconds between two looks for the end of a batch, which takes some two seconds.
LOOK_SECONDS: Final = 0.005
#: A batch that takes longer will not come to an end.
LONGEST_SECONDS: Final = 120.0

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
    #: Of the rounds.
    lower_quartile: float
    upper_quartile: float
    #: Of the CPU per task without anything, in the same round.
    cpu_ratio: float
    #: Sockets of the main process and its pool beyond those of the worker with nothing.
    more_sockets: int


def measure(url: str, folder: Path, rounds: int) -> Iterator[Cost]:
    """Let the workers of all variants take turns in *rounds* rounds, and yield what each costs."""
    workers = [
        _Worker(url, folder / f"worker{number}", number, options) for number, options in enumerate(VARIANTS.values())
    ]
    found: list[list[_Batch]] = [[] for _ in workers]
    try:
        for worker in workers:
            worker.start()
        for number in range(rounds):
            # Whoever is first in a round is another one each time.
            for index in range(len(workers)):
                turn = (number + index) % len(workers)
                found[turn].append(workers[turn].batch())
        sockets = [worker.sockets() for worker in workers]
    finally:
        for worker in workers:
            worker.stop()
    plain = found[0]
    for name, batches, count in zip(VARIANTS, found, sockets, strict=True):
        ratios = [batch.rate / other.rate for batch, other in zip(batches, plain, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        yield Cost(
            worker_with=name,
            tasks_per_second=statistics.median(batch.rate for batch in batches),
            cpu_us_per_task=statistics.median(batch.cpu for batch in batches) * 1e6,
            throughput_ratio=statistics.median(ratios),
            lower_quartile=low,
            upper_quartile=high,
            cpu_ratio=statistics.median(batch.cpu / other.cpu for batch, other in zip(batches, plain, strict=True)),
            more_sockets=count - sockets[0],
        )


@dataclass(frozen=True)
class _Batch:
    #: Tasks per second.
    rate: float
    #: Seconds per task.
    cpu: float


class _Worker:
    """A worker of one variant, and what publishes to it. It consumes its queue only while a batch is measured."""

    def __init__(self, url: str, folder: Path, number: int, options: dict[str, Any]) -> None:
        self._stamps = "signals" in options
        self._node, self._queue = f"bench{number}@host", f"work{number}"
        given = {"events": False, "sent_events": False, **options}
        # Consuming a queue all the time, it stays as it is when the other one is given up.
        queues = (f"idle{number}", self._queue)
        self._worker = Worker(url, folder, name=self._node, concurrency=CONCURRENCY, queues=queues, **given)
        self._client = Client(url, folder, sent_events=False)
        self._client.app.amqp.queues.add(self._queue)
        self._processes: list[psutil.Process] = []

    def start(self) -> None:
        """Start the worker, and let it take some tasks."""
        self._worker.start()
        main = psutil.Process(self._worker.pid)
        self._processes = [main, *main.children(recursive=True)]
        self._cancel()
        self.batch(WARM_TASKS)

    def batch(self, count: int = TASKS) -> _Batch:
        """Let the worker take *count* no-ops from a full queue."""
        with _stamping(self._stamps):
            last = self._fill(count)
        used, started = self._cpu(), time.monotonic()
        self._client.app.control.add_consumer(self._queue, destination=[self._node])
        while last.state != "SUCCESS":
            time.sleep(LOOK_SECONDS)
            if time.monotonic() - started > LONGEST_SECONDS:
                raise TimeoutError(f"{self._node} does not finish a batch of {count} tasks")
        seconds, cpu = time.monotonic() - started, self._cpu() - used
        self._cancel()
        return _Batch(count / seconds, cpu / count)

    def sockets(self) -> int:
        """Return how many sockets its processes have."""
        return sum(len(process.net_connections()) for process in self._processes)

    def stop(self) -> None:
        """Stop the worker, if it runs."""
        self._worker.stop()
        self._client.close()

    def _cancel(self) -> None:
        self._client.app.control.cancel_consumer(self._queue, destination=[self._node], reply=True, timeout=5)

    def _fill(self, count: int) -> Any:
        """Publish *count* no-ops without results and one task more, whose result, which is returned, comes last."""
        noop = self._client.app.tasks["sample.noop"]
        with self._client.app.producer_or_acquire() as producer:
            for _ in range(count):
                noop.apply_async(queue=self._queue, producer=producer, ignore_result=True)
        return self._client.send("add", 1, 1, queue=self._queue)

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


@contextmanager
def _stamping(wanted: bool) -> Iterator[None]:
    """Let the package work in this process, which publishes, as well."""
    if wanted:
        before_task_publish.connect(stamp, weak=False)
    yield
    before_task_publish.disconnect(stamp)
