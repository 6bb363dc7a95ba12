"""The sidecar cannot be believed: it is down, blind, late, full or losing something."""

from __future__ import annotations

from collections.abc import Iterator

from celery_lookout.assets.rules import BROKER, Alert, Promql, by, on
from celery_lookout.assets.thresholds import Thresholds

_DASHBOARD = "celery-exporter"


def alerts(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    """Yield the alerts about the sidecar itself."""
    # Of replicas one is enough; of sidecars that share the work none may be missing.
    weakest = "min" if promql.options.sharded else "max"
    yield Alert(
        name="CeleryExporterDown",
        expr=f"{by(('job',), promql.series('up'), weakest)} == 0\nor absent({promql.series('up')})",
        wait="3m",
        keep="5m",
        severity="critical",
        kind="cause",
        summary="celery-lookout is down: nothing is known of Celery",
        description="Prometheus cannot scrape celery-lookout. Other alerts about Celery end, whatever is wrong.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )
    broker_up = by(BROKER, promql.series("celery_exporter_broker_up"), weakest)
    yield Alert(
        name="CeleryExporterBrokerDown",
        expr=f"{broker_up} == 0",
        wait="2m",
        keep="5m",
        severity="critical",
        kind="cause",
        summary="The broker {{ $labels.broker }} does not answer",
        description="celery-lookout cannot reach the broker {{ $labels.broker }}; nor, perhaps, can workers.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )
    yield _blind(promql, thresholds, broker_up)
    yield from _losses(promql, thresholds)
    yield from _series(promql, thresholds)
    yield _sentry(promql, thresholds)
    started = promql.series("process_start_time_seconds")
    yield Alert(
        name="CeleryExporterCrashLooping",
        expr=f"{by(('job',), f'changes({started}[30m])', 'max')} > {thresholds.restarts:g}",
        severity="warning",
        kind="cause",
        summary="celery-lookout restarts again and again",
        description="celery-lookout restarted {{ $value }} times in half an hour. Its counters begin at 0 each time.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )


def _blind(promql: Promql, thresholds: Thresholds, broker_up: str) -> Alert:
    last = by(BROKER, promql.series("celery_exporter_last_event_timestamp_seconds"), "max")
    consumers = by(BROKER, promql.series("celery_queue_consumers"))
    snapshots = by(BROKER, f"increase({promql.series('celery_exporter_snapshots_total')}[5m])", "max")
    return Alert(
        name="CeleryExporterBlind",
        expr=f"time() - {last} > {thresholds.blind_silence:g}\n"
        f"and {on(BROKER)} {broker_up} == 1\n"
        # Without workers there is nothing to hear.
        f"and {on(BROKER)} {consumers} > 0\n"
        f"unless {on(BROKER)} {snapshots} > 0",
        wait="3m",
        keep="5m",
        severity="critical",
        kind="cause",
        summary="celery-lookout hears nothing of workers that are there",
        description="The last event came {{ $value | humanizeDuration }} ago, although queues have consumers and each "
        "worker sends a heartbeat every two seconds. What is shown of tasks is not true any more.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )


#: Counters of what was told and not counted.
_LOST = (
    "celery_exporter_events_lost_total",
    "celery_exporter_events_invalid_total",
    "celery_exporter_tasks_evicted_total",
    "celery_exporter_snapshots_invalid_total",
    "celery_worker_signals_runs_lost_total",
)


def _losses(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    yield Alert(
        name="CeleryExporterEventsDropped",
        expr="\nor ".join(
            f"{by(BROKER, f'max without (instance) (increase({promql.series(metric)}[10m]))')} > 0" for metric in _LOST
        ),
        wait="5m",
        severity="warning",
        kind="cause",
        summary="Events are lost: numbers are too low",
        description="{{ $value | humanize }} events, tasks or runs were lost or refused in ten minutes.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )
    skew = by(BROKER, f"abs({promql.series('celery_worker_clock_skew_seconds')})", "max")
    lag = by(BROKER, promql.series("celery_exporter_event_lag_seconds"), "max")
    yield Alert(
        name="CeleryExporterLagging",
        # A worker whose clock is behind sends events that look old.
        expr=f"{lag} > {thresholds.lag:g}\nunless {on(BROKER)} {skew} > {thresholds.skew:g}",
        wait="5m",
        severity="warning",
        kind="cause",
        summary="celery-lookout is behind",
        description="Events are {{ $value | humanizeDuration }} old when they are read.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )


def _series(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    dropped = f"increase({promql.series('celery_exporter_series_dropped_total')}[15m])"
    yield Alert(
        name="CeleryExporterSeriesLimited",
        expr=f"{by(('job',), f'max without (instance) ({dropped})')} > 0",
        wait="10m",
        severity="warning",
        kind="cause",
        summary="celery-lookout has reached its limit of series",
        description="{{ $value | humanize }} times in 15 minutes a series was left out: "
        "some tasks, queues or workers are not shown.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )
    series, limit = (promql.series(f"celery_exporter_{what}") for what in ("series", "series_limit"))
    yield Alert(
        name="CeleryExporterSeriesLimited",
        expr=f"{by(('job',), f'{series} / ({limit} > 0)', 'max')} > {thresholds.series_ratio:g}",
        wait="10m",
        severity="info",
        kind="cause",
        summary="celery-lookout comes near its limit of series",
        description="{{ $value | humanizePercentage }} of the series that there may be are in use.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )


def _sentry(promql: Promql, thresholds: Thresholds) -> Alert:
    metric = "celery_exporter_sentry_events_total"
    failed = by(("job",), promql.increase(("job", "outcome"), metric, "10m", 'outcome="failed"'))
    tried = by(("job",), promql.increase(("job", "outcome"), metric, "10m", 'outcome=~"sent|failed"'))
    return Alert(
        name="CeleryExporterSentryFailing",
        expr=f"round({failed}) >= {thresholds.sentry_min:g}\n"
        f"and {on(('job',))} {failed} / {on(('job',))} ({tried} > 0) > {thresholds.sentry_ratio:g}",
        wait="10m",
        severity="warning",
        kind="cause",
        summary="Failures do not reach Sentry",
        description="{{ $value }} Sentry events could not be delivered in ten minutes.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )
