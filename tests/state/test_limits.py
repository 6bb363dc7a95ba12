"""Whatever arrives, what is shown and what is remembered stay within their limits, and what is left out is counted."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout.events import Event
from celery_lookout.metrics.labels import LabelRules, Labels, Rename
from celery_lookout.metrics.registry import Counter as Series
from celery_lookout.metrics.registry import Registry
from celery_lookout.metrics.tasks import SERIES_AT_FIRST
from celery_lookout.readings import ActiveTask, BrokerReading, ConsumedQueue, QueueReading, WorkerReading
from celery_lookout.state.cluster import ClusterOptions, Limits
from celery_lookout.state.records import Row
from celery_lookout.state.workers import KEEP_SECONDS, Worker
from tests.clusters import (
    EPOCH,
    Watched,
    beat_snapshot,
    failed,
    families,
    heartbeat,
    of,
    offline,
    received,
    retried,
    row,
    sent,
    series,
    snapshot,
    started,
    succeeded,
)

#: The counters of what is left out, and those without which nothing else could be told.
ALWAYS = "celery_exporter_series_dropped_total"

SMALL = Limits(tasks_in_flight=20, task_names=3, queues=3, exceptions=2, workers=3)

names = st.integers(0, 9).map(lambda number: f"name-{number}") | st.text('ab"\\\n{é, ', max_size=5)


@st.composite
def inputs(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """What brokers, workers and forgers may bring, with more names than there is room for."""

    def event() -> Event:
        make: Callable[..., Event] = draw(
            st.sampled_from([sent, received, started, succeeded, failed, retried, heartbeat, offline])
        )
        at = draw(st.integers(0, 30)) + draw(st.integers(0, 99)) / 100
        fields: dict[str, Any] = {}
        if make in (sent, received):
            fields = {"name": draw(names)}
        if make is sent:
            fields["queue"] = draw(names)
        else:
            fields["worker"] = draw(names)
        if make in (failed, retried):
            fields["exception"] = f"{draw(names)}()"
        if make is heartbeat:
            fields |= {"sw_ver": draw(names), "pid": draw(st.integers(1, 3))}
        if make not in (heartbeat, offline):
            fields["uuid"] = draw(names)
        return make(at, **fields)

    def told() -> Any:
        totals = {"started": draw(st.integers(0, 9)), f"exception:{draw(names)}": 1, "peak:0": 1}
        rows = [row(draw(names), draw(names), **totals) for _ in range(draw(st.integers(0, 3)))]
        exits = {draw(names): 1, "killed": 2}
        fields: dict[str, Any] = {"celery": draw(names), "pool": draw(names), "child_exits": exits}
        return snapshot(
            draw(st.integers(0, 30)), *rows, worker=draw(names) or "w", boot=draw(st.text(min_size=1)), **fields
        )

    def schedule() -> Any:
        entries = [{"entry": draw(names), "task": draw(names), "next_due_at": 5.0} for _ in range(3)]
        return beat_snapshot(draw(st.integers(0, 30)), *entries, beat=draw(names) or "beat")

    def reading() -> BrokerReading:
        ready, priority = draw(st.integers(0, 3)), draw(st.integers(0, 9))
        return BrokerReading(EPOCH, (QueueReading(draw(names), ready, {0: 1, priority: 1}, unacked=1, consumers=2),))

    def answer() -> WorkerReading:
        queue = ConsumedQueue(draw(names), "", "")
        return WorkerReading(draw(names), EPOCH, draw(names), 2, 1, 7, 10**8, 5.5, (queue,))

    def active() -> tuple[str, ActiveTask]:
        return draw(names), ActiveTask(draw(names), draw(names), "", draw(names), EPOCH)

    makers = {
        "event": event, "worker": told, "beat": schedule, "broker": reading, "answer": answer, "active": active,
    }  # fmt: skip
    kinds = st.sampled_from(sorted(makers))
    return [(kind, makers[kind]()) for kind in draw(st.lists(kinds, max_size=40))]


def bring(watched: Watched, things: Iterable[tuple[str, Any]]) -> None:
    cluster = watched.cluster
    for kind, thing in things:
        watched.wait(0.3)
        if kind == "event":
            watched.hear(thing, at=watched.seconds)
        elif kind in ("worker", "beat"):
            watched.poll(thing)
        elif kind == "broker":
            cluster.take_broker(thing)
        elif kind == "answer":
            cluster.take_workers([thing])
        else:
            cluster.take_active([thing])


def small_rules(renames: bool) -> Labels:
    if not renames:
        return Labels()
    rules = LabelRules(deny=("name-1",), renames=(Rename.parse("name-([5-9])=n", "label.task-rename"),))
    return Labels(rules, rules, rules)


@settings(max_examples=60, deadline=None)
@given(inputs(), st.booleans(), st.sampled_from([0, 60, 150, 400, 10_000]))
def test_never_more_series_than_the_limit_whatever_arrives(
    things: list[tuple[str, Any]], renames: bool, limit: int
) -> None:
    registry = Registry(series_limit=limit)
    options = ClusterOptions(limits=SMALL, labels=small_rules(renames), latency_slos={"slow": 5.0}, queues=("name-2",))
    watched = Watched(options, registry=registry)
    watched.cluster.broker_found(watched.now, gap=False)
    for part in (things[: len(things) // 2], things[len(things) // 2 :]):
        bring(watched, part)
        watched.cluster.refresh(watched.now)
        text = registry.render()
        samples = [sample for family in families(text) for sample in family.samples]
        shown = [sample for sample in samples if sample.name != ALWAYS]
        assert len(shown) <= limit
        assert registry.series == len(samples)
        values = {
            label: {sample.labels[label] for sample in shown if sample.name.startswith("celery_task_")}
            - {"_other", "unknown"}
            for label in ("task", "queue")
        }
        assert all(len(found) <= 3 for found in values.values())
        workers = {sample.labels["worker"] for sample in shown if sample.name.startswith("celery_worker_")}
        assert len(workers) <= SMALL.workers
        assert len(watched.cluster.tasks._rows) <= limit // SERIES_AT_FIRST + SMALL.queues + 3
        assert len(watched.cluster.tasks._tasks) <= SMALL.tasks_in_flight


@settings(max_examples=60, deadline=None)
@given(inputs())
def test_totals_are_those_without_limits(things: list[tuple[str, Any]]) -> None:
    """What is not shown by its name is counted all the same, once."""
    events = [(kind, thing) for kind, thing in things if kind == "event"]
    totals = []
    for options in (
        ClusterOptions(),
        ClusterOptions(limits=Limits(task_names=1, queues=1, exceptions=1), labels=small_rules(True)),
    ):
        watched = Watched(options)
        bring(watched, events)
        watched.wait(2)
        found: Counter[str] = Counter()
        for name, value in watched.series("celery_task_").items():
            if name.partition("{")[0].endswith(("_total", "_count")):
                found[name.partition("{")[0]] += int(value)
        totals.append(found)
    assert totals[0] == totals[1]


def test_the_first_series_of_a_task_are_as_many_as_is_said() -> None:
    watched = Watched()
    before = watched.registry.series
    watched.cluster.tasks.row("add", "celery")
    assert watched.registry.series - before == SERIES_AT_FIRST


def test_without_room_for_another_task_it_counts_with_the_others_of_its_queue() -> None:
    """A row that is not shown would cost as much memory as one that is, and there may be two million of them."""
    registry = Registry(series_limit=3 * SERIES_AT_FIRST)
    watched = Watched(ClusterOptions(), registry=registry)
    for number in range(100):
        watched.hear(sent(number / 10, uuid=str(number), name=f"t{number}", queue=f"q{number % 2}"))
    rows = watched.cluster.tasks._rows
    assert {key for key in rows if key[0] == "_other"} == {("_other", "q0"), ("_other", "q1")}
    assert len(rows) <= 4
    assert sum(row.series.sent.value for row in rows.values()) == 100
    assert watched.series()[series(ALWAYS, metric="celery_task_sent_total")] >= 96


def test_memory_does_not_grow_with_names_past_the_limits() -> None:
    limits = Limits(task_names=20, queues=20, exceptions=5, workers=20)
    watched = Watched(ClusterOptions(limits=limits))

    def flood(begin: int, end: int) -> None:
        for number in range(begin, end):
            at, name = number / 100, f"{number}"
            worker = f"w{number}@h"
            watched.hear(sent(at, uuid=name, name=f"task {number}", queue=f"queue {number}"))
            watched.hear(heartbeat(at, worker=worker, sw_ver=name))
            watched.hear(
                received(at, uuid=name, worker=worker, name=f"task {number}"), started(at, uuid=name, worker=worker)
            )
            watched.hear(failed(at, uuid=name, worker=worker, exception=f"Error{number}()"))
        watched.wait(90)
        watched.series()

    def size() -> int:
        gc.collect()
        ours = (tracemalloc.Filter(True, "*celery_lookout*"), tracemalloc.Filter(True, __file__))
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)

    flood(1000, 2000)
    tracemalloc.start()
    try:
        flood(2000, 3000)  # dicts reach their size
        flood(3000, 4000)
        before = size()
        flood(4000, 5000)
        grown = size() - before
    finally:
        tracemalloc.stop()
    assert grown < 50_000, grown
    dropped = watched.series("celery_exporter_label_values_dropped_total")
    assert {name for name, value in dropped.items() if not value} == {
        series("celery_exporter_label_values_dropped_total", label=label, reason="denied")
        for label in ("task", "queue", "exception", "worker")
    }


# -- workers that come and go


def skip(watched: Watched, seconds: float) -> None:
    """Let time pass in steps of ten minutes, each with a scrape: ten thousand workers take their time."""
    for _ in range(int(seconds / 600) + 1):
        watched.seconds += 600
        watched.cluster.refresh(watched.now)


def test_series_and_memory_of_ten_thousand_pods_return_to_those_of_the_living() -> None:
    """10,000 names in an hour; two hours after the last of them only those that live are there."""
    watched = Watched()
    living = [f"stays-{number}@h" for number in range(5)]

    def come_and_go(pods: Iterable[int]) -> None:
        for minute in range(60):
            watched.seconds += 60
            at = watched.seconds
            events = [heartbeat(at, worker=worker, freq=60.0) for worker in living]
            for number in islice(pods, 167):
                name, task = f"pod-{number}@h", str(number)
                on: dict[str, Any] = {"uuid": task, "worker": name}
                events += [heartbeat(at, worker=name, sw_ver="5.7.0"), sent(at, uuid=task), received(at, **on)]
                events += [started(at, **on), succeeded(at, **on)]
                events += [offline(at, worker=name)] if number % 2 else []
                watched.cluster.take_workers([WorkerReading(name, watched.now, "prefork", 4, 0, 1, 10**8, 1.0)])
            watched.cluster.fold(events, watched.now)
            if minute % 10 == 0:
                watched.cluster.refresh(watched.now)
        skip(watched, KEEP_SECONDS + 120)
        watched.cluster.fold([heartbeat(watched.seconds, worker=worker) for worker in living], watched.now)
        watched.cluster.refresh(watched.now)

    def objects() -> int:
        gc.collect()
        return sum(issubclass(type(thing), (Worker, Series, Row)) for thing in gc.get_objects())

    come_and_go(iter(range(100)))
    before, count = watched.series(), objects()
    come_and_go(iter(range(100, 10_100)))
    assert watched.series().keys() == before.keys()
    assert {worker.name for worker in watched.cluster.workers} == set(living)
    assert watched.series()[of("succeeded_total")] == 10_100
    assert objects() <= count  # other tests leave some, which go meanwhile


def test_in_a_full_table_the_living_take_the_place_of_those_gone_longest() -> None:
    watched = Watched(ClusterOptions(limits=Limits(workers=3)))
    for number in range(3):
        watched.hear(heartbeat(10 * number, worker=f"w{number}@h"))
    watched.hear(heartbeat(22, worker="new@h"))
    assert {worker.name for worker in watched.cluster.workers} == {"w1@h", "w2@h", "new@h"}
    watched.hear(*(heartbeat(23, worker=f"{name}@h") for name in ("w1", "w2", "late")))
    assert {worker.name for worker in watched.cluster.workers} == {"w1@h", "w2@h", "new@h"}
    shown = watched.series()
    assert {name for name in shown if "w0@h" in name or "late@h" in name} == set()
    assert shown[series("celery_exporter_label_values_dropped_total", label="worker", reason="limit")] == 2


def test_who_is_gone_and_held_a_task_is_not_forgotten_for_another() -> None:
    watched = Watched(ClusterOptions(limits=Limits(workers=1)))
    watched.hear(heartbeat(0), sent(0), received(0), started(0))
    watched.wait(30)
    watched.hear(heartbeat(30, worker="new@h"))
    assert {worker.name for worker in watched.cluster.workers} == {"w@h"}
    assert watched.series()[of("running")] == 1
    watched.wait(60)
    watched.hear(heartbeat(90, worker="new@h"))
    assert {worker.name for worker in watched.cluster.workers} == {"new@h"}
    assert watched.series()[of("lost_total")] == 1


def test_nobody_makes_room_while_the_broker_is_away() -> None:
    watched = Watched(ClusterOptions(limits=Limits(workers=1)))
    watched.hear(heartbeat(0))
    watched.cluster.broker_lost(watched.now)
    watched.wait(60)
    watched.cluster.take_workers([WorkerReading("new@h", watched.now)])
    assert {worker.name for worker in watched.cluster.workers} == {"w@h"}


def test_series_grow_with_tasks_plus_workers_and_not_with_their_product() -> None:
    def count(tasks: int, workers: int) -> int:
        watched = Watched()
        for worker in range(workers):
            watched.hear(heartbeat(0, worker=f"w{worker}@h"))
            for task in range(tasks):
                uuid, on = f"{worker}-{task}", f"w{worker}@h"
                watched.hear(sent(0, uuid=uuid, name=f"t{task}"), received(0, uuid=uuid, name=f"t{task}", worker=on))
                watched.hear(started(0, uuid=uuid, worker=on), succeeded(0, uuid=uuid, worker=on))
        return len(watched.series())

    base, tasks, workers, both = count(1, 1), count(11, 1), count(1, 11), count(11, 11)
    assert both - base == (tasks - base) + (workers - base)
