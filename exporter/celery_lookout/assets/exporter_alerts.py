"""The sidecar cannot be believed: it is down, blind, late, full or losing something."""

from __future__ import annotations

from collections.abc import Iterator

from celery_lookout.assets.rules import BROKER, WORKER, Alert, Promql, by, on
from celery_lookout.assets.thresholds import Thresholds

_DASHBOARD = "celery-exporter"
#: Empty where the broker has no name.
_BROKER_NAME = "{{ with $labels.broker }} {{ . }}{{ end }}"


def alerts(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    """Yield the alerts about the sidecar itself."""
    yield Alert(
        name="CeleryExporterDown",
        expr=f"{by(('job',), promql.series('up'), _of_all(promql))} == 0\nor absent({promql.series('up')})",
        wait="3m",
        keep="5m",
        severity="critical",
        kind="cause",
        summary="celery-lookout is down: nothing is known of Celery",
        description="Prometheus cannot scrape celery-lookout. Other alerts about Celery end, whatever is wrong.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )
    yield Alert(
        name="CeleryExporterBrokerDown",
        expr=f"{_broker_up(promql)} == 0",
        wait="2m",
        keep="5m",
        severity="critical",
        kind="cause",
        summary=f"The broker{_BROKER_NAME} does not answer",
        description=f"celery-lookout cannot reach the broker{_BROKER_NAME}; nor, perhaps, can workers.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )
    yield _blind(promql, thresholds)
    yield from _losses(promql, thresholds)
    yield from _series(promql, thresholds)
    yield _sentry(promql, thresholds)
    yield Alert(
        name="CeleryExporterWebConfigBroken",
        expr=f"{by(('job',), promql.series('celery_exporter_web_config_reload_success'), 'min')} == 0",
        wait="10m",
        severity="warning",
        kind="cause",
        summary="celery-lookout does not take its web configuration file",
        description="The web configuration file, or a certificate that it names, is broken. What it said before holds"
        " until the sidecar restarts; then the sidecar will not start.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )
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


def deaf(promql: Promql) -> str:
    """
    Return the brokers that have been away long enough for ``CeleryExporterBrokerDown``: nothing is heard, of anybody.

    One that goes and comes back is not among them, or what is silent for other reasons would never be noticed.
    """
    return by(BROKER, f"max_over_time({promql.series('celery_exporter_broker_up')}[2m])", _of_all(promql)) + " == 0"


def _broker_up(promql: Promql) -> str:
    return by(BROKER, promql.series("celery_exporter_broker_up"), _of_all(promql))


def _of_all(promql: Promql) -> str:
    """Of replicas one is enough; of sidecars that share the work none may be missing."""
    return "min" if promql.options.sharded else "max"


def _blind(promql: Promql, thresholds: Thresholds) -> Alert:
    broker_up = _broker_up(promql)
    last = by(BROKER, promql.series("celery_exporter_last_event_timestamp_seconds"), "max")
    # Before the first event: it may never have heard one.
    started = by(("job",), promql.series("process_start_time_seconds"), "max")
    since = f"({last} or {broker_up} * 0 + on (job) group_left () {started})"
    consumers = by(BROKER, promql.series("celery_queue_consumers"))
    # On Redis consumers are workers that were heard. But the CPU time of a worker that is asked for it rises.
    answers = by(BROKER, f"increase({promql.series('celery_worker_main_cpu_seconds_total')}[2m])", "max")
    # Of these snapshots tell enough. Not the number of all snapshots: some are of beat.
    up, exits = (by(WORKER, promql.series(f"celery_worker_{what}"), "max") for what in ("up", "child_exits_total"))
    told = by(BROKER, f"{up} == 1 and {on(WORKER)} {exits}", "count")
    return Alert(
        name="CeleryExporterBlind",
        expr=f"time() - {since} > {thresholds.blind_silence:g}\n"
        f"and {on(BROKER)} {broker_up} == 1\n"
        # Without workers there is nothing to hear.
        f"and {on(BROKER)} ({consumers} > 0 or {answers} > 0)\n"
        f"unless {on(BROKER)} {told}",
        wait="3m",
        keep="5m",
        severity="critical",
        kind="cause",
        summary="celery-lookout hears nothing of workers that are there",
        description="No event has come for {{ $value | humanizeDuration }}, although there are workers, and each"
        " sends a heartbeat every two seconds. What is shown of tasks is not true any more.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )


#: Counters of what was told and not counted, with the labels that each has besides the broker's.
_LOST: dict[str, tuple[str, ...]] = {
    "celery_exporter_events_lost_total": (),
    "celery_exporter_events_invalid_total": ("reason",),
    "celery_exporter_tasks_evicted_total": (),
    "celery_exporter_snapshots_invalid_total": ("reason",),
    "celery_worker_signals_runs_lost_total": ("worker",),
}


def _rose(promql: Promql, labels: tuple[str, ...], more: tuple[str, ...], metric: str, window: str) -> str:
    """
    Return by how much a counter with *labels* and *more* rose, where it did.

    Some have no series before they count, and what made these appear is in no ``increase``. But a counter does not rise
    by being scraped for the first time: there must have been a sidecar without it.
    """
    counter, all_labels = promql.series(metric), (*labels, *more)
    rose = by(labels, promql.merge(all_labels, f"increase({counter}[{window}])"))
    born = f"{promql.merge(all_labels, counter)} unless {promql.merge(all_labels, f'{counter} offset {window}')}"
    watched = by(("job",), f"{promql.series('up')} offset {window}", "max")
    return f"{rose} > 0\nor {by(labels, born)} > 0 and on (job) {watched} == 1"


def _losses(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    yield Alert(
        name="CeleryExporterEventsDropped",
        expr="\nor ".join(_rose(promql, BROKER, more, metric, "10m") for metric, more in _LOST.items()),
        wait="5m",
        severity="warning",
        kind="cause",
        summary="Events are lost: numbers are too low",
        description="{{ $value | humanize }} events, tasks or runs were lost or refused in ten minutes.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )
    lag = by(BROKER, promql.series("celery_exporter_event_lag_seconds"), "max")
    up, skew = (by(WORKER, promql.series(f"celery_worker_{what}"), "max") for what in ("up", "clock_skew_seconds"))
    skew = f"{skew} unless {on(WORKER)} {up} == 0"
    # A worker whose clock is behind sends events that look old. But if all of several look so, it is us who are late.
    behind = f"{by(BROKER, skew, 'min')} < -{thresholds.skew:g}"
    all_behind = f"{by(BROKER, skew, 'max')} < -{thresholds.skew:g} and {on(BROKER)} {by(BROKER, skew, 'count')} > 1"
    yield Alert(
        name="CeleryExporterLagging",
        expr=f"{lag} > {thresholds.lag:g}\nunless {on(BROKER)} ({behind} unless {on(BROKER)} ({all_behind}))",
        wait="5m",
        severity="warning",
        kind="cause",
        summary="celery-lookout is behind",
        description="Events are {{ $value | humanizeDuration }} old when they are read.",
        dashboard=_DASHBOARD,
        labels=("job",),
    )


def _series(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    yield Alert(
        name="CeleryExporterSeriesLimited",
        expr=_rose(promql, ("job",), ("metric",), "celery_exporter_series_dropped_total", "15m"),
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
