"""What a scrape costs with many series: in process, everything new, a tenth changed, nothing changed, and gzip."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from celery_lookout.metrics.exposition import Exposition
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.metrics.tasks import TaskMetrics, TaskSeries


@dataclass(frozen=True)
class Scrapes:
    """Milliseconds, the least of some; kilobytes."""

    series: int
    all_new_ms: float
    tenth_changed_ms: float
    unchanged_ms: float
    gzip_ms: float
    plain_kb: float
    gzip_kb: float


def measure(target: int) -> Scrapes:
    """Measure with about *target* series of task metrics."""
    registry = Registry(series_limit=10 * target)
    metrics = TaskMetrics(Scope(registry))
    rows: list[TaskSeries] = []
    while registry.series < target:
        rows.append(TaskSeries(metrics, f"shop.tasks.step_{len(rows)}", f"queue{len(rows) % 5}"))
    exposition = Exposition(registry)

    def change(share: int) -> None:
        for row in rows[::share]:
            for counter in (row.sent, row.received, row.started, row.succeeded):
                counter.inc()
            row.queue_wait.observe(0.1)
            row.observe_runtime("succeeded", 0.1)

    def plain() -> int:
        return len(exposition.scrape("", "").body)

    def gzip() -> int:
        return len(exposition.scrape("", "gzip").body)

    rounds = max(3, 300_000 // target)
    registry.render()
    unchanged, size = _least(plain, rounds)
    zipped, zipped_size = _least(gzip, rounds)
    tenth, _ = _least(plain, rounds, lambda: change(10))
    new, _ = _least(plain, rounds, lambda: change(1))
    return Scrapes(registry.series, new, tenth, unchanged, zipped - unchanged, size / 1000, zipped_size / 1000)


def _least(action: Callable[[], int], rounds: int, before: Callable[[], None] = lambda: None) -> tuple[float, int]:
    times, size = [], 0
    for _ in range(min(rounds, 50)):
        before()
        started = time.process_time()
        size = action()
        times.append(time.process_time() - started)
    return min(times) * 1000, size
