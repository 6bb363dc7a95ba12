"""What becomes of tasks whose end nobody told, and what a cluster asks of its surroundings."""

from __future__ import annotations

import pytest

from celery_lookout.readings import ConsumedQueue, WorkerReading
from celery_lookout.state.cluster import LOST_AFTER_SECONDS, SUSPECT_SECONDS, ClusterOptions, Limits
from tests.clusters import (
    EPOCH,
    Watched,
    failed,
    heartbeat,
    of,
    offline,
    online,
    parse,
    received,
    retried,
    sent,
    series,
    started,
    succeeded,
    task_event,
    worker_event,
)

LOST = of("lost_total")


@pytest.fixture
def watched() -> Watched:
    """A worker that runs one task and has another in reserve."""
    watched = Watched()
    watched.hear(online(0), sent(0), received(0.1), started(0.2))
    watched.hear(sent(0.3, uuid="next"), received(0.4, uuid="next"))
    watched.changes()
    return watched


def test_running_tasks_of_a_vanished_worker_are_lost_after_a_minute(watched: Watched) -> None:
    silent_at = 2 * 2.0 + 5.0
    watched.wait_until(silent_at + LOST_AFTER_SECONDS - 1)
    assert LOST not in watched.changes()
    watched.wait(3)
    assert watched.changes() == {LOST: 1, of("running"): -1}


def test_tasks_are_not_lost_when_the_worker_comes_back(watched: Watched) -> None:
    watched.wait_until(30)
    watched.hear(heartbeat(30))
    watched.hear_each(heartbeat(second) for second in range(30, 120, 2))
    assert LOST not in watched.changes()
    assert watched.series()[of("running")] == 1


def test_tasks_are_not_lost_when_the_worker_lost_and_found_the_broker(watched: Watched) -> None:
    """Celery says ``worker-online`` then, and the same process goes on with what it runs."""
    watched.hear(heartbeat(2, processed=1), online(10, processed=1))
    watched.hear_each(heartbeat(second, processed=1) for second in range(12, 120, 2))
    assert LOST not in watched.changes()
    assert watched.series()[of("running")] == 1


@pytest.mark.parametrize("pid", [1, 2], ids=["with the same number, as in containers", "with another"])
def test_tasks_are_lost_when_a_new_process_answers_to_the_name(watched: Watched, pid: int) -> None:
    watched.hear_each(heartbeat(second, processed=1) for second in range(2, 10, 2))
    watched.hear(online(10, pid=pid))
    watched.hear_each(heartbeat(second, pid=pid) for second in range(12, 80, 2))
    assert watched.changes()[LOST] == 1
    assert watched.series()[of("running")] == 0


def test_a_task_that_another_worker_got_is_not_lost(watched: Watched) -> None:
    watched.hear(heartbeat(5, worker="other@h"), received(5, worker="other@h"), started(6, worker="other@h"))
    watched.hear_each(heartbeat(second, worker="other@h") for second in range(6, 120, 2))
    assert LOST not in watched.changes()
    assert watched.series()[of("running")] == 1


def test_what_was_only_in_reserve_is_not_lost() -> None:
    watched = Watched()
    watched.hear(online(0), sent(0), received(0.1))
    watched.wait(300)
    assert LOST not in watched.changes()
    watched.hear(received(300, worker="other@h"), started(301, worker="other@h"))
    assert watched.changes()[of("started_total")] == 1


def test_a_worker_that_said_goodbye_with_nothing_at_hand_has_lost_nothing(watched: Watched) -> None:
    """An ignored task ends without an event; warm shutdown waits for what really runs."""
    watched.hear(offline(5, active=0))
    assert watched.changes() == {of("running"): -1}
    watched.wait(300)
    assert watched.changes() == {}


def test_a_worker_that_was_cut_short_has_lost_what_it_had(watched: Watched) -> None:
    watched.hear(offline(5, active=1))
    watched.wait(LOST_AFTER_SECONDS + 1)
    assert watched.changes()[LOST] == 1


def test_goodbye_of_the_old_process_does_not_end_tasks_of_the_new(watched: Watched) -> None:
    watched.hear(sent(6, uuid="later"), received(6, uuid="later"), started(6, uuid="later"))
    watched.hear(offline(5, active=0), at=6)
    assert watched.series()[of("running")] == 1


def _suspect(watched: Watched) -> dict[str, list[str]]:
    for second in range(2, int(SUSPECT_SECONDS) + 10, 2):
        watched.hear(heartbeat(second))
    return watched.cluster.suspects()


def test_only_tasks_held_for_long_by_the_living_are_suspect(watched: Watched) -> None:
    watched.hear(heartbeat(50))
    assert watched.cluster.suspects() == {}
    assert _suspect(watched) == {"w@h": ["id", "next"]}
    watched.wait(60)
    assert watched.cluster.suspects() == {}


def test_tasks_that_the_worker_has_not_got_are_let_go_without_an_outcome(watched: Watched) -> None:
    _suspect(watched)
    watched.changes()
    watched.cluster.not_held("w@h", ["id", "next", "never heard of"])
    assert watched.changes() == {of("running"): -1}
    assert watched.series()[series("celery_worker_tasks_reserved", worker="w@h")] == 0
    watched.wait(61)
    assert watched.series()["celery_exporter_tasks_tracked"] == 0


def test_the_outcome_of_a_task_let_go_still_counts_when_it_comes(watched: Watched) -> None:
    """It ended while the worker was asked: the answer overtook the event."""
    _suspect(watched)
    watched.cluster.not_held("w@h", ["id"])
    watched.changes()
    watched.hear(succeeded(68))
    assert watched.changes()[of("succeeded_total")] == 1
    watched.hear(succeeded(68.1))
    assert watched.changes() == {}


def test_the_retry_of_a_task_let_go_still_counts_when_it_comes(watched: Watched) -> None:
    _suspect(watched)
    watched.cluster.not_held("w@h", ["id"])
    watched.changes()
    watched.hear(retried(68), sent(68, retries=1), received(68.1, retries=1), started(68.2))
    changes = watched.changes()
    assert (changes[of("retried_total")], changes[of("received_total")], changes[of("running")]) == (1, 1, 1)
    watched.wait(70)
    watched.hear(succeeded(140))
    assert watched.changes()[of("succeeded_total")] == 1


def test_a_task_that_came_back_while_the_worker_was_asked_is_kept(watched: Watched) -> None:
    asked = _suspect(watched)["w@h"]
    watched.hear(retried(68), sent(68, retries=1), received(68.1, retries=1), started(68.2))
    watched.cluster.not_held("w@h", asked)
    assert watched.series()[of("running")] == 1


def test_a_task_that_moved_on_is_not_taken_from_its_new_worker(watched: Watched) -> None:
    asked = _suspect(watched)["w@h"]
    watched.hear(heartbeat(68, worker="other@h"), received(68, worker="other@h"), started(68.1, worker="other@h"))
    watched.cluster.not_held("w@h", asked)
    assert watched.series()[of("running")] == 1


def test_unknown_events_are_counted_and_nothing_else(watched: Watched) -> None:
    watched.series()
    watched.hear(task_event("progress", 0.5), worker_event("mood", 0.6))
    assert watched.changes() == {}
    assert watched.series()[series("celery_exporter_events_total", event="_other")] == 2


def test_cancelled_task_does_not_run_any_more_and_has_no_outcome(watched: Watched) -> None:
    watched.hear(task_event("cancelled", 0.5))
    assert watched.changes() == {of("running"): -1}


def test_lag_is_the_age_of_the_last_event_and_never_below_zero() -> None:
    watched = Watched()
    watched.hear(heartbeat(1), heartbeat(2), at=5)
    assert watched.series()["celery_exporter_event_lag_seconds"] == 3
    watched.hear(heartbeat(60), at=6)
    shown = watched.series("celery_exporter_")
    assert shown["celery_exporter_event_lag_seconds"] == 0
    assert shown["celery_exporter_last_event_timestamp_seconds"] == EPOCH + 6


def test_refused_input_is_counted_by_reason() -> None:
    watched = Watched()
    watched.cluster.refused("malformed", 3)
    watched.cluster.refused("timestamp")
    assert watched.series("celery_exporter_events_invalid_total") == {
        series("celery_exporter_events_invalid_total", reason="malformed"): 3,
        series("celery_exporter_events_invalid_total", reason="timestamp"): 1,
    }


def test_two_brokers_in_one_registry_do_not_disturb_each_other() -> None:
    """The same task, worker and queue on both: nothing is added up, and one that falls silent is alone in it."""
    shop = Watched(broker="shop")
    mail = Watched(broker="mail", registry=shop.registry)
    shop.cluster.broker_found(shop.now, gap=False)
    mail.cluster.broker_found(mail.now, gap=False)
    for watched in (shop, mail):
        watched.hear(heartbeat(0), sent(0), received(0.1), started(0.2))
    shop.hear(succeeded(1))
    mail.hear(failed(1))
    mail.cluster.broker_lost(mail.now)
    shop.cluster.refresh(shop.now)
    shown = mail.series()

    assert {name.partition('broker="')[2][:4] for name in shown if not name.startswith("celery_exporter_series")} == {
        "shop",
        "mail",
    }
    for broker, outcomes, up in (("shop", (1, 0), 1), ("mail", (0, 1), 0)):
        assert shown[of("succeeded_total", broker=broker)] == outcomes[0]
        assert shown[of("failed_total", broker=broker)] == outcomes[1]
        assert shown[of("started_total", broker=broker)] == 1
        assert shown[series("celery_worker_up", worker="w@h", broker=broker)] == 1
        assert shown[series("celery_exporter_broker_up", broker=broker)] == up


def test_forgetting_a_worker_leaves_its_namesake_on_another_broker() -> None:
    shop = Watched(broker="shop")
    mail = Watched(broker="mail", registry=shop.registry)
    shop.hear(heartbeat(0))
    mail.hear(heartbeat(0))
    shop.wait(3 * 3600)
    shop.series()
    assert all('broker="mail"' in name for name in mail.series("celery_worker_"))


def test_unnamed_broker_has_no_label() -> None:
    watched = Watched()
    watched.hear(heartbeat(0), sent(0))
    assert not any("broker=" in name for name in watched.series())


def test_values_past_a_label_limit_share_one_series() -> None:
    watched = Watched(ClusterOptions(limits=Limits(task_names=2, queues=2, exceptions=1)))
    watched.changes()
    for number in range(4):
        uuid = str(number)
        watched.hear(sent(number, uuid=uuid, name=f"t{number}", queue=f"q{number}"))
        watched.hear(failed(number, uuid=uuid, exception=f"E{number}()"))
    assert watched.changes("celery_task_sent") == {
        of("sent_total", task="t0", queue="q0"): 1,
        of("sent_total", task="t1", queue="q1"): 1,
        of("sent_total", task="_other", queue="_other"): 2,
    }
    assert {key: value for key, value in watched.series("celery_task_exceptions_total").items() if value} == {
        of("exceptions_total", task="t0", queue="q0", exception="E0"): 1,
        of("exceptions_total", task="t1", queue="q1", exception="_other"): 1,
        of("exceptions_total", task="_other", queue="_other", exception="_other"): 2,
    }


def test_workers_past_the_limit_are_left_out_and_their_tasks_still_count() -> None:
    watched = Watched(ClusterOptions(limits=Limits(workers=1)))
    watched.hear(heartbeat(0), heartbeat(0, worker="second@h"))
    watched.hear(sent(0), received(0.1, worker="second@h"), started(0.2, worker="second@h"))
    watched.hear(succeeded(1, worker="second@h"))
    assert {name for name in watched.series("celery_worker_") if "second@h" in name} == set()
    assert watched.series()[of("succeeded_total")] == 1


def test_configured_queues_are_known_before_anybody_names_them() -> None:
    watched = Watched(ClusterOptions(queues=("night",), latency_slos={"mail": 60.0}))
    assert watched.cluster.queues.names() == {"night", "mail"}


def test_queues_of_workers_are_found_by_asking_them() -> None:
    watched = Watched()
    consumed = ConsumedQueue("mail", "mail", "mail")
    watched.cluster.take_workers([WorkerReading("w@h", EPOCH, queues=(consumed,))])
    assert watched.cluster.queues.names() == {"mail"}


def test_workers_that_run_tasks_without_a_word_are_noticed() -> None:
    watched = Watched()
    for second in range(0, 10, 2):
        watched.hear(heartbeat(second, processed=second))
    assert watched.cluster.workers_without_task_events() == {"w@h"}


def test_parsing_of_these_tests_reads_every_line() -> None:
    assert parse('# HELP a b\na{b="c d"} 1.5\ne 2\n') == {'a{b="c d"}': 1.5, "e": 2.0}


def test_a_fault_of_ours_costs_one_event_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong with one event, the others are counted, and the log has it once per kind."""
    watched = Watched()
    counter = watched.cluster._handlers["task-started"][1]

    def broken(_event: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(watched.cluster._handlers, "task-started", (broken, counter))
    watched.hear(sent(0), received(0.1), started(0.2), started(0.3), succeeded(0.4))
    assert watched.series()['celery_exporter_events_invalid_total{reason="fault"}'] == 2
    assert watched.series()[of("succeeded_total")] == 1
    assert [record.message for record in caplog.records] == ["fault while counting an event"]
