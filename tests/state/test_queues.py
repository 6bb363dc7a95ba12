"""Depth, age and latency objectives of queues, from what brokers can and cannot show."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from celery_lookout.readings import BrokerReading, ConsumedQueue, QueueHead, QueueReading, WorkerReading
from celery_lookout.state.cluster import ClusterOptions, Limits
from celery_lookout.state.queues import SETTLED_SECONDS, STALE_SECONDS
from celery_lookout.state.tasks import ENDED_SECONDS
from celery_lookout.state.workers import ANSWER_SECONDS, KEEP_SECONDS
from tests.clusters import EPOCH, Watched, received, sent, series, started, succeeded

AGE = series("celery_queue_oldest_task_age_seconds", queue="celery")
LENGTH = series("celery_queue_length", queue="celery")


@pytest.fixture
def watched() -> Watched:
    return Watched()


def poll(watched: Watched, ready: int, *heads: QueueHead, several: bool = False, **broker: float) -> None:
    """Take a reading of the queue ``celery`` now; several heads are those of priorities."""
    reading = QueueReading(
        "celery", ready, head=None if several or not heads else heads[0], heads=heads if several else ()
    )
    watched.cluster.take_broker(BrokerReading(watched.now, (reading,), **broker))  # type: ignore[arg-type]


def age(watched: Watched) -> float | None:
    return watched.series().get(AGE)


def test_a_reading_shows_every_number_it_has(watched: Watched) -> None:
    watched.changes("")
    reading = QueueReading("celery", 5, by_priority={0: 3, 9: 2}, unacked=4, consumers=2)
    watched.cluster.take_broker(
        BrokerReading(watched.now, (reading,), unacked=7, oldest_unacked_at=EPOCH - 30, visibility_timeout_seconds=3600)
    )
    assert watched.changes("celery_") == {
        LENGTH: 5,
        series("celery_queue_priority_length", queue="celery", priority="0"): 3,
        series("celery_queue_priority_length", queue="celery", priority="9"): 2,
        series("celery_queue_unacked", queue="celery"): 4,
        series("celery_queue_consumers", queue="celery"): 2,
        "celery_broker_unacked": 7,
        "celery_broker_oldest_unacked_age_seconds": 30,
        "celery_broker_visibility_timeout_seconds": 3600,
    }


def test_what_the_broker_does_not_show_has_no_series(watched: Watched) -> None:
    poll(watched, 0)
    shown = watched.series()
    for absent in ("celery_queue_unacked", "celery_queue_priority_length", "celery_broker_", "celery_queue_latency"):
        assert not any(name.startswith(absent) for name in shown), absent


def test_an_empty_queue_is_of_age_zero(watched: Watched) -> None:
    poll(watched, 0)
    assert age(watched) == 0


def test_a_queue_never_read_has_no_age(watched: Watched) -> None:
    watched.hear(sent(0))
    assert age(watched) is None


def test_age_from_the_head_that_we_saw_sent(watched: Watched) -> None:
    watched.hear(sent(0, uuid="a"), sent(5, uuid="b"))
    watched.wait_until(10)
    poll(watched, 1, QueueHead("b", EPOCH + 8))
    assert age(watched) == 5


def test_age_from_the_eta_if_that_is_later(watched: Watched) -> None:
    watched.hear(sent(0, uuid="a", eta="2027-01-15T08:00:06+00:00"))
    watched.wait_until(10)
    poll(watched, 1, QueueHead("a"))
    assert age(watched) == 4


def test_age_from_the_time_stamped_on_the_head(watched: Watched) -> None:
    watched.wait_until(10)
    poll(watched, 1, QueueHead("never heard of", EPOCH + 4))
    assert age(watched) == 6


def test_age_from_the_oldest_on_its_way_when_the_head_is_not_shown(watched: Watched) -> None:
    watched.hear(sent(2, uuid="a"), sent(3, uuid="b"))
    watched.wait_until(10)
    poll(watched, 2)
    assert age(watched) == 8
    watched.hear(received(10, uuid="a"))
    assert age(watched) == 7


def test_age_from_the_oldest_on_its_way_when_the_head_is_a_stranger(watched: Watched) -> None:
    watched.hear(sent(2, uuid="a"))
    watched.wait_until(10)
    poll(watched, 2, QueueHead("stranger"))
    assert age(watched) == 8


def test_messages_that_wait_for_their_eta_are_not_the_oldest(watched: Watched) -> None:
    watched.hear(sent(1, uuid="later", eta="2027-01-15T09:00:00+00:00"), sent(4, uuid="b"))
    watched.wait_until(10)
    poll(watched, 2)
    assert age(watched) == 6


def test_age_is_at_least_the_time_the_same_stranger_has_been_the_head(watched: Watched) -> None:
    poll(watched, 3, QueueHead("stranger"))
    watched.wait(7)
    poll(watched, 3, QueueHead("stranger"))
    assert age(watched) == 7
    poll(watched, 2, QueueHead("another"))
    assert age(watched) == 0


def test_age_is_unknown_when_nothing_tells(watched: Watched) -> None:
    poll(watched, 3)
    assert age(watched) is None
    assert watched.series()[LENGTH] == 3


def test_a_head_without_a_task_id_may_still_be_stamped(watched: Watched) -> None:
    watched.wait_until(10)
    poll(watched, 1, QueueHead(None, EPOCH + 3))
    assert age(watched) == 7


def test_of_several_priorities_the_oldest_counts(watched: Watched) -> None:
    watched.hear(sent(1, uuid="low"), sent(6, uuid="high"))
    watched.wait_until(10)
    poll(watched, 2, QueueHead("high"), QueueHead("low"), several=True)
    assert age(watched) == 9


def test_of_several_priorities_one_may_be_unknown(watched: Watched) -> None:
    watched.wait_until(10)
    poll(watched, 2, QueueHead("high", EPOCH + 6), QueueHead("stranger"), several=True)
    assert age(watched) == 4


def test_age_is_never_negative(watched: Watched) -> None:
    poll(watched, 1, QueueHead("a", EPOCH + 100))
    assert age(watched) == 0


def test_age_grows_between_readings(watched: Watched) -> None:
    poll(watched, 1, QueueHead("a", EPOCH))
    watched.wait(3)
    assert age(watched) == 3


def test_a_purged_queue_forgets_what_was_in_it(watched: Watched) -> None:
    watched.hear(*(sent(0, uuid=str(number)) for number in range(5)))
    watched.wait(SETTLED_SECONDS + 1)
    watched.hear(sent(watched.seconds, uuid="new"))
    poll(watched, 1)
    watched.wait(2)
    assert age(watched) == 2


def tracked(watched: Watched) -> float:
    return watched.series()["celery_exporter_tasks_tracked"]


def test_tasks_that_left_the_queue_without_an_event_are_forgotten_in_time(watched: Watched) -> None:
    """They were purged, or their worker sends no task events, and its snapshots tell of them."""
    watched.hear(*(sent(0, uuid=str(number)) for number in range(5)))
    watched.wait(SETTLED_SECONDS + 1)
    poll(watched, 2)
    assert tracked(watched) == 5
    watched.hear(started(watched.seconds, uuid="0"))
    watched.wait(ENDED_SECONDS + 1)
    assert tracked(watched) == 3  # one runs, two wait
    watched.hear(succeeded(watched.seconds, uuid="0"))
    assert watched.series()["celery_task_succeeded_total" + '{task="add",queue="celery"}'] == 1


def test_what_was_sent_just_now_may_not_be_in_the_brokers_count_yet(watched: Watched) -> None:
    watched.hear(sent(0, uuid="a"))
    watched.wait(3)
    poll(watched, 0)
    poll(watched, 1)
    assert age(watched) == 3


def test_ended_and_received_tasks_wait_no_more(watched: Watched) -> None:
    watched.hear(sent(0, uuid="a"), sent(0, uuid="b"), sent(0, uuid="c"))
    watched.hear(received(1, uuid="a"), started(1, uuid="b"), succeeded(1, uuid="c"))
    poll(watched, 1)
    assert age(watched) is None


@pytest.mark.parametrize(
    ("wait", "expected"),
    [(59.0, {"eligible": 1}), (60.0, {"eligible": 1}), (60.5, {"eligible": 1, "violations": 1})],
)
def test_starts_later_than_the_objective_violate_it(wait: float, expected: Mapping[str, int]) -> None:
    watched = Watched(ClusterOptions(latency_slos={"celery": 60.0}))
    assert watched.series()[series("celery_queue_latency_slo_seconds", queue="celery")] == 60
    watched.changes()
    watched.hear(sent(0), received(1), started(wait))
    assert watched.changes("celery_queue_slo_") == {
        series(f"celery_queue_slo_{name}_total", queue="celery"): count for name, count in expected.items()
    }


def test_queues_without_an_objective_have_no_objective_series() -> None:
    watched = Watched(ClusterOptions(latency_slos={"mail": 60.0}))
    watched.hear(sent(0), started(100))
    assert {name for name in watched.series("celery_queue_slo_") if 'queue="celery"' in name} == set()


def test_numbers_of_a_broker_that_does_not_answer_are_withdrawn(watched: Watched) -> None:
    reading = QueueReading("celery", 5, by_priority={0: 5}, unacked=4, consumers=2, head=QueueHead("a", EPOCH))
    watched.cluster.take_broker(BrokerReading(watched.now, (reading,), unacked=1, oldest_unacked_at=EPOCH, delayed=3))
    watched.wait(STALE_SECONDS)
    assert watched.series()[LENGTH] == 5
    watched.wait(1)
    shown = watched.series()
    assert not [name for name in shown if name.startswith(("celery_queue_", "celery_broker_"))]
    poll(watched, 6)
    assert watched.series()[LENGTH] == 6


def test_nobody_is_said_to_consume_a_queue_before_workers_could_be_asked(watched: Watched) -> None:
    """Where remote control is forbidden, 0 workers would be a guess."""
    gauges = [series(f"celery_queue_{name}", queue="celery") for name in ("workers", "slots", "consumers")]
    poll(watched, 5)
    assert not watched.series().keys() & set(gauges)
    watched.cluster.take_workers([])
    assert [watched.series()[gauge] for gauge in gauges] == [0, 0, 0]


def test_a_worker_without_heartbeats_consumes_by_its_answers(watched: Watched) -> None:
    slots = series("celery_queue_slots", queue="celery")
    poll(watched, 5)
    queues = (ConsumedQueue("celery", "", "celery"),)
    watched.cluster.take_workers([WorkerReading("mute@h", watched.now, slots=3, queues=queues)])
    assert watched.series()[slots] == 3
    assert series("celery_worker_up", worker="mute@h") not in watched.series()
    watched.wait(ANSWER_SECONDS + 1)
    assert watched.series()[slots] == 0
    watched.wait(KEEP_SECONDS)
    assert not [name for name in watched.series() if "mute@h" in name]


def test_a_queue_that_the_broker_shows_no_more_loses_its_numbers_and_stays_known(watched: Watched) -> None:
    poll(watched, 5, QueueHead("a", EPOCH))
    watched.cluster.take_broker(BrokerReading(watched.now, ()))
    shown = watched.series()
    assert LENGTH not in shown
    assert AGE not in shown
    assert "celery" in watched.cluster.queues.names()


def test_queues_past_the_limit_show_no_depth() -> None:
    """A sum over some queues would be no number."""
    watched = Watched(ClusterOptions(limits=Limits(queues=1)))
    readings = tuple(QueueReading(name, 5) for name in ("first", "second", "third"))
    watched.cluster.take_broker(BrokerReading(watched.now, readings))
    assert watched.series("celery_queue_length") == {series("celery_queue_length", queue="first"): 5}


def test_nothing_held_is_of_age_zero(watched: Watched) -> None:
    poll(watched, 0, unacked=0)
    assert watched.series()["celery_broker_oldest_unacked_age_seconds"] == 0


def test_status_shows_queues_by_name(watched: Watched) -> None:
    watched.hear(sent(0, uuid="b", queue="b"), sent(0, uuid="a", queue="a"), sent(0, uuid="?", queue=None))
    watched.cluster.take_broker(BrokerReading(watched.now, (QueueReading("b", 2, head=QueueHead("b")),)))
    watched.wait(2)
    assert watched.cluster.summary()["queues"] == [
        {"queue": "a", "length": None, "oldest_task_age_seconds": None, "workers": 0, "slots": 0},
        {"queue": "b", "length": 2, "oldest_task_age_seconds": 2.0, "workers": 0, "slots": 0},
    ]
