"""
What workers say about themselves when asked through Celery's remote control.

Answers are decoded field by field into the structures below; everything else in them, task arguments and settings above
all, is skipped without being looked at. A worker that is busy in a solo pool, stopped or cut off does not answer and is
left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import msgspec

from ..broker import Broker
from ..errors import ProbeFailed
from ..readings import ActiveTask, WorkerReading
from . import replies
from .eta import EtaTasks
from .pidbox import Pidbox

#: Seconds that workers have to answer. Idle ones take milliseconds; busy solo pools would take as long as their task.
ANSWER_SECONDS = 1.0
#: Task ids asked about at a time, so that the answer, which carries each task's arguments, stays small.
_IDS_PER_QUESTION = 100

T = TypeVar("T")


class ControlProbe:
    """Asks the workers of one broker. Changes nothing in them, except by ``enable_events``."""

    def __init__(self, broker: Broker, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._pidbox = Pidbox(broker)
        self._undecodable = 0
        self._eta_tasks = EtaTasks(self._ask)

    @property
    def invalid_replies(self) -> int:
        """Answers refused since the start, for their form or for their content."""
        return self._pidbox.invalid_replies + self._undecodable

    def known_workers(self) -> frozenset[str]:
        """Return the names of all workers that answer a ping; takes one second."""
        return frozenset(self._pidbox.ask("ping", timeout=ANSWER_SECONDS))

    def collect(self, workers: Collection[str]) -> list[WorkerReading]:
        """
        Read all *workers*, or whoever answers within a second when it is empty.

        Takes milliseconds when all answer. Raises ProbeFailed when the broker has no remote control or forbids it, and
        BrokerUnavailable.
        """
        stats = self._ask("stats", replies.Stats, workers=workers or None)
        if not stats:
            return []
        read_at = self._clock()
        queues = self._ask("active_queues", tuple[replies.Queue, ...], workers=stats)
        scheduled = self._eta_tasks.count(stats)
        return [
            _reading(worker, read_at, stats[worker], queues.get(worker), scheduled[worker]) for worker in sorted(stats)
        ]

    def active(self, workers: Collection[str], *, reserved: bool = False) -> list[tuple[str, ActiveTask]]:
        """
        Return (worker, task) for every task that *workers* run, and with *reserved* for those they hold in reserve.

        Tasks held for their ETA are not among them. Who does not answer within a second is left out.
        """
        found: list[tuple[str, ActiveTask]] = []
        for command in ("active", "reserved") if reserved else ("active",):
            arguments = {"safe": True} if command == "active" else {}
            answers = self._ask(command, tuple[replies.Task, ...], arguments, workers=workers)
            found += [(worker, _task(task)) for worker, tasks in answers.items() for task in tasks]
        return found

    def held(self, worker: str, task_ids: Collection[str]) -> set[str]:
        """
        Return which of *task_ids* the worker still holds, be they running, reserved or waiting for their ETA.

        Raises ProbeFailed when it does not answer: not knowing is not the same as holding none.
        """
        ordered, asked = sorted(task_ids), set(task_ids)
        held: set[str] = set()
        for start in range(0, len(ordered), _IDS_PER_QUESTION):
            arguments = {"ids": ordered[start : start + _IDS_PER_QUESTION]}
            held |= asked & self._ask_one(worker, "query_task", dict[str, msgspec.Raw], arguments).keys()
        if held != asked:
            # Before Celery 5.7 query_task does not know the tasks that wait for their ETA.
            scheduled = self._ask_one(worker, "scheduled", tuple[replies.Scheduled, ...])
            held |= asked & {entry.request.id for entry in scheduled}
        return held

    def enable_events(self, worker: str) -> bool:
        """
        Make the worker send task events; return False when it does not answer.

        It holds until that worker restarts. Raises ProbeFailed when the worker says that it cannot.
        """
        answer = self._ask("enable_events", replies.Outcome, workers=[worker]).get(worker)
        if answer is None:
            return False
        if answer.error is not None:
            raise ProbeFailed(
                f"worker {worker} cannot send task events: {answer.error[: replies.TEXT_LIMIT]}."
                " Start it with -E, or without --without-gossip and --without-heartbeat"
            )
        return answer.ok is not None

    def close(self) -> None:
        """Delete the reply queue and close the connection; the probe can be used again."""
        self._pidbox.close()

    def _ask_one(self, worker: str, command: str, shape: type[T], arguments: Mapping[str, object] | None = None) -> T:
        """Return the answer of *worker*. Raises ProbeFailed when there is none, or it is not fit to be read."""
        answers = self._ask(command, shape, arguments, workers=[worker])
        if worker not in answers:
            raise ProbeFailed(f"worker {worker} did not answer {command!r} within {ANSWER_SECONDS:g} s")
        return answers[worker]

    def _ask(
        self,
        command: str,
        shape: type[T],
        arguments: Mapping[str, object] | None = None,
        *,
        workers: Collection[str] | None,
    ) -> dict[str, T]:
        """Return the answers that have *shape*, by worker; the others are counted, unless they report an error."""
        decoded: dict[str, T] = {}
        for worker, raw in self._pidbox.ask(command, arguments, workers=workers, timeout=ANSWER_SECONDS).items():
            try:
                decoded[worker] = msgspec.json.decode(raw, type=shape)
            except (msgspec.MsgspecError, RecursionError):
                self._undecodable += 1
        return decoded


def _reading(
    worker: str,
    read_at: float,
    stats: replies.Stats,
    queues: tuple[replies.Queue, ...] | None,
    scheduled: int | None,
) -> WorkerReading:
    return WorkerReading(
        worker=worker,
        read_at=read_at,
        pool=stats.pool_name,
        slots=stats.slots,
        scheduled=scheduled,
        processed=sum(stats.total.values()) if stats.total is not None else None,
        main_max_memory_bytes=stats.max_memory_bytes,
        main_cpu_seconds=stats.cpu_seconds,
        queues=None if queues is None else tuple(queue.reading for queue in queues if queue.is_usable),
    )


def _task(task: replies.Task) -> ActiveTask:
    route = task.delivery_info or replies.Route()
    return ActiveTask(
        task_id=task.id,
        name=task.name,
        exchange=route.exchange or "",
        routing_key=route.routing_key or "",
        started_at=task.time_start or None,
    )
