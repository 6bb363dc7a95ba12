"""
Whatever is heard, read and answered: the metrics page can be read, counters only rise, refusals are counted.

From bytes to the text of a scrape, without sockets. Real messages of real workers are damaged, since what is nearly
right goes further than noise.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from celery_lookout.events import EVENT_TYPES
from celery_lookout.intake.decode import EventDecoder
from celery_lookout.intake.snapshots import SnapshotDecoder
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.readings import (
    ActiveTask,
    BrokerReading,
    ConsumedQueue,
    QueueHead,
    QueueReading,
    WorkerReading,
)
from celery_lookout.state.cluster import Cluster, ClusterOptions, Limits
from celery_lookout.state.snapshots import MOVES
from tests.clusters import families, parse
from tests.hostile.damage import NUMBERS, TEXTS, as_bytes, damaged, recorded_bodies, recorded_snapshots, values

SERIES_LIMIT = 1_500
LIMITS = Limits(tasks_in_flight=200, task_names=8, queues=5, exceptions=5, workers=6)

#: Counts that workers keep themselves, and begin anew when they start again.
OF_WORKERS = "celery_worker_"

DROPPED = "celery_exporter_series_dropped_total"

carefully = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Pipeline:
    """All of the sidecar that is no socket, and a scraper that looks closely."""

    def __init__(self) -> None:
        self.registry = Registry(series_limit=SERIES_LIMIT)
        self.cluster = Cluster(
            Scope(self.registry, "shop"),
            ClusterOptions(limits=LIMITS, latency_slos={"celery": 1.0}),
            trace_id_of=lambda task_id: "4bf92f3577b34da6a3ce929d0e0e4736" if task_id else None,
        )
        self.events = EventDecoder(self.cluster.refused, accept_msgpack=True)
        self.snapshots = SnapshotDecoder(self.cluster.refused_snapshot)
        self.now = recorded_bodies()[0][0]
        self._before: dict[str, float] = {}
        self.cluster.tick(self.now)

    def hear(self, body: bytes, at: float | None = None, *, msgpack: bool = False) -> None:
        self.now = max(self.now, at or 0.0)
        self.cluster.fold(self.events.body(body, self.now, msgpack=msgpack), self.now)

    def poll(self, body: bytes) -> None:
        number = self.cluster.precedence.poll_begins()
        snapshot = self.snapshots.body(body, self.now)
        self.cluster.take_snapshots([], [snapshot] if snapshot is not None else [], self.now)
        self.cluster.snapshots_polled(number, self.now, worked=True)

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self.cluster.tick(self.now)

    def scrape(self) -> dict[str, float]:
        """Return all series, after a look at every promise of ``/metrics``."""
        self.cluster.refresh(self.now)
        text = self.registry.render()
        shown = parse(text)
        lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
        twice = [name for name, number in Counter(lines).items() if number > 1]
        assert twice == []
        samples = [sample for family in families(text) for sample in family.samples]
        assert len(samples) == len(lines)
        with_exemplars = self.registry.render(openmetrics=True) + "# EOF\n"
        assert sum(len(family.samples) for family in families(with_exemplars, openmetrics=True)) == len(lines)
        text.encode()
        assert sum(not line.startswith(DROPPED) for line in lines) <= SERIES_LIMIT
        assert {name: value for name, value in shown.items() if not math.isfinite(value)} == {}
        counts = {name: value for name, value in shown.items() if self._is_count(name)}
        fallen = {name: value for name, value in self._before.items() if counts.get(name, -1) < value}
        assert fallen == {}
        self._before = counts
        # A fault is an exception of ours that was caught at the last moment.
        faults = {name: value for name, value in shown.items() if 'reason="fault"' in name and value}
        assert faults == {}
        json.dumps(self.cluster.summary())
        return shown

    @staticmethod
    def _is_count(name: str) -> bool:
        family = name.partition("{")[0]
        return family.endswith(("_total", "_bucket", "_count", "_sum")) and not family.startswith(OF_WORKERS)


@carefully
@given(st.integers(0, 2**32))
def test_damaged_events_of_real_workers(seed: int) -> None:
    chance = random.Random(seed)
    pipeline = Pipeline()
    bodies = recorded_bodies()
    begin = chance.randrange(len(bodies))
    for at, body in bodies[begin : begin + 25]:
        pipeline.now = at  # recordings are of different days
        harm = chance.random() < 0.7
        pipeline.hear(as_bytes(damaged(body, chance), chance) if harm else json.dumps(body).encode(), at)
    pipeline.scrape()
    pipeline.wait(70)
    pipeline.scrape()


@carefully
@given(st.integers(0, 2**32))
def test_damaged_snapshots(seed: int) -> None:
    chance = random.Random(seed)
    pipeline = Pipeline()
    bodies = recorded_snapshots()
    pipeline.now = max(body.get("at", 0.0) for body in bodies)
    for _ in range(6):
        pipeline.poll(as_bytes(damaged(chance.choice(bodies), chance, wounds=4), chance))
        if chance.random() < 0.4:
            pipeline.scrape()
        pipeline.wait(chance.choice([0, 1, 40]))
    pipeline.scrape()


texts = st.sampled_from(TEXTS) | st.text(max_size=30)


def event_fields(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return events that are nearly right, of one type."""
    number = st.sampled_from(NUMBERS) | st.integers(0, 10) | st.floats()
    return st.fixed_dictionaries(
        {"type": st.just(kind), "timestamp": st.floats(-2, 2) | st.sampled_from(NUMBERS)},
        optional={
            "hostname": texts,
            "uuid": st.sampled_from(["a", "b", "c", *TEXTS]),
            "name": texts,
            "queue": texts,
            "exchange": texts,
            "routing_key": texts,
            "retries": number,
            "eta": texts,
            "runtime": number,
            "exception": texts,
            "traceback": texts,
            "requeue": st.booleans(),
            "terminated": st.booleans(),
            "expired": st.booleans(),
            "pid": number,
            "freq": number,
            "active": number,
            "processed": number,
            "loadavg": st.lists(number, min_size=2, max_size=4),
            "sw_ver": texts,
            "clock": number,
            "args": values,
        },
    )


def packed(body: Any, *, msgpack: bool) -> bytes:
    """Return *body* as JSON or msgpack, whose numbers can be infinite; what msgpack cannot say is left to JSON."""
    if msgpack:
        with contextlib.suppress(OverflowError, UnicodeEncodeError):
            return msgspec.msgpack.encode(body)
    return json.dumps(body).encode()


events = st.sampled_from([*EVENT_TYPES, "task-nz", "worker-nz"]).flatmap(event_fields)


@carefully
@given(st.lists(st.lists(events, max_size=4), max_size=6), st.booleans())
@example([[{"type": "task-succeeded", "timestamp": 0.0, "uuid": name, "runtime": 1e308}] for name in "abc"], False)
@example([[{"type": "worker-heartbeat", "timestamp": 0.0, "hostname": name}] for name in ("a\x01", "a\x02")], False)
@example([[{"type": "task-sent", "timestamp": 0.0, "uuid": name, "name": name}] for name in ("a\x01", "a\x02")], False)
@example([[{"type": "worker-heartbeat", "timestamp": 0.0, "hostname": "w", "loadavg": [float("nan")] * 3}]], True)
def test_made_up_events(batches: list[list[dict[str, Any]]], msgpack: bool) -> None:
    pipeline = Pipeline()
    for batch in batches:
        made = [{**event, "timestamp": pipeline.now + event["timestamp"]} for event in batch]
        pipeline.hear(packed(made, msgpack=msgpack), msgpack=msgpack)
        pipeline.wait(2)
        pipeline.scrape()


def rows() -> st.SearchStrategy[list[dict[str, Any]]]:
    """Return rows of a snapshot with totals that are nearly right."""
    number = st.integers(0, 20) | st.sampled_from(NUMBERS) | st.floats(0, 1e18)
    keys = st.sampled_from([*MOVES, "exception:a", "exception:a\x01", "exception:a\x02", "retry_exception:", *TEXTS])
    exemplar = st.tuples(
        st.sampled_from(["4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32, "x"]), texts, number, number
    ).map(list)
    return st.lists(
        st.fixed_dictionaries(
            {
                "task": st.sampled_from(["add", *TEXTS]),
                "queue": st.sampled_from(["celery", *TEXTS]),
                "totals": st.dictionaries(keys, st.tuples(number, number).map(list), max_size=6),
            },
            optional={
                "last_success_at": number,
                "last_failure_at": number,
                "exemplars": st.dictionaries(keys, exemplar, max_size=4),
            },
        ),
        max_size=3,
    )


@st.composite
def made_up_snapshots(draw: st.DrawFn) -> dict[str, Any]:
    """A snapshot of a worker or of beat, relative to now."""
    count = st.integers(0, 9) | st.sampled_from(NUMBERS)
    head = {
        "v": 1,
        "node": draw(st.sampled_from(["w@h", "v@h"]) | texts),
        "boot": draw(st.sampled_from(["a", "b"])),
        "seq": draw(st.integers(0, 9) | st.sampled_from([2**53, 2**53 - 1])),
        "at": draw(st.floats(-50, 50)),
        "started_at": draw(st.floats(0, 1e11)),
        "interval": draw(st.sampled_from([1, 5, 3600])),
        "final": draw(st.booleans()),
    }
    if draw(st.booleans()):
        entry = st.fixed_dictionaries(
            {"entry": texts, "task": texts}, optional={"last_sent_at": count, "next_due_at": count}
        )
        return head | {"kind": "beat", "entries": draw(st.lists(entry, max_size=3))}
    running = st.tuples(texts, texts, count, count, st.floats(0, 1e11)).map(list)
    return head | {
        "kind": "worker",
        "counts": draw(st.booleans()),
        "processed": draw(st.integers(0, 2**53)),
        "rows": draw(rows()),
        "queues": draw(st.lists(texts, max_size=3)),
        "running": draw(st.none() | st.lists(running, max_size=2)),
        "child_exits": draw(st.dictionaries(texts, st.integers(0, 2**53), max_size=3)),
        "failures_left_out": draw(st.integers(0, 2**53)),
        **draw(
            st.dictionaries(st.sampled_from(["slots", "active", "reserved", "scheduled", "memory", "faults"]), count)
        ),
    }


@carefully
@given(st.lists(made_up_snapshots(), max_size=5))
def test_made_up_snapshots(bodies: list[dict[str, Any]]) -> None:
    pipeline = Pipeline()
    for body in bodies:
        pipeline.poll(json.dumps({**body, "at": pipeline.now + body["at"]}).encode())
        pipeline.wait(1)
        pipeline.scrape()


names = st.sampled_from(["celery", "mail", *TEXTS])
numbers = st.none() | st.integers(-5, 5) | st.sampled_from([2**63, 10**30])
times = st.none() | st.floats(0, 2e9) | st.sampled_from([1e12, 2.0**64])
heads = st.builds(QueueHead, st.none() | names, times)
queue_readings = st.builds(
    QueueReading,
    names,
    st.integers(0, 2**63),
    st.dictionaries(st.integers(0, 9), st.integers(0, 9), max_size=3),
    numbers,
    numbers,
    st.none() | heads,
    st.lists(heads, max_size=3).map(tuple),
)
consumed = st.builds(ConsumedQueue, names, names, names)
worker_readings = st.builds(
    WorkerReading,
    st.sampled_from(["w@h", "v@h"]),
    st.floats(1.8e9, 1.9e9),
    st.none() | names,
    st.none() | st.integers(0, 2**53),
    st.none() | st.integers(0, 2**53),
    st.none() | st.integers(0, 2**53),
    st.none() | st.integers(0, 2**63),
    st.none() | st.floats(0, 2.0**53),
    st.none() | st.lists(consumed, max_size=3).map(tuple),
)
active_tasks = st.tuples(
    st.sampled_from(["w@h", "v@h"]),
    st.builds(ActiveTask, names, names, names, names, st.none() | st.floats(0, 2.0**53)),
)


@carefully
@given(
    st.lists(queue_readings, max_size=4),
    st.lists(worker_readings, max_size=3),
    st.lists(active_tasks, max_size=4),
    st.lists(events, max_size=4),
)
def test_readings_of_any_broker_and_answers_of_any_worker(
    queues: list[QueueReading],
    workers: list[WorkerReading],
    active: list[tuple[str, ActiveTask]],
    heard: list[dict[str, Any]],
) -> None:
    pipeline = Pipeline()
    pipeline.cluster.take_broker(
        BrokerReading(pipeline.now, tuple(queues), unacked=1, oldest_unacked_at=1e12, delayed=2)
    )
    pipeline.cluster.take_workers(workers)
    pipeline.cluster.take_active(active)
    pipeline.hear(json.dumps([{**event, "timestamp": pipeline.now + event["timestamp"]} for event in heard]).encode())
    pipeline.scrape()
    pipeline.cluster.take_broker(BrokerReading(pipeline.now + 1, tuple(queues[:1])))
    pipeline.wait(70)
    pipeline.scrape()


@pytest.mark.prometheus
def test_promtool_can_read_a_page_of_odd_names(promtool: Path) -> None:
    pipeline = Pipeline()
    pipeline.registry.series_limit = 200_000
    for number, text in enumerate(TEXTS):
        name = text.encode("utf-8", "replace").decode()[:200]
        task = {"timestamp": pipeline.now, "uuid": f"id{number}", "hostname": name or "w"}
        batch = [
            {"type": "task-sent", **task, "name": name, "queue": name},
            {"type": "worker-heartbeat", **task, "sw_ver": name},
            {"type": "task-started", **task},
            {"type": "task-failed", **task, "exception": f"{name}()", "traceback": name},
        ]
        pipeline.hear(json.dumps(batch).encode())
    pipeline.scrape()
    text = pipeline.registry.render()
    result = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert result.returncode in (0, 3), result.stderr  # 3: it has opinions on names
