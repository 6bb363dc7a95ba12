"""Tasks fail, are retried, are killed or never end."""

from __future__ import annotations

from collections.abc import Iterator

from celery_lookout.assets.queue_alerts import burning
from celery_lookout.assets.rules import QUEUE, TASK, Alert, Promql, by, last_known, on
from celery_lookout.assets.thresholds import Thresholds

_FAILED = "task:celery_task_failed:increase10m"
_RATIO = "task:celery_task_failures:ratio10m"
_STARTED = "task:celery_task_started:increase10m"
_RETRIED = "task:celery_task_retried:increase10m"
_ERRORS = "queue:celery_task_errors"

#: How the alerts of this file name their task.
_NAME = "{{ $labels.task }} in queue {{ $labels.queue }}"
_LABELS = ("job", "queue", "task")


def alerts(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    """Yield the alerts about tasks."""
    yield Alert(
        name="CeleryTaskFailureSpike",
        expr=_spike(thresholds),
        wait="2m",
        keep="5m",
        severity="critical",
        kind="symptom",
        summary=f"Task {_NAME} fails",
        description=f"{{{{ $value | humanizePercentage }}}} of the runs of task {_NAME} failed in ten minutes, "
        "far more than usual.",
        dashboard="celery-task",
        labels=_LABELS,
    )
    failed = promql.increase(TASK, "celery_task_failed_total", "1h")
    succeeded = promql.increase(TASK, "celery_task_succeeded_total", "1h")
    yield Alert(
        name="CeleryTaskAlwaysFailing",
        # Extrapolation makes 2.99 of three failures.
        expr=f"round({failed}) >= {thresholds.always_failing_min:g}\nunless {on(TASK)} ({succeeded}) > 0",
        wait="10m",
        severity="warning",
        kind="symptom",
        summary=f"Task {_NAME} always fails",
        description=f"Task {_NAME} failed {{{{ $value }}}} times in the last hour and never succeeded.",
        dashboard="celery-task",
        labels=_LABELS,
    )
    yield Alert(
        name="CeleryTaskRetryStorm",
        expr=f"{_RETRIED} >= {thresholds.retry_min:g}\n"
        f"unless {on(TASK)} {_RETRIED} <= {on(TASK)} {thresholds.retry_ratio:g} * {_STARTED}\n"
        f"unless {on(TASK)} {_RETRIED} / {on(TASK)} ({_STARTED} > 0)"
        f" <= {on(TASK)} {thresholds.retry_known_ratio:g} * {last_known('task:celery_task_retries:ratio1d', '15m')}",
        wait="5m",
        severity="warning",
        kind="cause",
        summary=f"Task {_NAME} is retried again and again",
        description=f"Task {_NAME} was retried {{{{ $value | humanize }}}} times in ten minutes: "
        "what it depends on may be down.",
        dashboard="celery-task",
        labels=_LABELS,
    )
    yield _stuck(promql, thresholds)
    yield from _terminations(promql, thresholds)


def _spike(thresholds: Thresholds) -> str:
    known = f"{thresholds.failure_known_ratio:g} * {last_known('task:celery_task_failures:ratio1d', '15m')}"
    return (
        f"{_RATIO} > {thresholds.failure_ratio:g}\n"
        f"and {on(TASK)} {_FAILED} >= {thresholds.failure_min:g}\n"
        # Not "ratio > known": a new task has no past, and must not be quiet for that. And what fails for the most part
        # stays an alert, however long it has been failing.
        f"unless {on(TASK)} ({_RATIO} <= {on(TASK)} {known}"
        f" and {on(TASK)} {_RATIO} < {thresholds.failure_known_limit:g})"
    )


def burns(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    """Yield the alerts about failures in a queue, by how fast they use up what the objective allows."""
    budget = 1 - thresholds.error_objective

    def enough(window: str) -> str:
        failed = by(QUEUE, promql.increase(TASK, "celery_task_failed_total", window))
        return f"{failed} >= {thresholds.burn_min_failures:g}"

    description = (
        "{{ $value | humanizePercentage }} of the tasks in queue {{ $labels.queue }} fail; "
        f"{budget * 100:g}% may."
    )
    yield Alert(
        name="CeleryErrorBudgetBurn",
        expr=f"(({burning(_ERRORS, '1h', '5m', thresholds.burn_1h * budget)}"
        f" and {on(QUEUE)} {enough('1h')})\n"
        f"or ({burning(_ERRORS, '6h', '30m', thresholds.burn_6h * budget)}"
        f" and {on(QUEUE)} {enough('6h')}))\n"
        # What was as bad in the day before this hour is a ticket, and there is one.
        f"unless {on(QUEUE)} {_ERRORS}:ratio1h"
        f" <= {on(QUEUE)} {thresholds.burn_known_ratio:g} * {last_known(f'{_ERRORS}:ratio1d', '1h')}",
        wait="2m",
        keep="15m",
        severity="critical",
        kind="symptom",
        summary="Too many tasks in queue {{ $labels.queue }} fail",
        description=description,
        dashboard="celery-slo",
        labels=("job", "queue"),
    )
    yield Alert(
        name="CeleryErrorBudgetBurnSlow",
        expr=f"({burning(_ERRORS, '1d', '2h', thresholds.burn_1d * budget)}"
        f" and {on(QUEUE)} {enough('1d')})\n"
        f"or ({burning(_ERRORS, '3d', '6h', thresholds.burn_3d * budget)}"
        f" and {on(QUEUE)} {enough('3d')})",
        wait="1h",
        severity="warning",
        kind="symptom",
        summary="Queue {{ $labels.queue }} will not meet its objective this month",
        description=description,
        dashboard="celery-slo",
        labels=("job", "queue"),
    )


def _stuck(promql: Promql, thresholds: Thresholds) -> Alert:
    oldest = by(TASK, promql.series("celery_task_oldest_running_seconds"), "max")
    # Of the histogram that the percentile is made of.
    buckets = promql.series("celery_task_runtime_seconds_bucket", 'le="+Inf"')
    runs = by(TASK, promql.merge(("outcome", *TASK), f"increase({buckets}[1d])"))
    return Alert(
        name="CeleryTaskStuck",
        expr=f"{oldest} > {thresholds.stuck_age:g}\n"
        f"and {on(TASK)} {oldest} > {on(TASK)} {thresholds.stuck_p99_ratio:g} * task:celery_task_runtime:p99_1d\n"
        f"and {on(TASK)} {runs} >= {thresholds.stuck_min_runs:g}",
        wait="5m",
        severity="warning",
        kind="cause",
        summary=f"A run of task {_NAME} does not end",
        description=f"A run of task {_NAME} has been going on for {{{{ $value | humanizeDuration }}}}, "
        "far longer than any other in a day.",
        dashboard="celery-task",
        labels=_LABELS,
    )


def _terminations(promql: Promql, thresholds: Thresholds) -> Iterator[Alert]:
    labels = (*TASK, "reason")
    metric = "celery_task_terminations_total"
    forced = 'reason=~"hard_time_limit|worker_lost"'
    killed = f"round({promql.increase(labels, metric, '15m', forced)})"
    starts = promql.increase(TASK, "celery_task_started_total", "15m")
    description = (
        f"Runs of task {_NAME} were ended by force {{{{ $value }}}} times in 15 minutes: {{{{ $labels.reason }}}}."
    )
    many = f"{killed} >= {thresholds.terminations_min:g}"
    yield Alert(
        name="CeleryTaskTerminations",
        expr=many,
        severity="warning",
        kind="cause",
        summary=f"Runs of task {_NAME} are killed",
        description=description,
        dashboard="celery-task",
        labels=_LABELS,
    )
    yield Alert(
        name="CeleryTaskTerminations",
        expr=f"{many}\n"
        f"and {on(TASK)} ({killed}) >= {on(TASK)} group_left ()"
        f" {thresholds.terminations_ratio_critical:g} * ({starts})",
        keep="5m",
        severity="critical",
        kind="symptom",
        summary=f"Many runs of task {_NAME} are killed",
        description=description,
        dashboard="celery-task",
        labels=_LABELS,
    )
    gentle = 'reason="soft_time_limit"'
    soft = f"round({promql.increase(TASK, metric, '15m', gentle)})"
    yield Alert(
        name="CeleryTaskSoftTimeLimits",
        expr=f"{soft} >= {thresholds.soft_limits_min:g}\n"
        f"unless {on(TASK)} ({soft}) <= {on(TASK)} {thresholds.soft_limits_ratio:g} * ({starts})",
        wait="10m",
        severity="info",
        kind="cause",
        summary=f"Task {_NAME} runs into its soft time limit",
        description=f"Task {_NAME} reached its soft time limit {{{{ $value }}}} times in 15 minutes.",
        dashboard="celery-task",
        labels=_LABELS,
    )
