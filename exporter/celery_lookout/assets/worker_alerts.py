"""Workers and beat vanish, are full, or grow."""

from __future__ import annotations

from collections.abc import Iterator

from celery_lookout.assets.exporter_alerts import deaf
from celery_lookout.assets.rules import BROKER, QUEUE, WORKER, Alert, Promql, by, on
from celery_lookout.assets.thresholds import Thresholds

#: How the alerts of this file name their worker.
_NAME = "{{ $labels.worker }}"
_LABELS = ("job", "worker")


def alerts(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    """Yield the alerts about workers and beat."""

    def worker(metric: str) -> str:
        return per_worker(promql, metric)

    yield from _vanished(promql, thresholds)
    yield _saturated(promql, thresholds)
    yield from _memory(promql, thresholds)
    # Not those that send snapshots, which need no events; nor the last word of those that are gone.
    silent = "\n".join(
        [
            f"{worker('celery_worker_task_events_enabled')} == 0",
            *(
                f"unless {on(WORKER)} {other}"
                for other in (
                    worker("celery_worker_memory_bytes"),
                    worker("celery_worker_child_exits_total"),
                    gone(promql),
                )
            ),
        ]
    )
    yield Alert(
        name="CeleryWorkerEventsDisabled",
        expr=by(BROKER, silent, "count") + " > 0",
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
        f" > {thresholds.beat_silence:g}\nunless {on(BROKER)} {deaf(promql)}",
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
        expr=f"abs({worker('celery_worker_clock_skew_seconds')}) > {thresholds.skew:g}\n"
        f"unless {on(WORKER)} {gone(promql)}",
        wait="15m",
        severity="warning",
        kind="cause",
        summary=f"The clock of worker {_NAME} is wrong",
        description=f"The clocks of worker {_NAME} and of the sidecar differ by {{{{ $value | humanizeDuration }}}}: "
        "waits and ages of its tasks are as wrong.",
        dashboard="celery-worker",
        labels=_LABELS,
    )


def per_worker(promql: Promql, metric: str) -> str:
    """Return *metric* of each worker, whichever sidecar tells it."""
    return by(WORKER, promql.series(metric), "max")


def gone(promql: Promql) -> str:
    """Return the workers that are not up. For two hours their series say what was true when they were."""
    return f"{per_worker(promql, 'celery_worker_up')} == 0"


def _vanished(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    up = per_worker(promql, "celery_worker_up")
    heartbeat = per_worker(promql, "celery_worker_last_heartbeat_timestamp_seconds")
    # Who said goodbye is not missed.
    excused = f"unless {on(WORKER)} {per_worker(promql, 'celery_worker_shutdown_graceful')} == 1"
    vanished = f"({up} == 0 {excused})"
    # Nor is anybody while nobody can be heard.
    heard = f"unless {on(BROKER)} {deaf(promql)}"
    number, missing, ratio = by(BROKER, up), by(BROKER, vanished, "count"), f"{thresholds.workers_ratio:g}"
    most = f"max_over_time(({number})[2h:1m])"
    # The fleet as it was when they vanished: without those that had said goodbye long before.
    last = by(BROKER, f"{heartbeat} and {on(WORKER)} {vanished}", "max")
    fleet = by(BROKER, f"{heartbeat} >= {on(BROKER)} group_left () ({last} - {thresholds.workers_together:g})", "count")
    yield Alert(
        name="CeleryWorkersMissing",
        # All of them, where they were never seen otherwise.
        expr=f"({number} < {on(BROKER)} {ratio} * {most} or {number} == 0)\n"
        f"and {on(BROKER)} ({missing} >= {on(BROKER)} {ratio} * ({most} > 0)\n"
        f"or {missing} > {on(BROKER)} {ratio} * ({fleet} or {by(BROKER, up, 'count')}))\n{heard}",
        wait="5m",
        keep="5m",
        severity="critical",
        kind="symptom",
        summary="Most workers have vanished",
        description="{{ $value }} workers are left of those of the last two hours, and the others did not say goodbye.",
        dashboard="celery-worker",
        labels=("job",),
    )
    age = f"time() - {heartbeat}"
    yield Alert(
        name="CeleryWorkerHeartbeatLost",
        expr=f"({up} == 0 or ({age} > {thresholds.heartbeat_silence:g} unless {on(WORKER)} {up}))\n"
        f"{excused}\n{heard}\n"
        # Who vanished that long ago was replaced, or somebody knows.
        f"unless {on(WORKER)} {age} > {thresholds.heartbeat_forget:g}",
        wait="2m",
        severity="warning",
        kind="cause",
        summary=f"Worker {_NAME} has vanished",
        description=f"Worker {_NAME} sends no heartbeats any more and did not say goodbye. "
        "What it was working on may be lost or delivered again.",
        dashboard="celery-worker",
        labels=_LABELS,
    )


def _saturated(promql: Promql, thresholds: Thresholds) -> Alert:
    active, slots = (per_worker(promql, f"celery_worker_{what}") for what in ("tasks_active", "slots"))
    # Of workers that are there, and of which both are known.
    busy = by(BROKER, f"{active} and {on(WORKER)} {slots} unless {on(WORKER)} {gone(promql)}")
    all_slots = by(BROKER, f"{slots} and {on(WORKER)} {active} unless {on(WORKER)} {gone(promql)}")
    age, length = (
        by(QUEUE, f"deriv({promql.series(metric)}[15m])", "max")
        for metric in ("celery_queue_oldest_task_age_seconds", "celery_queue_length")
    )
    return Alert(
        name="CeleryPoolSaturated",
        expr=f"{busy} / {on(BROKER)} ({all_slots} > 0) > {thresholds.saturated_ratio:g}\n"
        # Where no age is known, the length must do.
        f"and {on(BROKER)} ({age} or {length}) > 0",
        wait="30m",
        severity="warning",
        kind="cause",
        summary="All workers are busy, and tasks wait ever longer",
        description="{{ $value | humanizePercentage }} of all slots have been busy for half an hour, "
        "and the oldest task of a queue gets older.",
        dashboard="celery-worker",
        labels=("job",),
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
    window, lately = (largest("celery_worker_memory_bytes", f"[{length}]") for length in ("2h", "1h"))
    ahead = by(WORKER, f"predict_linear({window}, {thresholds.leak_horizon:g})", "max")
    yield Alert(
        name="CeleryWorkerMemoryLeak",
        expr=f"{ahead} > {on(WORKER)} {limit}\n"
        # What grew while it warmed up, and has not since, is no leak.
        f"and {on(WORKER)} {by(WORKER, f'deriv({lately})', 'max')} > 0\n"
        f"and {on(WORKER)} {now} > {on(WORKER)} {thresholds.leak_ratio:g} * {limit}\n"
        # In minutes, not in samples: these are as many as the scrape interval makes them.
        f"and {on(WORKER)} count_over_time(({now})[2h:1m]) > {thresholds.leak_min_samples:g}",
        wait="30m",
        severity="warning",
        kind="cause",
        summary=f"Worker {_NAME} leaks memory",
        description=f"At this rate worker {_NAME} will need {{{{ $value | humanize1024 }}}}B in some hours, "
        "more than its limit. celery_task_memory_growth_bytes_total names the task.",
        dashboard="celery-worker",
        labels=_LABELS,
    )
