"""Where each metric comes from and when it is not there: what the declarations in the code cannot tell."""

from __future__ import annotations

from typing import Final, NamedTuple


class Source(NamedTuple):
    """One metric's origin, and the case in which it has no series; an empty text means that there is none."""

    origin: str
    absent: str = ""


_HEARTBEAT: Final = "for a worker of which no heartbeat was heard"
_INSPECT: Final = "until the worker answers remote control"
_UNREADABLE: Final = "while the queue cannot be read, or does not exist on RabbitMQ"
_ANSWERS: Final = (
    "remote control, and the heartbeats of those that send them: a worker that does not answer is not counted"
)
_UNKNOWN_QUEUE: Final = "before the queue is known, and while workers cannot be asked"

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
    "celery_task_lost_total": Source("tasks that ran on a worker which vanished 60 s ago"),
    "celery_task_runtime_seconds": Source(
        "`runtime` of `task-succeeded`; for the other outcomes the time since `task-started`. Not observed when the "
        "pool process died",
        "for `failed` and `retried` before the first",
    ),
    "celery_task_queue_wait_seconds": Source(
        "`task-sent` (or its `eta`, if later) to `task-started`, below 0 taken as 0"
    ),
    "celery_task_running": Source("`task-started` without an end"),
    "celery_task_oldest_running_seconds": Source("`task-started` without an end"),
    "celery_task_last_success_timestamp_seconds": Source("`task-succeeded`", "before the first success"),
    "celery_task_last_failure_timestamp_seconds": Source("`task-failed`", "before the first failure"),
    # queues
    "celery_queue_length": Source("Redis `LLEN` of every priority; RabbitMQ passive declaration", _UNREADABLE),
    "celery_queue_priority_length": Source("Redis", "on RabbitMQ, and before a priority other than 0 was seen"),
    "celery_queue_unacked": Source("RabbitMQ's management API", "on Redis, and without the management API"),
    "celery_queue_oldest_task_age_seconds": Source(
        "`task-sent`, or the publish time on the message. On Redis, when neither is known, how long the same message "
        "has been the oldest: a lower bound",
        "while the queue cannot be read; on RabbitMQ when neither is known; when all that waits has an ETA to come",
    ),
    "celery_queue_consumers": Source(
        "RabbitMQ passive declaration; on Redis as `celery_queue_workers`", "while the queue cannot be read (RabbitMQ)"
    ),
    "celery_queue_workers": Source(_ANSWERS, _UNKNOWN_QUEUE),
    "celery_queue_slots": Source(_ANSWERS, _UNKNOWN_QUEUE),
    "celery_queue_latency_slo_seconds": Source("`--queue.latency-slo`", "for queues without one"),
    "celery_queue_slo_eligible_total": Source("starts whose wait is known", "for queues without a latency SLO"),
    "celery_queue_slo_violations_total": Source("starts whose wait is known", "for queues without a latency SLO"),
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
    "celery_worker_last_heartbeat_timestamp_seconds": Source("heartbeats, by the sidecar's clock", _HEARTBEAT),
    "celery_worker_shutdown_graceful": Source("`worker-offline`", _HEARTBEAT),
    "celery_worker_info": Source("heartbeats (version), `inspect stats` (pool)", _HEARTBEAT),
    "celery_worker_slots": Source("`inspect stats`", _INSPECT),
    "celery_worker_tasks_active": Source("`active` of heartbeats", "until a heartbeat carries it"),
    "celery_worker_tasks_reserved": Source("`task-received` without `task-started`, ETA reached"),
    "celery_worker_tasks_scheduled": Source(
        "`inspect stats` (prefetch count), else `task-received` with an ETA to come"
    ),
    "celery_worker_tasks_processed_total": Source("`processed` of heartbeats, else `inspect stats`", _INSPECT),
    "celery_worker_task_events_enabled": Source(
        "task events heard, or tasks counted in heartbeats without events", "until one of the two is known"
    ),
    "celery_worker_load_average": Source("`loadavg` of heartbeats", "until a heartbeat carries it"),
    "celery_worker_main_max_memory_bytes": Source("`inspect stats`", _INSPECT),
    "celery_worker_main_cpu_seconds_total": Source("`inspect stats`", _INSPECT),
    "celery_worker_clock_skew_seconds": Source("heartbeats, largest of the last 8", _HEARTBEAT),
    # the sidecar
    "celery_exporter_build_info": Source("the sidecar"),
    "celery_exporter_series_limit": Source("`--limit.series`"),
    "celery_exporter_series": Source("the sidecar"),
    "celery_exporter_series_dropped_total": Source("the sidecar", "until the limit is reached"),
    "celery_exporter_broker_up": Source("the event connection"),
    "celery_exporter_broker_reconnects_total": Source("the event connection"),
    "celery_exporter_events_total": Source("the event connection"),
    "celery_exporter_events_invalid_total": Source("the decoder"),
    "celery_exporter_events_lost_total": Source(
        "`processed` of heartbeats held against starts heard, before and after a broken connection. 0 on RabbitMQ, "
        "where events wait"
    ),
    "celery_exporter_last_event_timestamp_seconds": Source("the event connection", "before the first event"),
    "celery_exporter_event_lag_seconds": Source("the event's timestamp against the sidecar's clock"),
    "celery_exporter_tasks_tracked": Source("the in-flight table"),
    "celery_exporter_tasks_evicted_total": Source("the in-flight table"),
    "celery_exporter_queue_resolution_total": Source("`sent`, `inspect`, `worker` (it consumes only one), `unknown`"),
    "celery_exporter_collector_success": Source("the collectors `queues` and `workers`"),
    "celery_exporter_collector_duration_seconds": Source("the collectors"),
    "celery_exporter_collector_last_success_timestamp_seconds": Source("the collectors"),
}
