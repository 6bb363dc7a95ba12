"""
Whatever happens to a stream of events on its way: counters only rise and never exceed what happened, gauges return.

Whole lives of tasks on several workers are made up, then lost, doubled, reordered and told by clocks that disagree.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout.events import Event
from celery_lookout.metrics.exposition import Exposition
from celery_lookout.state.cluster import SUSPECT_SECONDS
from celery_lookout.state.tasks import ENDED_SECONDS
from tests.clusters import (
    EPOCH,
    Watched,
    failed,
    families,
    heartbeat,
    parse,
    received,
    rejected,
    retried,
    revoked,
    sent,
    started,
    succeeded,
    task_event,
)

WORKERS = ("a@h", "b@h")
TASKS = ("add", "mail.send")
QUEUES = ("celery", "mail")

#: How wrong a worker's clock may be.
SKEW_SECONDS = 600.0

#: Counters that tell of the way and not of tasks.
OF_THE_STREAM = ("celery_exporter_events_total", "celery_worker_tasks_processed_total")

#: Seconds between two events of a task.
GAPS = (0.001, 0.02, 0.3, 2.5)


@st.composite
def lives(draw: st.DrawFn, uuid: str) -> list[Event]:
    """One task from its publication to its end, as Celery tells it."""
    name, queue = draw(st.sampled_from(TASKS)), draw(st.sampled_from(QUEUES))
    at = draw(st.integers(0, 20)) + int(uuid[2:]) / 1e5

    def later() -> float:
        nonlocal at
        at = round(at + draw(st.sampled_from(GAPS)), 4)
        return at

    eta = datetime.fromtimestamp(EPOCH + at + 5, UTC).isoformat() if draw(st.booleans()) else None
    events = [sent(later(), uuid=uuid, name=name, queue=queue, eta=eta)]
    worker = draw(st.sampled_from(WORKERS))
    on: dict[str, Any] = {"uuid": uuid, "worker": worker}
    for retries in range(draw(st.integers(0, 2))):
        events += [received(later(), **on, name=name, retries=retries), started(later(), **on)]
        if draw(st.booleans()):
            events += [rejected(later(), **on, requeue=True)]
            events += [received(later(), **on, name=name, retries=retries), started(later(), **on)]
        events += [sent(later(), uuid=uuid, name=name, queue=queue, retries=retries + 1), retried(later(), **on)]
    last = events[-1].retries if len(events) == 1 else sum(event.type == "task-retried" for event in events)
    events += [received(later(), **on, name=name, retries=last or 0)]
    end = draw(st.sampled_from(["succeeded", "failed", "killed", "expired", "terminated", "rejected", "cancelled"]))
    if end != "expired":
        events.append(started(later(), **on))
    events.append(
        {
            "succeeded": lambda: succeeded(later(), **on, runtime=draw(st.none() | st.floats(0, 1e5))),
            "failed": lambda: failed(later(), **on),
            "killed": lambda: failed(later(), **on, exception="ExceptionWithTraceback()", traceback="\nX: y\n"),
            "expired": lambda: revoked(later(), **on, expired=True),
            "terminated": lambda: revoked(later(), **on, terminated=True),
            "rejected": lambda: rejected(later(), **on, requeue=False),
            "cancelled": lambda: task_event("cancelled", later(), **on),
        }[end]()
    )
    return events


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    """Several lives, in the order of their timestamps, without a tie."""
    count = draw(st.integers(1, 4))
    events = [event for number in range(count) for event in draw(lives(f"id{number}"))]
    return sorted(events, key=lambda event: event.timestamp)


def _skewed(events: list[Event], chance: random.Random) -> list[Event]:
    skews = {worker: chance.choice([0.0, 0.0, -SKEW_SECONDS, SKEW_SECONDS]) for worker in WORKERS}
    return [
        msgspec.structs.replace(event, timestamp=event.timestamp + skews.get(event.hostname, 0.0)) for event in events
    ]


@st.composite
def shuffled(draw: st.DrawFn) -> list[Event]:
    """A stream of which some is lost, some is doubled, and the rest comes in any order: no broker is that bad."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    kept = [event for event in _skewed(draw(streams()), chance) if chance.random() < 0.85]
    kept += [event for event in kept if chance.random() < 0.2]
    chance.shuffle(kept)
    return kept


@st.composite
def repeated(draw: st.DrawFn) -> list[Event]:
    """A stream that loses nothing, with late ``task-sent`` and a run that is delivered again: RabbitMQ at its worst."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    events = draw(streams())
    events.sort(key=lambda event: event.timestamp + (chance.uniform(0, 2) if event.type == "task-sent" else 0.0))
    events = _skewed(events, chance)
    end = chance.randint(0, len(events))
    return events[:end] + events[chance.randint(0, end) :]


damaged = shuffled() | repeated()


#: Rendering is what an example costs.
quickly = settings(max_examples=60, deadline=None)


def counters(shown: dict[str, float]) -> dict[str, float]:
    return {
        name: value
        for name, value in shown.items()
        if name.partition("{")[0].endswith(("_total", "_bucket", "_count", "_sum"))
        and not name.startswith(OF_THE_STREAM)
    }


def end_everything(watched: Watched) -> None:
    """Let workers live on and deny what they are asked about, for as long as the fastest of their clocks is ahead."""
    while watched.seconds < SKEW_SECONDS + SUSPECT_SECONDS + 100:
        watched.wait(5)
        watched.cluster.fold([heartbeat(watched.seconds, worker=worker) for worker in WORKERS], watched.now)
        for worker, ids in watched.cluster.suspects().items():
            watched.cluster.not_held(worker, ids)


def hear_slowly(watched: Watched, events: list[Event]) -> None:
    for event in events:
        watched.hear(event, at=watched.seconds + 0.05)


@quickly
@given(damaged)
def test_counters_never_fall(events: list[Event]) -> None:
    watched = Watched()
    before = counters(watched.series())
    for number, event in enumerate(events):
        watched.hear(event, at=watched.seconds + 0.2)
        if number % 4:
            continue  # a scrape comes now and then
        now = counters(watched.series())
        fallen = {name: (value, now.get(name)) for name, value in before.items() if now.get(name, -1) < value}
        assert fallen == {}
        before = now


def totals(events: list[Event]) -> Counter[str]:
    """Return what each family has counted in the end, over all its series."""
    watched = Watched()
    hear_slowly(watched, events)
    watched.wait(2)
    shown = Counter[str]()
    for name, value in watched.series("celery_task_").items():
        shown[name.partition("{")[0]] += int(value)
    return shown


def distinct_facts(events: list[Event]) -> Counter[str]:
    return Counter(kind for kind, *_ in {(event.type, event.uuid, event.timestamp) for event in events})


@quickly
@given(shuffled())
def test_outcomes_never_exceed_the_distinct_facts_in_any_order(events: list[Event]) -> None:
    shown, facts = totals(events), distinct_facts(events)
    for kind in ("sent", "succeeded", "failed", "revoked"):
        assert shown[f"celery_task_{kind}_total"] <= facts[f"task-{kind}"]


@quickly
@given(repeated())
def test_counters_never_exceed_the_distinct_facts(events: list[Event]) -> None:
    shown, facts = totals(events), distinct_facts(events)
    for kind in ("sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected"):
        assert shown[f"celery_task_{kind}_total"] <= facts[f"task-{kind}"]
    assert shown["celery_task_exceptions_total"] == shown["celery_task_failed_total"]
    assert shown["celery_task_retry_exceptions_total"] == shown["celery_task_retried_total"]
    assert shown["celery_task_retries_exhausted_total"] <= shown["celery_task_failed_total"]
    assert shown["celery_task_queue_wait_seconds_count"] <= shown["celery_task_started_total"]
    ended = sum(facts[f"task-{kind}"] for kind in ("succeeded", "failed", "retried"))
    assert shown["celery_task_runtime_seconds_count"] <= ended


@quickly
@given(damaged)
def test_waits_and_runtimes_are_never_negative(events: list[Event]) -> None:
    watched = Watched()
    hear_slowly(watched, events)
    shown = watched.series("celery_task_")
    assert {name: value for name, value in shown.items() if value < 0} == {}


@quickly
@given(damaged)
def test_gauges_return_to_zero_after_workers_were_asked(events: list[Event]) -> None:
    watched = Watched()
    hear_slowly(watched, events)
    end_everything(watched)
    gauges = ("celery_task_running", "celery_task_oldest", "celery_worker_tasks_reserved", "celery_worker_tasks_sched")
    assert {name: value for name, value in watched.series().items() if name.startswith(gauges) and value} == {}


@st.composite
def crooked(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """A stream, and the same with ``task-sent`` up to 0.7 s late, as on RabbitMQ, and some events doubled."""
    events = draw(streams())
    chance = random.Random(draw(st.integers(0, 2**32)))
    delays = {uuid: chance.uniform(0, 0.7) for uuid in sorted({event.uuid for event in events})}
    late = sorted(
        events, key=lambda event: event.timestamp + (delays[event.uuid] if event.type == "task-sent" else 0.0)
    )
    return events, [event for event in late for _ in range(chance.choice([1, 1, 2]))]


@quickly
@given(crooked())
def test_late_task_sent_and_doubled_events_count_the_same(pair: tuple[list[Event], list[Event]]) -> None:
    shown = []
    for events in pair:
        watched = Watched()
        watched.hear_each(events)
        watched.wait(2)
        shown.append(_rounded(counters(watched.series("celery_task_"))))
    waits = {name for name in shown[0] if name.startswith("celery_task_queue_wait")}
    assert {name: shown[1][name] for name in shown[0].keys() - waits} == {
        name: shown[0][name] for name in shown[0].keys() - waits
    }
    # A wait whose beginning comes after the next attempt's is not observed.
    assert {name: (shown[0][name], shown[1][name]) for name in waits if shown[1][name] > shown[0][name]} == {}


def _rounded(shown: dict[str, float]) -> dict[str, float]:
    """Sums of the same in another order differ in their last digits."""
    return {name: round(value, 6) for name, value in shown.items()}


@quickly
@given(streams())
def test_the_whole_stream_told_twice_counts_once(events: list[Event]) -> None:
    watched = Watched()
    watched.hear_each(events)
    before = counters(watched.series())
    watched.hear(*events, at=watched.seconds + 0.1)
    watched.wait(2)
    assert counters(watched.series()) == before


@quickly
@given(streams())
def test_nothing_is_remembered_after_everything_ended(events: list[Event]) -> None:
    watched = Watched()
    watched.hear_each(event for event in events if not _has_no_end(event, events))
    watched.wait(ENDED_SECONDS + 2)
    shown = watched.series()
    gauges = ("celery_task_running", "celery_worker_tasks_reserved", "celery_exporter_tasks_tracked")
    assert {name: value for name, value in shown.items() if name.startswith(gauges) and value} == {}


def _has_no_end(event: Event, events: list[Event]) -> bool:
    return any(other.type == "task-cancelled" and other.uuid == event.uuid for other in events)


@quickly
@given(damaged, st.sampled_from(["", "application/openmetrics-text; version=1.0.0"]))
def test_every_exposition_parses(events: list[Event], accept: str) -> None:
    watched = Watched()
    hear_slowly(watched, events)
    watched.cluster.refresh(watched.now)
    text = Exposition(watched.registry).scrape(accept, "").body.decode()
    ours = {
        sample.name: sample.value
        for family in families(text, openmetrics=bool(accept))
        for sample in family.samples
        if sample.name.startswith("celery_") and not sample.labels
    }
    assert ours["celery_exporter_tasks_tracked"] == parse(watched.registry.render())["celery_exporter_tasks_tracked"]
