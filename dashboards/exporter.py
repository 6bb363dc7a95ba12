"""Exporter: says whether what the other dashboards show can be believed."""

from __future__ import annotations

from .frame import Board, Row, instance_variable
from .panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Column,
    Panel,
    Target,
    bars_panel,
    stat_panel,
    states_panel,
    table_panel,
    time_panel,
)
from .promql import Promql

#: The one dashboard that shows each sidecar by itself, not what they agree on.
P = Promql(by_instance=True)

_NAME = "{{instance}} {{broker}}"


def board() -> Board:
    """Return the dashboard."""
    return Board(
        uid="celery-exporter",
        title="Celery / Sidecar",
        description="Can what the other dashboards show be believed? What each sidecar heard, lost and could not see.",
        variables=[instance_variable()],
        rows=[
            Row(100, "Now", [_now()]),
            Row(200, "Hearing", [_hearing(), _snapshots()]),
            Row(300, "Losing", [_losing(), _guessing()]),
            Row(400, "Asking and forwarding", [_asking(), _forwarding()]),
            Row(500, "Size", [_size()]),
            Row(600, "Process", [_process(), [_builds()]]),
        ],
    )


def _or_none(label: str, expression: str) -> str:
    """Return *expression*, and 0 where a sidecar runs and has nothing of the kind: such series begin with the first."""
    zero = f'label_replace(0 * {P.gauge("celery_exporter_broker_up")}, "{label}", "none", "", "")'
    return f"{expression} or on (instance) {zero}"


def _now() -> list[Panel]:
    events_off = P.series("celery_worker_task_events_enabled")
    lost = f"{P.increase('celery_exporter_events_lost_total')} + {P.increase('celery_exporter_tasks_evicted_total')}"
    return [
        stat_panel(
            101,
            "Broker",
            "Whether the sidecar reaches its broker.",
            "short",
            Target(P.gauge("celery_exporter_broker_up", how="min"), "{{instance}}"),
            steps=((None, RED), (1, GREEN)),
            texts={"0": ("down", RED), "1": ("up", GREEN)},
            none="no sidecar",
            width=4,
        ),
        stat_panel(
            102,
            "Last event",
            "Time since the last event was read. Workers send a heartbeat every two seconds, so more than some seconds "
            "is silence. Nothing where no worker sends any.",
            "s",
            Target(f"time() - {P.gauge('celery_exporter_last_event_timestamp_seconds', how='max')}", "{{instance}}"),
            steps=((None, GREEN), (30, YELLOW), (120, RED)),
            none="none yet",
            width=4,
        ),
        stat_panel(
            103,
            "Event lag",
            "How old the last event was when it was read.",
            "s",
            Target(P.gauge("celery_exporter_event_lag_seconds", how="max"), "{{instance}}"),
            steps=((None, GREEN), (5, YELLOW), (30, RED)),
            width=4,
        ),
        stat_panel(
            104,
            "Not counted",
            "Task starts missed and tasks dropped from memory in the time shown: numbers are too low by this.",
            "short",
            Target(lost, "{{instance}}"),
            steps=((None, GREEN), (1, RED)),
            width=4,
            decimals=0,
            instant=True,
        ),
        stat_panel(
            105,
            "Workers without events",
            "Workers that send no task events. Their tasks are seen only with celery_lookout_signals.",
            "short",
            Target(f"sum by (instance) ({events_off} == bool 0)", "{{instance}}"),
            width=4,
        ),
        stat_panel(
            106,
            "Series used",
            "Share of --limit.series. At 100 % new series are dropped.",
            "percentunit",
            Target(
                f"{P.gauge('celery_exporter_series')} / ({P.gauge('celery_exporter_series_limit')} > 0)", "{{instance}}"
            ),
            steps=((None, GREEN), (0.8, YELLOW), (0.9, RED)),
            width=4,
            decimals=1,
        ),
    ]


def _hearing() -> list[Panel]:
    return [
        time_panel(
            201,
            "Events",
            "Events read per second by type; _other for types that the sidecar does not know.",
            "ops",
            Target(P.rate("celery_exporter_events_total", "broker", "event"), f"{{{{event}}}} {_NAME}"),
            stacked=True,
        ),
        time_panel(
            202,
            "Silence and lag",
            "Time since the last event was read, and how old it was then.",
            "s",
            Target(
                f"time() - {P.gauge('celery_exporter_last_event_timestamp_seconds', 'broker', how='max')}",
                f"silence {_NAME}",
            ),
            Target(P.gauge("celery_exporter_event_lag_seconds", "broker", how="max"), f"lag {_NAME}"),
        ),
    ]


def _snapshots() -> list[Panel]:
    return [
        time_panel(
            203,
            "Snapshots",
            "Snapshots of workers and beat read per second, and numbers missing between them. What a missed one told, "
            "a later one tells.",
            "ops",
            Target(P.rate("celery_exporter_snapshots_total", "broker"), f"read {_NAME}"),
            Target(P.rate("celery_exporter_snapshots_missed_total", "broker"), f"missed {_NAME}"),
        ),
        states_panel(
            204,
            "Broker up and down",
            "Whether the broker answers on the event connection.",
            Target(P.gauge("celery_exporter_broker_up", "broker", how="min"), _NAME),
            texts={"0": ("down", RED), "1": ("up", GREEN)},
            width=6,
        ),
        time_panel(
            205,
            "Reconnects",
            "Times that the event connection was made again, per second.",
            "ops",
            Target(P.rate("celery_exporter_broker_reconnects_total", "broker"), _NAME),
            width=6,
        ),
    ]


def _losing() -> list[Panel]:
    events = _or_none("reason", P.rate("celery_exporter_events_invalid_total", "reason"))
    snapshots = _or_none("reason", P.rate("celery_exporter_snapshots_invalid_total", "reason"))
    return [
        time_panel(
            301,
            "Lost",
            "Per second: starts that workers counted while the sidecar could not hear them, and tasks dropped from a "
            "full in-flight table.",
            "ops",
            Target(P.rate("celery_exporter_events_lost_total", "broker"), f"unheard {_NAME}"),
            Target(P.rate("celery_exporter_tasks_evicted_total", "broker"), f"evicted {_NAME}"),
            width=8,
        ),
        time_panel(
            302,
            "Refused events",
            "Messages or events refused per second, by what was wrong with them.",
            "ops",
            Target(events, "{{reason}} {{instance}}"),
            width=8,
        ),
        time_panel(
            303,
            "Refused snapshots",
            "Snapshots, or parts of them, refused per second, by what was wrong with them.",
            "ops",
            Target(snapshots, "{{reason}} {{instance}}"),
            width=8,
        ),
    ]


def _guessing() -> list[Panel]:
    faults = [
        Target(P.rate("celery_worker_signals_runs_lost_total", "worker"), "{{worker}} runs lost {{instance}}"),
        Target(P.rate("celery_worker_signals_faults_total", "worker"), "{{worker}} faults {{instance}}"),
    ]
    return [
        time_panel(
            304,
            "How queues were found",
            "Tasks per second by how their queue was found. Much unknown: publishers do not send task-sent.",
            "ops",
            Target(P.rate("celery_exporter_queue_resolution_total", "source"), "{{source}} {{instance}}"),
            stacked=True,
        ),
        time_panel(
            305,
            "Faults in workers",
            "Runs that celery_lookout_signals could not hand over inside a worker, and faults of its own, per second.",
            "ops",
            *faults,
            none="no snapshots",
        ),
    ]


def _asking() -> list[Panel]:
    since = P.gauge("celery_exporter_collector_last_success_timestamp_seconds", "broker", "collector", how="max")
    name = f"{{{{collector}}}} {_NAME}"
    return [
        states_panel(
            401,
            "Collectors",
            "Whether the last poll of queues, of workers and of snapshots worked.",
            Target(P.gauge("celery_exporter_collector_success", "broker", "collector", how="min"), name),
            texts={"0": ("failed", RED), "1": ("worked", GREEN)},
            width=8,
        ),
        time_panel(
            402,
            "Time a poll takes",
            "How long the last poll of each collector took.",
            "s",
            Target(P.gauge("celery_exporter_collector_duration_seconds", "broker", "collector", how="max"), name),
            width=8,
        ),
        time_panel(
            403,
            "Time since a poll worked",
            "How old what each collector tells is. Depths of queues are withdrawn after 30 s.",
            "s",
            Target(f"time() - {since}", name),
            width=8,
        ),
    ]


def _forwarding() -> list[Panel]:
    return [
        time_panel(
            411,
            "Events for Sentry",
            "Events for Sentry per second, by what became of them; none without --sentry.mode. rate_limited: by our "
            "limits, Sentry's, or a worker's; failed: Sentry did not take it.",
            "ops",
            Target(
                _or_none("outcome", P.rate("celery_exporter_sentry_events_total", "outcome")),
                "{{outcome}} {{instance}}",
            ),
            stacked=True,
        ),
        time_panel(
            412,
            "Spans",
            "Spans made from events per second, by what became of them; none without --otlp.endpoint.",
            "ops",
            Target(_or_none("outcome", P.rate("celery_exporter_spans_total", "outcome")), "{{outcome}} {{instance}}"),
            stacked=True,
        ),
    ]


def _size() -> list[Panel]:
    dropped = _or_none("metric", P.rate("celery_exporter_series_dropped_total", "metric"))
    values = P.rate("celery_exporter_label_values_dropped_total", "label", reason="limit")
    return [
        time_panel(
            501,
            "Series",
            "Series on the metrics page. Dashed: --limit.series.",
            "short",
            Target(P.gauge("celery_exporter_series"), "{{instance}}"),
            Target(P.gauge("celery_exporter_series_limit"), "limit {{instance}}"),
            dashed="/^limit /",
            width=6,
        ),
        time_panel(
            502,
            "Dropped series",
            "Per second: series that are not shown because the limit was reached, by metric, and values of labels that "
            "are not shown by their name because the label was full.",
            "ops",
            Target(dropped, "{{metric}} {{instance}}"),
            Target(values, "values of {{label}} {{instance}}"),
            width=6,
        ),
        time_panel(
            503,
            "Tasks in memory",
            "Tasks in the in-flight table.",
            "short",
            Target(P.gauge("celery_exporter_tasks_tracked", "broker"), _NAME),
            width=6,
        ),
        time_panel(
            504,
            "Scrape",
            "How long Prometheus takes to read the metrics page. No broker is asked for it.",
            "s",
            Target(P.gauge("scrape_duration_seconds", how="max"), "{{instance}}"),
            width=6,
        ),
    ]


def _process() -> list[Panel]:
    open_files, most_files = P.gauge("process_open_fds"), P.gauge("process_max_fds")
    return [
        time_panel(
            601,
            "Memory",
            "Resident size of the sidecar.",
            "bytes",
            Target(P.gauge("process_resident_memory_bytes"), "{{instance}}"),
            width=6,
        ),
        time_panel(
            602,
            "CPU",
            "CPU time of the sidecar per second: 1 is one core.",
            "suffix: cores",
            Target(P.rate("process_cpu_seconds_total"), "{{instance}}"),
            width=6,
        ),
        time_panel(
            603,
            "Open files",
            "Open files and sockets as a share of what the process may have.",
            "percentunit",
            Target(f"{open_files} / ({most_files} > 0)", "{{instance}}"),
            width=6,
        ),
        bars_panel(
            604,
            "Restarts",
            "Restarts of the sidecar in the time shown. Counters begin at 0 with each.",
            "short",
            Target(P.over_time("changes", "process_start_time_seconds", window="$__range"), "{{instance}}"),
            steps=((None, GREEN), (1, YELLOW), (4, RED)),
            width=6,
        ),
    ]


def _builds() -> Panel:
    return table_panel(
        605,
        "Sidecars",
        "What runs: version, how long already, and how many samples a scrape brings.",
        Column("Sidecar", label="instance"),
        Column("Version", label="version"),
        Column("Info", expr=P.gauge("celery_exporter_build_info", "version"), hidden=True),
        Column(
            "Scraped",
            expr=P.gauge("up", how="min"),
            texts={"0": ("no", RED), "1": ("yes", GREEN)},
        ),
        Column("Up for", expr=f"time() - {P.gauge('process_start_time_seconds', how='max')}", unit="s", decimals=0),
        Column("Samples", expr=P.gauge("scrape_samples_scraped")),
        Column("Series", expr=P.gauge("celery_exporter_series"), steps=((None, BLUE),)),
        Column(
            "Reconnects",
            expr=P.increase("celery_exporter_broker_reconnects_total"),
            decimals=0,
            steps=((None, GREEN), (1, ORANGE)),
        ),
        sort="Sidecar",
        descending=False,
        height=6,
    )
