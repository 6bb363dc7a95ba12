"""Which series each course of a task's events moves, and that no others move."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from celery_lookout.events import Event
from celery_lookout.readings import ActiveTask, ConsumedQueue, WorkerReading
from celery_lookout.state.cluster import ClusterOptions, Limits
from celery_lookout.state.tasks import ENDED_SECONDS
from celery_lookout.state.unsent import HELD_LIMIT, HOLD_SECONDS, SENT_EXPECTED_SECONDS
from tests.clusters import (
    EPOCH,
    Watched,
    failed,
    heartbeat,
    of,
    received,
    rejected,
    retried,
    revoked,
    sent,
    series,
    started,
    succeeded,
)

#: A task of half a second that waited 0.2 s.
COUNTED_ONCE = {
    of("sent_total"): 1,
    of("received_total"): 1,
    of("started_total"): 1,
    of("succeeded_total"): 1,
    of("runtime_seconds_count", outcome="succeeded"): 1,
    of("runtime_seconds_sum", outcome="succeeded"): 0.5,
    of("queue_wait_seconds_count"): 1,
    of("queue_wait_seconds_sum"): 0.2,
    of("last_success_timestamp_seconds"): EPOCH + 0.7,
}


def a_life(uuid: str = "id") -> list[Event]:
    return [sent(0, uuid=uuid), received(0.1, uuid=uuid), started(0.2, uuid=uuid), succeeded(0.7, uuid=uuid)]


def resolution(source: str) -> str:
    return series("celery_exporter_queue_resolution_total", source=source)


def retried_once(uuid: str = "id") -> list[Event]:
    return [
        sent(0, uuid=uuid),
        received(0.1, uuid=uuid),
        started(0.2, uuid=uuid),
        sent(0.5, uuid=uuid, retries=1),
        retried(0.6, uuid=uuid),
        received(0.7, uuid=uuid, retries=1),
        started(0.8, uuid=uuid),
        succeeded(1.8, uuid=uuid, runtime=1.0),
    ]


RETRIED_ONCE = {
    of("sent_total"): 2,
    of("received_total"): 2,
    of("started_total"): 2,
    of("retried_total"): 1,
    of("retry_exceptions_total", exception="OSError"): 1,
    of("succeeded_total"): 1,
    of("runtime_seconds_count", outcome="retried"): 1,
    of("runtime_seconds_sum", outcome="retried"): 0.4,
    of("runtime_seconds_count", outcome="succeeded"): 1,
    of("runtime_seconds_sum", outcome="succeeded"): 1.0,
    of("queue_wait_seconds_count"): 2,
    of("queue_wait_seconds_sum"): 0.5,
    of("last_success_timestamp_seconds"): EPOCH + 1.8,
}


def test_success_counts_each_step_once() -> None:
    watched = Watched()
    watched.hear_each(a_life())
    assert watched.changes() == COUNTED_ONCE


def test_every_counter_of_a_task_is_born_at_zero() -> None:
    """So that ``increase()`` sees the first failure."""
    watched = Watched()
    watched.hear(sent(0))
    shown = watched.series("celery_task_")
    zeros = {
        *(of(f"{name}_total") for name in ("received", "started", "succeeded", "failed", "retried")),
        *(of(f"{name}_total") for name in ("retries_exhausted", "redelivered", "lost")),
        *(of("revoked_total", reason=reason) for reason in ("expired", "terminated", "revoked")),
        *(of("rejected_total", requeue=requeue) for requeue in ("true", "false")),
        *(of("terminations_total", reason=f"{kind}_time_limit") for kind in ("soft", "hard")),
        of("terminations_total", reason="worker_lost"),
    }
    assert {name: shown.get(name) for name in zeros} == dict.fromkeys(zeros, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=lambda order: "".join(map(str, order)))
def test_any_order_within_the_hold_time_counts_the_same(order: tuple[int, ...]) -> None:
    """``task-sent`` last, too: publisher and worker are different connections."""
    watched = Watched()
    events = a_life()
    watched.hear(*(events[index] for index in order))
    watched.wait(HOLD_SECONDS)
    assert watched.changes() == COUNTED_ONCE
    assert watched.series()[resolution("sent")] == 1


def test_events_are_held_until_task_sent_comes() -> None:
    watched = Watched()
    _, *others = a_life()
    watched.hear(*others)
    watched.wait(HOLD_SECONDS / 2)
    assert watched.changes() == {}
    watched.hear(sent(0))
    assert watched.changes() == COUNTED_ONCE


def test_held_tasks_hold_up_no_others() -> None:
    watched = Watched()
    watched.hear(received(0.1, uuid="held"), *a_life("known"))
    assert watched.changes() == COUNTED_ONCE


def test_after_the_hold_time_the_queue_is_unknown() -> None:
    watched = Watched()
    _, *others = a_life()
    watched.hear(*others)
    watched.wait(HOLD_SECONDS)
    changes = watched.changes()
    assert {name for name in changes if 'queue="unknown"' not in name} == set()
    assert changes[of("succeeded_total", queue="unknown")] == 1
    assert of("queue_wait_seconds_count", queue="unknown") not in changes
    assert watched.series()[resolution("unknown")] == 1


def test_after_the_hold_time_the_queue_is_the_workers_only_one() -> None:
    watched = Watched()
    watched.cluster.take_workers([WorkerReading("w@h", EPOCH, queues=(ConsumedQueue("mail", "mail", "mail"),))])
    _, *others = a_life()
    watched.hear(*others)
    watched.wait(HOLD_SECONDS)
    assert watched.changes()[of("succeeded_total", queue="mail")] == 1
    assert watched.series()[resolution("worker")] == 1


def test_a_worker_with_two_queues_does_not_tell_which() -> None:
    watched = Watched()
    queues = (ConsumedQueue("mail", "mail", "mail"), ConsumedQueue("night", "night", "night"))
    watched.cluster.take_workers([WorkerReading("w@h", EPOCH, queues=queues)])
    watched.hear(started(0))
    watched.wait(HOLD_SECONDS)
    assert watched.changes("celery_task_started") == {of("started_total", task="unknown", queue="unknown"): 1}


def test_task_sent_after_the_hold_time_is_counted_and_relabels_nothing() -> None:
    watched = Watched()
    watched.hear(received(0.1), started(0.2))
    watched.wait(HOLD_SECONDS)
    watched.changes()
    watched.hear(sent(0))
    assert watched.changes()[of("sent_total")] == 1
    watched.hear(succeeded(2))
    assert of("succeeded_total", queue="unknown") in watched.changes()


def test_nothing_is_held_when_publishers_send_no_task_sent() -> None:
    watched = Watched()
    watched.wait(SENT_EXPECTED_SECONDS + 1)
    at = watched.seconds
    watched.hear(received(at), started(at))
    assert watched.changes()[of("started_total", queue="unknown")] == 1


def test_past_the_limit_on_held_tasks_the_oldest_is_counted_as_it_is() -> None:
    watched = Watched()
    watched.hear(*(started(0, uuid=str(number)) for number in range(HELD_LIMIT + 5)))
    changes = watched.changes()
    assert changes[of("started_total", task="unknown", queue="unknown")] == 5


def test_doubled_events_change_nothing() -> None:
    watched = Watched()
    watched.hear_each(event for event in a_life() for _ in range(3))
    assert watched.changes() == COUNTED_ONCE


def requeued_once() -> list[Event]:
    again = [received(0.4), started(0.5), succeeded(1)]
    return [sent(0), received(0.1), started(0.2), rejected(0.3, requeue=True), *again]


def redelivered_once() -> list[Event]:
    return [sent(0), received(0.1), started(0.2), received(5), started(6), succeeded(7)]


@pytest.mark.parametrize("course", [a_life, retried_once, requeued_once, redelivered_once])
def test_the_whole_stream_told_again_changes_nothing(course: Callable[[], list[Event]]) -> None:
    """RabbitMQ delivers again what was not acknowledged before the connection broke."""
    watched = Watched()
    watched.hear_each(course())
    assert watched.changes() != {}
    watched.hear(*course())
    assert watched.changes() == {}


@pytest.mark.parametrize("course", [retried_once, requeued_once, redelivered_once])
def test_every_beginning_told_again_changes_nothing(course: Callable[[], list[Event]]) -> None:
    for length in range(1, len(course())):
        watched = Watched()
        watched.hear_each(course()[:length])
        running = watched.series()[of("running")]
        watched.changes()
        watched.hear(*course()[:length])
        assert watched.changes() == {}, length
        assert watched.series()[of("running")] == running


def test_retry_is_not_counted_as_failure_or_redelivery() -> None:
    watched = Watched()
    watched.hear_each(retried_once())
    assert watched.changes() == RETRIED_ONCE


@pytest.mark.parametrize(
    "order",
    [
        pytest.param((0, 1, 3, 2, 4, 5, 6, 7), id="sent of the retry before started of the first attempt"),
        pytest.param((0, 1, 2, 3, 5, 4, 6, 7), id="received of the next attempt before retried"),
        pytest.param((0, 1, 3, 5, 2, 4, 6, 7), id="received of the next attempt before started and retried"),
        pytest.param((0, 1, 2, 4, 5, 3, 6, 7), id="sent of the retry after its received"),
        pytest.param((0, 1, 2, 3, 5, 6, 4, 7), id="retried after started of the next attempt"),
        pytest.param((1, 2, 0, 3, 4, 5, 6, 7), id="sent after started"),
    ],
)
def test_events_of_two_attempts_may_overtake_each_other(order: tuple[int, ...]) -> None:
    watched = Watched()
    events = retried_once()
    watched.hear(*(events[index] for index in order))
    assert watched.changes() == RETRIED_ONCE
    assert watched.series()[of("running")] == 0


@pytest.mark.parametrize("late", [0, 1, 2], ids=["at once", "after the next one's", "after the start of the third"])
def test_a_third_attempt_may_begin_before_the_first_is_known_to_be_retried(late: int) -> None:
    watched = Watched()
    first, second, last = retried(0.8), retried(0.9), started(1.0)
    watched.hear(
        *[sent(0), received(0.1), started(0.2)],
        *[sent(0.3, retries=1), received(0.4, retries=1), started(0.5)],
        *[sent(0.6, retries=2), received(0.7, retries=2)],
        *[(first, second, last), (second, first, last), (last, first, second)][late],
        succeeded(1.5, runtime=0.5),
    )
    changes = watched.changes()
    assert (changes[of("started_total")], changes[of("retried_total")], changes[of("succeeded_total")]) == (3, 2, 1)
    assert changes[of("runtime_seconds_count", outcome="retried")] == 2
    assert changes[of("runtime_seconds_sum", outcome="retried")] == pytest.approx((0.8 - 0.2) + (0.9 - 0.5))
    assert watched.series()[of("running")] == 0


def test_no_more_than_two_attempts_before_the_last_are_remembered() -> None:
    """Where each task-retried is lost, a task that retries for ever would make a longer list each time."""
    watched = Watched()
    for number in range(10):
        watched.hear(sent(number, retries=number), received(number + 0.1, retries=number), started(number + 0.2))
    watched.hear(*(retried(20 + number) for number in range(10)))
    assert watched.changes()[of("retried_total")] == 3


def test_a_retry_may_go_to_another_queue() -> None:
    watched = Watched()
    events = retried_once()
    events[3] = sent(0.5, retries=1, queue="slow")
    watched.hear_each(events)
    changes = watched.changes()
    slow = {name for name in changes if 'queue="slow"' in name}
    assert slow == {
        of(name, queue="slow", **labels)
        for name, labels in [
            ("sent_total", {}),
            ("received_total", {}),
            ("started_total", {}),
            ("succeeded_total", {}),
            ("queue_wait_seconds_count", {}),
            ("queue_wait_seconds_sum", {}),
            ("last_success_timestamp_seconds", {}),
            ("runtime_seconds_count", {"outcome": "succeeded"}),
            ("runtime_seconds_sum", {"outcome": "succeeded"}),
        ]
    }
    assert changes[of("retried_total")] == 1


@pytest.mark.parametrize(
    ("exception", "traceback", "raised", "reason"),
    [
        ("ValueError('x')", None, "ValueError", None),
        ("ExceptionWithTraceback()", "\nbilliard.exceptions.TimeLimitExceeded: (1,)\n", "TimeLimitExceeded", "hard"),
        ("SoftTimeLimitExceeded()", None, "SoftTimeLimitExceeded", "soft"),
    ],
)
def test_failure_counts_its_exception_and_what_killed_it(
    exception: str, traceback: str | None, raised: str, reason: str | None
) -> None:
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2))
    watched.changes()
    watched.hear(failed(1.2, exception=exception, traceback=traceback))
    expected = {
        of("failed_total"): 1,
        of("exceptions_total", exception=raised): 1,
        of("running"): -1,
        of("last_failure_timestamp_seconds"): EPOCH + 1.2,
        of("runtime_seconds_count", outcome="failed"): 1,
        of("runtime_seconds_sum", outcome="failed"): 1.0,
    }
    if reason:
        expected[of("terminations_total", reason=f"{reason}_time_limit")] = 1
    assert watched.changes() == expected


def test_time_of_a_killed_process_is_not_a_runtime() -> None:
    """The worker notices the death seconds later."""
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2))
    watched.changes()
    watched.hear(failed(5, exception="ExceptionWithTraceback()", traceback="\nx.WorkerLostError: signal 9\n"))
    assert watched.changes() == {
        of("failed_total"): 1,
        of("exceptions_total", exception="WorkerLostError"): 1,
        of("terminations_total", reason="worker_lost"): 1,
        of("running"): -1,
        of("last_failure_timestamp_seconds"): EPOCH + 5,
    }


def test_a_second_task_failed_is_not_counted() -> None:
    """Celery 5.7 sends two for one hard time limit."""
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2), failed(1))
    watched.changes()
    watched.hear(failed(1.1, exception="ExceptionWithTraceback()", traceback="\nTimeLimitExceeded: 1\n"))
    assert watched.changes() == {}


def test_success_after_failure_is_not_counted() -> None:
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2), failed(1))
    watched.changes()
    watched.hear(succeeded(1.1))
    assert watched.changes() == {}


def test_failure_after_a_retry_exhausts_the_retries() -> None:
    watched = Watched()
    watched.hear(*retried_once()[:7])
    watched.changes()
    watched.hear(failed(2, exception="OSError('x')"))
    changes = watched.changes()
    assert changes[of("retries_exhausted_total")] == 1
    assert changes[of("failed_total")] == 1


def test_failure_before_it_was_received_is_counted() -> None:
    """An unknown task has no received and no started."""
    watched = Watched()
    watched.hear(sent(0))
    watched.changes()
    watched.hear(failed(0.1, exception="NotRegistered('add')"))
    assert watched.changes() == {
        of("failed_total"): 1,
        of("exceptions_total", exception="NotRegistered"): 1,
        of("last_failure_timestamp_seconds"): EPOCH + 0.1,
    }


@pytest.mark.parametrize("raised", ["Reject", "Ignore"])
def test_celerys_steering_exceptions_are_not_failures(raised: str) -> None:
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2))
    watched.changes()
    watched.hear(failed(0.3, exception=f"{raised}('not mine', False)"))
    assert watched.changes() == {of("running"): -1}


def test_reject_counts_once_though_celery_5_7_reports_a_failure_too() -> None:
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2))
    watched.changes()
    watched.hear(
        failed(0.3, exception="reject requeue=False: x", traceback='\n  File "a"\ncelery.exceptions.Reject: (1)\n')
    )
    watched.hear(rejected(0.3, requeue=False), rejected(0.3, requeue=False))
    assert watched.changes() == {of("rejected_total", requeue="false"): 1, of("running"): -1}


def test_requeue_is_not_counted_as_redelivery() -> None:
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2))
    watched.changes()
    watched.hear(rejected(0.3, requeue=True), received(0.4), started(0.5), succeeded(1))
    changes = watched.changes()
    assert of("redelivered_total") not in changes
    assert changes[of("rejected_total", requeue="true")] == 1
    assert (changes[of("received_total")], changes[of("started_total")], changes[of("succeeded_total")]) == (1, 1, 1)


def test_a_second_delivery_without_retry_is_counted_as_redelivered() -> None:
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2))
    watched.changes()
    watched.hear(received(10, worker="other@h"), started(11, worker="other@h"))
    assert watched.changes() == {
        of("redelivered_total"): 1,
        of("received_total"): 1,
        of("started_total"): 1,
        of("queue_wait_seconds_count"): 1,
        of("queue_wait_seconds_sum"): 11.0,
    }
    assert watched.series()[of("running")] == 1


def test_a_task_that_runs_again_after_its_end_keeps_its_labels_and_its_one_outcome() -> None:
    watched = Watched()
    watched.hear_each(a_life())
    watched.hear(received(50), started(51))
    watched.wait(ENDED_SECONDS + 50)
    watched.changes()
    watched.hear(succeeded(170))
    assert watched.changes() == {of("running"): -1}
    watched.wait(ENDED_SECONDS + 2)
    assert watched.series()["celery_exporter_tasks_tracked"] == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [({"expired": True}, "expired"), ({"terminated": True}, "terminated"), ({}, "revoked")],
)
def test_revoked_counts_its_reason_once(flags: dict[str, bool], reason: str) -> None:
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2))
    watched.changes()
    watched.hear(revoked(1, **flags), revoked(1.1, **flags))
    assert watched.changes() == {of("revoked_total", reason=reason): 1, of("running"): -1}


def test_success_without_runtime_counts_but_observes_nothing() -> None:
    """The pool process died after it had stored its result."""
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2))
    watched.changes()
    watched.hear(succeeded(1, runtime=None))
    assert watched.changes() == {
        of("succeeded_total"): 1,
        of("running"): -1,
        of("last_success_timestamp_seconds"): EPOCH + 1,
    }


def test_a_late_success_does_not_turn_the_last_one_back() -> None:
    watched = Watched()
    watched.hear(*a_life("a"), *a_life("b"))
    watched.hear(sent(0, uuid="c"), succeeded(100, uuid="c"), sent(0, uuid="d"), succeeded(50, uuid="d"))
    assert watched.series()[of("last_success_timestamp_seconds")] == EPOCH + 100


@pytest.mark.parametrize(
    ("eta", "waited"),
    [
        ("2027-01-15T08:00:05+00:00", 1.0),
        ("2027-01-15T08:00:05", 1.0),
        ("2027-01-15T10:00:05+02:00", 1.0),
        ("2027-01-15T07:00:00+00:00", 6.0),
        ("next week", 6.0),
        ("", 6.0),
    ],
)
def test_wait_begins_at_the_eta_if_that_is_later(eta: str, waited: float) -> None:
    watched = Watched()
    watched.hear(sent(0, eta=eta), received(0.1, eta=eta), started(6))
    assert watched.changes()[of("queue_wait_seconds_sum")] == waited


def test_wait_is_never_negative_when_clocks_disagree() -> None:
    watched = Watched()
    watched.hear(sent(10), received(3), started(4), at=10)
    changes = watched.changes()
    assert changes[of("queue_wait_seconds_count")] == 1
    assert of("queue_wait_seconds_sum") not in changes


def test_runtime_is_never_negative_when_clocks_disagree() -> None:
    watched = Watched()
    watched.hear(sent(0), received(0), started(5), failed(3), at=5)
    changes = watched.changes()
    assert changes[of("runtime_seconds_count", outcome="failed")] == 1
    assert of("runtime_seconds_sum", outcome="failed") not in changes


def test_oldest_running_is_the_age_of_the_longest_running() -> None:
    watched = Watched()
    oldest = of("oldest_running_seconds")
    watched.hear(sent(0, uuid="a"), started(1, uuid="a"), sent(0, uuid="b"), started(4, uuid="b"))
    watched.wait_until(10)
    assert (watched.series()[of("running")], watched.series()[oldest]) == (2, 9)
    watched.hear(succeeded(10, uuid="a"))
    assert (watched.series()[of("running")], watched.series()[oldest]) == (1, 6)
    watched.hear(succeeded(10, uuid="b"))
    assert (watched.series()[of("running")], watched.series()[oldest]) == (0, 0)


def test_an_end_heard_before_its_start_leaves_nothing_running() -> None:
    watched = Watched()
    watched.hear(sent(0), received(0.1), succeeded(0.7), started(0.2))
    assert watched.changes() == COUNTED_ONCE
    assert watched.series()[of("running")] == 0


def test_ended_tasks_are_forgotten_after_a_while() -> None:
    watched = Watched()
    watched.hear_each(a_life())
    watched.wait(ENDED_SECONDS)
    assert watched.series()["celery_exporter_tasks_tracked"] == 1
    watched.wait(1.5)
    assert watched.series()["celery_exporter_tasks_tracked"] == 0


def test_a_full_table_drops_the_oldest_says_so_and_relabels_nothing() -> None:
    watched = Watched(ClusterOptions(limits=Limits(tasks_in_flight=3)))
    for number in range(5):
        watched.hear(sent(0, uuid=str(number)), received(0.1, uuid=str(number)), started(0.2, uuid=str(number)))
    shown = watched.series()
    assert shown["celery_exporter_tasks_tracked"] == 3
    assert shown["celery_exporter_tasks_evicted_total"] == 2
    assert shown[of("running")] == 3
    watched.changes()
    watched.hear(succeeded(1, uuid="0"))
    watched.wait(HOLD_SECONDS)
    changes = watched.changes()
    assert changes[of("succeeded_total", task="unknown", queue="unknown")] == 1
    assert of("succeeded_total") not in changes


def test_evicted_tasks_leave_the_reserve_and_the_queue() -> None:
    watched = Watched(ClusterOptions(limits=Limits(tasks_in_flight=1)))
    watched.hear(heartbeat(0), sent(0, uuid="a"), received(0.1, uuid="a"))
    watched.hear(sent(0, uuid="b"), sent(0, uuid="c"))
    assert watched.series()[series("celery_worker_tasks_reserved", worker="w@h")] == 0
    assert list(watched.cluster.queues.get("celery").unreceived) == ["c"]


def test_inspect_tells_queue_and_name_of_tasks_from_before_our_time() -> None:
    watched = Watched()
    watched.cluster.take_active([("w@h", ActiveTask("id", "add", "", "mail", started_at=EPOCH - 100))])
    assert watched.series()[of("running", queue="mail")] == 1
    assert watched.series()[of("oldest_running_seconds", queue="mail")] == 100
    watched.changes()
    watched.hear(succeeded(1, runtime=101.0))
    changes = watched.changes()
    assert changes[of("succeeded_total", queue="mail")] == 1
    assert watched.series()[resolution("inspect")] == 1


def test_inspect_frees_events_that_were_held() -> None:
    watched = Watched()
    watched.hear(started(0), succeeded(0.1))
    watched.cluster.take_active([("w@h", ActiveTask("id", "add", "", "mail"))])
    assert watched.changes()[of("succeeded_total", queue="mail")] == 1


def test_inspect_changes_nothing_about_known_tasks() -> None:
    watched = Watched()
    watched.hear(sent(0), received(0.1))
    watched.changes()
    watched.cluster.take_active([("w@h", ActiveTask("id", "add", "", "other", started_at=EPOCH))])
    assert watched.changes() == {}


def test_reserved_counts_tasks_that_could_start_and_scheduled_those_that_wait_for_their_eta() -> None:
    watched = Watched()
    eta = "2027-01-15T08:01:00+00:00"
    watched.hear(heartbeat(0), sent(0, uuid="a"), received(0.1, uuid="a"))
    watched.hear(sent(0, uuid="b", eta=eta), received(0.1, uuid="b", eta=eta))
    reserved = series("celery_worker_tasks_reserved", worker="w@h")
    scheduled = series("celery_worker_tasks_scheduled", worker="w@h")
    assert (watched.series()[reserved], watched.series()[scheduled]) == (1, 1)
    watched.hear_each(heartbeat(second) for second in range(2, 62, 2))
    assert (watched.series()[reserved], watched.series()[scheduled]) == (2, 0)
    watched.hear(started(61, uuid="a"), started(61, uuid="b"))
    assert (watched.series()[reserved], watched.series()[scheduled]) == (0, 0)
