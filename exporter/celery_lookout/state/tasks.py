"""
The life of each task, from its events.

Only ``task-sent`` carries the queue, only ``task-sent`` and ``task-received`` the name; all others have just the task
id. So a record is kept per task, found by id, and every count goes to the (task, queue) that the record names.

Events come late, twice, out of order or never. What makes the counts right all the same:

- An event of a task that we have not seen sent is held for a moment, because ``task-sent`` travels on another
  connection and can come last. When it comes, or when the moment is over, the held events are counted in their order.
- An attempt ends once. Celery 5.7 sends two ``task-failed`` for one hard time limit; the second finds the task ended.
- ``task-received`` of the next attempt can come before ``task-retried`` of the one before, which is then closed late.
- A task that ended stays known for a while, so that late and doubled events find it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

from ..events import Event
from ..failures import FailureSink
from ..metrics.exemplars import Exemplar, exemplar
from ..metrics.exporter import ExporterMetrics
from ..metrics.limits import UNKNOWN, LabelBudget
from ..metrics.registry import OTHER
from ..metrics.tasks import TaskMetrics, TaskSeries
from ..readings import ActiveTask
from . import reports
from .exceptions import TERMINATIONS, exception_class
from .queues import Queue, Queues
from .records import NO_WORK, Attempt, Row, RunningTasks, Task, Work, waits_from
from .routes import Routes
from .unsent import Put, Unsent
from .workers import Worker, Workers

#: Seconds for which a task that ended is remembered.
ENDED_SECONDS: Final = 60.0

#: Part of a full table that is dropped at once; dropping one by one from the front of a dict is slow.
EVICTED_SHARE: Final = 0.01

#: Celery raises these to steer itself. 5.7 reports the first as failure too, beside the ``task-rejected`` that counts.
NOT_FAILURES: Final = frozenset({"Reject", "Ignore"})

#: Of these one is a task's last, unless it says that the message was put back.
FINAL_EVENTS: Final = frozenset({"task-succeeded", "task-failed", "task-revoked", "task-rejected"})


class Tasks:
    """
    The in-flight table of one broker and everything counted from it.

    *trace_id_of* returns the trace id of a task by its id, where somebody makes traces of events: then what events tell
    has exemplars.
    """

    def __init__(
        self,
        metrics: TaskMetrics,
        exporter: ExporterMetrics,
        *,
        queues: Queues,
        workers: Workers,
        routes: Routes,
        limit: int,
        names: LabelBudget,
        exceptions: LabelBudget,
        failures: FailureSink | None,
        trace_id_of: Callable[[str], str | None] | None,
    ) -> None:
        self._metrics = metrics
        self._exporter = exporter
        self._queues = queues
        self._workers = workers
        self._routes = routes
        self._limit = limit
        self._names = names
        self._is_plain = names.is_plain and queues.is_plain
        self.exceptions = exceptions
        self._failures = failures
        self._trace_id_of = trace_id_of
        self._tasks: dict[str, Task] = {}
        self._rows: dict[tuple[str, str], Row] = {}
        self._unsent = Unsent()
        self._ended: deque[tuple[float, str]] = deque()
        self._now = 0.0
        #: What to call when an event of each type counts.
        self.handlers: dict[str, Callable[[Event], None]] = {
            "task-sent": self._sent,
            "task-received": self._received,
            "task-started": self._started,
            "task-succeeded": self._succeeded,
            "task-failed": self._failed,
            "task-retried": self._retried,
            "task-revoked": self._revoked,
            "task-rejected": self._rejected,
            "task-cancelled": self._cancelled,
        }

    # -- time

    def tick(self, now: float) -> None:
        """Count the events that waited long enough for their ``task-sent``, and forget tasks that ended a while ago."""
        self._now = now
        for task_id in self._unsent.due(now):
            self._count_held(task_id, self._unsent.pop(task_id))
        while self._ended and now - self._ended[0][0] > ENDED_SECONDS:
            task_id = self._ended.popleft()[1]
            task = self._tasks.get(task_id)
            if task is None:
                continue
            if task.final_at and task.ended:
                del self._tasks[task_id]
            elif not task.ended and not task.is_held(task_id):
                self._drop(task_id)  # let go silently, and nothing came of it since

    def shift(self, seconds: float) -> None:
        """Move what is measured on our own clock by *seconds*."""
        self._unsent.shift(seconds)
        self._ended = deque((at + seconds, task_id) for at, task_id in self._ended)

    def refresh(self, now: float) -> None:
        """Bring the gauges that depend on the time up to date."""
        for row in self._rows.values():
            row.running = 0
            row.running_since = now
        for worker in self._workers:
            if worker.coverage.is_open:
                for told in worker.told_running:
                    told.row.running += told.number
                    told.row.running_since = min(told.row.running_since, told.oldest_start)
                continue
            for task in worker.running.values():
                row = task.row
                row.running += 1
                row.running_since = min(row.running_since, task.started_at)
        for row in self._rows.values():
            row.series.running.set(row.running)
            row.series.oldest_running.set(round(max(now - row.running_since, 0.0), 3) if row.running else 0)
        self._exporter.tasks_tracked.set(len(self._tasks))

    def work(self) -> dict[str, Work]:
        """Return what came of each queue's tasks, as of the last refresh."""
        found: dict[str, Work] = {}
        for row in self._rows.values():
            series = row.series
            done, oldest_running = found.get(row.queue.name, NO_WORK)
            done += series.started.value + series.succeeded.value + series.failed.value + series.retried.value
            found[row.queue.name] = Work(done, max(oldest_running, series.oldest_running.value))
        return found

    def summary(self) -> list[dict[str, Any]]:
        """Return a row per (task, queue) for the status page, the busiest first."""
        rows = [
            {
                "task": name,
                "queue": queue,
                "running": int(row.series.running.value),
                "succeeded": int(row.series.succeeded.value),
                "failed": int(row.series.failed.value),
                "retried": int(row.series.retried.value),
            }
            for (name, queue), row in self._rows.items()
        ]
        return sorted(rows, key=lambda row: -(row["running"] + row["succeeded"] + row["failed"]))

    # -- events

    def _sent(self, event: Event) -> None:
        self._unsent.hear_sent(self._now)
        task = self._tasks.get(event.uuid)
        queue = self._routes.queue_of_sent(event)
        row = self.row(event.name or UNKNOWN, queue or UNKNOWN)
        if task is None:
            self._exporter.queue_resolution["sent" if queue else "unknown"].inc()
            task = self._add(event.uuid, row)
        retries = event.retries or 0
        if retries == 0:
            if task.first_sent:
                return
            task.first_sent = True
        elif retries <= task.sent_retries:
            return
        row.series.sent.inc()
        task.sent_retries = max(task.sent_retries, retries)
        since = waits_from(event)
        if retries > max(task.retries, 0):
            task.next_waits_from = since
            task.next_row = row if row is not task.row else None
        elif retries == max(task.retries, 0):
            task.waits_from = since
        if retries > task.retries and not task.final_at:
            row.queue.unreceived[event.uuid] = since
        held = self._unsent.pop(event.uuid)
        if held:
            self._replay(held)
        else:
            self._observe_wait(event.uuid, task)

    def _received(self, event: Event) -> None:
        task = self._find(event)
        if task is None:
            return
        retries = event.retries or 0
        told_again = event.timestamp <= task.received_at and task.is_told_by(event.hostname)
        if retries < task.retries or event.timestamp == task.received_at or told_again:
            return
        if retries == task.retries:
            if not task.requeued:
                task.row.series.redelivered.inc()
            self._begin_attempt(event.uuid, task)
        elif retries > max(task.retries, 0) and not (
            event.timestamp < max(task.started_at, task.final_at) and task.is_told_by(event.hostname)
        ):
            if task.retries >= 0 and not task.ended:
                if task.before is not None:
                    task.before.before = None
                task.before = Attempt(task.waits_from, task.started_at, task.before)
            self._begin_attempt(event.uuid, task)
            task.row, task.next_row = task.next_row or task.row, None
            task.waits_from, task.next_waits_from = task.next_waits_from, 0.0
            task.final_at = 0.0
        task.retries = retries
        task.received_at = event.timestamp
        task.requeued = False
        row = task.row
        row.queue.unreceived.pop(event.uuid, None)
        row.series.received.inc()
        worker = self._move_to(event, task)
        if worker is not None and not task.started_at and not task.ended:
            worker.reserved[event.uuid] = waits_from(event)

    def _begin_attempt(self, task_id: str, task: Task) -> None:
        self._let_go(task_id, task)
        task.started_at = 0.0
        task.ended = False
        task.waited = False

    def _started(self, event: Event) -> None:
        task = self._find(event)
        if task is None or event.timestamp == task.started_at:
            return
        before = task.before
        if before is not None and event.timestamp == before.started_at:
            return
        if before is not None and not before.started_at:
            task.row.series.started.inc()
            before.started_at = event.timestamp
            if before.waits_from:
                self._count_wait(event.uuid, task.row, before.waits_from, before.started_at)
            return
        if event.timestamp < max(task.received_at, task.started_at) and task.is_told_by(event.hostname):
            return
        task.row.series.started.inc()
        worker = self._move_to(event, task)
        task.row.queue.unreceived.pop(event.uuid, None)
        task.started_at = event.timestamp
        if worker is not None:
            worker.reserved.pop(event.uuid, None)
            if not task.ended:
                worker.running[event.uuid] = task
        self._observe_wait(event.uuid, task)

    def _succeeded(self, event: Event) -> None:
        task = self._find(event)
        if task is None or not self._end(event, task):
            return
        task.row.series.succeeded.inc()
        task.row.series.succeeded_at(event.timestamp)
        if event.runtime is not None:
            shown = self._exemplar(event.uuid, event.runtime, event.timestamp)
            task.row.series.observe_runtime("succeeded", event.runtime, shown)

    def _failed(self, event: Event) -> None:
        task = self._find(event)
        if task is None:
            return
        raised = exception_class(event.exception, event.traceback)
        if raised in NOT_FAILURES:
            self._let_go(event.uuid, task)
            return
        if not self._end(event, task):
            return
        series = task.row.series
        series.failed.inc()
        series.failed_at(event.timestamp)
        series.count_exception(self.exceptions.admit(raised))
        termination = TERMINATIONS.get(raised)
        if termination is not None:
            series.count_termination(termination)
        if task.retries > 0:
            series.retries_exhausted.inc()
        if task.started_at and termination != "worker_lost":  # whose death is noticed seconds later
            runtime = event.timestamp - task.started_at
            series.observe_runtime("failed", runtime, self._exemplar(event.uuid, runtime, event.timestamp))
        self._exemplify_failure(event, series, raised)
        if self._failures is not None:
            self._failures.take(reports.failed(event, task, raised, self._trace_id(event.uuid)))

    def _retried(self, event: Event) -> None:
        task = self._find(event)
        if task is None or event.timestamp == task.retried_at:
            return
        if task.before is not None:
            # Which one it is of, it does not say; the sum of runtimes is the same.
            started_at, task.before = task.before.started_at, task.before.before
        elif not task.ended and not (event.timestamp < task.received_at and task.is_told_by(event.hostname)):
            started_at = task.started_at
            self._let_go(event.uuid, task)
            task.ended = True
        else:
            return
        task.retried_at = event.timestamp
        series = task.row.series
        series.retried.inc()
        series.count_retry_exception(self.exceptions.admit(exception_class(event.exception, event.traceback)))
        if started_at:
            runtime = event.timestamp - started_at
            series.observe_runtime("retried", runtime, self._exemplar(event.uuid, runtime, event.timestamp))

    def _revoked(self, event: Event) -> None:
        task = self._find(event)
        if task is not None and self._end(event, task):
            task.row.series.count_revoked(
                "expired" if event.expired else "terminated" if event.terminated else "revoked"
            )

    def _rejected(self, event: Event) -> None:
        task = self._find(event)
        if task is None:
            return
        if event.requeue:
            if event.timestamp < task.received_at and task.is_told_by(event.hostname):
                return
            self._let_go(event.uuid, task)
            if not task.requeued:
                task.requeued = True
                task.row.series.count_rejected(requeue=True)
        elif self._end(event, task):
            task.row.series.count_rejected(requeue=False)

    def _cancelled(self, event: Event) -> None:
        task = self._find(event)
        if task is not None:
            self._let_go(event.uuid, task)

    def note(self, event: Event) -> None:
        """Keep the table tidy with an event that counts for nothing, since the worker's snapshots tell of it."""
        task = self._tasks.get(event.uuid)
        if task is None:
            self._unsent.put_aside(event, self.note, self._now)
            return
        self._let_go(event.uuid, task)
        if event.type == "task-received":
            if (event.retries or 0) > task.retries:
                task.retries = event.retries or 0
                task.row, task.next_row = task.next_row or task.row, None
            task.row.queue.unreceived.pop(event.uuid, None)
        elif event.type in FINAL_EVENTS and not event.requeue:
            self._end(event, task)

    # -- records

    def _find(self, event: Event) -> Task | None:
        """Return the task's record; None when the event was put aside until its ``task-sent`` comes."""
        task = self._tasks.get(event.uuid)
        if task is not None:
            return task
        if self._unsent.put_aside(event, self.handlers[event.type], self._now):
            return None
        return self._adopt(event.uuid, event.name, event.hostname)

    def _count_held(self, task_id: str, held: list[Put]) -> None:
        counted = [event for handle, event in held if handle != self.note]
        if counted:
            name = next((event.name for event in counted if event.name), None)
            self._adopt(task_id, name, counted[0].hostname)
            self._replay(held)

    @staticmethod
    def _replay(held: list[Put]) -> None:
        for handle, event in held:
            handle(event)

    def _adopt(self, task_id: str, name: str | None, worker_name: str) -> Task:
        """Make a record for a task that nobody told us was sent; its queue is the worker's only one, or unknown."""
        worker = self._workers.get(worker_name)
        if worker is not None and len(worker.queues) == 1:
            source, queue = "worker", worker.queues[0].name
        else:
            source, queue = "unknown", UNKNOWN
        self._exporter.queue_resolution[source].inc()
        return self._add(task_id, self.row(name or UNKNOWN, queue))

    def row(self, name: str, queue_name: str) -> Row:
        """Return what is counted of a (task, queue), made known if it was not."""
        row = self._rows.get((name, queue_name))
        if row is not None and self._is_plain:  # else some other name may be shown as this one
            return row
        return self._row(self._names.admit(name), self._queues.get(queue_name))

    def keep_row(self, name: str, queue_name: str) -> Row:
        """Return the row that an earlier process showed by these names."""
        return self._row(self._names.keep(name), self._queues.keep(queue_name))

    def _row(self, name: str, queue: Queue) -> Row:
        row = self._rows.get((name, queue.name))
        if row is None and name != OTHER and not self._metrics.has_room():
            self._metrics.sent.drop()
            name = OTHER
            row = self._rows.get((name, queue.name))
        if row is None:
            row = self._rows[name, queue.name] = Row(TaskSeries(self._metrics, name, queue.name), queue)
        return row

    def _add(self, task_id: str, row: Row) -> Task:
        if len(self._tasks) >= self._limit:
            self._evict()
        task = self._tasks[task_id] = Task(row)
        return task

    def _evict(self) -> None:
        """Drop the oldest records, and say how many. What comes of those tasks later counts as unknown."""
        count = max(1, int(self._limit * EVICTED_SHARE))
        for task_id in list(islice(self._tasks, count)):
            self._drop(task_id)
        self._exporter.tasks_evicted.inc(count)

    def _drop(self, task_id: str) -> None:
        task = self._tasks.pop(task_id)
        self._let_go(task_id, task)
        task.row.queue.unreceived.pop(task_id, None)
        if task.next_row is not None:
            task.next_row.queue.unreceived.pop(task_id, None)

    def _move_to(self, event: Event, task: Task) -> Worker | None:
        worker = task.worker
        if worker is None or worker.name != event.hostname:
            self._let_go(event.uuid, task)
            worker = task.worker = self._workers.get(event.hostname)
        if worker is not None:
            worker.sends_task_events = True
        return worker

    def _let_go(self, task_id: str, task: Task) -> None:
        """The worker does not hold the task any more."""
        if task.worker is not None:
            task.worker.running.pop(task_id, None)
            task.worker.reserved.pop(task_id, None)

    def _end(self, event: Event, task: Task) -> bool:
        """End the task for good; return False when its outcome was counted before."""
        self._let_go(event.uuid, task)
        task.row.queue.unreceived.pop(event.uuid, None)
        if not (task.ended and task.final_at):
            self._ended.append((self._now, event.uuid))
        task.ended = True
        if task.final_at:
            return False
        task.final_at = event.timestamp
        return True

    def _observe_wait(self, task_id: str, task: Task) -> None:
        """Count how long the attempt waited, once both of its ends are known."""
        if task.started_at and task.waits_from and not task.waited:
            task.waited = True
            self._count_wait(task_id, task.row, task.waits_from, task.started_at)

    def _count_wait(self, task_id: str, row: Row, waits_from: float, started_at: float) -> None:
        wait = max(started_at - waits_from, 0.0)
        row.series.queue_wait.observe(wait)
        row.queue.count_wait(wait)
        shown = self._exemplar(task_id, wait, started_at)
        if shown is not None:
            row.series.queue_wait.exemplify(shown)

    def _exemplify_failure(self, event: Event, series: TaskSeries, raised: str) -> None:
        shown = self._exemplar(event.uuid, 1.0, event.timestamp)
        if shown is None:
            return
        series.failed.exemplify(shown)
        series.exemplify_exception(raised, shown)
        if raised in TERMINATIONS:
            series.exemplify_termination(TERMINATIONS[raised], shown)

    def _trace_id(self, task_id: str) -> str | None:
        return None if self._trace_id_of is None else self._trace_id_of(task_id)

    def _exemplar(self, task_id: str, value: float, at: float) -> Exemplar | None:
        """Return the task as exemplar of a *value* observed *at* that time; None where it has no trace."""
        if self._trace_id_of is None:
            return None
        trace_id = self._trace_id_of(task_id)
        # A clock that is ahead must not keep those of other workers away for as long.
        return None if trace_id is None else exemplar(trace_id, task_id, round(max(value, 0.0), 6), min(at, self._now))

    # -- what workers say when asked

    def take_active(self, worker_name: str, active: ActiveTask) -> None:
        """Learn name and queue of a task that a worker holds, if no event told: it came before we listened."""
        if active.task_id in self._tasks:
            return
        queue = self._routes.queue_of(active.exchange, active.routing_key)
        self._exporter.queue_resolution["inspect" if queue else "unknown"].inc()
        task = self._add(active.task_id, self.row(active.name, queue or UNKNOWN))
        worker = task.worker = self._workers.get(worker_name)
        if worker is None:
            return
        if active.started_at is not None:
            task.started_at = active.started_at
            worker.running[active.task_id] = task
        else:
            worker.reserved[active.task_id] = self._now
        self._replay(self._unsent.pop(active.task_id))

    def let_go_silently(self, worker: Worker, task_ids: Iterable[str]) -> None:
        """
        *worker* does not hold these tasks any more, and no event said so: ignored, or the event was lost.

        They have no outcome to count. If one is only late, it finds the record for a while yet, and counts.
        """
        for task_id in task_ids:
            worker.running.pop(task_id, None)
            worker.reserved.pop(task_id, None)
            task = self._tasks.get(task_id)
            if task is not None and not task.final_at:
                self._ended.append((self._now, task_id))

    def expect_little_of(self, task_ids: Iterable[str]) -> None:
        """
        Forget these tasks after a while, unless an event comes: they are in no queue any more and nobody received them.

        They were purged, or their worker sends no task events: snapshots tell of it.
        """
        self._ended.extend((self._now, task_id) for task_id in task_ids if task_id in self._tasks)

    def count_lost(self, worker: Worker, before: float, told: list[RunningTasks]) -> None:
        """
        Count what *worker* was running and had started *before* it vanished, and what it *told* that it was running.

        What it had only reserved is not lost: the broker delivers it again, and its record waits for that.
        """
        for running in told:
            running.row.series.lost.inc(running.acknowledged)
            if running.acknowledged and self._failures is not None:
                self._failures.take(reports.lost("", running.row, worker.name, running.oldest_start, self._now))
        told.clear()
        for task_id, task in list(worker.running.items()):
            if task.started_at <= before:
                task.row.series.lost.inc()
                if self._failures is not None:
                    retries = max(task.retries, 0)
                    self._failures.take(
                        reports.lost(task_id, task.row, worker.name, task.started_at, self._now, retries)
                    )
                self.let_go_silently(worker, [task_id])
