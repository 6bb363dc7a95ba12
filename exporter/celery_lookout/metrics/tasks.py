"""Task metrics: one :class:`TaskSeries` for each (task, queue), all counters born at 0 together."""

from __future__ import annotations

from typing import Final

from .exemplars import Exemplar
from .registry import Bound, Counter, Gauge, Histogram, Scope

#: Task bodies run from milliseconds (send a mail) to hours (a nightly export); three buckets a decade in between.
RUNTIME_BUCKETS: Final = (
    0.005,
    0.025,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    900.0,
    3600.0,
    14400.0,
)

#: A wait matters from "at once" to "the queue was stuck all night"; edges fall on latency targets people choose.
WAIT_BUCKETS: Final = (0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)

#: From a small process to all of a large machine, in bytes.
PEAK_MEMORY_BUCKETS: Final = tuple(float(2**power) for power in range(24, 35))

#: What a :class:`TaskSeries` has from the start: 17 counters, 2 gauges, and 2 histograms with a sum and a count.
SERIES_AT_FIRST: Final = 17 + 2 + len(RUNTIME_BUCKETS) + 3 + len(WAIT_BUCKETS) + 3

_LABELS: Final = ("task", "queue")


class TaskMetrics:
    """The families of task metrics, for one broker."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

        def counter(name: str, help_text: str, *labels: str) -> Bound[Counter]:
            return scope.counter(f"celery_task_{name}_total", help_text, (*_LABELS, *labels))

        self.sent = counter("sent", "Tasks published, as task-sent events tell.")
        self.received = counter("received", "Tasks that a worker took from the broker.")
        self.started = counter("started", "Task bodies started.")
        self.succeeded = counter("succeeded", "Tasks that returned.")
        self.failed = counter("failed", "Tasks that failed for good, kills and time limits included.")
        self.retried = counter("retried", "Attempts that ended in a retry.")
        self.revoked = counter(
            "revoked", "Tasks revoked: expired, terminated while running, or revoked before they ran.", "reason"
        )
        self.rejected = counter(
            "rejected", "Tasks that rejected their message, by whether it went back to the queue.", "requeue"
        )
        self.exceptions = counter("exceptions", "Failures by class of exception.", "exception")
        self.retry_exceptions = counter(
            "retry_exceptions", "Retries by the class of exception that caused them.", "exception"
        )
        self.terminations = counter(
            "terminations", "Failures that a time limit or the death of the pool process caused.", "reason"
        )
        self.retries_exhausted = counter("retries_exhausted", "Tasks that failed for good after at least one retry.")
        self.redelivered = counter("redelivered", "Tasks delivered again without a retry: possibly executed twice.")
        self.lost = counter("lost", "Tasks that were on a worker which vanished, and did not reappear.")
        self.ignored = counter("ignored", "Runs that ended in Ignore: no outcome is kept of them.")
        self.cpu_seconds = counter("cpu_seconds", "CPU time of task bodies.")
        self.memory_growth = counter(
            "memory_growth_bytes", "Memory that the process had more after a run than before it, added up."
        )

        self.runtime = scope.histogram(
            "celery_task_runtime_seconds",
            "Time the task body ran, without the wait.",
            (*_LABELS, "outcome"),
            RUNTIME_BUCKETS,
        )
        self.queue_wait = scope.histogram(
            "celery_task_queue_wait_seconds",
            "Time from published (or ETA, if later) to started.",
            _LABELS,
            WAIT_BUCKETS,
        )
        self.peak_memory = scope.histogram(
            "celery_task_peak_memory_bytes",
            "Largest resident size of the process during a run.",
            _LABELS,
            PEAK_MEMORY_BUCKETS,
        )
        self.running = scope.gauge("celery_task_running", "Tasks started and not ended.", _LABELS)
        self.oldest_running = scope.gauge(
            "celery_task_oldest_running_seconds",
            "Time since the longest-running task started; 0 if none runs.",
            _LABELS,
        )
        self.last_success = scope.gauge(
            "celery_task_last_success_timestamp_seconds", "Unix time of the last success.", _LABELS, kept=True
        )
        self.last_failure = scope.gauge(
            "celery_task_last_failure_timestamp_seconds", "Unix time of the last failure.", _LABELS, kept=True
        )

    def has_room(self) -> bool:
        """Say whether the series of one more (task, queue) fit, those that are made when first used left out."""
        return self._scope.has_room(SERIES_AT_FIRST)


class TaskSeries:
    """The series of one (task, queue). Those that most tasks never need are made when first used."""

    __slots__ = (
        "_families", "_labels", "_last_success", "failed", "lost", "oldest_running", "queue_wait", "received",
        "redelivered", "retried", "retries_exhausted", "running", "runtime", "sent", "started", "succeeded",
    )  # fmt: skip

    def __init__(self, families: TaskMetrics, task: str, queue: str) -> None:
        self._families = families
        self._labels = labels = (task, queue)
        self.sent = families.sent.child(*labels)
        self.received = families.received.child(*labels)
        self.started = families.started.child(*labels)
        self.succeeded = families.succeeded.child(*labels)
        self.failed = families.failed.child(*labels)
        self.retried = families.retried.child(*labels)
        self.retries_exhausted = families.retries_exhausted.child(*labels)
        self.redelivered = families.redelivered.child(*labels)
        self.lost = families.lost.child(*labels)
        self.queue_wait = families.queue_wait.child(*labels)
        self.running = families.running.child(*labels)
        self.oldest_running = families.oldest_running.child(*labels)
        self._last_success: Gauge | None = None
        self.runtime: dict[str, Histogram] = {"succeeded": families.runtime.child(*labels, "succeeded")}
        for reason in ("expired", "terminated", "revoked"):
            families.revoked.child(*labels, reason)
        for requeue in ("true", "false"):
            families.rejected.child(*labels, requeue)
        for reason in ("soft_time_limit", "hard_time_limit", "worker_lost"):
            families.terminations.child(*labels, reason)

    @property
    def task(self) -> str:
        """The value of the label ``task``."""
        return self._labels[0]

    def runtime_of(self, outcome: str) -> Histogram:
        """Return the runtimes of runs that ended in *outcome*: ``succeeded``, ``failed`` or ``retried``."""
        histogram = self.runtime.get(outcome)
        if histogram is None:
            histogram = self.runtime[outcome] = self._families.runtime.child(*self._labels, outcome)
        return histogram

    def observe_runtime(self, outcome: str, seconds: float, exemplar: Exemplar | None = None) -> None:
        """Add one run of *seconds* that ended in *outcome*."""
        histogram = self.runtime_of(outcome)
        histogram.observe(max(0.0, seconds))
        if exemplar is not None:
            histogram.exemplify(exemplar)

    def count_revoked(self, reason: str, count: float = 1) -> None:
        """Count revocations: *reason* is ``expired``, ``terminated`` or ``revoked``."""
        self._families.revoked.child(*self._labels, reason).inc(count)

    def count_rejected(self, count: float = 1, *, requeue: bool) -> None:
        """Count rejections."""
        self._families.rejected.child(*self._labels, "true" if requeue else "false").inc(count)

    def count_termination(self, reason: str, count: float = 1) -> None:
        """Count kills: *reason* is ``soft_time_limit``, ``hard_time_limit`` or ``worker_lost``."""
        self._families.terminations.child(*self._labels, reason).inc(count)

    def count_exception(self, exception: str, count: float = 1) -> None:
        """Count failures of this class."""
        self._families.exceptions.child(*self._labels, exception).inc(count)

    def count_retry_exception(self, exception: str, count: float = 1) -> None:
        """Count retries for this class."""
        self._families.retry_exceptions.child(*self._labels, exception).inc(count)

    def exemplify_exception(self, exception: str, exemplar: Exemplar) -> None:
        """Show *exemplar* with the failures of this class, if there are any."""
        counter = self._families.exceptions.find(*self._labels, exception)
        if counter is not None:
            counter.exemplify(exemplar)

    def exemplify_termination(self, reason: str, exemplar: Exemplar) -> None:
        """Show *exemplar* with the kills for this *reason*."""
        self._families.terminations.child(*self._labels, reason).exemplify(exemplar)

    # What only snapshots know has no series before a snapshot tells of it.

    @property
    def ignored(self) -> Counter:
        """Runs that ended in Ignore."""
        return self._families.ignored.child(*self._labels)

    @property
    def cpu_seconds(self) -> Counter:
        """CPU time of bodies."""
        return self._families.cpu_seconds.child(*self._labels)

    @property
    def memory_growth(self) -> Counter:
        """Bytes that runs left behind."""
        return self._families.memory_growth.child(*self._labels)

    @property
    def peak_memory(self) -> Histogram:
        """Largest resident sizes in bytes."""
        return self._families.peak_memory.child(*self._labels)

    def succeeded_at(self, timestamp: float) -> None:
        """Show the Unix time of the last success; a late event does not turn it back."""
        if self._last_success is None:
            self._last_success = self._families.last_success.child(*self._labels)
        if timestamp > self._last_success.value:
            self._last_success.set(timestamp)

    def failed_at(self, timestamp: float) -> None:
        """Show the Unix time of the last failure; a late event does not turn it back."""
        gauge = self._families.last_failure.child(*self._labels)
        gauge.set(max(gauge.value, timestamp))
