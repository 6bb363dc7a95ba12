"""Worker metrics."""

from __future__ import annotations

from typing import Final

from ..snapshots import WorkerSnapshot
from .labels import LabelRules
from .registry import Bound, Counter, Gauge, Scope
from .sharing import Join, SharedCounter, SharedGauge, WorkerNames, furthest

_WORKER: Final = ("worker",)

#: The three load averages of Unix, as heartbeats carry them.
LOAD_PERIODS: Final = ("1m", "5m", "15m")

#: How pool processes end, as snapshots tell: by ``max_tasks_per_child`` and its kin, by a signal, or by themselves.
EXIT_REASONS: Final = ("recycled", "killed", "exited")


class WorkerMetrics:
    """
    The families of worker metrics, for one broker.

    Where *rules* give workers other names, several may share one: what their numbers make together is in each gauge's
    ``join``, and counters add up what comes.
    """

    def __init__(self, scope: Scope, rules: LabelRules | None = None) -> None:
        names = WorkerNames(rules or LabelRules())

        def gauge(name: str, help_text: str, *labels: str, join: Join = max) -> Bound[Gauge] | SharedGauge:
            bound = scope.gauge(f"celery_worker_{name}", help_text, (*_WORKER, *labels))
            return bound if names.are_plain else SharedGauge(bound, names, join)

        def counter(name: str, help_text: str, *labels: str) -> Bound[Counter] | SharedCounter:
            # Of the worker's own counts, which it tells again.
            bound = scope.counter(f"celery_worker_{name}", help_text, (*_WORKER, *labels), kept=False)
            return bound if names.are_plain else SharedCounter(bound, names)

        self._names = names
        self.up = gauge("up", "1 while the worker's heartbeats are fresh.")
        self.nodes = gauge("nodes", "Workers that are up behind a name, where workers are renamed.", join=sum)
        self.last_heartbeat = gauge("last_heartbeat_timestamp_seconds", "Unix time of the last heartbeat.")
        self.shutdown_graceful = gauge(
            "shutdown_graceful", "1 after the worker said goodbye, 0 if it runs or just vanished.", join=min
        )
        self.info = gauge("info", "Always 1; Celery's version and the kind of pool.", "version", "pool")
        self.slots = gauge("slots", "Concurrency: how many tasks it can run at a time.", join=sum)
        self.tasks_active = gauge("tasks_active", "Tasks running, by the worker's own count.", join=sum)
        self.tasks_reserved = gauge("tasks_reserved", "Tasks prefetched that wait for a free slot.", join=sum)
        self.tasks_scheduled = gauge("tasks_scheduled", "Tasks held in the worker until their ETA.", join=sum)
        self.tasks_processed = counter(
            "tasks_processed_total", "Tasks accepted since the worker started, by its own count."
        )
        self.task_events_enabled = gauge("task_events_enabled", "1 if the worker sends task events.", join=min)
        self.load_average = gauge("load_average", "Load average of the worker's host.", "period")
        self.main_max_memory = gauge(
            "main_max_memory_bytes", "Largest resident size the main process has had; its children are not in it."
        )
        self.main_cpu = counter("main_cpu_seconds_total", "CPU time of the main process; its children are not in it.")
        self.clock_skew = gauge(
            "clock_skew_seconds",
            "The worker's clock minus ours; messages take time, so a little below 0 is none.",
            join=furthest,
        )
        self.memory = gauge("memory_bytes", "Resident size of the main process and its children together.", join=sum)
        self.memory_limit = gauge("memory_limit_bytes", "Memory limit of the worker's cgroup.", join=sum)
        self.child_memory_max = gauge("child_memory_max_bytes", "Resident size of the largest child.")
        self.cpu = counter("cpu_seconds_total", "CPU time of the main process and its children since the start.")
        self.child_exits = counter(
            "child_exits_total", "Pool processes that ended since the worker started, by how.", "reason"
        )
        self.oom_kills = counter("oom_kills_total", "Processes of the cgroup killed for want of memory.")
        self.runs_lost = counter(
            "signals_runs_lost_total", "Runs that could not be handed over inside the worker: they are not counted."
        )
        self.faults = counter("signals_faults_total", "Faults of celery_lookout_signals in the worker.")

    def show_up(self, worker: str, *, is_up: bool) -> None:
        """Show whether the worker is up."""
        self.up.child(worker).set(int(is_up))
        if not self._names.are_plain:
            self.nodes.child(worker).set(int(is_up))

    def is_shown(self, worker: str) -> bool:
        """Say whether the user's lists let the worker be shown."""
        return self._names.are_plain or self._names.shown(worker) is not None

    def refresh(self) -> None:
        """Bring what workers share up to date."""
        for family in vars(self).values():
            if isinstance(family, SharedGauge):
                family.refresh()

    def show(self, worker: str, snapshot: WorkerSnapshot) -> None:
        """Show what a snapshot says. Memory that it does not know is not shown any more."""
        for gauge, value in ((self.slots, snapshot.slots), (self.tasks_active, snapshot.active)):
            if value is not None:
                gauge.child(worker).set(value)
        for gauge, value in (
            (self.memory, snapshot.memory),
            (self.memory_limit, snapshot.memory_limit),
            (self.child_memory_max, snapshot.child_memory_max),
        ):
            if value is None:
                gauge.remove(worker)
            else:
                gauge.child(worker).set(value)
        for counter, count in (
            (self.cpu, snapshot.cpu_seconds),
            (self.oom_kills, snapshot.oom_kills),
            (self.runs_lost, snapshot.runs_lost),
            (self.faults, snapshot.faults),
        ):
            if count is not None:
                counter.child(worker).rise_to(count)
        for reason in EXIT_REASONS:
            self.child_exits.child(worker, reason).rise_to(snapshot.child_exits.get(reason, 0))

    def forget(self, worker: str) -> None:
        """Remove every series of *worker*, except ``info`` whose other labels its owner knows."""
        more = {"load_average": LOAD_PERIODS, "child_exits": EXIT_REASONS}
        for name, family in vars(self).items():
            if name in more:
                for value in more[name]:
                    family.remove(worker, value)
            elif name not in ("info", "_names"):
                family.remove(worker)
        self._names.forget(worker)
