"""Task: says what is wrong with one task."""

from __future__ import annotations

from .frame import Board, Row, queue_variable, sentry_variable, task_variable
from .panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Link,
    Panel,
    Target,
    heatmap_panel,
    stat_panel,
    time_panel,
    to_dashboard,
)
from .promql import Promql, added, quantile, ratio

P = Promql(variables=("queue", "task"), single=("task",))

_RUNTIME = "celery_task_runtime_seconds_bucket"
_COLORS = {"succeeded": GREEN, "failed": RED, "retried": YELLOW, "revoked": BLUE, "rejected": ORANGE}
_SENTRY = Link("Issues in Sentry", "${sentry}/issues/?query=transaction%3A${task}", new_tab=True)


def board() -> Board:
    """Return the dashboard."""
    return Board(
        uid="celery-task",
        title="Celery / Task",
        description="What is wrong with this task? How often it runs, how it ends, and what it takes.",
        variables=[queue_variable(), task_variable(), sentry_variable()],
        rows=[
            Row(100, "Now", [_now()]),
            Row(200, "Runtime", [_runtime(), _compared()]),
            Row(300, "How runs end", [_outcomes(), _causes()]),
            Row(400, "Wait and work in progress", [_wait()]),
            Row(500, "What a run takes", [_resources()]),
        ],
    )


def _now() -> list[Panel]:
    last = P.series("celery_task_last_success_timestamp_seconds")
    retried = P.rate("celery_task_retried_total")
    return [
        stat_panel(
            101,
            "Finishing",
            "Runs that end per second: successes, failures and retries.",
            "ops",
            Target(P.ends(), "finishing"),
            decimals=2,
        ),
        stat_panel(
            102,
            "Succeeding",
            "Share of finished tasks that returned. Retries that help do not count against it.",
            "percentunit",
            Target(f"1 - {P.failures()}", "succeeding"),
            steps=((None, RED), (0.95, YELLOW), (0.99, GREEN)),
            none="idle",
            decimals=1,
            link=_SENTRY,
        ),
        stat_panel(
            103,
            "Runtime, p95",
            "95 % of runs took no longer.",
            "s",
            Target(quantile(0.95, P.rate(_RUNTIME, "le")), "p95"),
            none="idle",
        ),
        stat_panel(
            104,
            "Retries per run",
            "Share of started runs that end in a retry.",
            "percentunit",
            Target(ratio(retried, P.starts()), "retries per run"),
            steps=((None, GREEN), (0.1, YELLOW), (0.5, RED)),
            none="idle",
            decimals=1,
        ),
        stat_panel(
            105,
            "Last success",
            "How long ago the task last returned.",
            "s",
            Target(f"time() - max({last})", "ago"),
            none="none seen",
        ),
        stat_panel(
            106,
            "Running",
            "Runs that have started and not ended.",
            "short",
            Target(P.gauge("celery_task_running"), "running"),
        ),
        stat_panel(
            107,
            "Oldest run",
            "How long the longest-running one has been running; 0 if none is.",
            "s",
            Target(P.gauge("celery_task_oldest_running_seconds", how="max"), "oldest run"),
        ),
        stat_panel(
            108,
            "Retries exhausted",
            "Tasks that failed for good after at least one retry, in the time shown.",
            "short",
            Target(P.increase("celery_task_retries_exhausted_total"), "exhausted"),
            steps=((None, BLUE), (1, ORANGE)),
            decimals=0,
            instant=True,
        ),
    ]


def _runtime() -> list[Panel]:
    buckets = P.rate(_RUNTIME, "le")
    return [
        heatmap_panel(
            201,
            "Runtime",
            "How long task bodies ran, without the wait; points are single runs with a trace.",
            "s",
            buckets,
        ),
        time_panel(
            202,
            "Runtime, percentiles",
            "Half, 95 % and 99 % of runs took no longer. Points are single runs with a trace.",
            "s",
            *(Target(quantile(share, buckets), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
            exemplars=True,
        ),
    ]


def _compared() -> list[Panel]:
    inner = P.merge(_RUNTIME, f"rate({P.series(_RUNTIME)}[$__rate_interval] offset 1w)")
    by_outcome = P.rate(_RUNTIME, "le", "outcome")
    return [
        time_panel(
            203,
            "Runtime against last week, p95",
            "95 % of runs took no longer, now and (dashed) at the same time a week before.",
            "s",
            Target(quantile(0.95, P.rate(_RUNTIME, "le")), "now"),
            Target(quantile(0.95, f"sum by (le) ({inner})"), "last week"),
            dashed="/last week/",
        ),
        time_panel(
            204,
            "Runtime by outcome, p95",
            "95 % of the runs that ended so took no longer. Failures that are faster than successes fail early.",
            "s",
            Target(quantile(0.95, by_outcome), "{{outcome}}"),
            exemplars=True,
            colors=_COLORS,
        ),
    ]


def _outcomes() -> list[Panel]:
    ends = ("succeeded", "failed", "retried", "revoked", "rejected")
    return [
        time_panel(
            301,
            "Outcomes",
            "How runs end, per second.",
            "ops",
            *(Target(P.rate(f"celery_task_{end}_total"), end) for end in ends),
            stacked=True,
            colors=_COLORS,
        ),
        time_panel(
            302,
            "Retries and starts",
            "Runs started per second, the attempts among them that end in a retry, and tasks that give up after one.",
            "ops",
            Target(P.starts(), "started"),
            Target(P.rate("celery_task_retried_total"), "retried"),
            Target(P.rate("celery_task_retries_exhausted_total"), "retries exhausted"),
        ),
    ]


def _causes() -> list[Panel]:
    issues = "${sentry}/issues/?query=transaction%3A${task}%20error.type%3A${__field.labels.exception}"
    link = Link("Issues in Sentry", issues, new_tab=True)
    return [
        time_panel(
            303,
            "Exceptions",
            "Failures per second by the class of exception; _other past --limit.exceptions.",
            "ops",
            Target(P.rate("celery_task_exceptions_total", "exception"), "{{exception}}"),
            stacked=True,
            width=8,
            links=[link],
            none="no failure seen",
        ),
        time_panel(
            304,
            "Exceptions behind retries",
            "Retries per second by the class of exception that caused them.",
            "ops",
            Target(P.rate("celery_task_retry_exceptions_total", "exception"), "{{exception}}"),
            stacked=True,
            width=8,
            links=[link],
            none="no retry seen",
        ),
        time_panel(
            305,
            "Terminations",
            "Runs per second ended by a time limit or with their process, and tasks that went with their worker.",
            "ops",
            Target(P.rate("celery_task_terminations_total", "reason"), "{{reason}}"),
            Target(P.rate("celery_task_lost_total"), "worker vanished"),
            stacked=True,
            width=8,
        ),
    ]


def _wait() -> list[Panel]:
    wait = P.rate("celery_task_queue_wait_seconds_bucket", "le")
    return [
        time_panel(
            401,
            "Time in the queue",
            "Half, 95 % and 99 % of runs waited no longer from being published (or their ETA) until they started.",
            "s",
            *(Target(quantile(share, wait), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
            exemplars=True,
        ),
        time_panel(
            402,
            "Running now",
            "Runs that have started and not ended, by queue.",
            "short",
            Target(P.gauge("celery_task_running", "queue"), "{{queue}}"),
            width=6,
        ),
        time_panel(
            403,
            "Oldest run",
            "How long the longest-running one has been running, by queue: a line that only rises is stuck.",
            "s",
            Target(P.gauge("celery_task_oldest_running_seconds", "queue", how="max"), "{{queue}}"),
            width=6,
            links=[Link("Workers", to_dashboard("celery-worker"))],
        ),
    ]


def _resources() -> list[Panel]:
    peak = P.rate("celery_task_peak_memory_bytes_bucket", "le")
    runs = added(P.rate("celery_task_succeeded_total"), P.rate("celery_task_failed_total"))
    growth = P.rate("celery_task_memory_growth_bytes_total")
    return [
        time_panel(
            501,
            "CPU per run",
            "CPU seconds of one finished task. Known from workers with celery_lookout_signals.",
            "s",
            Target(ratio(P.rate("celery_task_cpu_seconds_total"), runs), "CPU"),
            width=8,
            none="not measured",
        ),
        time_panel(
            502,
            "Peak memory of a run",
            "Half, and 95 %, of runs had a process no larger. Known from workers with celery_lookout_signals.",
            "bytes",
            Target(quantile(0.5, peak), "p50"),
            Target(quantile(0.95, peak), "p95"),
            width=8,
            none="not measured",
        ),
        time_panel(
            503,
            "Memory left behind per run",
            "How much larger than ever before a process was after a run, on average: a leak does not come down to 0. "
            "Known from workers with celery_lookout_signals.",
            "bytes",
            Target(ratio(growth, runs), "left behind"),
            width=8,
            none="not measured",
        ),
    ]
