"""Queue and broker metrics."""

from __future__ import annotations

from typing import Final

from .registry import Scope

_QUEUE: Final = ("queue",)


class QueueMetrics:
    """The families of queue metrics, for one broker."""

    def __init__(self, scope: Scope) -> None:
        self.length = scope.gauge("celery_queue_length", "Ready messages, all priorities together.", _QUEUE)
        self.priority_length = scope.gauge(
            "celery_queue_priority_length",
            "Ready messages of one priority, where priorities are in use.",
            ("queue", "priority"),
        )
        self.unacked = scope.gauge("celery_queue_unacked", "Messages delivered and not acknowledged.", _QUEUE)
        self.oldest_age = scope.gauge(
            "celery_queue_oldest_task_age_seconds",
            "Age of the oldest ready message; 0 when the queue is empty.",
            _QUEUE,
        )
        self.consumers = scope.gauge(
            "celery_queue_consumers",
            "Consumers the broker counts; on Redis, which counts none, workers that consume the queue.",
            _QUEUE,
        )
        self.workers = scope.gauge("celery_queue_workers", "Living workers that consume the queue.", _QUEUE)
        self.slots = scope.gauge("celery_queue_slots", "Concurrency of those workers together.", _QUEUE)
        self.latency_slo = scope.gauge(
            "celery_queue_latency_slo_seconds", "Longest acceptable wait, from the configuration.", _QUEUE
        )
        self.slo_eligible = scope.counter(
            "celery_queue_slo_eligible_total", "Starts on a queue that has a latency SLO.", _QUEUE
        )
        self.slo_violations = scope.counter(
            "celery_queue_slo_violations_total", "Starts that came later than the queue's latency SLO.", _QUEUE
        )


class BrokerMetrics:
    """What a broker says of itself, beyond its queues."""

    def __init__(self, scope: Scope) -> None:
        self.unacked = scope.gauge(
            "celery_broker_unacked", "Redis: messages delivered and not acknowledged, all queues together."
        )
        self.oldest_unacked_age = scope.gauge(
            "celery_broker_oldest_unacked_age_seconds",
            "Redis: time since the longest-held message was delivered; 0 if none is held.",
        )
        self.visibility_timeout = scope.gauge(
            "celery_broker_visibility_timeout_seconds",
            "Redis: after this time an unacknowledged message is delivered again.",
        )
        self.delayed = scope.gauge(
            "celery_broker_delayed", "RabbitMQ native delayed delivery: messages that wait for their ETA."
        )
