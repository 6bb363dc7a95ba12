"""A cluster that is saved and put together again goes on as if nothing had been: it counts nothing twice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout.events import Event
from celery_lookout.intake.decode import EventDecoder
from celery_lookout.metrics.registry import OTHER
from celery_lookout.snapshots import WorkerSnapshot
from celery_lookout.state.cluster import LOST_AFTER_SECONDS, ClusterOptions, Limits
from celery_lookout.state.saved import SavedRecord, SavedTask
from celery_lookout.state.saving import saved
from celery_lookout.state.tasks import ENDED_SECONDS
from celery_lookout.state.workers import KEEP_SECONDS
from tests.clusters import (
    EPOCH,
    Watched,
    beat_snapshot,
    failed,
    heartbeat,
    of,
    offline,
    online,
    received,
    rejected,
    retried,
    row,
    sent,
    series,
    snapshot,
    started,
    succeeded,
)
from tests.golden.folding import RECORDINGS, load
from tests.state.test_event_streams import crooked
from tests.state.test_snapshots import Life, counted, lives

quickly = settings(max_examples=40, deadline=None)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def kept(shown: dict[str, float]) -> dict[str, float]:
    """Return what goes on, counters, histograms and times of the last outcomes; sums without their last digits."""
    endings = ("_total", "_bucket", "_count", "_sum", "_success_timestamp_seconds", "_failure_timestamp_seconds")
    own = "celery_worker_"
    return {
        name: round(value, 6)
        for name, value in shown.items()
        if name.partition("{")[0].endswith(endings) and not name.startswith((own, "celery_exporter_collector"))
    }


def worker(name: str, worker_name: str = "w@h") -> str:
    return series(f"celery_worker_{name}", worker=worker_name)


# -- what is saved comes back


def test_the_next_process_shows_the_same_counters(watched: Watched) -> None:
    watched.hear(online(0), sent(0), received(0.1), started(0.2), succeeded(0.7))
    watched.hear(sent(1, uuid="b"), received(1, uuid="b"), started(1.1, uuid="b"), failed(1.2, uuid="b"))
    watched.poll(
        snapshot(2, row("mail", "mails", started=3, wait__3=3, wait__sum=3.5, exception__OSError=2), worker="s@h")
    )
    before = watched.series()
    after = watched.restarted()
    assert kept(after.series()) == kept(before)
    assert kept(before)[of("exceptions_total", task="mail", queue="mails", exception="OSError")] == 2
    assert after.left_out == 0


def test_what_workers_count_themselves_is_left_for_them_to_tell(watched: Watched) -> None:
    watched.hear(heartbeat(0, processed=70))
    assert watched.series()[worker("tasks_processed_total")] == 70
    after = watched.restarted()
    assert worker("tasks_processed_total") not in after.series()
    after.hear(heartbeat(1, processed=71))
    assert after.series()[worker("tasks_processed_total")] == 71


def test_a_task_that_started_before_and_ended_after_has_its_queue_wait_and_runtime(watched: Watched) -> None:
    watched.hear(sent(0, queue="mails"), received(0.1), started(2))
    after = watched.restarted(away=30)
    assert after.series()[of("running", queue="mails")] == 1
    after.changes()
    after.hear(failed(32))
    assert after.changes() == {
        of("failed_total", queue="mails"): 1,
        of("exceptions_total", queue="mails", exception="ValueError"): 1,
        of("runtime_seconds_count", queue="mails", outcome="failed"): 1,
        of("runtime_seconds_sum", queue="mails", outcome="failed"): 30,
        of("last_failure_timestamp_seconds", queue="mails"): EPOCH + 32,
        of("running", queue="mails"): -1,
    }


def test_a_task_that_waited_over_the_stop_has_its_wait(watched: Watched) -> None:
    watched.hear(sent(0))
    after = watched.restarted(away=60)
    after.changes()
    after.hear(received(61), started(62), succeeded(62.5))
    moved = after.changes()
    assert moved[of("queue_wait_seconds_sum")] == 62
    assert moved[of("succeeded_total")] == 1


def test_what_was_counted_and_comes_again_counts_once(watched: Watched) -> None:
    """As RabbitMQ delivers what it was not told in time that we had it."""
    told = [
        sent(0),
        received(0.1),
        started(0.2),
        retried(0.3),
        received(1, retries=1),
        started(1.1),
        rejected(2, requeue=True),
    ]
    told += [sent(3, uuid="b"), received(3.1, uuid="b"), started(3.2, uuid="b"), succeeded(3.3, uuid="b")]
    watched.hear_each(told)
    before = kept(watched.series("celery_task_"))
    after = watched.restarted(away=40)
    after.hear(*told, at=45)
    assert kept(after.series("celery_task_")) == before


def test_a_task_that_ended_is_forgotten_in_time(watched: Watched) -> None:
    watched.hear(sent(0), received(0), started(0.1), succeeded(0.2))
    watched.wait(ENDED_SECONDS / 2)
    after = watched.restarted(away=3600)
    assert after.series()["celery_exporter_tasks_tracked"] == 1
    after.wait(ENDED_SECONDS / 2 + 2)
    assert after.series()["celery_exporter_tasks_tracked"] == 0


def test_an_event_that_waits_for_its_task_sent_goes_on_waiting(watched: Watched) -> None:
    watched.hear(received(0.1), started(0.2), succeeded(0.3))
    after = watched.restarted(away=60)
    after.hear(sent(0, queue="mails"), at=60.5)
    assert after.series()[of("succeeded_total", queue="mails")] == 1


def test_and_is_counted_as_it_is_when_none_comes(watched: Watched) -> None:
    watched.hear(received(0.1), started(0.2), succeeded(0.3))
    after = watched.restarted(away=60)
    after.wait(2)
    assert after.series()[of("succeeded_total", queue="unknown")] == 1


def test_the_oldest_task_of_a_queue_is_still_known(watched: Watched) -> None:
    for second in range(3):
        watched.hear(sent(second, uuid=f"id{second}"))
    after = watched.restarted()
    waiting = after.cluster.queues.get("celery").unreceived
    assert waiting == watched.cluster.queues.get("celery").unreceived
    assert list(waiting) == ["id0", "id1", "id2"]


# -- workers and beat


def test_a_worker_that_died_while_nobody_looked_is_down_and_not_unknown(watched: Watched) -> None:
    watched.hear(online(0), heartbeat(2))
    after = watched.restarted(away=300)
    after.wait(30)
    assert after.series()[worker("up")] == 0
    assert after.series()[worker("shutdown_graceful")] == 0


def test_a_worker_is_not_taken_for_dead_because_nobody_looked(watched: Watched) -> None:
    watched.hear(online(0), heartbeat(2))
    after = watched.restarted(away=300)
    assert after.series()[worker("up")] == 1
    after.hear(heartbeat(303, processed=0))
    after.wait(5)
    assert after.series()[worker("up")] == 1


def test_who_had_said_goodbye_stays_excused(watched: Watched) -> None:
    watched.hear(online(0), offline(2))
    shown = watched.restarted(away=10).series()
    assert (shown[worker("up")], shown[worker("shutdown_graceful")]) == (0, 1)


def test_a_worker_that_was_gone_for_long_is_forgotten(watched: Watched) -> None:
    watched.hear(online(0), heartbeat(2))
    after = watched.restarted(away=KEEP_SECONDS)
    assert worker("up") in after.series()
    after.wait(60)
    assert worker("up") not in after.series()


def test_what_a_worker_ran_that_died_before_the_stop_is_lost_after_it(watched: Watched) -> None:
    watched.hear(online(0), sent(0), received(0.1), started(0.2), heartbeat(2))
    watched.wait(30)
    assert watched.series()[worker("up")] == 0
    after = watched.restarted(away=600)
    after.wait(5)
    assert after.series()[of("lost_total")] == 0, "it may have come back, in what is yet to be read"
    after.wait(LOST_AFTER_SECONDS)
    assert after.series()[of("lost_total")] == 1
    assert after.series()[of("running")] == 0


def test_what_snapshots_told_that_it_ran_is_lost_once(watched: Watched) -> None:
    watched.expect_snapshots()
    watched.poll(snapshot(0, row(started=2), running=[["add", "celery", 2, 1, EPOCH]]))
    watched.wait(30)
    after = watched.restarted(away=5)
    after.wait(LOST_AFTER_SECONDS + 5)
    assert after.series()[of("lost_total")] == 1


def test_and_not_at_all_when_it_tells_again(watched: Watched) -> None:
    watched.expect_snapshots()
    watched.poll(snapshot(0, row(started=2), running=[["add", "celery", 2, 1, EPOCH]]))
    watched.wait(30)
    after = watched.restarted(away=5)
    after.poll(snapshot(36, row(started=2), running=[["add", "celery", 2, 1, EPOCH]]))
    after.wait(1)
    after.poll(snapshot(40, row(started=2), running=[]))
    for second in range(45, 120, 5):
        after.wait_until(second)
        after.poll(snapshot(second, row(started=2), running=[]))
    assert after.series()[of("lost_total")] == 0


def test_what_a_worker_ran_that_left_unheard_is_not_called_lost(watched: Watched) -> None:
    """On Redis: it may have finished all and said goodbye while no sidecar was there."""
    watched.hear(online(0), sent(0), received(0.1), started(0.2), heartbeat(2))
    after = watched.restarted(away=300, loses=True)
    after.wait(LOST_AFTER_SECONDS + 60)
    shown = after.series()
    assert (shown[of("lost_total")], shown[of("running")], shown[worker("up")]) == (0, 0, 0)


def test_starts_missed_during_the_stop_are_counted_as_lost(watched: Watched) -> None:
    run(watched, 5)
    after = watched.restarted(away=100, loses=True)
    for beat in range(3):
        after.hear(heartbeat(after.seconds + 2, processed=12 + beat * 0))
    assert after.series()["celery_exporter_events_lost_total"] == 7
    assert after.series()[of("started_total")] == 5


def test_also_over_stops_so_short_that_the_first_was_not_measured_yet(watched: Watched) -> None:
    run(watched, 5)
    after = watched.restarted(away=100, loses=True)
    after.hear(heartbeat(after.seconds + 2, processed=12))
    after = after.restarted(away=50, loses=True)
    after = after.restarted(away=1, loses=True)
    for _ in range(3):
        after.hear(heartbeat(after.seconds + 2, processed=20))
    assert after.series()["celery_exporter_events_lost_total"] == 15


def run(watched: Watched, tasks: int) -> None:
    """Let a worker run *tasks* and say so in its heartbeats."""
    watched.hear(online(0))
    for number in range(tasks):
        at, uuid = number + 0.2, f"task{number}"
        watched.hear(
            sent(at, uuid=uuid), received(at, uuid=uuid), started(at, uuid=uuid), succeeded(at + 0.1, uuid=uuid)
        )
        watched.hear(heartbeat(at + 0.5, processed=number + 1))


def test_a_beat_that_died_meanwhile_is_not_unknown(watched: Watched) -> None:
    watched.poll(beat_snapshot(0))
    after = watched.restarted(away=100)
    heartbeats = series("celery_beat_last_heartbeat_timestamp_seconds", beat="beat@h")
    assert after.series()[heartbeats] == EPOCH
    after.wait(KEEP_SECONDS)
    assert heartbeats not in after.series()


# -- limits, and what has no place any more


def test_limits_hold_for_what_was_saved(watched: Watched) -> None:
    for number in range(6):
        uuid, name = f"id{number}", f"task{number}"
        watched.hear(sent(number, uuid=uuid, name=name, queue=f"queue{number}"), started(number, uuid=uuid))
    options = ClusterOptions(limits=Limits(tasks_in_flight=4, task_names=2, queues=3))
    after = watched.restarted(options=options)
    shown = after.series()
    assert shown["celery_exporter_tasks_tracked"] == 4
    assert shown["celery_exporter_tasks_evicted_total"] == 2
    names = {name for name in shown if name.startswith("celery_task_sent_total")}
    assert names == {
        of("sent_total", task="task0", queue="queue0"),
        of("sent_total", task="task1", queue="queue1"),
        of("sent_total", task=OTHER, queue="queue2"),
        of("sent_total", task=OTHER, queue=OTHER),
    }
    assert shown[of("sent_total", task=OTHER, queue=OTHER)] == 3
    after.hear(sent(9, uuid="new", name="new"))
    assert of("sent_total", task="new") not in after.series()


def test_series_past_their_limit_are_counted_and_not_shown(watched: Watched) -> None:
    for number in range(5):
        watched.hear(sent(number, uuid=f"id{number}", name=f"task{number}"))
    after = watched.restarted(series=300)
    shown = after.series()
    dropped = {name: value for name, value in shown.items() if name.startswith("celery_exporter_series_dropped")}
    assert len(shown) - len(dropped) <= 300
    assert sum(dropped.values()) > 0


def test_metrics_that_changed_are_left_out_and_counted(watched: Watched) -> None:
    watched.hear(sent(0))
    records: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(list(saved(watched.cluster, watched.now))))
    changes = {
        "celery_task_sent_total": lambda family: [*family[:3], ["task", "queue", "priority"], family[4]],
        "celery_task_received_total": lambda family: ["family", "celery_task_taken_total", *family[2:]],
        "celery_task_queue_wait_seconds": lambda family: [*family[:4], [1.0, *family[4][1:]]],
        "celery_task_started_total": lambda family: [*family[:2], "gauge", *family[3:]],
    }
    changed = [
        changes[record[1]](record) if record[0] == "family" and record[1] in changes else record for record in records
    ]
    after = Watched.of(msgspec.convert(changed, list[SavedRecord]))
    assert after.left_out == 4
    assert after.series()[of("sent_total")] == 0


def test_references_to_nothing_are_left_out_and_counted() -> None:
    task = SavedTask(
        "id", 7, 8, 9, 0, 0.0, 0.0, False, 0.0, False, None, 0.0, True, 0, 0.0, 0.0, False, True, None, 1.0, None
    )  # fmt: skip
    after = Watched.of([task])
    assert after.left_out == 1
    assert after.series()["celery_exporter_tasks_tracked"] == 0


# -- at any point of any stream


def cut(events: list[Event], places: set[int]) -> dict[str, float]:
    watched = Watched()
    for number, event in enumerate(events):
        if number in places:
            watched = watched.restarted()
        watched.hear(event)
    watched.wait(2)
    return kept(watched.series())


@quickly
@given(crooked(), st.sets(st.integers(0, 60), max_size=3))
def test_events_cut_anywhere_count_the_same(pair: tuple[list[Event], list[Event]], places: set[int]) -> None:
    _, events = pair
    assert cut(events, places) == cut(events, set())


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
def test_recordings_cut_anywhere_count_the_same(recording: Path) -> None:
    """Of real workers; a stop every so many messages, at another place each time."""
    _, bodies = load(recording)
    whole = _fold(bodies, ())
    for first in range(0, 40, 13):
        assert _fold(bodies, range(first, len(bodies), 40)) == whole


def _fold(bodies: list[tuple[float, Any]], places: Iterable[int]) -> dict[str, float]:
    stops = set(places)
    watched = Watched()
    for number, (at, body) in enumerate(bodies):
        if number in stops:
            watched = watched.restarted()
        decoder = EventDecoder(watched.cluster.refused)
        events = decoder.body(json.dumps(body).encode(), at)
        watched.wait_until(at - EPOCH if number else watched.seconds)
        watched.hear(*events, at=max(watched.seconds, at - EPOCH))
    watched.wait(90)
    return kept(watched.series())


@quickly
@given(lives(), st.integers(0, 2**32))
def test_snapshots_cut_anywhere_count_the_same(lived: tuple[Life, list[WorkerSnapshot]], seed: int) -> None:
    """The newest are shown again to the next process, one that was read and not counted among them."""
    life, told = lived
    chance = random.Random(seed)
    watched = Watched()
    watched.expect_snapshots()
    position = 0
    while position < len(told):
        ahead = chance.randint(1, 4)
        watched.wait(1)
        watched.poll(*told[position : position + ahead])
        position += ahead
        if chance.random() < 0.5:
            read = chance.choice([0, 0, 1])  # so many were taken from the broker, and then came the end
            watched = watched.restarted(away=chance.choice([0, 20]))
            position += read
            watched.poll(*told[position : position + 1], old=told[max(position - 3, 0) : position])
            position += 1
    assert counted(watched) == +life.truth


def test_events_held_until_the_snapshots_tell_are_held_on(watched: Watched) -> None:
    watched.expect_snapshots()
    watched.hear(sent(0), received(0.1), started(0.2), succeeded(0.3))
    after = watched.restarted()
    assert after.series()[of("succeeded_total")] == 0
    after.poll(snapshot(0.5, row(succeeded=1)))
    assert after.series()[of("succeeded_total")] == 1
    other = watched.restarted()
    other.poll()
    assert other.series()[of("succeeded_total")] == 1


@quickly
@given(st.integers(0, 2**32))
def test_saved_twice_is_saved_once(seed: int) -> None:
    """A process that is stopped before it has heard anything leaves what it found."""
    chance = random.Random(seed)
    watched = Watched()
    for number in range(8):
        uuid = f"id{number}"
        life = [
            sent(number, uuid=uuid),
            received(number, uuid=uuid),
            started(number, uuid=uuid),
            succeeded(number, uuid=uuid),
        ]
        watched.hear(*life[: chance.randint(0, 4)], heartbeat(number))
    watched.poll(snapshot(9, row(started=2), worker="s@h", running=[["add", "celery", 1, 0, EPOCH]]))
    once = watched.restarted()
    twice = once.restarted()
    assert list(saved(twice.cluster, twice.now)) == list(saved(once.cluster, once.now))


def test_pairs_of_stops_do_not_move_the_clock(watched: Watched) -> None:
    """However long it was away, a task that ended is remembered for the rest of its time and no longer."""
    watched.hear(sent(0), received(0), started(0.1), succeeded(0.2))
    for away, _ in pairwise(range(0, 4000, 1000)):
        watched = watched.restarted(away=away)
    watched.wait(ENDED_SECONDS - 5)
    assert watched.series()["celery_exporter_tasks_tracked"] == 1
