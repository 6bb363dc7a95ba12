"""What is remembered of one task, and of one (task, queue)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from ..events import Event
from ..metrics.tasks import TaskSeries
from .queues import Queue

if TYPE_CHECKING:
    from .workers import Worker


class Row:
    """A (task, queue): its series, and the queue's state."""

    __slots__ = ("queue", "running", "running_since", "series")

    def __init__(self, series: TaskSeries, queue: Queue) -> None:
        self.series = series
        self.queue = queue
        #: Scratch for :meth:`Tasks.refresh`.
        self.running = 0
        self.running_since = 0.0


class Work(NamedTuple):
    """What comes of a queue's tasks."""

    #: Starts and ends counted, of all kinds.
    done: float
    #: Seconds that the longest-running one has run; 0 if none runs.
    oldest_running: float


NO_WORK: Final = Work(0.0, 0.0)


class RunningTasks(NamedTuple):
    """What a worker runs of one (task, queue), as its snapshot tells."""

    row: Row
    number: int
    #: So many of them will not be delivered again if the worker dies.
    acknowledged: int
    oldest_start: float


class Attempt(Struct, gc=False):
    """
    An attempt that is over, as the next one's ``task-received`` shows, and that some events are still owed for.

    Its ``task-retried``, and even its ``task-started``: the pool process can publish the retry, and the worker receive
    it, before the worker notices that the process had begun.
    """

    waits_from: float
    started_at: float
    #: The one before it, of which the same is true. Not more: what is still owed then will not come.
    before: Attempt | None = None


class Task(Struct, gc=False):
    """
    What is known of one task id. Times are Unix times, 0 for "not yet".

    Times of workers and publishers are compared as they are; a wait that comes out negative is clamped.
    """

    row: Row
    #: The row of the attempt that was sent last, if it goes elsewhere than this one.
    next_row: Row | None = None
    worker: Worker | None = None
    #: Attempt that ``received_at``, ``started_at`` and ``ended`` are about; -1 until one was received.
    retries: int = -1
    received_at: float = 0.0
    started_at: float = 0.0
    #: This attempt ended. ``final_at``: when the task did, for good, and was counted.
    ended: bool = False
    final_at: float = 0.0
    #: The next delivery is expected: the worker put the message back.
    requeued: bool = False
    #: The attempt before this one, while its ``task-retried`` has not come.
    before: Attempt | None = None
    retried_at: float = 0.0
    first_sent: bool = False
    #: The attempt sent last.
    sent_retries: int = -1
    #: From when this attempt waits: publish time or ETA, if later. The next can be sent before this one starts for us.
    waits_from: float = 0.0
    next_waits_from: float = 0.0
    waited: bool = False

    def is_told_by(self, worker_name: str) -> bool:
        """
        Say whether it is the worker that has the task, as far as we know, which speaks.

        One worker's events come in order: one that is older than what it told before is told again, since RabbitMQ
        repeats what we did not acknowledge before a connection broke.
        """
        return self.worker is None or self.worker.name == worker_name

    def is_held(self, task_id: str) -> bool:
        """Say whether a worker holds the task, whose id is *task_id*: it runs, or waits in the worker."""
        worker = self.worker
        return worker is not None and (task_id in worker.running or task_id in worker.reserved)


def waits_from(event: Event) -> float:
    """Return from when the attempt waits that a ``task-sent`` or ``task-received`` tells of: its time, or its ETA."""
    return event.timestamp if event.eta is None else max(event.timestamp, unix_time(event.eta))


def unix_time(eta: str | None) -> float:
    """Return an ISO 8601 time as Unix time, 0 for what is none. Without an offset it is UTC, Celery's default."""
    if eta is None:
        return 0.0
    try:
        moment = datetime.fromisoformat(eta)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
