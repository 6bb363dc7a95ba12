"""
What the worker package costs a worker, found inside one: everything of ours on and off every 150 tasks.

The machine's moods last longer than a block of tasks, so each is held against the two beside it. That takes out what
makes the ratios of whole runs (``worker.py``) differ by ten percent. What the package does besides (a look at the pipe
twice a second, a snapshot in five seconds) is in both.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from celery.signals import before_task_publish

from celery_lookout_signals._stamp import stamp
from tests.servers.workers import Client, Worker

from . import switch

#: Tasks of a block, and of a round.
BLOCK: Final = 150
TASKS: Final = 40 * BLOCK
QUEUE: Final = "work"
LONGEST_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Switched:
    """Means without the highest and lowest sixth, of a task without the package, and what it takes more with it."""

    handlers: str
    pool_us: float
    more_pool_us: float
    main_us: float
    more_main_us: float
    #: Of the throughput without the package.
    throughput_percent: float
    standard_error: float


def measure(url: str, folder: Path, rounds: int) -> Iterator[Switched]:
    """Let a worker with our handlers, and one with handlers that do nothing, run *rounds* rounds each."""
    for handlers in ("ours", "empty"):
        file = folder / f"{handlers}.blocks"
        env = {switch.BLOCKS: str(file)} | ({switch.EMPTY: "1"} if handlers == "empty" else {})
        options: dict[str, Any] = {"signals": {}, "events": False, "sent_events": False, "imports": [switch.__name__]}
        with (
            Worker(url, folder / handlers, queues=(QUEUE,), env=env, **options),
            Client(url, folder / handlers, sent_events=False) as client,
        ):
            for _ in range(rounds):
                _run_round(client)
        yield _compare(handlers, [json.loads(line) for line in file.read_text().splitlines()])


def _run_round(client: Client) -> None:
    noop = client.app.tasks["sample.noop"]
    try:
        with client.app.producer_or_acquire() as producer:
            for number in range(TASKS):
                if number % BLOCK == 0:
                    before_task_publish.disconnect(stamp)
                    if number // BLOCK % 2:
                        before_task_publish.connect(stamp, weak=False)
                noop.apply_async(queue=QUEUE, producer=producer, ignore_result=True)
    finally:
        before_task_publish.disconnect(stamp)
    last = client.send("add", 1, 1, queue=QUEUE)
    deadline = time.monotonic() + LONGEST_SECONDS
    while last.state != "SUCCESS":
        if time.monotonic() > deadline:
            raise TimeoutError(f"the worker does not finish {TASKS} tasks")
        time.sleep(0.05)


def _compare(handlers: str, blocks: Sequence[dict[str, Any]]) -> Switched:
    ratios, mains, pools, plain = [], [], [], []
    for left, block, right in zip(blocks, blocks[1:], blocks[2:], strict=False):
        if not left["tasks"] == block["tasks"] == right["tasks"] == BLOCK:
            continue  # the end of a round, and the wait for the next one
        sign = 1 if block["on"] else -1
        (wall, main, pool), *beside = block["took"], left["took"], right["took"]
        ratios.append(sign * (statistics.mean(math.log(one[0]) for one in beside) - math.log(wall)))
        mains.append(sign * (main - statistics.mean(one[1] for one in beside)))
        pools.append(sign * (pool - statistics.mean(one[2] for one in beside)))
        if not block["on"]:
            plain.append((main, pool))
    kept = _middle(ratios)
    return Switched(
        handlers=handlers,
        pool_us=statistics.mean(_middle([pool for _, pool in plain])) * 1e6,
        more_pool_us=statistics.mean(_middle(pools)) * 1e6,
        main_us=statistics.mean(_middle([main for main, _ in plain])) * 1e6,
        more_main_us=statistics.mean(_middle(mains)) * 1e6,
        throughput_percent=math.exp(statistics.mean(kept)) * 100,
        # Each block is in three differences, whose errors are therefore not independent.
        standard_error=statistics.stdev(kept) / len(kept) ** 0.5 * 1.5 * 100,
    )


def _middle(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    cut = len(ordered) // 6
    return ordered[cut : len(ordered) - cut]
