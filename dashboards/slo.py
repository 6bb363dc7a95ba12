"""SLO: says whether the promise was kept, and how fast what is left of it goes."""

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
    stat_panel,
    table_panel,
    time_panel,
    to_dashboard,
)
from .promql import Promql

P = Promql(variables=("queue",))

#: The share of runs that may go wrong.
_BUDGET = "(1 - $objective / 100)"

#: Windows of burn rates, each with a name that tells what it is for.
_WINDOWS = ("5m", "1h", "6h", "1d", "3d")

_BURN_STEPS = ((None, GREEN), (1, YELLOW), (6, ORANGE), (14.4, RED))


def kept(missed: str) -> str:
    """Return the share that was good, of the share that was not."""
    return f"1 - {missed}"


def burn(missed: str) -> str:
    """Return how many times faster than allowed the budget is spent."""
    return f"{missed} / {_BUDGET}"


def left(missed: str) -> str:
    """Return what is left of the budget; below 0 more was spent than there was."""
    return f"1 - {missed} / {_BUDGET}"


def board() -> Board:
    """Return the dashboard."""
    return Board(
        uid="celery-slo",
        title="Celery / SLO",
        description="Was the promise kept, and how long does what is left of it last? Two promises, one objective: "
        "tasks start within the latency SLO of their queue, and runs do not fail for good.",
        variables=[queue_variable(), objective_variable(), sentry_variable()],
        since="now-24h",
        rows=[
            Row(100, "30 days", [_month()]),
            Row(200, "Started in time", [_time(), [_queues()]]),
            Row(300, "Not failed", [_errors(), [_failing()]]),
        ],
    )


def _month() -> list[Panel]:
    late, failing = P.late(window="30d"), P.failures(window="30d")
    shares = ((None, RED), (0.95, YELLOW), (0.99, GREEN))
    budget = ((None, RED), (0, ORANGE), (0.25, GREEN))
    return [
        stat_panel(
            101,
            "Started in time",
            "Share of starts within their queue's latency SLO over the last 30d, as far back as Prometheus remembers.",
            "percentunit",
            Target(kept(late), "in time"),
            steps=shares,
            none="no SLO",
            width=6,
            decimals=2,
            instant=True,
        ),
        stat_panel(
            102,
            "Latency budget left",
            "What is left of the starts that may come late in 30d. Below 0 the objective is missed.",
            "percentunit",
            Target(left(late), "left"),
            steps=budget,
            none="no SLO",
            width=6,
            decimals=0,
            instant=True,
        ),
        stat_panel(
            103,
            "Not failed",
            "Share of finished tasks that did not fail for good over the last 30d, as far back as Prometheus "
            "remembers.",
            "percentunit",
            Target(kept(failing), "not failed"),
            steps=shares,
            none="idle",
            width=6,
            decimals=2,
            instant=True,
        ),
        stat_panel(
            104,
            "Error budget left",
            "What is left of the tasks that may fail in 30d. Below 0 the objective is missed.",
            "percentunit",
            Target(left(failing), "left"),
            steps=budget,
            none="idle",
            width=6,
            decimals=0,
            instant=True,
        ),
    ]


def _time() -> list[Panel]:
    return [
        time_panel(
            201,
            "Started in time by queue",
            "Share of starts within the latency SLO.",
            "percentunit",
            Target(kept(P.late("queue")), "{{queue}}"),
            most=1,
            least=None,
            none="no SLO",
        ),
        time_panel(
            202,
            "Burn rate of the latency budget",
            "How many times faster than allowed tasks start too late, over the last 1h and 6h: 14.4 over an hour, or 6 "
            "over six hours, is worth waking somebody.",
            "short",
            Target(burn(P.late("queue", window="1h")), "{{queue}} 1h"),
            Target(burn(P.late("queue", window="6h")), "{{queue}} 6h"),
            dashed="/ 6h$/",
            limit=14.4,
            none="no SLO",
        ),
    ]


def _queues() -> Panel:
    by = ("job", "broker", "queue")
    late = P.increase("celery_queue_slo_violations_total", *by, window="30d")
    link = Link("Queue", to_dashboard("celery-queue", "objective", job=field_value("Job"), queue=field_value("Queue")))
    return table_panel(
        203,
        "Latency: the worst queues",
        "Starts that came too late in the last 30d, the budget that is left of them, and how fast it burnt over the "
        "last 5m, 1h, 6h, 1d and 3d; 1 is as fast as allowed.",
        Column("Queue", label="queue", links=[link]),
        Column("Job", label="job"),
        Column("Broker", label="broker"),
        Column("SLO", expr=P.gauge("celery_queue_latency_slo_seconds", *by, how="max"), unit="s"),
        Column("Late, 30 d", expr=late, unit="locale", decimals=0),
        Column("Budget left", expr=left(P.late(*by, window="30d")), unit="percentunit", decimals=0),
        *(
            Column(f"Burn {window}", expr=burn(P.late(*by, window=window)), decimals=1, steps=_BURN_STEPS)
            for window in _WINDOWS
        ),
        sort="Budget left",
        descending=False,
        none="no SLO",
    )


def _errors() -> list[Panel]:
    return [
        time_panel(
            301,
            "Not failed by queue",
            "Share of finished tasks that did not fail for good.",
            "percentunit",
            Target(kept(P.failures("queue")), "{{queue}}"),
            most=1,
            least=None,
        ),
        time_panel(
            302,
            "Burn rate of the error budget",
            "How many times faster than allowed tasks fail, over the last 1h and 6h: 14.4 over an hour, or 6 over six "
            "hours, is worth waking somebody.",
            "short",
            Target(burn(P.failures("queue", window="1h")), "{{queue}} 1h"),
            Target(burn(P.failures("queue", window="6h")), "{{queue}} 6h"),
            dashed="/ 6h$/",
            limit=14.4,
        ),
    ]


def _failing() -> Panel:
    by = ("job", "broker", "queue", "task")
    failed = P.increase("celery_task_failed_total", *by, window="30d")
    link = Link(
        "Task",
        to_dashboard(
            "celery-task", "sentry", job=field_value("Job"), queue=field_value("Queue"), task=field_value("Task")
        ),
    )
    return table_panel(
        303,
        "Errors: the worst tasks",
        "Failures for good in the last 30d, and how fast the budget burnt over the last 5m, 1h, 6h, 1d and 3d as if "
        "each task had one; 1 is as fast as allowed.",
        Column("Task", label="task", links=[link]),
        Column("Queue", label="queue"),
        Column("Job", label="job"),
        Column("Broker", label="broker"),
        Column("Failures, 30 d", expr=failed, unit="locale", decimals=0),
        Column("Budget left", expr=left(P.failures(*by, window="30d")), unit="percentunit", decimals=0),
        *(
            Column(f"Burn {window}", expr=burn(P.failures(*by, window=window)), decimals=1, steps=_BURN_STEPS)
            for window in _WINDOWS
        ),
        sort="Failures, 30 d",
    )
