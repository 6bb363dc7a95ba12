"""Our own clock is set back by an hour, or a process goes on with an earlier one: nobody dies of it, nothing waits."""

from __future__ import annotations

import pytest

from celery_lookout.readings import BrokerReading, QueueHead, QueueReading, WorkerReading
from celery_lookout.state.boots import STALE_SECONDS
from celery_lookout.state.cluster import LOST_AFTER_SECONDS, ClusterOptions, Limits
from celery_lookout.state.tasks import ENDED_SECONDS
from celery_lookout.state.unsent import SENT_EXPECTED_SECONDS
from celery_lookout.state.workers import ANSWER_SECONDS, KEEP_SECONDS
from tests.clusters import (
    EPOCH,
    Watched,
    beat_snapshot,
    heartbeat,
    of,
    offline,
    online,
    received,
    row,
    sent,
    series,
    snapshot,
    started,
    succeeded,
)

HOUR = 3600.0


@pytest.fixture
def watched() -> Watched:
    """A cluster that has been watched for a while: a worker lives, one task runs, one has ended."""
    watched = Watched()
    watched.expect_snapshots()
    watched.wait_until(2 * HOUR)
    at = watched.seconds
    watched.hear(online(at), heartbeat(at))
    watched.poll()
    watched.hear(sent(at), received(at), started(at))
    watched.hear(*(event(at + 1, uuid="done") for event in (sent, received, started, succeeded)))
    return watched


def set_back(watched: Watched, seconds: float = HOUR) -> None:
    """From now on it is *seconds* earlier, for everybody on the machine."""
    watched.seconds -= seconds
    watched.cluster.tick(watched.now)


def worker(name: str) -> str:
    return series(f"celery_worker_{name}", worker="w@h")


def test_no_counter_falls_and_no_wait_is_negative(watched: Watched) -> None:
    watched.hear(sent(watched.seconds + 1, uuid="across"))
    before = watched.series()
    set_back(watched)
    at = watched.seconds
    watched.hear(received(at, uuid="across"), started(at + 1, uuid="across"), succeeded(at + 2, uuid="across"))
    watched.hear(*(event(at + 3, uuid="new") for event in (sent, received, started, succeeded)))
    watched.wait(2)
    after = watched.series()
    endings = ("_total", "_count", "_sum", "_bucket")
    counters = {name for name in before if name.partition("{")[0].endswith(endings)}
    assert {name: (before[name], after[name]) for name in counters if after[name] < before[name]} == {}
    assert after[of("succeeded_total")] == before[of("succeeded_total")] + 2
    waits = of("queue_wait_seconds_sum")
    assert after[waits] == before[waits]
    assert after[of("oldest_running_seconds")] >= 0


def test_nobody_counts_as_dead_for_it_and_who_dies_is_noticed_in_time(watched: Watched) -> None:
    set_back(watched)
    assert watched.series()[worker("up")] == 1
    watched.hear(heartbeat(watched.seconds + 2))
    assert watched.series()[worker("last_heartbeat_timestamp_seconds")] == watched.now
    watched.wait(30)
    assert watched.series()[worker("up")] == 0
    watched.wait(LOST_AFTER_SECONDS)
    assert watched.series()[of("lost_total")] == 1


def test_it_may_happen_while_the_broker_is_away(watched: Watched) -> None:
    watched.cluster.broker_lost(watched.now)
    watched.wait(5)
    watched.seconds -= HOUR
    watched.cluster.broker_found(watched.now, gap=False)
    assert watched.series()[worker("up")] == 1
    watched.wait(30)
    assert watched.series()[worker("up")] == 0


def test_or_just_before_it_is_lost(watched: Watched) -> None:
    watched.seconds -= HOUR
    watched.cluster.broker_lost(watched.now)
    watched.wait(5)
    watched.cluster.broker_found(watched.now, gap=False)
    watched.wait(30)
    assert watched.series()[worker("up")] == 0


def test_a_goodbye_is_believed_at_once_though_the_broker_was_away_before(watched: Watched) -> None:
    watched.cluster.broker_lost(watched.now)
    watched.cluster.broker_found(watched.now + 1, gap=False)
    set_back(watched)
    watched.wait(60)
    watched.hear(heartbeat(watched.seconds), offline(watched.seconds))
    assert watched.series()[worker("up")] == 0


def test_a_worker_that_only_answers_is_forgotten_in_time(watched: Watched) -> None:
    watched.cluster.take_workers([WorkerReading("silent@h", watched.now, slots=4)])
    slots = series("celery_worker_slots", worker="silent@h")
    assert watched.series()[slots] == 4
    set_back(watched)
    watched.wait(KEEP_SECONDS + ANSWER_SECONDS + 1)
    assert slots not in watched.series()


def test_a_full_table_keeps_who_lives() -> None:
    watched = Watched(ClusterOptions(limits=Limits(workers=1)))
    watched.seconds = 2 * HOUR
    watched.hear(online(watched.seconds))
    watched.seconds -= HOUR
    watched.cluster.broker_lost(watched.now)
    watched.cluster.take_workers([WorkerReading("late@h", watched.now)])
    assert [worker.name for worker in watched.cluster.workers] == ["w@h"]


def test_events_that_wait_for_their_task_sent_do_not_wait_an_hour(watched: Watched) -> None:
    at = watched.seconds
    watched.hear(received(at, uuid="unsent"), started(at, uuid="unsent"))
    set_back(watched)
    watched.wait(2)
    assert watched.series()[of("started_total", queue="unknown", task="add")] == 1


def test_publishers_that_say_nothing_are_believed_in_time(watched: Watched) -> None:
    set_back(watched)
    watched.wait(SENT_EXPECTED_SECONDS)
    watched.hear(received(watched.seconds, uuid="unsent"), started(watched.seconds, uuid="unsent"))
    assert watched.series()[of("started_total", queue="unknown")] == 1


def test_the_head_of_a_queue_is_as_old_as_before(watched: Watched) -> None:
    watched.cluster.take_broker(BrokerReading(watched.now, (QueueReading("mail", 7, head=QueueHead("id")),)))
    watched.wait(20)
    set_back(watched)
    assert watched.series()[series("celery_queue_oldest_task_age_seconds", queue="mail")] == 20


def test_tasks_that_ended_are_forgotten_in_time(watched: Watched) -> None:
    tracked = watched.series()["celery_exporter_tasks_tracked"]
    set_back(watched)
    watched.wait(ENDED_SECONDS + 2)
    assert watched.series()["celery_exporter_tasks_tracked"] == tracked - 1


def test_numbers_of_a_broker_that_hangs_are_withdrawn_in_time(watched: Watched) -> None:
    watched.cluster.take_broker(BrokerReading(watched.now, (QueueReading("celery", 7),)))
    set_back(watched)
    depth = series("celery_queue_length", queue="celery")
    assert watched.series()[depth] == 7
    watched.wait(60)
    assert depth not in watched.series()


def test_snapshots_that_stay_away_are_noticed_in_time(watched: Watched) -> None:
    at = watched.seconds
    watched.poll(snapshot(at, row(started=1), worker="s@h"))
    set_back(watched)
    watched.poll()
    for _ in range(int(STALE_SECONDS) + 10):
        watched.wait(1)
        watched.hear(heartbeat(watched.seconds, worker="s@h"))
        watched.poll()
    assert watched.cluster.living_workers().keys() == {"s@h"}
    assert watched.cluster.covered_workers() == frozenset()


def test_and_not_those_that_could_not_be_read(watched: Watched) -> None:
    at = watched.seconds
    watched.poll(snapshot(at, row(started=1), worker="s@h"))
    set_back(watched)
    watched.wait(2 * STALE_SECONDS)
    watched.hear(heartbeat(watched.seconds, worker="s@h"))
    watched.poll()
    assert watched.cluster.covered_workers() == {"s@h"}


def test_a_beat_that_falls_silent_is_noticed_in_time(watched: Watched) -> None:
    heartbeats = series("celery_beat_last_heartbeat_timestamp_seconds", beat="beat@h")
    watched.poll(beat_snapshot(watched.seconds))
    set_back(watched)
    assert watched.series()[heartbeats] == watched.now
    watched.wait(10)
    watched.poll(beat_snapshot(watched.seconds, seq=10_000))
    assert watched.series()[heartbeats] == watched.now
    watched.wait(KEEP_SECONDS + 1)
    assert heartbeats not in watched.series()


def test_what_a_dead_worker_ran_is_found_lost_in_time(watched: Watched) -> None:
    watched.wait(30)
    set_back(watched)
    watched.wait(LOST_AFTER_SECONDS)
    assert watched.series()[of("lost_total")] == 1


def test_a_step_too_small_to_matter_moves_nothing(watched: Watched) -> None:
    until = watched.cluster.workers.get("w@h").alive_until  # type: ignore[union-attr]  # it is there
    set_back(watched, 0.5)
    assert watched.cluster.workers.get("w@h").alive_until == until  # type: ignore[union-attr]


def test_a_process_may_go_on_at_an_earlier_time(watched: Watched) -> None:
    """Saved with one clock, restored with another: on another machine, say."""
    before = watched.series()
    after = watched.restarted(away=-HOUR)
    assert after.series()[worker("up")] == 1
    assert after.series()[worker("last_heartbeat_timestamp_seconds")] == after.now
    assert after.series()[of("started_total")] == before[of("started_total")]
    after.wait(30)
    assert after.series()[worker("up")] == 0
    assert after.now > EPOCH
    after.hear(online(after.seconds), offline(after.seconds))
    assert after.series()[worker("shutdown_graceful")] == 1
