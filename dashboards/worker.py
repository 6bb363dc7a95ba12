"""Worker: says whether a worker is sick."""

from __future__ import annotations

from .frame import Board, Row, queue_variable, worker_variable
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
    bars_panel,
    field_value,
    stat_panel,
    states_panel,
    table_panel,
    time_panel,
    to_dashboard,
)
from .promql import Promql, ratio

P = Promql(variables=("worker", "queue"))

_BY = ("job", "broker", "worker")

_MEMORY = "celery_worker_memory_bytes"
_LIMIT = "celery_worker_memory_limit_bytes"

_PACKAGE = "Known from workers with celery_lookout_signals."


def board() -> Board:
    """Return the dashboard."""
    return Board(
        uid="celery-worker",
        title="Celery / Worker",
        description="Is a worker sick? Signs of life, load, memory and pool processes; which task leaks; and beat.",
        variables=[queue_variable(), worker_variable()],
        rows=[
            Row(100, "Now", [_now(), [_workers()]]),
            Row(200, "Alive", [_alive()]),
            Row(300, "Load", [_load(), _pace()]),
            Row(400, "Memory and CPU", [_memory(), _processes()]),
            Row(500, "Which task it is", [_tasks()]),
            Row(600, "Beat", [_beat()]),
        ],
    )


def _now() -> list[Panel]:
    goodbye = P.merge("celery_worker_shutdown_graceful", P.series("celery_worker_shutdown_graceful"))
    up = P.merge("celery_worker_up", P.series("celery_worker_up"))
    active, slots = P.gauge("celery_worker_tasks_active"), P.gauge("celery_worker_slots")
    return [
        stat_panel(
            101,
            "Up",
            "Workers with fresh heartbeats or snapshots.",
            "short",
            Target(P.gauge("celery_worker_up"), "up"),
            steps=((None, RED), (1, GREEN)),
            width=4,
        ),
        stat_panel(
            102,
            "Vanished",
            "Workers that fell silent without a goodbye, within the last two hours.",
            "short",
            Target(f"sum(({up} == bool 0) * ({goodbye} == bool 0))", "vanished"),
            steps=((None, GREEN), (1, RED)),
            width=4,
        ),
        stat_panel(
            103,
            "Busy slots",
            "Share of all slots that run a task.",
            "percentunit",
            Target(ratio(active, slots), "busy"),
            steps=((None, GREEN), (0.8, YELLOW), (0.95, ORANGE)),
            width=4,
            decimals=0,
        ),
        stat_panel(
            104,
            "Prefetched",
            "Tasks that workers hold and do not run: waiting for a slot, or for their ETA.",
            "short",
            Target(P.gauge("celery_worker_tasks_reserved"), "for a slot"),
            Target(P.gauge("celery_worker_tasks_scheduled"), "for their ETA"),
            width=4,
        ),
        stat_panel(
            105,
            "Memory",
            f"Resident size of all workers with their pool processes. {_PACKAGE}",
            "bytes",
            Target(P.gauge(_MEMORY), "memory"),
            none="not measured",
            width=4,
        ),
        stat_panel(
            106,
            "Processes killed",
            f"Pool processes that ended by a signal in the time shown: time limits, or want of memory. {_PACKAGE}",
            "short",
            Target(P.increase("celery_worker_child_exits_total", reason="killed"), "killed"),
            steps=((None, GREEN), (1, ORANGE)),
            none="not measured",
            width=4,
            decimals=0,
            instant=True,
        ),
    ]


def _workers() -> Panel:
    heartbeat = P.gauge("celery_worker_last_heartbeat_timestamp_seconds", *_BY, how="max")
    restarts = f"resets({P.series('celery_worker_tasks_processed_total')}[$__range])"
    memory = P.gauge(_MEMORY, *_BY)
    yes_no = {"0": ("no", ORANGE), "1": ("yes", GREEN)}
    return table_panel(
        110,
        "Workers",
        "Restarts are those in the time shown. Memory and its limit are known from workers with "
        "celery_lookout_signals, and the limit only in a cgroup that has one. Where the package counts, events are "
        "not needed.",
        Column("Worker", label="worker"),
        Column("Job", label="job"),
        Column("Broker", label="broker"),
        Column("Celery", label="version"),
        Column("Pool", label="pool"),
        Column("Info", expr=P.gauge("celery_worker_info", *_BY, "version", "pool", how="max"), hidden=True),
        Column(
            "Up",
            expr=P.gauge("celery_worker_up", *_BY, how="max"),
            texts={"0": ("down", RED), "1": ("up", GREEN)},
        ),
        Column("Heartbeat", expr=f"time() - {heartbeat}", unit="s", decimals=0),
        Column("Active", expr=P.gauge("celery_worker_tasks_active", *_BY)),
        Column("Slots", expr=P.gauge("celery_worker_slots", *_BY)),
        Column("Memory", expr=memory, unit="bytes"),
        Column(
            "Of its limit",
            expr=f"{memory} / ({P.gauge(_LIMIT, *_BY)} > 0)",
            unit="percentunit",
            decimals=0,
            steps=((None, GREEN), (0.8, YELLOW), (0.9, RED)),
        ),
        Column(
            "Restarts",
            expr=f"sum by ({', '.join(_BY)}) ({P.merge('celery_worker_tasks_processed_total', restarts)})",
            decimals=0,
        ),
        Column("Sends events", expr=P.gauge("celery_worker_task_events_enabled", *_BY, how="max"), texts=yes_no),
        sort="Worker",
        descending=False,
    )


def _alive() -> list[Panel]:
    return [
        states_panel(
            201,
            "Up and down",
            "Whether heartbeats or snapshots were fresh. Series stay for two hours after the last one.",
            Target(P.gauge("celery_worker_up", "worker", how="max"), "{{worker}}"),
            texts={"0": ("down", RED), "1": ("up", GREEN)},
        ),
        time_panel(
            202,
            "Clock skew",
            "The worker's clock minus the sidecar's. Times in events and waits are wrong by this much.",
            "s",
            Target(P.gauge("celery_worker_clock_skew_seconds", "worker", how="max"), "{{worker}}"),
            centered=True,
        ),
    ]


def _load() -> list[Panel]:
    active, slots = P.gauge("celery_worker_tasks_active", "worker"), P.gauge("celery_worker_slots", "worker")
    return [
        time_panel(
            301,
            "Busy slots",
            "Share of each worker's slots that run a task.",
            "percentunit",
            Target(ratio(active, slots), "{{worker}}"),
            most=1,
        ),
        time_panel(
            302,
            "Prefetched",
            "Tasks that each worker holds and does not run. What waits for a slot here, no other worker can take.",
            "short",
            Target(P.gauge("celery_worker_tasks_reserved", "worker"), "{{worker}} for a slot"),
            Target(P.gauge("celery_worker_tasks_scheduled", "worker"), "{{worker}} for their ETA"),
        ),
    ]


def _pace() -> list[Panel]:
    load = P.gauge("celery_worker_load_average", "worker", how="max", period="1m")
    return [
        time_panel(
            303,
            "Tasks",
            "Tasks that each worker accepted per second, by its own count.",
            "ops",
            Target(P.rate("celery_worker_tasks_processed_total", "worker"), "{{worker}}"),
        ),
        time_panel(
            304,
            "Load average of the host",
            "Processes that ran or waited to run on the worker's host, over a minute.",
            "short",
            Target(load, "{{worker}}"),
        ),
    ]


def _memory() -> list[Panel]:
    growth = P.over_time("deriv", _MEMORY, "worker", window="1h")
    return [
        time_panel(
            401,
            "Memory, and in 4 h",
            "Resident size of the main process and its children. Dashed: the limit of the cgroup, and where the line "
            f"of the last 1h leads in four hours. {_PACKAGE}",
            "bytes",
            Target(P.gauge(_MEMORY, "worker"), "{{worker}}"),
            Target(P.ahead(_MEMORY, "worker", window="1h", seconds=4 * 3600), "{{worker}} in 4 h"),
            Target(P.gauge(_LIMIT, "worker", how="max"), "{{worker}} limit"),
            dashed="/ (in 4 h|limit)$/",
            none="not measured",
        ),
        bars_panel(
            402,
            "Growth per hour",
            f"How much larger each worker gets in an hour, by the line of the last 1h. {_PACKAGE}",
            "bytes",
            Target(f"3600 * {growth}", "{{worker}}"),
            steps=((None, GREEN), (100 * 2**20, YELLOW), (1000 * 2**20, RED)),
            none="not measured",
            width=6,
        ),
        time_panel(
            403,
            "CPU",
            f"CPU time per second of the main process and its children: 1 is one core. {_PACKAGE}",
            "suffix: cores",
            Target(P.rate("celery_worker_cpu_seconds_total", "worker"), "{{worker}}"),
            none="not measured",
            width=6,
        ),
    ]


def _processes() -> list[Panel]:
    exits = P.rate("celery_worker_child_exits_total", "worker", "reason")
    return [
        time_panel(
            404,
            "Largest pool process",
            f"Resident size of each worker's largest child. {_PACKAGE}",
            "bytes",
            Target(P.gauge("celery_worker_child_memory_max_bytes", "worker", how="max"), "{{worker}}"),
            none="not measured",
            width=8,
        ),
        time_panel(
            405,
            "Pool processes that ended",
            "Per second: recycled (as the worker's settings want it), killed by a signal, or exited by themselves. "
            f"And processes of the cgroup that were killed for want of memory, where it tells. {_PACKAGE}",
            "ops",
            Target(exits, "{{worker}} {{reason}}"),
            Target(P.rate("celery_worker_oom_kills_total", "worker"), "{{worker}} out of memory"),
            none="not measured",
            width=8,
        ),
        time_panel(
            406,
            "Memory of the main process",
            "Largest resident size that the main process has had; its children are not in it. Known without the "
            "package, from workers that answer remote control.",
            "bytes",
            Target(P.gauge("celery_worker_main_max_memory_bytes", "worker", how="max"), "{{worker}}"),
            width=8,
        ),
    ]


def _tasks() -> list[Panel]:
    link = Link("Task", to_dashboard("celery-task", "queue", task="${__field.labels.task}"))
    return [
        time_panel(
            501,
            "Memory left behind by task",
            "By how much processes were larger after runs than ever before, per second: the leak's name. Of all "
            f"workers of the chosen queues. {_PACKAGE}",
            "Bps",
            Target(P.rate("celery_task_memory_growth_bytes_total", "task"), "{{task}}"),
            none="not measured",
            width=8,
            links=[link],
        ),
        time_panel(
            502,
            "CPU by task",
            f"CPU time of task bodies per second: 1 is one core. Of all workers of the chosen queues. {_PACKAGE}",
            "suffix: cores",
            Target(P.rate("celery_task_cpu_seconds_total", "task"), "{{task}}"),
            stacked=True,
            none="not measured",
            width=8,
            links=[link],
        ),
        time_panel(
            503,
            "Kills and time limits by task",
            "Runs per second that a time limit or the death of their process ended, of all workers of the queues.",
            "ops",
            Target(P.rate("celery_task_terminations_total", "task", "reason"), "{{task}} {{reason}}"),
            width=8,
            links=[link],
        ),
    ]


def _beat() -> list[Panel]:
    by = ("job", "broker", "entry", "task")
    sent = P.gauge("celery_beat_entry_last_sent_timestamp_seconds", *by, how="max")
    due = P.gauge("celery_beat_entry_next_due_timestamp_seconds", *by, how="max")
    beat = P.gauge("celery_beat_last_heartbeat_timestamp_seconds", "beat", how="max")
    link = Link("Task", to_dashboard("celery-task", job=field_value("Job"), task=field_value("Task")))
    return [
        time_panel(
            601,
            "Silence of beat",
            "Time since beat's last sign of life. Known where beat runs with celery_lookout_signals.",
            "s",
            Target(f"time() - {beat}", "{{beat}}"),
            none="not measured",
            width=8,
        ),
        table_panel(
            602,
            "Schedule",
            "When beat last sent each entry, and when it is due; below 0 it is late. Known where beat runs with "
            "celery_lookout_signals.",
            Column("Entry", label="entry"),
            Column("Task", label="task", links=[link]),
            Column("Job", label="job"),
            Column("Broker", label="broker"),
            Column("Sent ago", expr=f"time() - {sent}", unit="s", decimals=0),
            Column(
                "Due in", expr=f"{due} - time()", unit="s", decimals=0, steps=((None, RED), (-60, ORANGE), (-15, BLUE))
            ),
            sort="Due in",
            descending=False,
            width=16,
        ),
    ]
