"""Queue: says whether it will drain, and when."""

from __future__ import annotations

from .frame import Board, Row, objective_variable, queue_variable, sentry_variable
from .panels import (
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Column,
    Link,
    Panel,
    Target,
    field_value,
    heatmap_panel,
    stat_panel,
    table_panel,
    time_panel,
    to_dashboard,
)
from .promql import Promql, quantile, ratio
from .slo import burn, kept

P = Promql(variables=("queue",))

_AGE = "celery_queue_oldest_task_age_seconds"
_SLO = "celery_queue_latency_slo_seconds"


def board() -> Board:
    """Return the dashboard."""
    return Board(
        uid="celery-queue",
        title="Celery / Queue",
        description="Will it drain, and when? What waits, what comes, what goes, and who does the work.",
        variables=[queue_variable(), objective_variable(), sentry_variable()],
        rows=[
            Row(100, "Now", [_now()]),
            Row(200, "Backlog", [_backlog(), _flow()]),
            Row(300, "Wait", [_wait()]),
            Row(400, "Latency SLO", [_slo()]),
            Row(500, "Who consumes, and what goes wrong", [_consumers()]),
            Row(600, "Tasks", [[_tasks()]]),
        ],
    )


def _now() -> list[Panel]:
    waiting = P.gauge("celery_queue_length")
    unacked = f"{P.gauge('celery_queue_unacked')} or {P.gauge('celery_broker_unacked')}"
    age = P.merge(_AGE, P.series(_AGE))
    slo = P.merge(_SLO, P.series(_SLO))
    return [
        stat_panel(101, "Waiting", "Ready messages, all priorities together.", "short", Target(waiting, "waiting")),
        stat_panel(
            102,
            "Unacknowledged",
            "Delivered and not acknowledged: running, or prefetched by a worker. On Redis of all queues together.",
            "short",
            Target(unacked, "unacknowledged"),
        ),
        stat_panel(
            103,
            "Oldest",
            "How long the oldest waiting task has waited.",
            "s",
            Target(P.gauge(_AGE, how="max"), "oldest"),
            none="not known",
        ),
        stat_panel(
            104,
            "Oldest / SLO",
            "Age of the oldest waiting task as a share of its queue's latency SLO.",
            "percentunit",
            Target(f"max({age} / ({slo} > 0))", "oldest / SLO"),
            steps=((None, GREEN), (0.5, YELLOW), (1, RED)),
            none="no SLO",
            decimals=0,
        ),
        stat_panel(
            105,
            "Drained in",
            "What waits, at the rate at which workers start tasks now, if nothing new came; of queues the longest.",
            "s",
            Target(f"max({ratio(P.gauge('celery_queue_length', 'queue'), P.starts('queue'))})", "drained in"),
            none="nothing starts",
        ),
        stat_panel(
            106,
            "Arriving",
            "Tasks that arrive per second: what workers start, and what the queue grows by.",
            "ops",
            Target(P.arrivals(), "arriving"),
            decimals=1,
        ),
        stat_panel(
            107,
            "Finishing",
            "Runs that end per second: successes, failures and retries.",
            "ops",
            Target(P.ends(), "finishing"),
            decimals=1,
        ),
        stat_panel(
            108,
            "Workers",
            "Living workers that consume the queue; of several queues, the fewest. Without any it only grows.",
            "short",
            Target(P.gauge("celery_queue_workers", how="min"), "workers"),
            steps=((None, RED), (1, GREEN)),
            none="not known",
            link=Link("Workers", to_dashboard("celery-worker")),
        ),
    ]


def _backlog() -> list[Panel]:
    return [
        time_panel(
            201,
            "Waiting tasks, and in 1 h",
            "Ready messages. Dashed: where the line of the last 1h leads in an hour.",
            "short",
            Target(P.gauge("celery_queue_length", "queue"), "{{queue}}"),
            Target(P.ahead("celery_queue_length", "queue", window="1h", seconds=3600), "{{queue}} in 1 h"),
            dashed="/ in 1 h$/",
        ),
        time_panel(
            202,
            "Age of the oldest waiting task",
            "How long the oldest ready message has waited. Dashed: the latency SLO of the queue, where it has one.",
            "s",
            Target(P.gauge(_AGE, "queue", how="max"), "{{queue}}"),
            Target(P.gauge(_SLO, "queue", how="max"), "{{queue}} SLO"),
            dashed="/ SLO$/",
        ),
    ]


def _flow() -> list[Panel]:
    return [
        time_panel(
            203,
            "Arriving and finishing",
            "Upwards what arrives per second, downwards what workers finish.",
            "ops",
            Target(P.arrivals("queue"), "{{queue}} in"),
            Target(P.ends("queue"), "{{queue}} out"),
            negative="/ out$/",
        ),
        time_panel(
            204,
            "Drained in",
            "What waits, at the rate at which workers start tasks at that time, and if nothing new came.",
            "s",
            Target(ratio(P.gauge("celery_queue_length", "queue"), P.starts("queue")), "{{queue}}"),
        ),
    ]


def _wait() -> list[Panel]:
    buckets = P.rate("celery_task_queue_wait_seconds_bucket", "le", "task")
    return [
        heatmap_panel(
            301,
            "Time in the queue",
            "How long tasks waited from being published (or their ETA) until they started.",
            "s",
            P.rate("celery_task_queue_wait_seconds_bucket", "le"),
        ),
        time_panel(
            302,
            "Time in the queue by task",
            "Half of each task's runs, and 95 % of them, waited no longer.",
            "s",
            Target(quantile(0.5, buckets), "{{task}} p50"),
            Target(quantile(0.95, buckets), "{{task}} p95"),
            exemplars=True,
        ),
    ]


def _slo() -> list[Panel]:
    return [
        stat_panel(
            401,
            "Started in time, 30 d",
            "Share of starts within the latency SLO over the last 30d, as far back as Prometheus remembers.",
            "percentunit",
            Target(kept(P.late(window="30d")), "in time"),
            steps=((None, RED), (0.95, YELLOW), (0.99, GREEN)),
            none="no SLO",
            width=6,
            height=6,
            decimals=2,
            instant=True,
            link=Link("SLO", to_dashboard("celery-slo", "queue", "objective")),
        ),
        time_panel(
            402,
            "Burn rate of the latency budget",
            "How many times faster than the objective allows tasks start too late, over the last 5m, 1h, 6h and 3d. "
            "At 1 the budget lasts exactly 30 days; at 14.4 it is 2 % poorer in an hour.",
            "short",
            *(Target(burn(P.late(window=window)), window) for window in ("5m", "1h", "6h", "3d")),
            width=18,
            height=6,
            none="no SLO",
        ),
    ]


def _consumers() -> list[Panel]:
    slots = P.gauge("celery_queue_slots", "queue", how="max")
    return [
        time_panel(
            501,
            "Workers and slots",
            "Living workers that consume the queue, their concurrency together, and the consumers the broker counts.",
            "short",
            Target(P.gauge("celery_queue_workers", "queue", how="max"), "{{queue}} workers"),
            Target(slots, "{{queue}} slots"),
            Target(P.gauge("celery_queue_consumers", "queue", how="max"), "{{queue}} consumers"),
            width=8,
        ),
        time_panel(
            502,
            "Redelivered, rejected, revoked, lost",
            "Per second: delivered again without a retry (possibly run twice), rejected, revoked, and gone with the "
            "worker that had them.",
            "ops",
            *(
                Target(P.rate(f"celery_task_{name}_total"), name)
                for name in ("redelivered", "rejected", "revoked", "lost")
            ),
            width=8,
        ),
        time_panel(
            503,
            "Longest held, on Redis",
            "How long the longest-held message has been unacknowledged, all queues together. Dashed: the visibility "
            "timeout, after which it is delivered again and its task may run twice.",
            "s",
            Target(P.gauge("celery_broker_oldest_unacked_age_seconds", how="max"), "oldest"),
            Target(P.gauge("celery_broker_visibility_timeout_seconds", how="max"), "visibility timeout"),
            dashed="/timeout/",
            width=8,
            none="not Redis",
        ),
    ]


def _tasks() -> Panel:
    by = ("job", "broker", "queue", "task")
    link = Link(
        "Task",
        to_dashboard(
            "celery-task", "sentry", job=field_value("Job"), queue=field_value("Queue"), task=field_value("Task")
        ),
    )
    seconds = P.rate("celery_task_runtime_seconds_sum", *by)
    runs = P.rate("celery_task_runtime_seconds_count", *by)
    return table_panel(
        601,
        "Tasks of the queue",
        "What the slots are spent on: the share of a slot is runtime per second, so 1 keeps one slot busy.",
        Column("Task", label="task", links=[link]),
        Column("Queue", label="queue"),
        Column("Job", label="job"),
        Column("Broker", label="broker"),
        Column("Starts", expr=P.starts(*by), unit="ops", decimals=2),
        Column("Slots taken", expr=seconds, decimals=2),
        Column("Mean runtime", expr=ratio(seconds, runs), unit="s"),
        Column("Running", expr=P.gauge("celery_task_running", *by)),
        Column(
            "Failing",
            expr=P.failures(*by),
            unit="percentunit",
            decimals=1,
            steps=((None, GREEN), (0.01, ORANGE), (0.05, RED)),
        ),
        sort="Slots taken",
    )
