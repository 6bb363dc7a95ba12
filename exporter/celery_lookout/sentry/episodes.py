"""
Trouble that is no task's failure, told once each time it begins: the broker is down, a queue stuck, a worker gone.

Alerts say it sooner and until it is over; this is for those who look into Sentry first.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from ..state.cluster import Cluster
from ..state.records import NO_WORK
from ..state.workers import Worker

EpisodeKind = Literal["broker_down", "queue_stuck", "worker_vanished"]

#: Seconds without the broker that are an episode: a restart takes less.
BROKER_DOWN_SECONDS: Final = 60.0

#: A task that runs for less than this is a reason for its queue to wait.
RUNNING_SECONDS: Final = 3600.0

_IDS: Final = uuid.UUID("0d6dbd2e-9bb0-5a5f-a2f2-6a7e7a4de0b5")

_CLASSES: Final[dict[EpisodeKind, str]] = {
    "broker_down": "BrokerDown",
    "queue_stuck": "QueueStuck",
    "worker_vanished": "WorkerVanished",
}


class Episode(NamedTuple):
    """One trouble that began."""

    kind: EpisodeKind
    #: The queue, the worker, or the broker.
    subject: str
    #: Unix time.
    began_at: float
    what: str


class Episodes:
    """
    Finds the troubles of one broker's cluster, as it was when it was refreshed last.

    *name* is what to call the broker. A queue is stuck after *stuck_after* seconds.
    """

    def __init__(self, cluster: Cluster, name: str, *, stuck_after: float) -> None:
        self._cluster = cluster
        self._name = name
        self._stuck_after = stuck_after
        self._down_since: float | None = None
        #: What was told already and is not over.
        self._told: set[tuple[EpisodeKind, str]] = set()
        #: For each queue with tasks in it, since when nothing came of them, and how much had come of tasks until then.
        self._still: dict[str, tuple[float, float]] = {}

    def look(self, now: float) -> Iterator[Episode]:
        """Yield what has begun by *now* and was not told yet. Call it every few seconds."""
        found: dict[tuple[EpisodeKind, str], Episode] = {(one.kind, one.subject): one for one in self._all(now)}
        for key, episode in found.items():
            if key not in self._told:
                yield episode
        self._told = set(found)

    def _all(self, now: float) -> Iterator[Episode]:
        yield from self._broker(now)
        for worker in self._cluster.workers:
            if _has_vanished(worker, self._cluster.workers.clock(now)):
                what = f"{worker.name} fell silent without saying goodbye"
                yield Episode("worker_vanished", worker.name, worker.last_heartbeat or now, what)
        yield from self._queues(now)

    def _broker(self, now: float) -> Iterator[Episode]:
        if self._cluster.exporter.broker_up.value:
            self._down_since = None
            return
        # The clock may have been set back.
        self._down_since = now if self._down_since is None else min(self._down_since, now)
        if now - self._down_since >= BROKER_DOWN_SECONDS:
            what = f"the broker {self._name} has not answered for {now - self._down_since:.0f} seconds"
            yield Episode("broker_down", self._name, self._down_since, what)

    def _queues(self, now: float) -> Iterator[Episode]:
        work = self._cluster.tasks.work()
        waiting = self._audible()
        self._still = {name: still for name, still in self._still.items() if name in waiting}
        for name, ready in waiting.items():
            done, oldest_running = work.get(name, NO_WORK)
            since, before = self._still.get(name, (now, done))
            if done != before or 0 < oldest_running < RUNNING_SECONDS:
                since = now
            since = min(since, now)  # as above
            self._still[name] = since, done
            if now - since >= self._stuck_after:
                what = f"{ready} tasks wait in {name}, and none has started or ended for {now - since:.0f} seconds"
                yield Episode("queue_stuck", name, since, what)

    def _audible(self) -> dict[str, int]:
        """Return how many tasks wait in each queue of which it would be known if one started."""
        if not self._cluster.exporter.broker_up.value:
            return {}
        silent = self._cluster.workers_without_task_events()
        unknown = {queue.name for worker in self._cluster.workers if worker.name in silent for queue in worker.queues}
        return {name: ready for name, ready in self._cluster.queues.waiting().items() if name not in unknown}


def _has_vanished(worker: Worker, now: float) -> bool:
    return not worker.graceful and worker.last_heartbeat is not None and not worker.is_alive(now)


def episode_event(episode: Episode) -> dict[str, Any]:
    """Return the Sentry event of *episode*."""
    # Two sidecars do not see it begin at the same second; mostly they do in the same minute.
    began = f"{episode.kind}\0{episode.subject}\0{episode.began_at / 60:.0f}"
    event: dict[str, Any] = {
        "event_id": uuid.uuid5(_IDS, began).hex,
        "timestamp": datetime.now(UTC).timestamp(),
        "level": "error",
        "platform": "python",
        "logger": "celery-lookout",
        "exception": {
            "values": [
                {
                    "type": _CLASSES[episode.kind],
                    "value": episode.what,
                    "mechanism": {"type": "celery-lookout", "handled": True},
                }
            ]
        },
        "fingerprint": ["celery-lookout", episode.kind, _group(episode)],
        "tags": {"kind": episode.kind},
    }
    if episode.kind == "queue_stuck":
        event["tags"]["queue"] = episode.subject
    elif episode.kind == "worker_vanished":
        event["tags"]["worker"] = episode.subject
        event["server_name"] = episode.subject.rpartition("@")[2]
    return event


def _group(episode: Episode) -> str:
    """Return what makes two episodes one issue: of workers the name before the host, which is often a pod's."""
    return episode.subject.partition("@")[0] if episode.kind == "worker_vanished" else episode.subject
