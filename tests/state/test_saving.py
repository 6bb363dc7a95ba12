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
from celery_lookout.failures import Failure
from celery_lookout.intake.decode import EventDecoder
from celery_lookout.metrics.kept import Kept
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.snapshots import BeatSnapshot, WorkerSnapshot
from celery_lookout.state.cluster import LOST_AFTER_SECONDS, Cluster, ClusterOptions, Limits
from celery_lookout.state.restoring import ClusterReader
from celery_lookout.state.saved import (
    SavedBeat,
    SavedBoot,
    SavedClock,
    SavedEnded,
    SavedHeld,
    SavedQueue,
    SavedRecord,
    SavedRoute,
    SavedRow,
    SavedRunning,
    SavedTask,
    SavedTotals,
    SavedVanished,
    SavedWorker,
)
from celery_lookout.state.saving import saved
from celery_lookout.state.tasks import ENDED_SECONDS
from celery_lookout.state.workers import KEEP_SECONDS
from tests.clusters import (
    EPOCH,
    MSGPACK,
    Watched,
    beat_snapshot,
    failed,
    heartbeat,
    kept,
    of,
    of_worker,
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


def a_worker(name: str) -> list[SavedRecord]:
    """Return a worker of whom everything is known, with two processes."""
    event = heartbeat(-1, worker=name)
    return [
        SavedWorker(
            name=name, freq=7.0, pid=5, boots=3, alive_until=EPOCH + 9, was_alive=True, met_at=EPOCH - 90,
            last_heartbeat=EPOCH - 2, graceful=True, version="5.5", pool="prefork", slots=4,
            queues=(("mails", "exchange", "key"),), starts=6, counted_from=1, processed=8, unseen=((1, 7), (2, 8)),
            before_gap=(1, 5), quiet_share=0.25, sends_task_events=True, starts_at_heartbeat=6, silent_heartbeats=1,
            sends_heartbeats=True, told_running=(SavedRunning(1, 2, 1, EPOCH - 50),), counted_until=EPOCH - 3,
            counted_starts=4, held=(event,),
        ),
        *(
            SavedBoot(
                boot=boot, started_at=EPOCH - 80, pid=5, interval=2.0, seq=9, at=EPOCH - 2, processed=8, is_final=True,
                heard_at=EPOCH - 1, failures_left_out=3, told_until=EPOCH - 4, rebased_at=EPOCH - 5, is_rebasing=True,
                rebase_until=EPOCH - 6, starts_at_close=2, gap=(7, 1),
            )
            for boot in ("a", "b")
        ),
        SavedTotals("mail", "mails", {"started": (2, 8), "wait:sum": (0.5, 3.5)}),
    ]  # fmt: skip


def test_everything_that_is_saved_comes_back() -> None:
    """Each field of each record has a value that it has not got by itself."""
    records: list[SavedRecord] = [
        SavedClock(EPOCH, EPOCH - 5),
        SavedQueue("celery"),
        SavedQueue("mails"),
        SavedRoute("exchange", "key", "mails"),
        SavedRow("add", "celery"),
        SavedRow("mail", "mails"),
        *a_worker("v@h"),
        *a_worker("w@h"),
        SavedTask(
            id="id", row=1, next_row=1, worker=1, retries=2, received_at=EPOCH - 20, started_at=EPOCH - 19, ended=True,
            final_at=EPOCH - 18, requeued=True, before=(EPOCH - 30, EPOCH - 29), retried_at=EPOCH - 28, first_sent=True,
            sent_retries=3, waits_from=EPOCH - 22, next_waits_from=EPOCH - 10, waited=True, runs=True,
            reserved_at=EPOCH - 21, unreceived=EPOCH - 11, next_unreceived=EPOCH - 11,
        ),
        SavedHeld("late", ((True, started(-0.5, uuid="late")), (False, succeeded(-0.2, uuid="late")))),
        SavedEnded(EPOCH - 18, "id"),
        SavedVanished(EPOCH + 30, 1, 2, EPOCH - 30, (SavedRunning(1, 1, 1, EPOCH - 40),)),
        SavedBeat("beat@h", EPOCH - 3),
    ]  # fmt: skip
    assert {type(record) for record in records} == set(SavedRecord.__args__) - set(Kept.__args__)
    assert [record for record in records if not all(msgspec.structs.astuple(record))] == []
    watched = Watched(begun=False)
    reader = ClusterReader(watched.cluster, loses=False)
    for record in MSGPACK.decode(msgspec.msgpack.encode(records)):
        reader.take(record)
    reader.finish(EPOCH)
    after = saved(watched.cluster, EPOCH)
    assert [record for record in after if not isinstance(record, Kept)] == records


def test_references_to_nothing_are_left_out_and_counted() -> None:
    task = SavedTask(
        "id", 7, 8, 9, 0, 0.0, 0.0, False, 0.0, False, None, 0.0, True, 0, 0.0, 0.0, False, True, None, 1.0, None
    )  # fmt: skip
    worker, boot, *_, totals = a_worker("w@h")
    after = Watched.of(
        [
            *(boot, totals, task),
            *(SavedRow("add", "celery"), msgspec.structs.replace(task, row=0)),
            *(worker, totals, SavedVanished(EPOCH, 9, 1, EPOCH, None)),
        ]
    )
    assert after.left_out == 5
    assert after.series()["celery_exporter_tasks_tracked"] == 1
    (known,) = after.cluster.workers
    assert (known.told_running, known.coverage.boots) == ([], [])


def test_what_workers_count_themselves_is_left_for_them_to_tell(watched: Watched) -> None:
    watched.hear(heartbeat(0, processed=70))
    assert watched.series()[of_worker("tasks_processed_total")] == 70
    after = watched.restarted()
    assert of_worker("tasks_processed_total") not in after.series()
    after.hear(heartbeat(1, processed=71))
    assert after.series()[of_worker("tasks_processed_total")] == 71


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
    watched.hear(received(3, uuid="id0"), started(3, uuid="id0"), retried(4, uuid="id0"))
    watched.hear(sent(4, uuid="id0", retries=1))
    after = watched.restarted()
    waiting = after.cluster.queues.get("celery").unreceived
    assert waiting == watched.cluster.queues.get("celery").unreceived
    assert list(waiting) == ["id1", "id2", "id0"]


# -- workers and beat


def test_a_worker_that_died_while_nobody_looked_is_down_and_not_unknown(watched: Watched) -> None:
    watched.hear(online(0), heartbeat(2))
    after = watched.restarted(away=300)
    after.wait(30)
    assert after.series()[of_worker("up")] == 0
    assert after.series()[of_worker("shutdown_graceful")] == 0


def test_a_worker_is_not_taken_for_dead_because_nobody_looked(watched: Watched) -> None:
    watched.hear(online(0), heartbeat(2))
    after = watched.restarted(away=300)
    assert after.series()[of_worker("up")] == 1
    after.hear(heartbeat(303, processed=0))
    after.wait(5)
    assert after.series()[of_worker("up")] == 1


def test_who_had_said_goodbye_stays_excused(watched: Watched) -> None:
    watched.hear(online(0), offline(2))
    shown = watched.restarted(away=10).series()
    assert (shown[of_worker("up")], shown[of_worker("shutdown_graceful")]) == (0, 1)


def test_a_worker_that_was_gone_for_long_is_forgotten(watched: Watched) -> None:
    watched.hear(online(0), heartbeat(2))
    after = watched.restarted(away=KEEP_SECONDS)
    assert of_worker("up") in after.series()
    after.wait(60)
    assert of_worker("up") not in after.series()


def test_what_a_worker_ran_that_died_before_the_stop_is_lost_after_it(watched: Watched) -> None:
    watched.hear(online(0), sent(0), received(0.1), started(0.2), heartbeat(2))
    watched.wait(30)
    assert watched.series()[of_worker("up")] == 0
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


def test_nor_when_it_tells_that_it_runs_nothing_and_dies_then(watched: Watched) -> None:
    watched.expect_snapshots()
    watched.poll(snapshot(0, row(started=2), running=[["add", "celery", 2, 1, EPOCH]]))
    watched.wait(30)
    after = watched.restarted(away=5)
    after.poll(snapshot(36, row(started=2), running=[]))
    after.wait(LOST_AFTER_SECONDS + 30)
    assert after.series()[of_worker("up")] == 0
    assert after.series()[of("lost_total")] == 0


def test_what_a_worker_told_that_it_ran_is_lost_though_it_left_unheard(watched: Watched) -> None:
    """Had it said goodbye, its last snapshot would wait for us."""
    watched.expect_snapshots()
    watched.poll(snapshot(0, row(started=2), running=[["add", "celery", 2, 1, EPOCH]]))
    after = watched.restarted(away=300, loses=True)
    after.wait(LOST_AFTER_SECONDS + 60)
    assert after.series()[of("lost_total")] == 1


def test_what_a_worker_ran_is_lost_if_it_was_heard_again_and_then_died(watched: Watched) -> None:
    watched.hear(online(0), sent(0), received(0.1), started(0.2), heartbeat(2))
    after = watched.restarted(away=300, loses=True)
    after.hear(heartbeat(303))
    after.wait(LOST_AFTER_SECONDS + 60)
    assert after.series()[of("lost_total")] == 1


def test_a_worker_that_was_forgotten_for_another_costs_nothing_else() -> None:
    """Of the task that ended on it, and of the one that it took along, its name is left out."""
    watched = Watched(ClusterOptions(limits=Limits(workers=2)))
    watched.hear(online(0), sent(0), received(0.1), started(0.2))
    watched.hear(*(event(0.5, uuid="ended") for event in (sent, received, started, succeeded)))
    watched.wait(30)
    watched.hear(online(31, worker="x@h"), received(31, worker="x@h"), started(31, worker="x@h"))
    watched.hear(online(32, worker="y@h"))
    assert {worker.name for worker in watched.cluster.workers} == {"x@h", "y@h"}
    after = watched.restarted()
    assert kept(after.series()) == kept(watched.series())
    after.hear(succeeded(33, worker="x@h"))
    assert after.series()[of("succeeded_total")] == 2


def test_what_a_worker_ran_that_left_unheard_is_not_called_lost(watched: Watched) -> None:
    """On Redis: it may have finished all and said goodbye while no sidecar was there."""
    watched.hear(online(0), sent(0), received(0.1), started(0.2), heartbeat(2))
    after = watched.restarted(away=300, loses=True)
    after.wait(LOST_AFTER_SECONDS + 60)
    shown = after.series()
    assert (shown[of("lost_total")], shown[of("running")], shown[of_worker("up")]) == (0, 0, 0)


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


def test_what_a_beat_told_is_not_told_to_sentry_twice() -> None:
    """The snapshots that were read last are shown again to the next process."""

    class Sink:
        def __init__(self) -> None:
            self.beats: list[BeatSnapshot] = []

        def take(self, failure: Failure) -> None: ...

        def take_untold(self, count: int) -> None: ...

        def take_beat(self, snapshot: BeatSnapshot, now: float) -> None:
            self.beats.append(snapshot)

    sink = Sink()
    cluster = Cluster(Scope(Registry()), ClusterOptions(), sink)
    ClusterReader(cluster, loses=False).finish(EPOCH)
    cluster.take_snapshots([beat_snapshot(0)], [beat_snapshot(5)], EPOCH + 6)
    assert sink.beats == [beat_snapshot(5)]


def test_a_beat_that_died_meanwhile_is_not_unknown(watched: Watched) -> None:
    watched.poll(beat_snapshot(0))
    after = watched.restarted(away=100)
    heartbeats = series("celery_beat_last_heartbeat_timestamp_seconds", beat="beat@h")
    assert after.series()[heartbeats] == EPOCH
    after.wait(KEEP_SECONDS)
    assert heartbeats not in after.series()


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
