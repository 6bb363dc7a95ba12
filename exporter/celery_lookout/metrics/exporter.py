"""What the sidecar says about itself: what it heard, what it lost, how far it lags."""

from __future__ import annotations

from typing import Final, Literal, get_args

from ..events import EVENT_TYPES
from .limits import DROP_REASONS, DropReason
from .registry import OTHER, Registry, Scope

#: Labels whose values may be denied, or too many.
LimitedLabel = Literal["task", "queue", "exception", "worker"]

#: What becomes of an event for Sentry.
SentryOutcome = Literal["sent", "rate_limited", "dropped", "failed", "sampled"]
SENTRY_OUTCOMES: Final[tuple[SentryOutcome, ...]] = get_args(SentryOutcome)


class ExporterMetrics:
    """Honesty metrics of one broker's intake and state."""

    def __init__(self, scope: Scope) -> None:
        gauge, counter = scope.gauge, scope.counter
        self.broker_up = gauge(
            "celery_exporter_broker_up", "1 while the broker answers on the event connection."
        ).child()
        self.reconnects = counter(
            "celery_exporter_broker_reconnects_total", "Times the event connection was made again."
        ).child()
        self.events = counter(
            "celery_exporter_events_total", "Events read, by type; _other for types we do not know.", ("event",)
        )
        self.events_invalid = counter(
            "celery_exporter_events_invalid_total",
            "Messages or events refused, by what was wrong with them.",
            ("reason",),
        )
        self.events_lost = counter(
            "celery_exporter_events_lost_total", "Task starts that workers counted while we could not hear them."
        ).child()
        self.snapshots = counter("celery_exporter_snapshots_total", "Snapshots of workers and beat read.").child()
        self.snapshots_missed = counter(
            "celery_exporter_snapshots_missed_total",
            "Numbers that are missing between a worker's snapshots: what they told, a later one tells.",
        ).child()
        self.snapshots_invalid = counter(
            "celery_exporter_snapshots_invalid_total",
            "Snapshots, or parts of them, refused, by what was wrong with them.",
            ("reason",),
        )
        self.last_event = gauge(
            "celery_exporter_last_event_timestamp_seconds", "Unix time at which the last event was read."
        )
        self.event_lag = gauge(
            "celery_exporter_event_lag_seconds", "How old the last event was when it was read."
        ).child()
        self.tasks_tracked = gauge("celery_exporter_tasks_tracked", "Tasks in the in-flight table.").child()
        self.tasks_evicted = counter(
            "celery_exporter_tasks_evicted_total", "Tasks dropped from a full in-flight table."
        ).child()
        resolution = counter(
            "celery_exporter_queue_resolution_total",
            "Tasks by how their queue was found; unknown if it was not.",
            ("source",),
        )
        self._label_values_dropped = counter(
            "celery_exporter_label_values_dropped_total",
            "Times that a label did not show a value by its name. denied: kept out by the lists, or a worker's with"
            " characters that cannot be shown; limit: the label was full. A worker is left out then; any other value"
            " counts as _other.",
            ("label", "reason"),
        )
        self.collector_success = gauge(
            "celery_exporter_collector_success", "1 if the collector's last poll worked.", ("collector",)
        )
        self.collector_duration = gauge(
            "celery_exporter_collector_duration_seconds", "How long its last poll took.", ("collector",)
        )
        self.collector_last_success = gauge(
            "celery_exporter_collector_last_success_timestamp_seconds",
            "Unix time of its last poll that worked.",
            ("collector",),
        )
        for event in (*EVENT_TYPES, OTHER):
            self.events.child(event)
        #: By source.
        self.queue_resolution = {
            source: resolution.child(source) for source in ("sent", "snapshot", "inspect", "worker", "unknown")
        }
        for label in get_args(LimitedLabel):
            for reason in DROP_REASONS:
                self._label_values_dropped.child(label, reason)

    def drop_value(self, label: LimitedLabel, reason: DropReason) -> None:
        """Count that *label* did not show a value by its name."""
        self._label_values_dropped.child(label, reason).inc()


class ProcessMetrics:
    """Metrics of the sidecar as a whole, whatever it watches."""

    def __init__(self, registry: Registry, version: str) -> None:
        scope = Scope(registry)
        self._registry = registry
        scope.gauge("celery_exporter_build_info", "Always 1; the sidecar's version.", ("version",)).child(version).set(
            1
        )
        scope.gauge("celery_exporter_series_limit", "How many series there may be.").child().set(registry.series_limit)
        self._series = scope.gauge("celery_exporter_series", "How many series there are now.").child()

    def refresh(self) -> None:
        """Bring the count of series up to date, before a scrape is rendered."""
        self._series.set(self._registry.series)


class StateMetrics:
    """What became of the state that an earlier process saved; only with ``--state.file``."""

    def __init__(self, registry: Registry) -> None:
        gauge = Scope(registry).gauge
        self.success = gauge(
            "celery_exporter_state_success",
            "0 if there was a state file at the start that could not be used, else 1.",
        ).child()
        #: Made when there is something to show.
        self.saved_at = gauge(
            "celery_exporter_state_saved_timestamp_seconds",
            "Unix time at which the state was saved from which this process went on; absent if it began at 0.",
        )
        self.left_out = gauge(
            "celery_exporter_state_left_out",
            "Series, tasks and workers of that state for which there is no place here.",
        ).child()


class SentryMetrics:
    """What became of the events for Sentry, of all brokers together."""

    def __init__(self, registry: Registry) -> None:
        self._events = Scope(registry).counter(
            "celery_exporter_sentry_events_total",
            "Events for Sentry by what became of them. rate_limited: by our limits, Sentry's, or a worker's; dropped: a"
            " full queue, or the end; failed: Sentry did not take it; sampled: left out by --sentry.sample-rate.",
            ("outcome",),
        )
        for outcome in SENTRY_OUTCOMES:
            self._events.child(outcome)

    def count(self, outcome: SentryOutcome, number: float = 1) -> None:
        """Count *number* events with this outcome."""
        self._events.child(outcome).inc(number)
