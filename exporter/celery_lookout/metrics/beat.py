"""Beat metrics."""

from __future__ import annotations

from .registry import Scope


class BeatMetrics:
    """The families of beat metrics, for one broker."""

    def __init__(self, scope: Scope) -> None:
        self.last_heartbeat = scope.gauge(
            "celery_beat_last_heartbeat_timestamp_seconds", "Unix time of the last snapshot.", ("beat",)
        )
        self.last_sent = scope.gauge(
            "celery_beat_entry_last_sent_timestamp_seconds",
            "Unix time at which beat last sent the task of the entry.",
            ("entry", "task"),
        )
        self.next_due = scope.gauge(
            "celery_beat_entry_next_due_timestamp_seconds", "Unix time at which the entry is due.", ("entry", "task")
        )
