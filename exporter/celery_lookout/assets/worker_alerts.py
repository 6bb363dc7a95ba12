"""Workers and beat vanish, are full, or grow."""

from __future__ import annotations

from collections.abc import Iterator

from celery_lookout.assets.rules import BROKER, WORKER, Alert, Promql, by, on
from celery_lookout.assets.thresholds import Thresholds

#: How the alerts of this file name their worker.
_NAME = "{{ $labels.worker }}"
_LABELS = ("job", "worker")


def alerts(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    """Yield the alerts about workers and beat."""

    def worker(metric: str) -> str:
        return by(WORKER, promql.series(metric), "max")

    # Who said goodbye is not missed, nor who vanished so long ago that it was replaced or is known.
    vanished = (
        f"({worker('celery_worker_up')} == 0\n"
        f"unless {on(WORKER)} {worker('celery_worker_shutdown_graceful')} == 1\n"
        f"unless {on(WORKER)} time() - {worker('celery_worker_last_heartbeat_timestamp_seconds')}"
        f" > {thresholds.heartbeat_forget:g})"
    )
    up = by(BROKER, worker("celery_worker_up"))
    most = f"max_over_time(({up})[2h:1m])"
    yield Alert(
        name="CeleryWorkersMissing",
        expr=f"{up} < {on(BROKER)} {thresholds.workers_ratio:g} * {most}\n"
        f"and {on(BROKER)} {by(BROKER, vanished, 'count')} >= {on(BROKER)} {thresholds.workers_ratio:g} * {most}",
        wait="5m",
        keep="5m",
        severity="critical",
        kind="symptom",
        summary="Most workers have vanished",
        description="{{ $value }} workers are left of those of the last two hours, and the others did not say goodbye.",
        dashboard="celery-worker",
        labels=("job",),
    )
    yield Alert(
        name="CeleryWorkerHeartbeatLost",
        expr=vanished,
        wait="2m",
        severity="warning",
        kind="cause",
        summary=f"Worker {_NAME} has vanished",
        description=f"Worker {_NAME} sends no heartbeats any more and did not say goodbye. "
        "What it was working on may be lost or delivered again.",
        dashboard="celery-worker",
        labels=_LABELS,
    )
    active, slots = by(BROKER, worker("celery_worker_tasks_active")), by(BROKER, worker("celery_worker_slots"))
    yield Alert(
        name="CeleryPoolSaturated",
        expr=f"{active} / {on(BROKER)} ({slots} > 0) > {thresholds.saturated_ratio:g}\n"
        f"and {on(BROKER)} {by(BROKER, 'deriv(queue:celery_queue_oldest_task_age:max[15m])', 'max')} > 0",
        wait="30m",
        severity="warning",
        kind="cause",
        summary="All workers are busy, and tasks wait ever longer",
        description="{{ $value | humanizePercentage }} of all slots have been busy for half an hour, "
        "and the oldest task of a queue gets older.",
        dashboard="celery-worker",
        labels=("job",),
    )
    yield from _memory(promql, thresholds)
    # Not those that send snapshots: they need no events.
    silent = f"{worker('celery_worker_task_events_enabled')} == 0"
    yield Alert(
        name="CeleryWorkerEventsDisabled",
        expr=by(BROKER, f"{silent} unless {on(WORKER)} {worker('celery_worker_memory_bytes')}", "count") + " > 0",
        wait="10m",
        severity="warning",
        kind="cause",
        summary="Workers do not tell what they do",
        description="{{ $value }} workers send heartbeats and no task events: nothing is known of their tasks.",
        dashboard="celery-exporter",
        labels=("job",),
    )
    # A heartbeat of itself, not what it sent: a schedule may have one entry a night. The latest, for beat may move.
    yield Alert(
        name="CeleryBeatSilent",
        expr=f"time() - {by(BROKER, promql.series('celery_beat_last_heartbeat_timestamp_seconds'), 'max')}"
        f" > {thresholds.beat_silence:g}",
        wait="2m",
        keep="5m",
        severity="critical",
        kind="symptom",
        summary="Beat is silent: no periodic task is sent",
        description="The last sign of celery beat came {{ $value | humanizeDuration }} ago.",
        dashboard="celery-worker",
        labels=("job",),
    )
    yield Alert(
        name="CeleryWorkerClockSkewed",
        expr=f"abs({worker('celery_worker_clock_skew_seconds')}) > {thresholds.skew:g}",
        wait="15m",
        severity="warning",
        kind="cause",
        summary=f"The clock of worker {_NAME} is wrong",
        description=f"The clocks of worker {_NAME} and of the sidecar differ by {{{{ $value | humanizeDuration }}}}: "
        "waits and ages of its tasks are as wrong.",
        dashboard="celery-worker",
        labels=_LABELS,
    )


def _memory(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    def largest(metric: str, window: str = "") -> str:
        return f"{promql.series(metric)}{window}"

    # A second replica has another instance: the sidecar's own job and name are left out only after the comparison.
    size, limit = largest("celery_worker_memory_bytes"), by(WORKER, largest("celery_worker_memory_limit_bytes"), "max")
    now = by(WORKER, size, "max")
    yield Alert(
        name="CeleryWorkerMemoryNearLimit",
        expr=f"{now} / {on(WORKER)} ({limit} > 0) > {thresholds.memory_ratio:g}",
        wait="5m",
        severity="warning",
        kind="cause",
        summary=f"Worker {_NAME} is about to be killed for its memory",
        description=f"Worker {_NAME} and its pool use {{{{ $value | humanizePercentage }}}} of their memory limit.",
        dashboard="celery-worker",
        labels=_LABELS,
    )
    window = largest("celery_worker_memory_bytes", "[2h]")
    ahead = by(WORKER, f"predict_linear({window}, {thresholds.leak_horizon:g})", "max")
    yield Alert(
        name="CeleryWorkerMemoryLeak",
        expr=f"{ahead} > {on(WORKER)} {limit}\n"
        f"and {on(WORKER)} {by(WORKER, f'deriv({window})', 'max')} > 0\n"
        f"and {on(WORKER)} {now} > {on(WORKER)} {thresholds.leak_ratio:g} * {limit}\n"
        f"and {on(WORKER)} {by(WORKER, f'count_over_time({window})', 'max')} > {thresholds.leak_min_samples:g}",
        wait="30m",
        severity="warning",
        kind="cause",
        summary=f"Worker {_NAME} leaks memory",
        description=f"At this rate worker {_NAME} will need {{{{ $value | humanize1024 }}}}B in some hours, "
        "more than its limit. celery_task_memory_growth_bytes_total names the task.",
        dashboard="celery-worker",
        labels=_LABELS,
    )
