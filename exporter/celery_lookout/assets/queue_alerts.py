"""Tasks wait too long, or will."""

from __future__ import annotations

from collections.abc import Iterator

from celery_lookout.assets.rules import QUEUE, Alert, Promql, by, last_known, on
from celery_lookout.assets.thresholds import Thresholds

_BACKLOG = "queue:celery_queue_backlog:sum"
_AGE = "queue:celery_queue_oldest_task_age:max"
_SLO = "queue:celery_queue_latency_slo:seconds"
_STARTS = "queue:celery_task_starts:rate15m"
_GROWTH = "queue:celery_queue_growth:deriv15m"
_WAIT = "queue:celery_queue_wait_estimate:seconds"

#: How the alerts of this file name their queue.
_NAME = "{{ $labels.queue }}"


def alerts(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    """Yield the alerts about queues."""
    yield Alert(
        name="CeleryQueueLatencySLOBreached",
        expr=f"{_AGE} > {on(QUEUE)} {_SLO}",
        wait="5m",
        keep="5m",
        severity="critical",
        kind="symptom",
        summary=f"Tasks in queue {_NAME} wait longer than they may",
        description=f"The oldest task in queue {_NAME} has waited {{{{ $value | humanizeDuration }}}}. "
        "Its SLO is " + _query_slo() + ".",
        dashboard="celery-queue",
        labels=("job", "queue"),
    )
    yield from _growing(thresholds)
    yield Alert(
        name="CeleryQueueNotDraining",
        expr=_not_draining(promql),
        wait="5m",
        keep="5m",
        severity="critical",
        kind="symptom",
        summary=f"Queue {_NAME} is not being worked on",
        description="{{ $value }} tasks wait in queue " + _NAME + ", and none was started or finished in 15 minutes.",
        dashboard="celery-queue",
        labels=("job", "queue"),
    )
    yield Alert(
        name="CeleryQueueNoConsumers",
        expr=_no_consumers(promql),
        wait="5m",
        keep="5m",
        severity="critical",
        kind="cause",
        summary=f"Nobody consumes queue {_NAME}",
        description="{{ $value }} tasks wait in queue " + _NAME + ", and no worker takes tasks from it.",
        dashboard="celery-queue",
        labels=("job", "queue"),
    )
    yield Alert(
        name="CeleryQueueDrainTimeTooLong",
        expr=f"{_WAIT} > {on(QUEUE)} {thresholds.drain_slo_ratio:g} * {_SLO}",
        wait="15m",
        severity="warning",
        kind="cause",
        summary=f"Queue {_NAME} has more work than its workers can do in time",
        description=f"A task that joins queue {_NAME} now waits about {{{{ $value | humanizeDuration }}}}. "
        "Its SLO is " + _query_slo() + ".",
        dashboard="celery-queue",
        labels=("job", "queue"),
    )


def _query_slo() -> str:
    matchers = ",".join(f'{label}="%s"' for label in QUEUE)
    values = " ".join(f"$labels.{label}" for label in QUEUE)
    query = f"printf `{_SLO}{{{matchers}}}` {values}"
    return f"{{{{ with {query} | query }}}}{{{{ . | first | value | humanizeDuration }}}}{{{{ end }}}}"


def burns(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    """Yield the alerts about starts that come later than the SLO, by how fast they use up what the objective allows."""
    budget = 1 - thresholds.latency_objective

    def enough(window: str) -> str:
        started = promql.increase(QUEUE, "celery_queue_slo_eligible_total", window)
        return f"({started}) >= {thresholds.burn_min_starts:g}"

    description = (
        "{{ $value | humanizePercentage }} of the tasks in queue " + _NAME + " started later than the queue's SLO; "
        f"{budget * 100:g}% may."
    )
    yield Alert(
        name="CeleryQueueLatencyBudgetBurn",
        expr=f"({burning('queue:celery_queue_late', '1h', '5m', thresholds.burn_1h * budget)}\n"
        f"or {burning('queue:celery_queue_late', '6h', '30m', thresholds.burn_6h * budget)})\n"
        f"and {on(QUEUE)} {enough('1h')}",
        wait="2m",
        keep="15m",
        severity="critical",
        kind="symptom",
        summary=f"Too many tasks in queue {_NAME} start late",
        description=description,
        dashboard="celery-slo",
        labels=("job", "queue"),
    )
    yield Alert(
        name="CeleryQueueLatencyBudgetBurnSlow",
        expr=f"({burning('queue:celery_queue_late', '1d', '2h', thresholds.burn_1d * budget)}\n"
        f"or {burning('queue:celery_queue_late', '3d', '6h', thresholds.burn_3d * budget)})\n"
        f"and {on(QUEUE)} {enough('1d')}",
        wait="1h",
        severity="warning",
        kind="symptom",
        summary=f"Queue {_NAME} will not meet its objective this month",
        description=description,
        dashboard="celery-slo",
        labels=("job", "queue"),
    )


def burning(ratio: str, long: str, short: str, limit: float) -> str:
    """Return what is true while a budget burns too fast: over *long*, and over *short*, which ends with the trouble."""
    return f"({ratio}:ratio{long} > {limit:g} and {on(QUEUE)} {ratio}:ratio{short} > {limit:g})"


def _growing(thresholds: Thresholds) -> Iterator[Alert]:
    """Yield two tiers: growth that ends in a broken SLO within the hour, and growth that is about to break it."""
    grows = (
        f"queue:celery_task_arrivals:rate15m > {on(QUEUE)} {thresholds.growth_ratio:g} * {_STARTS}\n"
        f"and {on(QUEUE)} {_GROWTH} > 0\n"
        # Right after a burst the long window still rises.
        f"and {on(QUEUE)} queue:celery_queue_growth:deriv5m > 0\n"
    )
    description = (
        "{{ $value | humanize }} tasks per second come into queue " + _NAME + ", more than are started. "
        "If that goes on, the wait will exceed the SLO."
    )

    def ends_late(horizon: float) -> str:
        # In seconds to work off, not in tasks: a deep queue that moves fast is well.
        wait = f"predict_linear({_BACKLOG}[30m], {horizon:g}) / {on(QUEUE)} ({_STARTS} > 0)"
        return f"and {on(QUEUE)} ({wait} > {on(QUEUE)} {_SLO})"

    yield Alert(
        name="CeleryQueueBacklogGrowing",
        expr=grows + ends_late(thresholds.growth_horizon),
        wait="10m",
        keep="5m",
        severity="warning",
        kind="cause",
        summary=f"Queue {_NAME} grows faster than it is worked off",
        description=description,
        dashboard="celery-queue",
        labels=("job", "queue"),
    )
    yield Alert(
        name="CeleryQueueBacklogGrowing",
        expr=grows
        + ends_late(thresholds.growth_horizon_critical)
        + f"\nand {on(QUEUE)} ({_WAIT} > {on(QUEUE)} {thresholds.growth_wait_critical:g} * {_SLO})",
        wait="5m",
        keep="5m",
        severity="critical",
        kind="cause",
        summary=f"Queue {_NAME} is about to miss its SLO",
        description=description,
        dashboard="celery-queue",
        labels=("job", "queue"),
    )


def _not_draining(promql: Promql) -> str:
    oldest = by(QUEUE, promql.series("celery_task_oldest_running_seconds"), "max")
    usual = by(QUEUE, "task:celery_task_runtime:p99_1d", "max")
    return (
        f"{_BACKLOG} > 0\n"
        f"and {on(QUEUE)} min_over_time({_BACKLOG}[15m]) > 0\n"
        # A queue that has only just been found may have been worked on before.
        f"and {on(QUEUE)} {last_known(_BACKLOG, '15m')} > 0\n"
        # Not "== 0": where no task has ever run there are no rates.
        f"unless {on(QUEUE)} {_STARTS} > 0\n"
        f"unless {on(QUEUE)} queue:celery_task_completions:rate15m > 0\n"
        # All slots may be taken by tasks that always run this long.
        f"unless {on(QUEUE)} ({oldest} > 0 and {on(QUEUE)} {oldest} < {on(QUEUE)} {usual})"
    )


def _no_consumers(promql: Promql) -> str:
    consumers = by(QUEUE, promql.series("celery_queue_consumers"), "max")
    return (
        f"{_BACKLOG} > 0\n"
        f"unless {on(QUEUE)} {consumers} > 0\n"
        # Where it is not known who consumes, a start tells that somebody does.
        f"unless {on(QUEUE)} (queue:celery_task_starts:rate5m > 0 unless {on(QUEUE)} {consumers} == 0)"
    )
