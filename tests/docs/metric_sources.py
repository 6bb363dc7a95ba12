"""Where each metric comes from and when it is not there: what the declarations in the code cannot tell."""

from __future__ import annotations

from typing import Final, NamedTuple


class Source(NamedTuple):
    """One metric's origin, and the case in which it has no series; an empty text means that there is none."""

    origin: str
    absent: str = ""


_HEARTBEAT: Final = "for a worker of which neither heartbeat nor snapshot came"
_SNAPSHOT: Final = "without snapshots of the worker"
_TOLD: Final = "until a snapshot tells of such a task"
_INSPECT: Final = "until the worker answers remote control"
_UNREADABLE: Final = "while the queue cannot be read, or does not exist on RabbitMQ or Amazon SQS"
_ANSWERS: Final = (
    "snapshots, else remote control, and the heartbeats of those that send them: a worker that does neither is not "
    "counted"
)
_UNKNOWN_QUEUE: Final = "before the queue is known, and while workers send no snapshots and cannot be asked"
_STATELESS: Final = "without `--state.file`"

SOURCES: Final = {
    # tasks
    "celery_task_sent_total": Source("`task-sent`"),
    "celery_task_received_total": Source("`task-received`"),
    "celery_task_started_total": Source("`task-started`"),
    "celery_task_succeeded_total": Source("`task-succeeded`"),
    "celery_task_failed_total": Source("`task-failed`, once per task id"),
    "celery_task_retried_total": Source("`task-retried`"),
    "celery_task_revoked_total": Source("`task-revoked`"),
    "celery_task_rejected_total": Source("`task-rejected`"),
    "celery_task_exceptions_total": Source(
        "`exception` and `traceback` of `task-failed`", "before the first failure of that class"
    ),
    "celery_task_retry_exceptions_total": Source(
        "`exception` and `traceback` of `task-retried`", "before the first retry for that class"
    ),
    "celery_task_terminations_total": Source("class of the exception of `task-failed`"),
    "celery_task_retries_exhausted_total": Source("`task-failed` of an attempt with `retries` above 0"),
    "celery_task_redelivered_total": Source("a second `task-received` with the same `retries`"),
    "celery_task_lost_total": Source(
        "tasks that ran on a worker which vanished 60 s ago; of those that snapshots told of, only what was "
        "acknowledged: the rest is delivered again"
    ),
    "celery_task_ignored_total": Source("snapshots", _TOLD),
    "celery_task_cpu_seconds_total": Source(
        "snapshots", f"{_TOLD}, and where it cannot be measured (gevent, eventlet)"
    ),
    "celery_task_memory_growth_bytes_total": Source(
        "snapshots: by how much a process was larger after a run than after any run before it, shared memory left out. "
        "The first run of each task in a process does not count: it loads what the others use",
        f"{_TOLD}, and where it cannot be measured",
    ),
    "celery_task_peak_memory_bytes": Source(
        "snapshots", f"{_TOLD}, and where several tasks share a process (threads, gevent, eventlet)"
    ),
    "celery_task_runtime_seconds": Source(
        "`runtime` of `task-succeeded`; for the other outcomes the time since `task-started`. Not observed when the "
        "pool process died",
        "for `failed` and `retried` before the first",
    ),
    "celery_task_queue_wait_seconds": Source(
        "`task-sent` (or its `eta`, if later) to `task-started`, below 0 taken as 0; in snapshots, from the stamp of "
        "the publisher"
    ),
    "celery_task_running": Source("`task-started` without an end; the last snapshot"),
    "celery_task_oldest_running_seconds": Source("`task-started` without an end; the last snapshot"),
    "celery_task_last_success_timestamp_seconds": Source("`task-succeeded`", "before the first success"),
    "celery_task_last_failure_timestamp_seconds": Source("`task-failed`", "before the first failure"),
    # queues
    "celery_queue_length": Source(
        "Redis `LLEN` of every priority; RabbitMQ passive declaration; Amazon SQS `ApproximateNumberOfMessages`",
        _UNREADABLE,
    ),
    "celery_queue_priority_length": Source("Redis", "on other brokers, and before a priority other than 0 was seen"),
    "celery_queue_unacked": Source(
        "RabbitMQ's management API; Amazon SQS `ApproximateNumberOfMessagesNotVisible`",
        "on Redis, and on RabbitMQ without the management API",
    ),
    "celery_queue_oldest_task_age_seconds": Source(
        "`task-sent`, or the publish time on the message. On Redis, when neither is known, how long the same message "
        "has been the oldest: a lower bound",
        "while the queue cannot be read; on RabbitMQ and Amazon SQS when neither is known; when all that waits has an "
        "ETA to come",
    ),
    "celery_queue_consumers": Source(
        "RabbitMQ passive declaration; on Redis and Amazon SQS as `celery_queue_workers`",
        "while the queue cannot be read (RabbitMQ)",
    ),
    "celery_queue_workers": Source(_ANSWERS, _UNKNOWN_QUEUE),
    "celery_queue_slots": Source(_ANSWERS, _UNKNOWN_QUEUE),
    "celery_queue_latency_slo_seconds": Source("`--queue.latency-slo`", "for queues without one"),
    "celery_queue_slo_eligible_total": Source("starts whose wait is known", "for queues without a latency SLO"),
    "celery_queue_slo_violations_total": Source(
        "starts whose wait is known. In snapshots waits come in buckets, of which those count that begin at the SLO or "
        "above: an SLO that is no bound of `celery_task_queue_wait_seconds` acts as the next higher one",
        "for queues without a latency SLO",
    ),
    # broker
    "celery_broker_unacked": Source("Redis `HLEN unacked`", "on RabbitMQ"),
    "celery_broker_oldest_unacked_age_seconds": Source("Redis `ZRANGE unacked_index`", "on RabbitMQ"),
    "celery_broker_visibility_timeout_seconds": Source(
        "`visibility_timeout` of `--broker.transport-options`, else Celery's default: the application's own setting "
        "cannot be seen",
        "on RabbitMQ",
    ),
    "celery_broker_delayed": Source(
        "the queues `celery_delayed_0` to `_27`", "on Redis, and where native delayed delivery is not in use"
    ),
    # workers
    "celery_worker_up": Source("heartbeats: 0 after two intervals and 5 s without one", _HEARTBEAT),
    "celery_worker_nodes": Source("as `celery_worker_up`", "without rules for workers ([labels.md](labels.md))"),
    "celery_worker_last_heartbeat_timestamp_seconds": Source("heartbeats, by the sidecar's clock", _HEARTBEAT),
    "celery_worker_shutdown_graceful": Source("`worker-offline`, or the last snapshot", _HEARTBEAT),
    "celery_worker_info": Source("heartbeats (version), `inspect stats` (pool); snapshots (both)", _HEARTBEAT),
    "celery_worker_slots": Source("snapshots, `inspect stats`", _INSPECT),
    "celery_worker_tasks_active": Source("`active` of heartbeats and snapshots", "until one of them carries it"),
    "celery_worker_tasks_reserved": Source("snapshots, else `task-received` without `task-started`, ETA reached"),
    "celery_worker_tasks_scheduled": Source(
        "snapshots, else `inspect stats` (prefetch count), else `task-received` with an ETA to come"
    ),
    "celery_worker_tasks_processed_total": Source(
        "`processed` of heartbeats, else of snapshots, else `inspect stats`", _INSPECT
    ),
    "celery_worker_task_events_enabled": Source(
        "task events heard, or tasks counted in heartbeats without events", "until one of the two is known"
    ),
    "celery_worker_load_average": Source("`loadavg` of heartbeats", "until a heartbeat carries it"),
    "celery_worker_main_max_memory_bytes": Source("`inspect stats`", _INSPECT),
    "celery_worker_main_cpu_seconds_total": Source("`inspect stats`", _INSPECT),
    "celery_worker_clock_skew_seconds": Source("heartbeats, else snapshots: largest of the last 8", _HEARTBEAT),
    "celery_worker_memory_bytes": Source("snapshots", f"{_SNAPSHOT}, and when it is gone"),
    "celery_worker_memory_limit_bytes": Source("snapshots", f"{_SNAPSHOT}, and without a limit"),
    "celery_worker_child_memory_max_bytes": Source("snapshots", f"{_SNAPSHOT}, without children, and when it is gone"),
    "celery_worker_cpu_seconds_total": Source("snapshots", _SNAPSHOT),
    "celery_worker_child_exits_total": Source("snapshots", _SNAPSHOT),
    "celery_worker_oom_kills_total": Source("snapshots", f"{_SNAPSHOT}, and where the cgroup does not tell"),
    "celery_worker_signals_runs_lost_total": Source("snapshots", _SNAPSHOT),
    "celery_worker_signals_faults_total": Source("snapshots", _SNAPSHOT),
    # beat
    "celery_beat_last_heartbeat_timestamp_seconds": Source(
        "beat's snapshots, by its own clock or the sidecar's, whichever is behind", "without snapshots of beat"
    ),
    "celery_beat_entry_last_sent_timestamp_seconds": Source(
        "beat's snapshots", "before it was sent, as far as beat knows"
    ),
    "celery_beat_entry_next_due_timestamp_seconds": Source("beat's snapshots", "where beat cannot tell"),
    # the sidecar
    "celery_exporter_build_info": Source("the sidecar"),
    "celery_exporter_series_limit": Source("`--limit.series`"),
    "celery_exporter_sentry_events_total": Source("what became of each event", "with `--sentry.mode` off"),
    "celery_exporter_series": Source("the sidecar"),
    "celery_exporter_state_success": Source("the state file at the start", _STATELESS),
    "celery_exporter_state_saved_timestamp_seconds": Source(
        "the state file at the start", f"{_STATELESS}, and where counters began at 0"
    ),
    "celery_exporter_state_left_out": Source(
        "the state file at the start: metrics that are declared otherwise, workers past their limit", _STATELESS
    ),
    "celery_exporter_series_dropped_total": Source("the sidecar", "until the limit is reached"),
    "celery_exporter_label_values_dropped_total": Source(
        "each use of such a value, so it grows with traffic and not with the number of values; of denied workers, once"
    ),
    "celery_exporter_broker_up": Source("the event connection; Amazon SQS is asked every 15 s"),
    "celery_exporter_broker_reconnects_total": Source("the event connection"),
    "celery_exporter_events_total": Source("the event connection"),
    "celery_exporter_events_invalid_total": Source("the decoder"),
    "celery_exporter_events_lost_total": Source(
        "`processed` of heartbeats held against starts heard, before and after a broken connection. On RabbitMQ, where "
        "events wait, only what it dropped. For workers with snapshots: starts that neither of the two told, when "
        "snapshots came again after events had taken their place"
    ),
    "celery_exporter_snapshots_total": Source("snapshots, those refused left out"),
    "celery_exporter_snapshots_missed_total": Source(
        "`seq` of snapshots: the broker dropped them, they could not be published, or another sidecar read them. Where "
        "a broker changes their order (Amazon SQS), also those that come later than the next"
    ),
    "celery_exporter_snapshots_invalid_total": Source("the decoder of snapshots"),
    "celery_exporter_last_event_timestamp_seconds": Source("the event connection", "before the first event"),
    "celery_exporter_event_lag_seconds": Source("the event's timestamp against the sidecar's clock"),
    "celery_exporter_tasks_tracked": Source("the in-flight table"),
    "celery_exporter_tasks_evicted_total": Source("the in-flight table"),
    "celery_exporter_queue_resolution_total": Source(
        "`sent`, `snapshot` (starts that snapshots told of), `inspect`, `worker` (it consumes only one), `unknown`"
    ),
    "celery_exporter_spans_total": Source(
        "spans made from events, see [traces.md](traces.md#spans-from-events)", "without `--otlp.endpoint`"
    ),
    "celery_exporter_web_refused_total": Source("the web server, see [web.md](web.md#limits)"),
    "celery_exporter_web_config_reload_success": Source(
        "the web server, once a second, see [web.md](web.md#changes)", "without `--web.config.file`"
    ),
    "celery_exporter_collector_success": Source(
        "the collectors `queues`, `workers` and `snapshots`; with `--otlp.endpoint` also `otlp`"
    ),
    "celery_exporter_collector_duration_seconds": Source("the collectors"),
    "celery_exporter_collector_last_success_timestamp_seconds": Source("the collectors"),
}
