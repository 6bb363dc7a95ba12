"""Overview: says whether anything is wrong, and where."""

from __future__ import annotations

from .frame import Board, Row, queue_variable, sentry_variable
from .panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Column,
    Link,
    Panel,
    Target,
    alerts_panel,
    field_value,
    heatmap_panel,
    stat_panel,
    table_panel,
    time_panel,
    to_dashboard,
)
from .promql import Promql, quantile, ratio

P = Promql(variables=("queue",))

_FIRING = 'count(ALERTS{alertstate="firing", component="celery", severity="critical", job=~"$job|"}) or vector(0)'

_UP = P.gauge("celery_worker_up")
_EXPECTED = f"count({P.merge('celery_worker_shutdown_graceful', P.series('celery_worker_shutdown_graceful'))} == 0)"

#: Labels that name a queue in a table; two sidecars or brokers may each have one of that name.
_QUEUE = ("job", "broker", "queue")
_TASK = (*_QUEUE, "task")


def _times_slo() -> str:
    age = P.merge("celery_queue_oldest_task_age_seconds", P.series("celery_queue_oldest_task_age_seconds"))
    slo = P.merge("celery_queue_latency_slo_seconds", P.series("celery_queue_latency_slo_seconds"))
    return f"max({age} / ({slo} > 0))"


def board() -> Board:
    """Return the dashboard."""
    return Board(
        uid="celery-overview",
        title="Celery / Overview",
        description="Is anything wrong, and where? Rows of the tables lead to the queue and to the task.",
        variables=[queue_variable(), sentry_variable()],
        rows=[
            Row(100, "Now", [_now()]),
            Row(200, "Alerts and backlog", [_backlog()]),
            Row(300, "Traffic", [_traffic()]),
            Row(400, "Failures", [_failures()]),
            Row(500, "Time", [_time()]),
            Row(600, "Where to look", [[_queues()], [_tasks()]]),
        ],
    )


def _now() -> list[Panel]:
    return [
        stat_panel(
            101,
            "Critical alerts",
            "Alerts about Celery that fire and call somebody. 0 also where the alert rules are not loaded.",
            "short",
            Target(_FIRING, "firing"),
            steps=((None, GREEN), (1, RED)),
        ),
        stat_panel(
            102,
            "Wait / SLO",
            "Age of the oldest waiting task as a share of its queue's latency SLO, of the queue where it is largest. "
            "Queues without a --queue.latency-slo are not in it.",
            "percentunit",
            Target(_times_slo(), "oldest / SLO"),
            steps=((None, GREEN), (0.5, YELLOW), (1, RED)),
            none="no SLO",
            decimals=0,
            link=Link("SLO", to_dashboard("celery-slo", "queue")),
        ),
        stat_panel(
            103,
            "Arriving",
            "Tasks that arrive in queues per second: what workers start, and what the queues grow by.",
            "ops",
            Target(P.arrivals(), "arriving"),
            decimals=1,
        ),
        stat_panel(
            104,
            "Finishing",
            "Runs that end per second: successes, failures and retries.",
            "ops",
            Target(P.ends(), "finishing"),
            decimals=1,
        ),
        stat_panel(
            105,
            "Failing",
            "Share of finished tasks that failed for good. Retries that help do not count.",
            "percentunit",
            Target(P.failures(), "failing"),
            steps=((None, GREEN), (0.01, YELLOW), (0.05, RED)),
            none="idle",
            decimals=1,
        ),
        stat_panel(
            106,
            "Workers",
            "Workers with fresh heartbeats, and workers that are there or vanished without a goodbye.",
            "short",
            Target(_UP, "up"),
            Target(_EXPECTED, "expected"),
            link=Link("Workers", to_dashboard("celery-worker")),
        ),
        stat_panel(
            107,
            "Busy slots",
            "Share of all slots of all workers that run a task. Near 100 % more tasks can only wait.",
            "percentunit",
            Target(ratio(P.gauge("celery_worker_tasks_active"), P.gauge("celery_worker_slots")), "busy"),
            steps=((None, GREEN), (0.8, YELLOW), (0.95, ORANGE)),
            decimals=0,
        ),
        stat_panel(
            108,
            "Sidecar",
            "Whether the sidecar reaches its broker; of several, the worst. If not, everything else here is old.",
            "short",
            Target(f"min({P.merge('celery_exporter_broker_up', P.series('celery_exporter_broker_up'))})", "broker"),
            steps=((None, RED), (1, GREEN)),
            texts={"0": ("no broker", RED), "1": ("sees it", GREEN)},
            none="gone",
            link=Link("Sidecar", to_dashboard("celery-exporter")),
        ),
    ]


def _backlog() -> list[Panel]:
    return [
        alerts_panel(
            201,
            "Alerts",
            "Alerts with component=celery that fire or are about to, from every rule that this Grafana knows.",
            width=8,
        ),
        time_panel(
            202,
            "Waiting tasks",
            "Ready messages by queue, all priorities together.",
            "short",
            Target(P.gauge("celery_queue_length", "queue"), "{{queue}}"),
            width=8,
            links=[_queue_link("${__field.labels.queue}")],
        ),
        time_panel(
            203,
            "Age of the oldest waiting task",
            "How long the oldest ready message of each queue has waited; 0 when the queue is empty.",
            "s",
            Target(P.gauge("celery_queue_oldest_task_age_seconds", "queue", how="max"), "{{queue}}"),
            width=8,
            links=[_queue_link("${__field.labels.queue}")],
        ),
    ]


def _traffic() -> list[Panel]:
    return [
        time_panel(
            301,
            "Arriving and finishing",
            "Upwards what arrives in each queue per second, downwards what workers finish of it.",
            "ops",
            Target(P.arrivals("queue"), "{{queue}} in"),
            Target(P.ends("queue"), "{{queue}} out"),
            negative="/ out$/",
        ),
        time_panel(
            302,
            "Growth",
            "By how many tasks per second each queue grows (up) or drains (down).",
            "ops",
            Target(P.growth("queue"), "{{queue}}"),
            bars=True,
            stacked=True,
            centered=True,
        ),
    ]


def _failures() -> list[Panel]:
    return [
        time_panel(
            401,
            "Failing",
            "Share of finished tasks that failed for good, by queue. The line is where a failure spike begins.",
            "percentunit",
            Target(P.failures("queue"), "{{queue}}"),
            limit=0.05,
            links=[_queue_link("${__field.labels.queue}")],
        ),
        time_panel(
            402,
            "Failures by exception",
            "Failures per second by the class of exception; _other past --limit.exceptions.",
            "ops",
            Target(P.rate("celery_task_exceptions_total", "exception"), "{{exception}}"),
            stacked=True,
            links=[
                Link("Sentry", "${sentry}/issues/?query=error.type%3A${__field.labels.exception}", new_tab=True),
            ],
        ),
    ]


def _time() -> list[Panel]:
    wait = P.rate("celery_task_queue_wait_seconds_bucket", "le")
    runtime = P.rate("celery_task_runtime_seconds_bucket", "le")
    return [
        heatmap_panel(
            501,
            "Time in the queue",
            "How long tasks waited from being published (or their ETA) until they started.",
            "s",
            wait,
        ),
        time_panel(
            502,
            "Runtime",
            "How long task bodies ran, without the wait: half, 95 % and 99 % of runs took no longer.",
            "s",
            *(Target(quantile(share, runtime), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
            exemplars=True,
        ),
    ]


def _queue_link(queue: str) -> Link:
    return Link("Queue", to_dashboard("celery-queue", queue=queue))


def _queues() -> Panel:
    link = Link("Queue", to_dashboard("celery-queue", job=field_value("Job"), queue=field_value("Queue")))
    waiting = P.gauge("celery_queue_length", *_QUEUE)
    return table_panel(
        601,
        "Queues",
        "The queues with the oldest waiting tasks first. Drained in: what waits, at the rate at which workers start "
        "tasks now and if nothing new came. Empty where nothing starts.",
        Column("Queue", label="queue", links=[link]),
        Column("Job", label="job"),
        Column("Broker", label="broker"),
        Column("Waiting", expr=waiting),
        Column("Oldest", expr=P.gauge("celery_queue_oldest_task_age_seconds", *_QUEUE, how="max"), unit="s"),
        Column("SLO", expr=P.gauge("celery_queue_latency_slo_seconds", *_QUEUE, how="max"), unit="s"),
        Column("Drained in", expr=ratio(waiting, P.starts(*_QUEUE)), unit="s"),
        Column("Starts", expr=P.starts(*_QUEUE), unit="ops", decimals=2),
        Column(
            "Workers",
            expr=P.gauge("celery_queue_workers", *_QUEUE, how="max"),
            steps=((None, RED), (1, BLUE)),
        ),
        Column("Slots", expr=P.gauge("celery_queue_slots", *_QUEUE, how="max")),
        sort="Oldest",
    )


def _tasks() -> Panel:
    failed = P.increase("celery_task_failed_total", *_TASK)
    finished = f"({failed} + {P.increase('celery_task_succeeded_total', *_TASK)})"
    yesterday = P.increase("celery_task_failed_total", *_TASK, offset="1d")
    link = Link(
        "Task",
        to_dashboard(
            "celery-task", "sentry", job=field_value("Job"), queue=field_value("Queue"), task=field_value("Task")
        ),
    )
    issues = Link("Sentry", f"${{sentry}}/issues/?query=transaction%3A{field_value('Task')}", new_tab=True)
    return table_panel(
        602,
        "Tasks by failures",
        "Failures in the time shown. Against yesterday: how many more than in the same time a day before; tasks that "
        "Prometheus did not know then had 0.",
        Column("Task", label="task", links=[link, issues]),
        Column("Queue", label="queue"),
        Column("Job", label="job"),
        Column("Broker", label="broker"),
        Column("Failures", expr=f"{failed} > 0", decimals=0, steps=((None, ORANGE),)),
        Column("Failing", expr=f"{ratio(failed, finished)} > 0", unit="percentunit", decimals=1),
        Column(
            "Against yesterday",
            expr=f"({failed} - ({yesterday} or 0 * {failed})) and {failed} > 0",
            decimals=0,
        ),
        sort="Failures",
        none="none",
    )
