"""Starts of a worker that nobody heard of: what of them was lost in a gap."""

from __future__ import annotations

import pytest

from celery_lookout.events import Event
from tests.clusters import Watched, beat_on, heartbeat, online, received, run_tasks, series, started, succeeded

LOST = "celery_exporter_events_lost_total"
PROCESSED = series("celery_worker_tasks_processed_total", worker="w@h")


@pytest.fixture
def watched() -> Watched:
    return Watched()


def lose_connection(watched: Watched, seconds: float = 0.0, *, gap: bool = True) -> None:
    """Lose the broker for a while; *gap* says whether events may have been lost meanwhile."""
    watched.cluster.broker_lost(watched.now)
    watched.wait(seconds)
    watched.cluster.broker_found(watched.now, gap=gap)


def test_ordinary_operation_loses_nothing(watched: Watched) -> None:
    """Heartbeats and starts overtake each other."""
    done = 0
    for second in range(0, 60, 2):
        watched.hear(heartbeat(second, processed=done + (second % 4) // 2))
        run_tasks(watched, 3)
        done += 3
    assert watched.series()[LOST] == 0


def test_starts_missed_in_a_gap_are_counted(watched: Watched) -> None:
    beat_on(watched, 6)
    run_tasks(watched, 5)
    beat_on(watched, 6, processed=5)
    lose_connection(watched, 10)
    beat_on(watched, 10, processed=12)
    assert watched.series()[LOST] == 7
    beat_on(watched, 10, processed=12)
    assert watched.series()[LOST] == 7


def test_starts_after_a_gap_are_not_lost(watched: Watched) -> None:
    beat_on(watched, 6)
    lose_connection(watched, 10)
    run_tasks(watched, 4)
    beat_on(watched, 10, processed=6)
    assert watched.series()[LOST] == 2


def test_nothing_is_lost_when_the_broker_kept_the_events(watched: Watched) -> None:
    beat_on(watched, 6)
    lose_connection(watched, 10, gap=False)
    run_tasks(watched, 4)
    beat_on(watched, 10, processed=4)
    assert watched.series()[LOST] == 0


def test_tasks_without_events_are_not_lost_ones(watched: Watched) -> None:
    """``send_events = False`` on a task: the worker counts it, and nobody hears of it, gap or no gap."""
    done = 0
    for second in range(0, 40, 2):
        run_tasks(watched, 1)
        done += 3
        watched.hear(heartbeat(second, processed=done))
    lose_connection(watched)
    beat_on(watched, 10, processed=done)
    assert watched.series()[LOST] == 0


def test_lost_starts_are_told_from_those_of_tasks_without_events(watched: Watched) -> None:
    done = 0
    for second in range(0, 40, 2):
        run_tasks(watched, 1)
        done += 4
        watched.hear(heartbeat(second, processed=done))
    lose_connection(watched)
    beat_on(watched, 10, processed=done + 40)
    assert watched.series()[LOST] == 10


def test_a_second_gap_is_measured_by_itself(watched: Watched) -> None:
    processed = 0
    for lost in (5, 3):
        run_tasks(watched, 20)
        processed += 20
        beat_on(watched, 6, processed=processed)
        lose_connection(watched)
        processed += lost
        beat_on(watched, 6, processed=processed)
    assert watched.series()[LOST] == 8


def test_a_gap_right_after_a_gap_belongs_to_it(watched: Watched) -> None:
    """A connection that is cut again and again is measured from before the first cut."""
    beat_on(watched, 6)
    run_tasks(watched, 5)
    beat_on(watched, 6, processed=5)
    for processed in (8, 12):
        lose_connection(watched)
        watched.hear(heartbeat(watched.seconds, processed=processed))
    beat_on(watched, 6, processed=12)
    assert watched.series()[LOST] == 7


def test_a_new_process_in_the_gap_begins_to_count_at_zero(watched: Watched) -> None:
    beat_on(watched, 6, processed=100)
    lose_connection(watched, 10)
    beat_on(watched, 10, processed=3, pid=2)
    assert watched.series()[LOST] == 3
    assert watched.series()[PROCESSED] == 3


def test_a_new_process_without_a_gap_has_lost_nothing(watched: Watched) -> None:
    beat_on(watched, 6, processed=100)
    watched.hear(online(watched.seconds, pid=2))
    beat_on(watched, 10, processed=0, pid=2)
    assert watched.series()[LOST] == 0


def test_a_worker_that_found_the_broker_again_has_lost_what_was_missed_only(watched: Watched) -> None:
    """Celery says ``worker-online`` then, in the middle of the process's life."""
    run_tasks(watched, 20)
    beat_on(watched, 6, processed=20)
    lose_connection(watched)
    watched.hear(online(watched.seconds, processed=23))
    beat_on(watched, 10, processed=23)
    assert watched.series()[LOST] == 3


def busy_life(seconds: int) -> list[list[Event]]:
    """Return what a worker says in each second: it runs a task and sends a heartbeat."""
    return [
        [
            received(at, uuid=f"t{at}", clock=4 * at + 1),
            started(at, uuid=f"t{at}", clock=4 * at + 2),
            succeeded(at, uuid=f"t{at}", clock=4 * at + 3),
            heartbeat(at + 0.5, processed=at + 1, clock=4 * at + 4),
        ]
        for at in range(seconds)
    ]


@pytest.mark.parametrize("again", [0, 1, 2, 6])
def test_what_rabbitmq_sends_again_hides_no_loss_and_is_none(watched: Watched, again: int) -> None:
    """The connection is cut three times; so many seconds come again, and then go on or, once, are lost for 5 s."""
    life = busy_life(40)
    told: list[list[Event]] = []
    for begin, end in ((0, 10), (10, 20), (25, 35), (35, 40)):
        for second in told[len(told) - again :] + life[begin:end]:
            watched.hear(*second, live=False)
        told += life[begin:end]
        lose_connection(watched)
    assert watched.series()[LOST] == 5


def test_starts_that_a_heartbeat_overtakes_after_a_gap_are_not_lost(watched: Watched) -> None:
    """Of the heartbeats that follow on a gap, the one that misses the least is right."""
    run_tasks(watched, 5)
    beat_on(watched, 6, processed=5)
    lose_connection(watched)
    beat_on(watched, 2, processed=6)
    run_tasks(watched, 1)
    beat_on(watched, 6, processed=6)
    lose_connection(watched)
    beat_on(watched, 2, processed=6)
    beat_on(watched, 2, processed=7)
    assert watched.series()[LOST] == 0


def test_a_start_that_comes_late_over_a_gap_is_not_taken_back(watched: Watched) -> None:
    beat_on(watched, 6)
    beat_on(watched, 6, processed=2)
    run_tasks(watched, 1)
    lose_connection(watched)
    run_tasks(watched, 1)
    beat_on(watched, 6, processed=2)
    assert watched.series()[LOST] == 0


def test_what_was_lost_in_one_gap_is_not_expected_to_be_in_the_next(watched: Watched) -> None:
    run_tasks(watched, 5)
    beat_on(watched, 6, processed=5)
    for processed in (55, 65):
        lose_connection(watched)
        beat_on(watched, 10, processed=processed)
    assert watched.series()[LOST] == 60


def test_a_new_process_in_the_gap_is_measured_by_what_it_did_itself(watched: Watched) -> None:
    """Half of what the worker starts sends no events, and it was first heard in the middle of its life."""
    beat_on(watched, 6, processed=100)
    run_tasks(watched, 5)
    beat_on(watched, 6, processed=110)
    lose_connection(watched)
    beat_on(watched, 10, processed=4, pid=2)
    assert watched.series()[LOST] == 2


def test_what_another_process_did_unheard_before_a_gap_was_not_lost_in_it(watched: Watched) -> None:
    run_tasks(watched, 5)
    beat_on(watched, 6, processed=5)
    beat_on(watched, 2, processed=4, pid=2)
    lose_connection(watched)
    beat_on(watched, 6, processed=4, pid=2)
    assert watched.series()[LOST] == 0


def test_a_worker_first_heard_in_the_middle_of_its_life_has_lost_nothing(watched: Watched) -> None:
    beat_on(watched, 10, processed=100_000)
    assert watched.series()[LOST] == 0
