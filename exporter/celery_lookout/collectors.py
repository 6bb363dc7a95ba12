"""
What is polled: the broker's queues, the workers, the snapshots that wait on the broker, and whether it takes messages.

Each collector joins a probe, which asks, to the cluster, which says what to ask and takes the answer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from .errors import ProbeFailed
from .intake.snapshot_source import Message, SnapshotSource
from .intake.snapshots import SnapshotDecoder
from .probes.control import ControlProbe
from .probes.publishing import PublishingProbe
from .readings import ActiveTask, BrokerReading, WorkerReading
from .snapshots import AnySnapshot
from .state.cluster import Cluster

#: Polls between two searches for queues that nobody told us of; Redis walks its keys for it.
POLLS_PER_DISCOVERY: Final = 100

#: Rounds after which all workers are asked and not only those we know: some send no heartbeats.
ROUNDS_PER_ROLL_CALL: Final = 4

#: Bytes of snapshots taken in at a time; the rest follows at once.
SNAPSHOT_BYTES: Final = 64 * 2**20

#: Seconds from one poll of the snapshots to the next while none ever came: a look costs as much as 150 events.
UNTOLD_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class QueueProbe(Protocol):
    """What every broker's probe offers."""

    def collect(self, queue_names: Collection[str]) -> BrokerReading:
        """Read the named queues, and others that the broker shows by itself."""

    def discover(self) -> frozenset[str]:
        """Return the names of queues that the broker knows of."""

    def close(self) -> None:
        """Close the connection."""


class QueuesAnswer(NamedTuple):
    """A reading, and the queues that the search before it found."""

    reading: BrokerReading
    discovered: frozenset[str]


class QueuesCollector:
    """Depth and age of queues."""

    name = "queues"

    def __init__(self, probe: QueueProbe, cluster: Cluster, *, interval_seconds: float, broker: str) -> None:
        self.interval_seconds = interval_seconds
        self._probe = probe
        self._cluster = cluster
        self._broker = broker
        self._polls = 0
        #: Why the broker shows less than it could; None when it shows all.
        self.problem: str | None = None
        #: Which right is missing for a part of it.
        self.refusal: str | None = None

    def question(self) -> frozenset[str]:
        """Return the queues that are known."""
        return self._cluster.queues.names()

    def ask(self, question: frozenset[str]) -> QueuesAnswer:
        """Read them and, now and then, look for others first."""
        discovered: frozenset[str] = frozenset()
        if self._polls % POLLS_PER_DISCOVERY == 0:
            discovered = self._probe.discover()
        reading = self._probe.collect(question | discovered)
        self._polls += 1
        return QueuesAnswer(reading, discovered)

    def take(self, answer: QueuesAnswer) -> None:
        """Bring the depths into the state."""
        for name in answer.discovered:
            self._cluster.queues.get(name)
        self._cluster.take_broker(answer.reading)
        self.problem = getattr(self._probe, "management_problem", None)
        self.refusal = getattr(self._probe, "refusal", None)

    def close(self) -> None:
        """Close the connection."""
        self._probe.close()


class WorkersQuestion(NamedTuple):
    """Whom to ask what."""

    #: Whether to ask everybody who answers for the facts, or just ``workers``, who may be none.
    roll_call: bool
    workers: frozenset[str]
    #: Workers never asked before, since they started: what are they at?
    strangers: frozenset[str]
    #: Workers whose task events are to be switched on, if that is wanted: they may be off, and nothing else counts.
    mute: frozenset[str]
    #: Task ids to ask after, by worker.
    suspects: dict[str, list[str]]


class WorkersAnswer(NamedTuple):
    """What they said."""

    readings: list[WorkerReading]
    active: list[tuple[str, ActiveTask]]
    #: Ids that a worker has not got any more, of those it was asked about.
    gone: dict[str, list[str]]


class WorkersCollector:
    """
    Facts about workers, and what they hold. Looks often whether there is something to ask, and asks seldom.

    *clock* is one that nobody sets back.
    """

    name = "workers"
    interval_seconds = 1.0

    def __init__(
        self,
        probe: ControlProbe,
        cluster: Cluster,
        *,
        round_seconds: float,
        enable_events: bool,
        broker: str,
        clock: Callable[[], float],
    ) -> None:
        self._probe = probe
        self._cluster = cluster
        self._round_seconds = round_seconds
        self._enable_events = enable_events
        self._broker = broker
        self._clock = clock
        self._rounds = 0
        self._next_round_at = float("-inf")
        self._invalid_replies = 0
        #: Workers that answered already, with the boot they were in.
        self._met: dict[str, int] = {}
        #: The same for those that are being asked; left over when the poll failed.
        self._asked: dict[str, int] | None = None

    def question(self) -> WorkersQuestion | None:
        """Return who is due to be asked, and what is not clear about tasks; None when nobody is due."""
        living = self._cluster.living_workers()
        strangers = frozenset(name for name, boots in living.items() if self._met.get(name) != boots)
        covered = self._cluster.covered_workers()
        if self._clock() < self._next_round_at:
            if not strangers or self._asked is not None:
                return None
            self._asked = living
            return WorkersQuestion(
                roll_call=False, workers=strangers, strangers=strangers, mute=strangers - covered, suspects={}
            )
        self._next_round_at = self._clock() + self._round_seconds
        roll_call = not living or self._rounds % ROUNDS_PER_ROLL_CALL == 0
        self._rounds += 1
        self._asked = living
        mute = (strangers - covered) | self._cluster.workers_without_task_events()
        return WorkersQuestion(roll_call, frozenset(living), strangers, mute, self._cluster.suspects())

    def ask(self, question: WorkersQuestion) -> WorkersAnswer:
        """Ask it."""
        readings: list[WorkerReading] = []
        if question.roll_call:
            readings = self._probe.collect(())
        elif question.workers:
            readings = self._probe.collect(question.workers)
        active = self._probe.active(question.strangers, reserved=True) if question.strangers else []
        if self._enable_events:
            for worker in question.mute:
                self._enable(worker)
        gone = {worker: self._gone(worker, ids) for worker, ids in question.suspects.items()}
        return WorkersAnswer(readings, active, gone)

    def take(self, answer: WorkersAnswer) -> None:
        """Bring what they said into the state."""
        self._met, self._asked = self._asked or {}, None
        invalid = self._probe.invalid_replies
        self._cluster.refused("reply", invalid - self._invalid_replies)
        self._invalid_replies = invalid
        self._cluster.take_workers(answer.readings)
        self._cluster.take_active(answer.active)
        for worker, ids in answer.gone.items():
            self._cluster.not_held(worker, ids)

    def close(self) -> None:
        """Leave nothing of ours on the broker."""
        self._probe.close()

    def _gone(self, worker: str, ids: list[str]) -> list[str]:
        try:
            held = self._probe.held(worker, ids)
        except ProbeFailed:
            return []  # not knowing is not the same as holding none
        return [task_id for task_id in ids if task_id not in held]

    def _enable(self, worker: str) -> None:
        try:
            self._probe.enable_events(worker)
        except ProbeFailed as error:
            log.warning("task events stay off", extra={"broker": self._broker, "worker": worker, "error": str(error)})


@dataclass(slots=True)
class SnapshotsAnswer:
    """What a poll of the snapshots brought, also one that then failed: what was read does not come again."""

    number: int
    old: list[AnySnapshot] = field(default_factory=list)
    new: list[AnySnapshot] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    #: Whether nothing was left to be read.
    is_complete: bool = False
    problem: Exception | None = None


class SnapshotsCollector:
    """What workers and beat tell of themselves. It does not read while *may_read* says no."""

    name = "snapshots"

    def __init__(
        self,
        source: SnapshotSource,
        cluster: Cluster,
        *,
        interval_seconds: float,
        may_read: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._interval_seconds = interval_seconds
        self._source = source
        self._cluster = cluster
        self._may_read = may_read
        self._clock = clock

    @property
    def interval_seconds(self) -> float:
        """Seconds from one poll to the next. A worker that is new to us by its events hurries the next one."""
        nobody_told = self._cluster.exporter.snapshots.value == 0
        return max(self._interval_seconds, UNTOLD_SECONDS) if nobody_told else self._interval_seconds

    def question(self) -> int | None:
        """Return the number of this poll."""
        return self._cluster.precedence.poll_begins() if self._may_read() else None

    def ask(self, question: int) -> SnapshotsAnswer:
        """Read what waits, and decode it."""
        answer = SnapshotsAnswer(question)
        decoder = SnapshotDecoder(lambda reason, count: answer.refused.update({reason: count}))
        size = 0
        try:
            self._source.settle()
            while size < SNAPSHOT_BYTES and (messages := self._source.read()):
                size += sum(len(message.body) for message in messages)
                for message in messages:
                    self._decode(message, decoder, answer)
        except Exception as error:  # noqa: BLE001  # whatever it was: what was read until then is taken in first
            answer.problem = error
        answer.is_complete = size < SNAPSHOT_BYTES
        return answer

    def _decode(self, message: Message, decoder: SnapshotDecoder, answer: SnapshotsAnswer) -> None:
        snapshot = decoder.message(message, self._clock())
        if snapshot is not None:
            (answer.old if message.is_old else answer.new).append(snapshot)

    def take(self, answer: SnapshotsAnswer) -> None:
        """Bring them into the state. Raises what went wrong while they were read."""
        now = self._clock()
        for reason, count in answer.refused.items():
            self._cluster.refused_snapshot(reason, count)
        self._cluster.take_snapshots(answer.old, answer.new, now)
        if answer.is_complete:
            self._cluster.snapshots_polled(answer.number, now, worked=answer.problem is None)
        elif self._cluster.precedence.hurry is not None:
            self._cluster.precedence.hurry()
        if answer.problem is not None:
            raise answer.problem

    def close(self) -> None:
        """Close the connection."""
        self._source.close()


class PublishingCollector:
    """Whether the broker takes messages: while it does not, the silence of workers says nothing about them."""

    name = "publishing"
    interval_seconds = 1.0

    def __init__(self, probe: PublishingProbe, cluster: Cluster, *, clock: Callable[[], float]) -> None:
        self._probe = probe
        self._cluster = cluster
        self._clock = clock

    def question(self) -> bool:
        """There is always something to ask."""
        return True

    def ask(self, question: bool) -> bool:  # noqa: ARG002  # there is but one
        """Ask whether publishers are made to wait."""
        return self._probe.is_blocked()

    def take(self, answer: bool) -> None:
        """Bring it into the state. Raises ProbeFailed while they are."""
        self._cluster.publishing(self._clock(), works=not answer)
        if answer:
            raise ProbeFailed(
                "RabbitMQ takes no messages, neither events nor tasks, since it is short of memory or disk:"
                " see rabbitmqctl status"
            )

    def close(self) -> None:
        """Close the connection."""
        self._probe.close()
