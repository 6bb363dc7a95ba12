"""
A cluster without processes: events in, changed series out.

Times are seconds after ``EPOCH``, on the clock of everybody; a test that is about clocks says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import prometheus_client.openmetrics.parser
import prometheus_client.parser

from celery_lookout.events import Event
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.snapshots import AnySnapshot, BeatSnapshot, WorkerSnapshot
from celery_lookout.state.cluster import Cluster, ClusterOptions
from celery_lookout.state.restoring import ClusterReader
from celery_lookout.state.saved import SavedRecord
from celery_lookout.state.saving import saved

EPOCH = 1_800_000_000.0

MSGPACK = msgspec.msgpack.Decoder(list[SavedRecord])

#: Series that every event or mere time moves.
_BOOKKEEPING = (
    "celery_exporter_events_total",
    "celery_exporter_last_event_timestamp_seconds",
    "celery_exporter_event_lag_seconds",
    "celery_exporter_tasks_tracked",
    "celery_task_oldest_running_seconds",
)


def parse(text: str) -> dict[str, float]:
    """Return exposition text as series to value, in its order."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in lines}


def families(text: str, *, openmetrics: bool = False) -> list[Any]:
    """Return what prometheus-client's own parser makes of exposition text; it raises ValueError where it cannot."""
    module: Any = prometheus_client.openmetrics.parser if openmetrics else prometheus_client.parser
    return list(module.text_string_to_metric_families(text))


class Watched:
    """A cluster, its registry and its clock."""

    def __init__(
        self,
        options: ClusterOptions | None = None,
        *,
        registry: Registry | None = None,
        broker: str | None = None,
        trace_id_of: Callable[[str], str | None] | None = None,
        begun: bool = True,
    ) -> None:
        self.options = options or ClusterOptions()
        self.registry = registry or Registry()
        scope = Scope(self.registry, broker)
        self.cluster = Cluster(scope, self.options, trace_id_of=trace_id_of)
        self.seconds = 0.0
        #: Of what an earlier process had saved.
        self.left_out = 0
        self._seen: dict[str, float] = {}
        if begun:
            self.cluster.tick(EPOCH)

    @property
    def now(self) -> float:
        """The time as the cluster is told it."""
        return EPOCH + self.seconds

    def hear(self, *events: Event, at: float | None = None, live: bool = True) -> None:
        """Fold events in one batch, read *at*: when the last of them happened, unless said otherwise."""
        latest = max((event.timestamp - EPOCH for event in events), default=0.0)
        self.wait_until(max(self.seconds, latest) if at is None else at)
        self.cluster.fold(events, self.now, live=live)

    def hear_each(self, events: Iterable[Event]) -> None:
        """Fold events one by one, each when it happened."""
        for event in events:
            self.hear(event)

    def expect_snapshots(self) -> list[float]:
        """From now on somebody polls them; return the times at which a poll was asked for, a list that grows."""
        asked: list[float] = []
        self.cluster.precedence.hurry = lambda: asked.append(self.seconds)
        return asked

    def poll(self, *snapshots: AnySnapshot, old: Iterable[AnySnapshot] = (), works: bool = True) -> None:
        """A poll of the snapshots that begins and ends now."""
        number = self.cluster.precedence.poll_begins()
        self.cluster.take_snapshots(old, snapshots, self.now)
        self.cluster.snapshots_polled(number, self.now, worked=works)

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick every second."""
        self.wait_until(self.seconds + seconds)

    def wait_until(self, seconds: float) -> None:
        while self.seconds < seconds:
            self.seconds = min(self.seconds + 1.0, seconds)
            self.cluster.tick(self.now)

    def restarted(
        self, *, away: float = 0.0, loses: bool = False, options: ClusterOptions | None = None, series: int = 200_000
    ) -> Watched:
        """Return what the next process knows, *away* seconds later: what is saved of this one, through its bytes."""
        records = MSGPACK.decode(msgspec.msgpack.encode(list(saved(self.cluster, self.now))))
        after = Watched(options or self.options, registry=Registry(series_limit=series), begun=False)
        after.cluster.precedence.hurry = self.cluster.precedence.hurry
        after.seconds = self.seconds + away
        return after._put_together(records, loses=loses)

    @classmethod
    def of(cls, records: Iterable[SavedRecord]) -> Watched:
        """Return what is made of saved *records*."""
        return cls(begun=False)._put_together(records, loses=False)

    def _put_together(self, records: Iterable[SavedRecord], *, loses: bool) -> Watched:
        reader = ClusterReader(self.cluster, loses=loses)
        for record in records:
            reader.take(record)
        reader.finish(self.now)
        self.left_out = reader.left_out
        self.cluster.broker_lost(self.now)
        self.cluster.broker_found(self.now, gap=loses)
        return self

    def series(self, prefix: str = "") -> dict[str, float]:
        """Return what a scrape would show now of the families that begin with *prefix*."""
        self.cluster.refresh(self.now)
        return {name: value for name, value in parse(self.registry.render()).items() if name.startswith(prefix)}

    def exemplars(self) -> dict[str, tuple[dict[str, str], float, float]]:
        """Return the exemplars of a scrape, by series: their labels, their value, and their time as in the tests."""
        text = self.registry.render(openmetrics=True) + "# EOF\n"
        samples = [sample for family in families(text, openmetrics=True) for sample in family.samples]
        return {
            series(sample.name, **sample.labels): (
                sample.exemplar.labels,
                sample.exemplar.value,
                round(float(sample.exemplar.timestamp) - EPOCH, 3),
            )
            for sample in samples
            if sample.exemplar is not None
        }

    def changes(self, prefix: str = "celery_task_") -> dict[str, float]:
        """
        Return the series that moved since the last call, and by how much.

        A series that was born at 0 did not move; one that vanished moved to nothing, NaN. Buckets are left out, since
        ``_count`` and ``_sum`` speak for them.
        """
        before, self._seen = self._seen, self.series()
        moved = {name: value - before.get(name, 0.0) for name, value in self._seen.items()}
        moved |= {name: float("nan") for name in before.keys() - self._seen.keys()}
        return {
            name: round(value, 3)
            for name, value in moved.items()
            if value != 0 and name.startswith(prefix) and "_bucket{" not in name and not name.startswith(_BOOKKEEPING)
        }


def of(name: str, *, task: str = "add", queue: str = "celery", **labels: str) -> str:
    """Return the series of a task family: ``of("failed_total")``."""
    return series(f"celery_task_{name}", task=task, queue=queue, **labels)


def of_worker(name: str, worker: str = "w@h", **labels: str) -> str:
    """Return the series of a worker's family: ``of_worker("up")``."""
    return series(f"celery_worker_{name}", worker=worker, **labels)


def series(name: str, **labels: str) -> str:
    """Return a series as the exposition has it."""
    shown = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{shown}}}" if shown else name


def kept(shown: dict[str, float]) -> dict[str, float]:
    """Return what a state file keeps, counters, histograms and times of outcomes; sums without their last digits."""
    endings = ("_total", "_bucket", "_count", "_sum", "_success_timestamp_seconds", "_failure_timestamp_seconds")
    own = "celery_worker_"
    return {
        name: round(value, 6)
        for name, value in shown.items()
        if name.partition("{")[0].endswith(endings) and not name.startswith((own, "celery_exporter_collector"))
    }


def task_event(kind: str, at: float, *, uuid: str = "id", worker: str = "w@h", **fields: Any) -> Event:
    """Return an event of one task; *kind* is the part of the type after ``task-``."""
    return Event(type=f"task-{kind}", timestamp=EPOCH + at, hostname=worker, uuid=uuid, **fields)


def sent(at: float, *, name: str = "add", queue: str | None = "celery", retries: int = 0, **fields: Any) -> Event:
    return task_event("sent", at, worker="gen1@h", name=name, queue=queue, retries=retries, **fields)


def received(at: float, *, name: str = "add", retries: int = 0, **fields: Any) -> Event:
    return task_event("received", at, name=name, retries=retries, **fields)


def started(at: float, **fields: Any) -> Event:
    return task_event("started", at, **fields)


def succeeded(at: float, *, runtime: float | None = 0.5, **fields: Any) -> Event:
    return task_event("succeeded", at, runtime=runtime, **fields)


def failed(at: float, *, exception: str = "ValueError('x')", **fields: Any) -> Event:
    return task_event("failed", at, exception=exception, **fields)


def retried(at: float, *, exception: str = "OSError('x')", **fields: Any) -> Event:
    return task_event("retried", at, exception=exception, **fields)


def rejected(at: float, *, requeue: bool, **fields: Any) -> Event:
    return task_event("rejected", at, requeue=requeue, **fields)


def revoked(at: float, *, expired: bool = False, terminated: bool = False, **fields: Any) -> Event:
    return task_event("revoked", at, expired=expired, terminated=terminated, **fields)


def worker_event(kind: str, at: float, *, worker: str = "w@h", **fields: Any) -> Event:
    """Return an event of a worker; *kind* is the part of the type after ``worker-``."""
    known: Mapping[str, Any] = {"pid": 1, "freq": 2.0, "active": 0, "processed": 0, "loadavg": (0.1, 0.2, 0.3)}
    return Event(type=f"worker-{kind}", timestamp=EPOCH + at, hostname=worker, **{**known, **fields})


def heartbeat(at: float, **fields: Any) -> Event:
    return worker_event("heartbeat", at, **fields)


def online(at: float, **fields: Any) -> Event:
    return worker_event("online", at, **fields)


def offline(at: float, **fields: Any) -> Event:
    return worker_event("offline", at, **fields)


def row(task: str = "add", queue: str = "celery", /, **totals: Any) -> dict[str, Any]:
    """Return a row of a snapshot; a total alone is that since boot. In *totals*, ``__`` stands for a colon."""
    return {
        "task": task,
        "queue": queue,
        "totals": {
            key.replace("__", ":"): total if isinstance(total, tuple) else (0, total) for key, total in totals.items()
        },
    }


def snapshot(at: float, *rows: Mapping[str, Any], worker: str = "w@h", **fields: Any) -> WorkerSnapshot:
    """Return a snapshot of a worker that booted at 0, written *at*; later ones have a higher number by themselves."""
    known: dict[str, Any] = {
        "v": 1, "kind": "worker", "node": worker, "boot": "a", "seq": int(at) + 1, "at": EPOCH + at,
        "started_at": EPOCH, "interval": 5.0, "final": False, "counts": True, "processed": 0, "pid": 1,
        "rows": rows, "running": [],
    }  # fmt: skip
    return msgspec.convert({**known, **fields}, WorkerSnapshot)


def beat_snapshot(at: float, *entries: Mapping[str, Any], beat: str = "beat@h", **fields: Any) -> BeatSnapshot:
    """The same for beat."""
    known: dict[str, Any] = {
        "v": 1, "kind": "beat", "node": beat, "boot": "a", "seq": int(at) + 1, "at": EPOCH + at,
        "started_at": EPOCH, "interval": 5.0, "final": False, "entries": entries,
    }  # fmt: skip
    return msgspec.convert({**known, **fields}, BeatSnapshot)


def beat_on(watched: Watched, seconds: int, *, processed: int = 0, **fields: int) -> None:
    """Let the worker live on, with a heartbeat every two seconds."""
    start = int(watched.seconds)
    watched.hear_each(heartbeat(second, processed=processed, **fields) for second in range(start, start + seconds, 2))


def run_tasks(watched: Watched, count: int) -> None:
    """Let the worker run tasks."""
    at = watched.seconds
    for number in range(count):
        name = f"t{number}-{at}"
        watched.hear(sent(at, uuid=name), received(at, uuid=name), started(at, uuid=name), succeeded(at, uuid=name))
