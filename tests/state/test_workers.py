"""Workers: alive or not, how busy, and what of them was missed."""

from __future__ import annotations

import pytest

from celery_lookout.readings import ConsumedQueue, WorkerReading
from celery_lookout.state.workers import KEEP_SECONDS, RECONNECT_SECONDS
from tests.clusters import (
    EPOCH,
    Watched,
    beat_on,
    heartbeat,
    of_worker,
    offline,
    online,
    received,
    run_tasks,
    sent,
    series,
    snapshot,
    started,
    succeeded,
)
from tests.clusters import of as of_task

UP = series("celery_worker_up", worker="w@h")
LOST = "celery_exporter_events_lost_total"


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_worker_is_up_while_its_heartbeats_are_fresh(watched: Watched) -> None:
    watched.hear(heartbeat(0, freq=2.0))
    watched.wait_until(8.9)
    assert watched.series()[UP] == 1
    watched.wait_until(9.1)
    assert watched.series()[UP] == 0


def test_slow_heartbeats_are_waited_for(watched: Watched) -> None:
    watched.hear(heartbeat(0, freq=30.0))
    watched.wait_until(64)
    assert watched.series()[UP] == 1
    watched.wait_until(66)
    assert watched.series()[UP] == 0


def test_a_worker_that_comes_back_is_up(watched: Watched) -> None:
    watched.hear(heartbeat(0))
    watched.wait(60)
    assert watched.series()[UP] == 0
    watched.hear(heartbeat(60))
    assert watched.series()[UP] == 1


def test_nobody_counts_as_gone_while_the_broker_is_away(watched: Watched) -> None:
    watched.hear(heartbeat(0))
    watched.wait_until(2)
    watched.cluster.broker_lost(watched.now)
    watched.wait_until(600)
    assert watched.series()[UP] == 1
    watched.cluster.broker_found(watched.now, gap=True)
    watched.wait_until(636)  # Celery may wait for half a minute before it tries again
    assert watched.series()[UP] == 1
    watched.wait_until(638)
    assert watched.series()[UP] == 0


def test_nobody_counts_as_gone_while_the_broker_takes_no_messages(watched: Watched) -> None:
    """The connection may break and be made again meanwhile: the longer of the two silences counts."""
    watched.hear(heartbeat(0))
    watched.wait_until(2)
    watched.cluster.publishing(watched.now, works=False)
    watched.wait_until(10)
    watched.cluster.broker_lost(watched.now)
    watched.wait_until(20)
    watched.cluster.broker_found(watched.now, gap=True)
    watched.wait_until(600)
    assert watched.series()[UP] == 1
    assert watched.series()["celery_exporter_broker_up"] == 1
    watched.cluster.publishing(watched.now, works=True)
    watched.wait_until(636)
    assert watched.series()[UP] == 1
    watched.wait_until(638)
    assert watched.series()[UP] == 0


def test_after_a_short_outage_nobody_is_waited_for_much_longer(watched: Watched) -> None:
    watched.hear(heartbeat(0))
    watched.wait_until(2)
    watched.cluster.broker_lost(watched.now)
    watched.wait_until(5)
    watched.cluster.broker_found(watched.now, gap=True)
    watched.wait_until(14)
    assert watched.series()[UP] == 1
    watched.wait_until(16)
    assert watched.series()[UP] == 0


def test_a_goodbye_to_a_broker_that_was_away_is_not_believed_at_once(watched: Watched) -> None:
    """It arrives with the new connection, and seconds before ``worker-online``."""
    watched.hear(heartbeat(0))
    watched.cluster.broker_lost(watched.now)
    watched.wait_until(5)
    watched.cluster.broker_found(watched.now, gap=True)
    watched.hear(offline(1), at=6)
    watched.wait_until(9)
    assert watched.series()[UP] == 1
    watched.hear(online(9, processed=1))
    watched.wait_until(17)
    assert (watched.series()[UP], watched.series()[of_worker("shutdown_graceful")]) == (1, 0)
    watched.hear(offline(17))
    watched.wait_until(28)
    assert (watched.series()[UP], watched.series()[of_worker("shutdown_graceful")]) == (0, 1)
    watched.hear(online(100, pid=2), offline(101, pid=2))
    assert (watched.series()[UP], watched.series()[of_worker("shutdown_graceful")]) == (0, 1)


def test_a_goodbye_may_come_as_late_after_an_outage_as_celery_tries_again(watched: Watched) -> None:
    watched.hear(heartbeat(0))
    watched.cluster.broker_lost(watched.now)
    watched.wait_until(60)
    watched.cluster.broker_found(watched.now, gap=True)
    watched.hear(offline(1), at=60 + RECONNECT_SECONDS)
    watched.wait(8)
    assert watched.series()[UP] == 1


def test_the_first_connection_is_not_the_end_of_an_outage(watched: Watched) -> None:
    watched.cluster.broker_lost(watched.now)
    watched.cluster.broker_found(watched.now, gap=False)
    watched.hear(online(1), offline(2))
    assert watched.series()[UP] == 0


def test_what_is_said_of_living_workers_stays_while_the_broker_is_away(watched: Watched) -> None:
    """Else nobody would consume their queues, say, and an alert be about the broker."""
    watched.expect_snapshots()
    queues = (ConsumedQueue("mail", "mail", "mail"),)
    for second in range(0, 120, 2):
        watched.hear(*(heartbeat(second, worker=name) for name in ("w@h", "told@h")))
        watched.hear(heartbeat(second, worker="mute@h", processed=second))
        watched.poll(snapshot(second, worker="told@h"))
        if second == 0:
            watched.hear(*(event(0, uuid=uuid) for uuid in ("runs", "waits") for event in (sent, received)))
            watched.hear(started(0, uuid="runs"))
            watched.cluster.take_workers([WorkerReading("w@h", EPOCH, slots=4, queues=queues)])

    def said() -> list[object]:
        cluster = watched.cluster
        return [
            *(watched.series(name) for name in ("celery_worker_", "celery_queue_workers", "celery_queue_slots")),
            *(cluster.living_workers(), cluster.covered_workers(), cluster.workers_without_task_events()),
            *(cluster.suspects(), cluster.summary()["workers"]),
        ]

    before = said()
    assert all(before)
    watched.cluster.broker_lost(watched.now)
    watched.wait(60)
    assert said() == before


def test_tasks_are_not_lost_because_the_broker_is_away(watched: Watched) -> None:
    """A worker that was silent for a moment came back before the broker went: what it runs, it runs still."""
    watched.hear(heartbeat(0), sent(0), received(0.1), started(0.2))
    watched.wait_until(20)
    watched.hear(heartbeat(20, active=1, processed=1))
    watched.cluster.broker_lost(watched.now)
    watched.wait_until(200)
    watched.cluster.broker_found(watched.now, gap=True)
    watched.wait_until(202)
    watched.hear(heartbeat(202, active=1, processed=1))
    watched.wait_until(204)
    assert watched.series().get(of_task("lost_total")) == 0


def test_a_worker_that_vanished_has_its_time_to_come_back_without_the_outage(watched: Watched) -> None:
    watched.hear(heartbeat(0), sent(0), received(0.1), started(0.2))
    watched.wait_until(20)
    watched.cluster.broker_lost(watched.now)
    watched.wait_until(500)
    watched.cluster.broker_found(watched.now, gap=True)
    watched.wait_until(503)
    assert watched.series().get(of_task("lost_total")) == 0
    watched.hear_each(heartbeat(second, active=1, processed=1) for second in range(504, 600, 2))
    assert watched.series().get(of_task("lost_total")) == 0


def test_a_worker_that_found_its_broker_again_is_the_same_process(watched: Watched) -> None:
    """It says ``worker-online`` once more: what it runs is not lost, and what it did before not missed."""
    run_tasks(watched, 5)
    watched.hear(sent(0, uuid="long"), received(0, uuid="long"), started(0, uuid="long"))
    beat_on(watched, 6, active=1, processed=6)
    boots = watched.cluster.living_workers()
    watched.cluster.broker_lost(watched.now)
    watched.wait(5)
    watched.cluster.broker_found(watched.now, gap=True)
    watched.hear(online(watched.seconds, active=1, processed=8))
    beat_on(watched, 90, active=1, processed=8)
    shown = watched.series()
    assert shown[LOST] == 2
    assert shown[of_task("lost_total")] == 0
    assert shown[of_task("running")] == 1
    assert watched.cluster.living_workers() != boots, "it is to be asked what it holds now"


def test_a_worker_that_lost_its_broker_alone_is_measured(watched: Watched) -> None:
    """Our own connection stayed: what the worker did without one may never have been published."""
    beat_on(watched, 6)
    run_tasks(watched, 5)
    beat_on(watched, 6, processed=5)
    watched.hear(online(watched.seconds, processed=9))
    beat_on(watched, 10, processed=9)
    assert watched.series()[LOST] == 4


@pytest.mark.parametrize("processed", [0, 3])
def test_a_new_process_with_the_number_of_the_old_loses_what_that_ran(processed: int, watched: Watched) -> None:
    """Its first greeting may have gone unheard: then it has done something, if less than the one before."""
    watched.hear(heartbeat(0), sent(0), received(0.1), started(0.2), heartbeat(2, active=1, processed=50))
    watched.hear(online(5, processed=processed))
    beat_on(watched, 90, processed=processed)
    assert watched.series()[of_task("lost_total")] == 1
    assert watched.series()[LOST] == 0


def test_who_was_gone_before_the_broker_stays_gone(watched: Watched) -> None:
    watched.hear(heartbeat(0))
    watched.wait_until(20)
    watched.cluster.broker_lost(watched.now)
    watched.wait_until(80)
    watched.cluster.broker_found(watched.now, gap=True)
    assert watched.series()[UP] == 0


def test_broker_up_follows_the_connection(watched: Watched) -> None:
    watched.cluster.broker_found(watched.now, gap=False)
    assert watched.series()["celery_exporter_broker_up"] == 1
    watched.cluster.broker_lost(watched.now)
    assert watched.series()["celery_exporter_broker_up"] == 0


def test_goodbye_is_graceful_and_vanishing_is_not(watched: Watched) -> None:
    graceful = of_worker("shutdown_graceful")
    watched.hear(online(0))
    assert (watched.series()[UP], watched.series()[graceful]) == (1, 0)
    watched.wait(60)
    assert (watched.series()[UP], watched.series()[graceful]) == (0, 0)
    watched.hear(online(60, pid=2), offline(61, pid=2))
    assert (watched.series()[UP], watched.series()[graceful]) == (0, 1)
    watched.hear(online(70, pid=3))
    assert (watched.series()[UP], watched.series()[graceful]) == (1, 0)


def test_two_hours_after_its_last_heartbeat_every_series_of_a_worker_goes(watched: Watched) -> None:
    watched.hear(heartbeat(0), heartbeat(0, worker="other@h"))
    reading = WorkerReading("w@h", EPOCH, "prefork", 4, 1, 7, 10**8, 5.5, (ConsumedQueue("mail", "mail", "mail"),))
    watched.cluster.take_workers([reading])
    watched.series()
    watched.hear_each(heartbeat(second, worker="other@h") for second in range(0, int(KEEP_SECONDS), 2))
    assert watched.series()[UP] == 0
    before = {name for name in watched.series() if 'worker="w@h"' in name}
    assert len(before) == 15
    watched.hear(heartbeat(KEEP_SECONDS + 1, worker="other@h"))
    after = watched.series()
    assert {name for name in after if 'worker="w@h"' in name} == set()
    assert after[series("celery_worker_up", worker="other@h")] == 1
    assert watched.registry.series == len(after)


def test_skew_is_the_workers_clock_minus_ours(watched: Watched) -> None:
    watched.hear(heartbeat(100), at=10)
    watched.hear(heartbeat(101.5), at=12)
    assert watched.series()[of_worker("clock_skew_seconds")] == 90
    watched.hear(online(-20, pid=2), at=14)
    assert watched.series()[of_worker("clock_skew_seconds")] == -34


def test_events_that_waited_in_a_queue_say_nothing_about_skew_and_are_as_old_as_they_say(watched: Watched) -> None:
    watched.hear(heartbeat(10), at=500, live=False)
    shown = watched.series()
    assert of_worker("clock_skew_seconds") not in shown
    assert shown[UP] == 0
    assert shown[of_worker("last_heartbeat_timestamp_seconds")] == EPOCH + 10
    watched.hear(heartbeat(499), at=501, live=False)
    assert watched.series()[UP] == 1


def test_a_heartbeat_without_load_keeps_what_is_known(watched: Watched) -> None:
    """The answer to a broadcast has none, and another interval."""
    watched.hear(heartbeat(0, active=3, processed=10, loadavg=(1.0, 2.0, 3.0), freq=2.0))
    before = watched.series("celery_worker_")
    watched.hear(heartbeat(0.0, active=None, processed=None, loadavg=None, freq=5.0))
    assert watched.series("celery_worker_") == before
    watched.wait_until(9.5)
    assert watched.series()[UP] == 0


def test_a_heartbeat_shows_load_and_work(watched: Watched) -> None:
    watched.hear(heartbeat(0, active=3, processed=10, loadavg=(1.0, 2.0, 3.0), sw_ver="5.7.0"))
    shown = watched.series()
    assert shown[of_worker("tasks_active")] == 3
    assert shown[of_worker("tasks_processed_total")] == 10
    assert [shown[of_worker("load_average", period=period)] for period in ("1m", "5m", "15m")] == [1, 2, 3]
    assert shown[of_worker("info", version="5.7.0", pool="")] == 1
    watched.wait(60)
    assert watched.series()[of_worker("tasks_active")] == 0


def test_the_pool_is_shown_once_it_is_known(watched: Watched) -> None:
    watched.hear(heartbeat(0, sw_ver="5.7.0"))
    watched.series()
    watched.cluster.take_workers([WorkerReading("w@h", EPOCH, pool="prefork", slots=8)])
    shown = watched.series("celery_worker_info")
    assert shown == {of_worker("info", version="5.7.0", pool="prefork"): 1}
    assert watched.series()[of_worker("slots")] == 8


def test_what_a_worker_did_not_answer_stays(watched: Watched) -> None:
    watched.cluster.take_workers(
        [WorkerReading("w@h", EPOCH, pool="prefork", slots=8, main_max_memory_bytes=1000, main_cpu_seconds=2.5)]
    )
    before = watched.series("celery_worker_")
    watched.cluster.take_workers([WorkerReading("w@h", EPOCH + 5)])
    assert watched.series("celery_worker_") == before


def test_a_worker_without_heartbeats_shows_what_it_answers(watched: Watched) -> None:
    watched.cluster.take_workers([WorkerReading("w@h", EPOCH, processed=12)])
    assert watched.series()[of_worker("tasks_processed_total")] == 12
    assert UP not in watched.series()


def test_queues_show_their_living_workers_and_slots(watched: Watched) -> None:
    queue = (ConsumedQueue("mail", "mail", "mail"),)
    for name, slots in (("w@h", 4), ("other@h", 2)):
        watched.hear(heartbeat(0, worker=name))
        watched.cluster.take_workers([WorkerReading(name, EPOCH, slots=slots, queues=queue)])
    names = [series(f"celery_queue_{name}", queue="mail") for name in ("workers", "slots", "consumers")]
    assert [watched.series()[name] for name in names] == [2, 6, 2]
    watched.hear(offline(1, worker="other@h"))
    assert [watched.series()[name] for name in names] == [1, 4, 1]
    watched.wait(60)
    assert [watched.series()[name] for name in names] == [0, 0, 0]


def test_a_goodbye_that_comes_again_is_of_the_past(watched: Watched) -> None:
    watched.hear(heartbeat(0, clock=1), offline(1, clock=2), online(5, clock=3))
    watched.hear(offline(1, clock=2), live=False)
    assert watched.series()[UP] == 1


# -- task events on or off


def test_a_worker_that_counts_and_says_nothing_has_its_events_off(watched: Watched) -> None:
    for second in range(0, 10, 2):
        watched.hear(heartbeat(second, processed=second))
    assert watched.series()[of_worker("task_events_enabled")] == 0
    run_tasks(watched, 1)
    assert watched.series()[of_worker("task_events_enabled")] == 1


def test_an_idle_worker_may_have_them_on_or_off(watched: Watched) -> None:
    beat_on(watched, 60)
    assert of_worker("task_events_enabled") not in watched.series()


def test_a_new_boot_is_a_stranger(watched: Watched) -> None:
    watched.hear(online(0))
    first = watched.cluster.living_workers()
    watched.hear(online(10, pid=2))
    second = watched.cluster.living_workers()
    assert first.keys() == second.keys() == {"w@h"}
    assert first["w@h"] != second["w@h"]
    watched.wait(60)
    assert watched.cluster.living_workers() == {}


def test_a_reboot_empties_the_reserve(watched: Watched) -> None:
    watched.hear(online(0), sent(0), received(0.1))
    assert watched.series()[of_worker("tasks_reserved")] == 1
    watched.hear(online(5, pid=2))
    assert watched.series()[of_worker("tasks_reserved")] == 0


def test_so_does_a_lost_connection(watched: Watched) -> None:
    """The worker forgets what it has not started; the broker delivers it again."""
    watched.hear(online(0), sent(0), received(0.1), heartbeat(2, processed=1))
    watched.hear(online(5, processed=1))
    assert watched.series()[of_worker("tasks_reserved")] == 0


def test_status_says_what_became_of_each_worker(watched: Watched) -> None:
    watched.hear(heartbeat(0, worker="gone@h"))
    watched.wait(60)
    watched.hear(heartbeat(60, worker="up@h"), online(60, worker="stopped@h"), offline(60, worker="stopped@h"))
    assert [(row["worker"], row["state"]) for row in watched.cluster.summary()["workers"]] == [
        ("gone@h", "gone"),
        ("stopped@h", "stopped"),
        ("up@h", "up"),
    ]


@pytest.mark.parametrize("name", ["a\nb", "a\x01", "\u202egnp", "x" * 256])
def test_a_name_that_no_label_can_show_costs_the_worker_and_not_its_tasks(name: str) -> None:
    watched = Watched()
    watched.hear(heartbeat(0, worker=name), sent(0), received(0.1, worker=name), started(0.2, worker=name))
    watched.hear(succeeded(0.5, worker=name))
    assert watched.series("celery_worker_") == {}
    assert watched.series()[of_task("succeeded_total")] == 1
    denied = series("celery_exporter_label_values_dropped_total", label="worker", reason="denied")
    assert watched.series()[denied] > 0
