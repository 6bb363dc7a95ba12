"""Worker metrics."""

from __future__ import annotations

from typing import Final

from .registry import Bound, Counter, Gauge, Scope

_WORKER: Final = ("worker",)

#: The three load averages of Unix, as heartbeats carry them.
LOAD_PERIODS: Final = ("1m", "5m", "15m")


class WorkerMetrics:
    """The families of worker metrics, for one broker."""

    def __init__(self, scope: Scope) -> None:
        def gauge(name: str, help_text: str, *labels: str) -> Bound[Gauge]:
            return scope.gauge(f"celery_worker_{name}", help_text, (*_WORKER, *labels))

        def counter(name: str, help_text: str) -> Bound[Counter]:
            return scope.counter(f"celery_worker_{name}", help_text, _WORKER)

        self.up = gauge("up", "1 while the worker's heartbeats are fresh.")
        self.last_heartbeat = gauge("last_heartbeat_timestamp_seconds", "Unix time of the last heartbeat.")
        self.shutdown_graceful = gauge(
            "shutdown_graceful", "1 after the worker said goodbye, 0 if it runs or just vanished."
        )
        self.info = gauge("info", "Always 1; Celery's version and the kind of pool.", "version", "pool")
        self.slots = gauge("slots", "Concurrency: how many tasks it can run at a time.")
        self.tasks_active = gauge("tasks_active", "Tasks running, by the worker's own count.")
        self.tasks_reserved = gauge("tasks_reserved", "Tasks prefetched that wait for a free slot.")
        self.tasks_scheduled = gauge("tasks_scheduled", "Tasks held in the worker until their ETA.")
        self.tasks_processed = counter(
            "tasks_processed_total", "Tasks accepted since the worker started, by its own count."
        )
        self.task_events_enabled = gauge("task_events_enabled", "1 if the worker sends task events.")
        self.load_average = gauge("load_average", "Load average of the worker's host.", "period")
        self.main_max_memory = gauge(
            "main_max_memory_bytes", "Largest resident size the main process has had; its children are not in it."
        )
        self.main_cpu = counter("main_cpu_seconds_total", "CPU time of the main process; its children are not in it.")
        self.clock_skew = gauge(
            "clock_skew_seconds", "The worker's clock minus ours; messages take time, so a little below 0 is none."
        )

    def forget(self, worker: str) -> None:
        """Remove every series of *worker*, except ``info`` whose other labels its owner knows."""
        for bound in vars(self).values():
            if bound is not self.info and bound is not self.load_average:
                bound.remove(worker)
        for period in LOAD_PERIODS:
            self.load_average.remove(worker, period)
