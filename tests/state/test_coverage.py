"""Whose word counts: a worker's events or its snapshots, never both, and as soon as it can be known."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout.events import Event
from celery_lookout.readings import ActiveTask
from celery_lookout.state import coverage as module
from celery_lookout.state.boots import STALE_SECONDS
from celery_lookout.state.tasks import ENDED_SECONDS
from celery_lookout.state.unsent import HOLD_SECONDS
from tests.clusters import (
    EPOCH,
    Watched,
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

LOST = "celery_exporter_events_lost_total"


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    watched.expect_snapshots()
    return watched


@pytest.fixture
def covered(watched: Watched) -> Watched:
    """A worker of whom a snapshot was read before its first event."""
    watched.poll(snapshot(0, row(started=0)))
    watched.hear(online(0))
    watched.poll()
    watched.changes()
    return watched


def a_life(at: float = 0.0, uuid: str = "id", worker: str = "w@h") -> list[Event]:
    on: dict[str, Any] = {"uuid": uuid, "worker": worker}
    return [
        sent(at, uuid=uuid), received(at + 0.1, **on), started(at + 0.2, **on), succeeded(at + 0.7, **on),
    ]  # fmt: skip


def worked(watched: Watched) -> dict[str, float]:
    """Return what moved of the counters that workers move."""
    return {name: n for name, n in watched.changes().items() if "_total" in name and "sent_total" not in name}


ONCE = {of("received_total"): 1, of("started_total"): 1, of("succeeded_total"): 1}


# -- before anything is known


def test_without_anybody_who_reads_snapshots_nothing_waits() -> None:
    watched = Watched()
    watched.hear_each(a_life())
    assert worked(watched) == ONCE


def test_the_first_event_of_a_worker_waits_for_a_poll_and_asks_for_one(watched: Watched) -> None:
    asked = watched.expect_snapshots()
    watched.hear_each(a_life())
    assert len(asked) == 1
    assert worked(watched) == {}
    watched.poll()
    assert worked(watched) == ONCE
    watched.hear_each(a_life(10, uuid="next"))
    assert len(asked) == 1
    assert worked(watched) == ONCE


@pytest.mark.parametrize("works", [True, False], ids=["worked", "failed"])
def test_a_poll_that_began_before_does_not_decide_and_one_that_began_after_does(works: bool, watched: Watched) -> None:
    under_way = watched.cluster.precedence.poll_begins()
    watched.hear_each(a_life())
    watched.cluster.snapshots_polled(under_way, watched.now, worked=True)
    assert worked(watched) == {}
    watched.poll(works=works)
    assert worked(watched) == ONCE


def test_events_of_a_worker_of_whom_the_poll_brings_a_snapshot_count_for_nothing(watched: Watched) -> None:
    watched.hear(online(0), *a_life())
    watched.poll(snapshot(0, row(started=0)))
    watched.poll(snapshot(5, row(started=1, succeeded=1)))
    assert worked(watched) == {of("started_total"): 1, of("succeeded_total"): 1}


def test_others_are_not_held_up(watched: Watched) -> None:
    watched.hear(heartbeat(0, worker="known@h"))
    watched.poll()
    watched.hear(*a_life(1, uuid="held", worker="new@h"))
    watched.hear(*a_life(1, worker="known@h"))
    assert worked(watched) == ONCE


def test_task_sent_counts_at_once_and_whoever_works(covered: Watched) -> None:
    covered.hear(sent(1), sent(1, uuid="other"))
    assert covered.changes("celery_task_sent") == {of("sent_total"): 2}
    covered.hear(received(1, worker="new@h"))
    covered.hear(sent(1, uuid="third"))
    assert covered.changes("celery_task_sent") == {of("sent_total"): 1}


def test_past_the_limit_on_held_events_a_worker_is_judged_by_what_is_known(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_LIMIT", 5)
    watched.hear(*a_life(0, uuid="a"), *a_life(0, uuid="b"))
    assert watched.changes()[of("started_total")] == 2
    watched.poll(snapshot(0, row(started=0), worker="covered@h"))
    watched.hear(*a_life(1, uuid="c", worker="covered@h"), *a_life(1, uuid="d", worker="covered@h"))
    assert worked(watched) == {}
    assert watched.cluster.precedence._held == 0


def test_a_fault_while_held_events_are_counted_costs_one_event(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_event: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(watched.cluster.tasks.handlers, "task-started", broken)
    watched.hear(*a_life())
    watched.poll()
    assert worked(watched) == {of("received_total"): 1, of("succeeded_total"): 1}
    assert watched.series()['celery_exporter_events_invalid_total{reason="fault"}'] == 1


def test_a_clock_that_is_set_back_does_not_make_events_older_than_the_process(watched: Watched) -> None:
    watched.wait_until(10)
    watched.poll(snapshot(0, row(started=0), started_at=EPOCH + 3600))
    watched.hear(heartbeat(10))
    watched.poll()
    watched.hear_each(a_life(10))
    assert worked(watched) == {}


# -- when a process takes the place of another


def test_a_covered_worker_that_starts_again_is_judged_anew(covered: Watched) -> None:
    asked = covered.expect_snapshots()
    covered.poll(snapshot(5, row(started=3), processed=3))
    worked(covered)
    covered.hear(online(10), *a_life(11))
    assert len(asked) == 1
    assert worked(covered) == {}
    covered.poll()
    assert worked(covered) == ONCE  # it has come back without the package


def test_and_stays_covered_if_the_new_process_tells_snapshots(covered: Watched) -> None:
    covered.poll(snapshot(5, row(started=3), processed=3))
    worked(covered)
    covered.hear(online(10), *a_life(11))
    covered.poll(snapshot(9.9, row(started=0), boot="b", started_at=EPOCH + 9))
    assert worked(covered) == {}
    covered.poll(snapshot(14, row(started=1), boot="b", started_at=EPOCH + 9))
    assert worked(covered) == {of("started_total"): 1}


def test_a_worker_that_only_connected_again_stays_covered(covered: Watched) -> None:
    """It says ``worker-online`` as well, with what it has done so far."""
    covered.poll(snapshot(5, row(started=3), processed=3))
    worked(covered)
    covered.hear(online(7, processed=3), *a_life(8))
    covered.poll()
    assert worked(covered) == {}


def test_what_a_process_ran_is_lost_when_one_without_the_package_takes_its_place(covered: Watched) -> None:
    covered.poll(snapshot(5, processed=3, running=[["add", "celery", 3, 2, EPOCH]]))
    covered.hear(online(6))
    covered.poll()
    for second in range(8, 80, 2):
        covered.hear(heartbeat(second))
    assert covered.series()[of("lost_total")] == 2


def test_another_process_number_in_a_heartbeat_is_a_new_process(covered: Watched) -> None:
    covered.hear(heartbeat(5, pid=2), *a_life(6))
    covered.poll()
    assert worked(covered) == ONCE


def test_after_the_goodbye_of_a_process_another_one_is_not_it(covered: Watched) -> None:
    covered.poll(snapshot(5, final=True))
    covered.hear(offline(5), online(6), *a_life(7))
    covered.poll()
    assert worked(covered) == ONCE


def test_events_of_both_processes_may_wait_at_once(covered: Watched) -> None:
    """The worker stopped, its successor has no package, and all of that was read in one go."""
    covered.poll(snapshot(5, row(started=1), processed=1))
    worked(covered)
    covered.hear(online(4.0, processed=1), *a_life(4.1, uuid="a"), online(9), *a_life(9.1, uuid="b"))
    covered.poll()
    assert worked(covered) == ONCE


def test_events_from_before_the_first_process_with_the_package_count() -> None:
    """RabbitMQ kept them while no sidecar ran; the snapshots that waited with them are read first."""
    watched = Watched()
    watched.expect_snapshots()
    watched.wait_until(100)
    watched.poll(snapshot(60, row(started=4), boot="b", started_at=EPOCH + 50))
    assert worked(watched) == {of("started_total"): 4}
    watched.hear(*a_life(10, uuid="before"), online(51, pid=1), *a_life(55, uuid="after"), live=False)
    watched.poll()
    assert worked(watched) == ONCE
    watched.poll(snapshot(101, row(started=(4, 6)), boot="b", started_at=EPOCH + 50))
    assert worked(watched) == {of("started_total"): 2}


def test_a_backlog_of_events_of_covered_workers_counts_for_nothing() -> None:
    """Of the living and of the dead: what their snapshots told is counted."""
    watched = Watched()
    watched.expect_snapshots()
    watched.wait_until(300)
    watched.poll(snapshot(60, row(started=4)), snapshot(295, row(started=5), worker="alive@h", started_at=EPOCH + 1))
    worked(watched)
    watched.hear(*a_life(10), *a_life(290, uuid="b", worker="alive@h"), live=False)
    watched.poll()
    assert worked(watched) == {}


def test_a_snapshot_counted_by_an_earlier_sidecar_tells_whose_events_do_not_count(watched: Watched) -> None:
    watched.poll(old=[snapshot(0, row(started=3), slots=4)])
    assert worked(watched) == {}
    assert watched.series()[series("celery_worker_slots", worker="w@h")] == 4
    watched.hear(heartbeat(1), *a_life(1))
    watched.poll()
    assert worked(watched) == {}
    watched.poll(snapshot(5, row(started=(3, 4))))
    assert worked(watched) == {of("started_total"): 1}


# -- snapshots that stop, and come again


def silence(watched: Watched, seconds: float, *, polls: bool = True) -> None:
    """Let the worker live on without a snapshot."""
    end = watched.seconds + seconds
    while watched.seconds < end:
        watched.wait(1)
        watched.hear(heartbeat(watched.seconds))
        if polls:
            watched.poll()


def test_events_count_again_when_snapshots_stay_away(covered: Watched) -> None:
    silence(covered, STALE_SECONDS - 1)
    covered.hear_each(a_life(covered.seconds))
    assert worked(covered) == {}
    silence(covered, 2)
    covered.hear_each(a_life(covered.seconds, uuid="next"))
    assert worked(covered) == ONCE


def test_slow_snapshots_are_waited_for(watched: Watched) -> None:
    watched.poll(snapshot(0, interval=20.0))
    watched.hear(online(0))
    silence(watched, 55)
    watched.hear_each(a_life(watched.seconds))
    assert worked(watched) == {}
    silence(watched, 10)
    watched.hear_each(a_life(watched.seconds, uuid="next"))
    assert worked(watched) == ONCE


def test_nobody_is_judged_while_snapshots_cannot_be_read(covered: Watched) -> None:
    silence(covered, 50, polls=False)
    for _ in range(50):
        covered.wait(1)
        covered.poll(works=False)
    covered.hear_each(a_life(covered.seconds))
    assert worked(covered) == {}
    covered.poll()  # the first that works: from now on they would have been read
    silence(covered, STALE_SECONDS - 1)
    covered.hear_each(a_life(covered.seconds, uuid="b"))
    assert worked(covered) == {}
    silence(covered, 2)
    covered.hear_each(a_life(covered.seconds, uuid="c"))
    assert worked(covered) == ONCE


def test_what_events_counted_meanwhile_is_not_counted_again(covered: Watched) -> None:
    covered.poll(snapshot(1, row(started=10, failed=2), processed=10))
    silence(covered, STALE_SECONDS + 2)
    at = covered.seconds
    worked(covered)
    for number in range(3):
        covered.hear_each(a_life(at + number, uuid=str(number)))
    assert worked(covered)[of("started_total")] == 3
    # Ten were told of, three counted as events, and one started in between: nobody counted that.
    covered.poll(snapshot(at + 4, row(started=(10, 14)), processed=14, seq=50))
    assert worked(covered) == {}
    covered.hear_each(a_life(at + 5, uuid="muted"))
    assert worked(covered) == {}
    covered.poll(snapshot(at + 9, row(started=(14, 15), failed=(2, 3)), processed=15, seq=51))
    assert worked(covered) == {of("started_total"): 1, of("failed_total"): 1}
    assert covered.series()[LOST] == 1
    covered.poll(snapshot(at + 4, row(started=(10, 14)), processed=14, seq=50), snapshot(1, row(started=10)))
    assert worked(covered) == {}


def test_without_events_meanwhile_nothing_is_left_out(covered: Watched) -> None:
    covered.poll(snapshot(1, row(started=10), processed=10))
    silence(covered, STALE_SECONDS + 2)
    worked(covered)
    covered.poll(snapshot(covered.seconds, row(started=(12, 14)), processed=14, seq=50))
    assert worked(covered) == {of("started_total"): 4}
    assert covered.series()[LOST] == 0


def test_a_worker_whose_events_counted_from_its_start_is_not_counted_twice(watched: Watched) -> None:
    """Its snapshots could not be read at first."""
    watched.hear(online(0), *a_life(1))
    watched.poll(works=False)
    assert worked(watched) == ONCE
    watched.poll(snapshot(5, row(started=1, failed=1), processed=1))
    assert worked(watched) == {}
    watched.poll(snapshot(5, row("mail", started=1), seq=6))  # a further message of that moment
    assert worked(watched) == {}
    watched.poll(snapshot(10, row(started=(1, 2)), row("mail", started=(1, 3)), processed=2))
    assert worked(watched) == {of("started_total"): 1, of("started_total", task="mail"): 2}


def test_what_counted_as_events_after_the_first_snapshot_was_written_is_not_counted_by_the_next(
    watched: Watched,
) -> None:
    """The snapshot was on its way meanwhile."""
    watched.hear(online(0), *a_life(1), *a_life(6, uuid="b"))
    watched.poll(works=False)
    assert worked(watched)[of("started_total")] == 2
    watched.poll(snapshot(5, row(started=1), processed=1))
    watched.poll(snapshot(10, row(started=(1, 2)), processed=2))
    assert worked(watched) == {}
    watched.poll(snapshot(15, row(started=(2, 3)), processed=3))
    assert worked(watched) == {of("started_total"): 1}
    assert watched.series()[LOST] == 0


def test_what_a_worker_did_before_we_came_is_not_called_lost(watched: Watched) -> None:
    watched.hear(heartbeat(1), *a_life(1))
    watched.poll(works=False)
    watched.poll(snapshot(5, row(started=(998, 1000)), processed=1000))
    watched.poll(snapshot(10, row(started=(1000, 1001)), processed=1001))
    assert watched.series()[LOST] == 0


def test_what_counted_as_events_long_ago_does_not_make_a_later_silence_cost_anything(watched: Watched) -> None:
    watched.hear(online(0), *a_life(1), *a_life(2, uuid="b"))
    watched.poll(works=False)
    watched.poll(snapshot(5, row(started=2), processed=2))
    watched.poll(snapshot(10, row(started=(2, 4)), processed=4))
    silence(watched, STALE_SECONDS + 10)
    worked(watched)
    watched.poll(snapshot(watched.seconds, row(started=(4, 7)), processed=7))
    assert worked(watched) == {of("started_total"): 3}
    silence(watched, STALE_SECONDS + 2)
    watched.hear_each(a_life(watched.seconds, uuid="c"))  # the only one of two that is heard
    watched.wait(3)
    worked(watched)
    watched.poll(snapshot(watched.seconds, row(started=(7, 9)), processed=9))
    watched.poll(snapshot(watched.seconds + 1, row(started=(9, 10)), processed=10))
    assert worked(watched) == {of("started_total"): 1}
    assert watched.series()[LOST] == 1


def test_events_from_before_the_last_snapshot_count_for_nothing_however_late(covered: Watched) -> None:
    covered.poll(snapshot(20, row(started=1), processed=1))
    silence(covered, STALE_SECONDS + 2)
    worked(covered)
    covered.hear(*a_life(19))
    assert worked(covered) == {}
    covered.hear(*a_life(21, uuid="later"))
    assert worked(covered) == ONCE


def test_a_snapshot_of_long_ago_says_nothing_about_the_process_of_now(watched: Watched) -> None:
    """The same number, as in a container, and its ``worker-online`` was not heard."""
    watched.wait_until(300)
    watched.poll(snapshot(0, row(started=4)))
    worked(watched)
    watched.hear(*a_life(300))
    watched.poll()
    assert worked(watched) == ONCE


def test_an_event_from_the_future_does_not_put_snapshots_off_for_ever(watched: Watched) -> None:
    watched.hear(online(0), *a_life(3000), at=1)
    watched.poll(works=False)
    worked(watched)
    for at in range(5, 65, 5):
        watched.poll(snapshot(at, row(started=(at - 5, at))))
    assert worked(watched) == {of("started_total"): 60 - 35}


def test_a_worker_that_does_not_count_all_gives_gauges_and_its_events_count(watched: Watched) -> None:
    watched.poll(snapshot(0, row(started=5), counts=False, memory=500, slots=3))
    watched.hear(online(0), *a_life())
    watched.poll()
    assert worked(watched) == ONCE
    shown = watched.series("celery_worker_")
    assert shown[series("celery_worker_memory_bytes", worker="w@h")] == 500
    assert shown[series("celery_worker_slots", worker="w@h")] == 3


# -- what else a covered worker changes


def test_what_a_covered_worker_runs_is_told_by_its_snapshots_alone(covered: Watched) -> None:
    covered.poll(snapshot(1, running=[["add", "celery", 2, 0, EPOCH]], reserved=3, scheduled=4))
    covered.hear(sent(2), received(2), started(2))
    covered.cluster.take_active([("w@h", ActiveTask("other", "add", "", "celery", started_at=EPOCH))])
    covered.hear(heartbeat(2))
    shown = covered.series()
    assert shown["celery_exporter_tasks_tracked"] == 1
    assert shown[series("celery_exporter_queue_resolution_total", source="inspect")] == 0
    assert shown[of("running")] == 2
    assert shown[series("celery_worker_tasks_reserved", worker="w@h")] == 3
    assert shown[series("celery_worker_tasks_scheduled", worker="w@h")] == 4


def test_running_tasks_of_covered_and_other_workers_are_added_up(covered: Watched) -> None:
    covered.poll(snapshot(1, running=[["add", "celery", 2, 0, EPOCH]]))
    covered.hear(heartbeat(1, worker="other@h"))
    covered.poll()
    covered.hear(sent(2), received(2, worker="other@h"), started(2, worker="other@h"))
    assert covered.series()[of("running")] == 3


ENDS: dict[str, Callable[[float], list[Event]]] = {
    "succeeded": lambda at: [received(at), started(at), succeeded(at)],
    "failed": lambda at: [received(at), started(at), failed(at)],
    "rejected": lambda at: [received(at), started(at), rejected(at, requeue=False)],
    "retried": lambda at: [
        received(at), started(at), sent(at, retries=1), retried(at), received(at, retries=1), started(at), succeeded(at)
    ],
    "retried elsewhere": lambda at: [
        received(at), started(at), sent(at, retries=1, queue="slow"), retried(at), received(at, retries=1),
        started(at), succeeded(at),
    ],
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("late_sent", [False, True])
def test_events_that_count_for_nothing_still_tell_what_does_not_wait_any_more(
    end: Callable[[float], list[Event]], late_sent: bool, covered: Watched
) -> None:
    first, rest = [sent(1)], end(1.1)
    covered.hear(*(rest + first if late_sent else first + rest))
    assert worked(covered) == {}
    assert not covered.cluster.queues.get("celery").unreceived
    assert not covered.cluster.queues.get("slow").unreceived
    covered.wait(ENDED_SECONDS + 2)
    assert covered.series()["celery_exporter_tasks_tracked"] == 0


def test_a_task_that_was_put_back_has_not_ended(covered: Watched) -> None:
    covered.hear(sent(1), received(1), started(1), rejected(1, requeue=True))
    covered.wait(ENDED_SECONDS + 2)
    assert covered.series()["celery_exporter_tasks_tracked"] == 1


def test_a_retry_that_is_on_its_way_still_waits(covered: Watched) -> None:
    covered.hear(sent(1), received(1), started(1), sent(2, retries=1), retried(2))
    assert list(covered.cluster.queues.get("celery").unreceived) == ["id"]


def test_events_of_tasks_nobody_sent_make_no_rows(covered: Watched) -> None:
    covered.hear(received(1), started(1), succeeded(2))
    covered.wait(HOLD_SECONDS + 1)
    assert not any('queue="unknown"' in name for name in covered.series("celery_task_"))
    assert covered.series()["celery_exporter_tasks_tracked"] == 0


def test_a_covered_worker_needs_no_events_and_loses_none(covered: Watched) -> None:
    covered.poll(snapshot(1, row(started=0)))
    for second in range(2, 12, 2):
        covered.hear(heartbeat(second, processed=second))
        covered.poll(snapshot(second, row(started=second), seq=second + 10))
    assert covered.cluster.workers_without_task_events() == frozenset()
    assert covered.cluster.covered_workers() == {"w@h"}


def test_events_of_a_covered_worker_that_were_lost_are_no_loss(covered: Watched) -> None:
    for count in range(1, 6):
        covered.hear(*a_life(2 * count, uuid=str(count)), heartbeat(2 * count + 1, processed=count))
    covered.cluster.broker_lost(covered.now)
    covered.cluster.broker_found(covered.now, gap=True)
    for second in range(12, 22, 2):
        covered.hear(heartbeat(second, processed=50))
    assert covered.series()[LOST] == 0


def test_a_worker_is_not_asked_anything_before_it_is_known_whether_it_is_covered(watched: Watched) -> None:
    watched.hear(online(0))
    assert watched.cluster.living_workers() == {}
    watched.poll()
    assert watched.cluster.living_workers().keys() == {"w@h"}


quickly = settings(max_examples=60, deadline=None)


@quickly
@given(st.integers(0, 2**32))
def test_with_events_and_snapshots_each_task_counts_once(seed: int) -> None:
    """Two workers, one of them covered; events and polls come as they like, and one or both start again."""
    chance = random.Random(seed)
    watched = Watched()
    watched.expect_snapshots()
    truth = 0
    told = {"started": 0}
    boot, booted, processed = "a", 0.0, 0
    watched.poll(snapshot(0, row(started=0)))
    watched.hear(online(0))
    for step in range(1, 40):
        at = float(step)
        watched.wait_until(at)
        for worker in ("w@h", "plain@h"):
            for number in range(chance.randint(0, 2)):
                truth += 1
                told["started"] += worker == "w@h"
                processed += worker == "w@h"
                watched.hear(*a_life(at, uuid=f"{worker}{step}{number}", worker=worker), at=at)
        if chance.random() < 0.3:
            watched.hear(heartbeat(at, worker="plain@h"), at=at)
        if chance.random() < 0.5:
            totals = {"started": told["started"]}
            watched.poll(snapshot(at, row(**totals), boot=boot, started_at=EPOCH + booted, processed=processed))
        if chance.random() < 0.1:  # goodbye, and a new process
            totals = {"started": told["started"]}
            last = snapshot(at + 0.7, row(**totals), boot=boot, started_at=EPOCH + booted, final=True, seq=step + 100)
            boot, booted, processed, told = boot + "x", at + 0.8, 0, {"started": 0}
            watched.wait_until(at + 0.9)
            watched.hear(online(at + 0.9))
            watched.poll(last, snapshot(at + 0.8, row(started=0), boot=boot, started_at=EPOCH + booted))
    watched.poll(snapshot(60, row(started=told["started"]), boot=boot, started_at=EPOCH + booted, seq=500))
    assert watched.series()[of("started_total")] == truth
