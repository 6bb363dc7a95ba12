"""What snapshots move: each key its series, the worker its own, and over a whole life the truth."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout.metrics.tasks import PEAK_MEMORY_BUCKETS, RUNTIME_BUCKETS, WAIT_BUCKETS
from celery_lookout.snapshots import WorkerSnapshot
from celery_lookout.state import snapshots as module
from celery_lookout.state.boots import STALE_SECONDS
from celery_lookout.state.cluster import LOST_AFTER_SECONDS, ClusterOptions, Limits
from celery_lookout.state.snapshots import MOVES
from celery_lookout.state.workers import KEEP_SECONDS
from tests.clusters import EPOCH, Watched, heartbeat, of, of_worker, online, row, series, snapshot

INVALID = "celery_exporter_snapshots_invalid_total"


@pytest.fixture
def watched() -> Watched:
    """A cluster whose snapshots are polled, and that has a row already."""
    watched = Watched()
    watched.expect_snapshots()
    watched.poll(snapshot(0, row(started=0), boot="older", started_at=EPOCH - 1))
    watched.changes()
    return watched


@pytest.mark.parametrize(
    ("key", "moved"),
    [
        ("received", of("received_total")),
        ("redelivered", of("redelivered_total")),
        ("started", of("started_total")),
        ("succeeded", of("succeeded_total")),
        ("failed", of("failed_total")),
        ("retried", of("retried_total")),
        ("retries_exhausted", of("retries_exhausted_total")),
        ("ignored", of("ignored_total")),
        ("rejected", of("rejected_total", requeue="false")),
        ("requeued", of("rejected_total", requeue="true")),
        ("revoked", of("revoked_total", reason="revoked")),
        ("expired", of("revoked_total", reason="expired")),
        ("terminated", of("revoked_total", reason="terminated")),
        ("soft_time_limit", of("terminations_total", reason="soft_time_limit")),
        ("hard_time_limit", of("terminations_total", reason="hard_time_limit")),
        ("worker_lost", of("terminations_total", reason="worker_lost")),
        ("exception:ValueError", of("exceptions_total", exception="ValueError")),
        ("retry_exception:OSError", of("retry_exceptions_total", exception="OSError")),
        ("cpu_seconds", of("cpu_seconds_total")),
        ("memory_growth_bytes", of("memory_growth_bytes_total")),
        ("runtime:failed:3", of("runtime_seconds_count", outcome="failed")),
        ("runtime:succeeded:sum", of("runtime_seconds_sum", outcome="succeeded")),
        ("wait:15", of("queue_wait_seconds_count")),
        ("wait:sum", of("queue_wait_seconds_sum")),
        ("peak:0", of("peak_memory_bytes_count")),
        ("peak:sum", of("peak_memory_bytes_sum")),
    ],
)
def test_each_key_moves_one_series(key: str, moved: str, watched: Watched) -> None:
    watched.poll(snapshot(5, row(**{key: 3})))
    assert watched.changes() == {moved: 3}


@pytest.mark.parametrize("key", [key for key in MOVES if key[-1].isdigit()])
def test_every_bucket_is_its_own(key: str, watched: Watched) -> None:
    """Cumulated, a value shows in its bucket and in those above it, and not in the one below."""
    kind, _, bucket = key.rpartition(":")
    name, bounds, labels = {
        "w": ("queue_wait_seconds", WAIT_BUCKETS, {}),
        "p": ("peak_memory_bytes", PEAK_MEMORY_BUCKETS, {}),
        "r": ("runtime_seconds", RUNTIME_BUCKETS, {"outcome": kind.partition(":")[2]}),
    }[kind[0]]
    watched.poll(snapshot(5, row(**{key: 2})))
    edges = [*(str(bound) for bound in bounds), "+Inf"]
    shown = [watched.series()[of(f"{name}_bucket", **labels, le=edge)] for edge in edges]
    number = int(bucket)
    assert shown == [0] * number + [2] * (len(edges) - number)


def test_counters_of_a_row_are_born_at_zero_and_what_nobody_measured_is_absent() -> None:
    watched = Watched()
    watched.poll(snapshot(0, row(started=1)))
    shown = watched.series("celery_task_")
    assert shown[of("failed_total")] == 0
    assert shown[of("ignored_total")] == 0
    assert not any(name.startswith(("celery_task_cpu", "celery_task_memory", "celery_task_peak")) for name in shown)


def test_events_alone_do_not_know_what_is_ignored() -> None:
    watched = Watched()
    watched.hear(heartbeat(0))
    watched.cluster.tasks.row("add", "celery")
    assert of("received_total") in watched.series()
    assert of("ignored_total") not in watched.series()


def test_times_of_the_last_outcome_are_shown_and_do_not_go_back(watched: Watched) -> None:
    watched.poll(snapshot(5, row() | {"last_success_at": EPOCH + 4, "last_failure_at": EPOCH + 3}))
    watched.poll(snapshot(6, row() | {"last_success_at": EPOCH + 2, "last_failure_at": None}))
    shown = watched.series()
    assert shown[of("last_success_timestamp_seconds")] == EPOCH + 4
    assert shown[of("last_failure_timestamp_seconds")] == EPOCH + 3


def test_keys_nobody_knows_and_totals_that_fall_are_refused_and_the_rest_counts(watched: Watched) -> None:
    bad = row(started=1, mood=4, **{"runtime:succeeded:99": 1, "exception:": 1, "failed": (5, 2)})
    watched.poll(snapshot(5, bad, row("mail", mood=4)))
    assert watched.series(INVALID)[series(INVALID, reason="field")] == 4
    assert watched.changes() == {of("started_total"): 1}


def test_queue_resolution_tells_tasks_whose_queue_the_worker_knew(watched: Watched) -> None:
    watched.poll(snapshot(5, row(started=3, received=4), row("add", "unknown", started=2)))
    shown = watched.series("celery_exporter_queue_resolution")
    assert shown[series("celery_exporter_queue_resolution_total", source="snapshot")] == 3
    assert shown[series("celery_exporter_queue_resolution_total", source="unknown")] == 2


@pytest.mark.parametrize(("slo", "violations"), [(60.0, 4), (59.0, 4), (61.0, 2), (20000.0, 0)])
def test_a_wait_violates_the_slo_if_its_bucket_begins_there_or_above(slo: float, violations: int) -> None:
    watched = Watched(ClusterOptions(latency_slos={"celery": slo}))
    assert WAIT_BUCKETS[8] == 60.0
    watched.poll(snapshot(5, row(wait__0=3, wait__8=5, wait__9=2, wait__15=2)))
    shown = watched.series("celery_queue_slo")
    assert shown[series("celery_queue_slo_eligible_total", queue="celery")] == 12
    # The last bucket has no upper bound: who waited there waited longer than 14,400 s.
    assert shown[series("celery_queue_slo_violations_total", queue="celery")] == violations


def test_names_past_their_limit_share_one_series_and_are_still_told_apart() -> None:
    watched = Watched(ClusterOptions(limits=Limits(task_names=1, exceptions=1)))
    watched.poll(snapshot(5, row("a", started=1), row("b", started=10), row("c", started=100)))
    watched.poll(snapshot(6, row("b", started=(10, 12), **{"exception:A": 1, "exception:B": 2})))
    shown = watched.series("celery_task_")
    assert shown[of("started_total", task="_other")] == 112
    assert shown[of("exceptions_total", task="_other", exception="_other")] == 2


def test_a_snapshot_costs_no_event_and_is_counted(watched: Watched) -> None:
    watched.poll(snapshot(5), snapshot(6))
    shown = watched.series("celery_exporter_")
    assert shown["celery_exporter_snapshots_total"] == 3
    assert not any(shown[name] for name in shown if name.startswith("celery_exporter_events"))


# -- a whole life


class Life:
    """A worker's process as it is, which writes snapshots as the page says."""

    def __init__(self, chance: random.Random, boot: str, started_at: float) -> None:
        self.chance = chance
        self.boot = boot
        self.at = self.started_at = started_at
        self.seq = 0
        self.truth: Counter[tuple[str, str]] = Counter()
        self._sent: dict[tuple[str, str], int] = {}

    def run(self) -> None:
        for _ in range(self.chance.randint(0, 6)):
            self.truth[self.chance.choice(["add", "mail"]), self.chance.choice(["started", "failed", "wait:3"])] += 1

    def snapshot(self, *, full: bool = False) -> WorkerSnapshot:
        self.seq += 1
        self.at += 5
        rows: dict[str, Any] = {}
        for (task, key), total in self.truth.items():
            before = self._sent.get((task, key), 0)
            if full or total != before:
                rows.setdefault(task, {})[key] = (before, total)
                self._sent[task, key] = total
        return snapshot(
            self.at,
            *(row(task, **totals) for task, totals in rows.items()),
            boot=self.boot,
            seq=self.seq,
            started_at=EPOCH + self.started_at,
            processed=sum(self.truth.values()),
        )


@st.composite
def lives(draw: st.DrawFn) -> tuple[Life, list[WorkerSnapshot]]:
    """A process, and all that it told: the last of them tells everything."""
    life = Life(random.Random(draw(st.integers(0, 2**32))), "a", 0)
    told = []
    for _ in range(draw(st.integers(1, 12))):
        life.run()
        told.append(life.snapshot(full=life.chance.random() < 0.2))
    return life, [*told, life.snapshot(full=True)]


def counted(watched: Watched) -> Counter[tuple[str, str]]:
    names = {"started_total": "started", "failed_total": "failed", "queue_wait_seconds_count": "wait:3"}
    shown = watched.series("celery_task_")
    return Counter(
        {
            (task, key): int(shown[of(name, task=task)])
            for name, key in names.items()
            for task in ("add", "mail")
            if shown.get(of(name, task=task))
        }
    )


quickly = settings(max_examples=60, deadline=None)


@quickly
@given(lives(), st.randoms(use_true_random=False))
def test_in_any_order_doubled_and_with_losses_made_good_they_tell_the_truth(
    lived: tuple[Life, list[WorkerSnapshot]], chance: random.Random
) -> None:
    life, told = lived
    first, last = told[0], told[-1]
    kept = [one for one in told[1:-1] if chance.random() < 0.7] + [first, last]
    kept += [one for one in kept if chance.random() < 0.3]
    chance.shuffle(kept)
    watched = Watched()
    watched.expect_snapshots()
    before: dict[str, float] = {}
    for one in kept:
        watched.wait(1)
        watched.poll(one)
        now = {name: value for name, value in watched.series("celery_task_").items() if "timestamp" not in name}
        assert {name for name in before if now[name] < before[name]} == set()
        before = now
    missing = {key for key, n in life.truth.items() if counted(watched)[key] != n}
    # Only of a key whose first rise was lost nobody can tell that it was not counted by an earlier sidecar.
    assert all(_first_was_lost(key, told, kept) for key in missing)


def _first_was_lost(key: tuple[str, str], told: list[WorkerSnapshot], kept: list[WorkerSnapshot]) -> bool:
    task, total = key
    first = next(one for one in told if any(r.task == task and total in r.totals for r in one.rows))
    return first not in kept


@quickly
@given(lives(), st.integers(0, 2**32))
def test_a_new_sidecar_counts_exactly_the_rest(lived: tuple[Life, list[WorkerSnapshot]], seed: int) -> None:
    life, told = lived
    cut = seed % len(told)
    total: Counter[tuple[str, str]] = Counter()
    for old, new in (([], told[:cut]), (told[max(cut - 2, 0) : cut], told[cut:])):
        watched = Watched()
        watched.expect_snapshots()
        watched.poll(*new, old=old)
        total += counted(watched)
    assert total == +life.truth


def test_a_worker_that_starts_again_begins_at_zero_and_its_counters_do_not(watched: Watched) -> None:
    watched.poll(snapshot(5, row(started=7)))
    watched.poll(snapshot(20, row(started=2), boot="b", started_at=EPOCH + 15))
    watched.poll(snapshot(6, row(started=(7, 8))))  # the last of the old process, late
    assert watched.changes() == {of("started_total"): 10}


def test_a_process_from_before_the_last_two_is_not_heard_any_more(watched: Watched) -> None:
    for number, boot in enumerate("bcd"):
        watched.poll(snapshot(10 * number, row(started=1), boot=boot, started_at=EPOCH + 10 * number))
    watched.changes()
    watched.poll(snapshot(5, row(started=100)), snapshot(12, row(started=(1, 2)), boot="c", started_at=EPOCH + 10))
    assert watched.changes() == {of("started_total"): 1}


def test_snapshots_of_workers_past_the_limit_are_refused() -> None:
    watched = Watched(ClusterOptions(limits=Limits(workers=1)))
    watched.poll(snapshot(1, row(started=1)), snapshot(1, row(started=5), worker="second@h"))
    assert watched.series()[of("started_total")] == 1
    assert watched.series()[series(INVALID, reason="too_many")] == 1


def test_totals_past_the_limit_are_refused_until_workers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOTALS_LIMIT", 2)
    watched = Watched()
    watched.poll(snapshot(1, row(started=1, failed=1)), snapshot(1, row(started=1), worker="second@h"))
    assert watched.series()[of("started_total")] == 1
    assert watched.series()[series(INVALID, reason="too_many")] == 1
    watched.poll(snapshot(2, row(started=(1, 2))))  # what is known goes on
    assert watched.series()[of("started_total")] == 2
    watched.wait(KEEP_SECONDS + 60)
    watched.series()
    late = KEEP_SECONDS + 60
    watched.poll()
    watched.poll(snapshot(late, row(started=3), worker="third@h"))
    assert watched.series()[of("started_total")] == 5


def test_a_fault_of_ours_costs_one_snapshot_and_is_counted(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(MOVES, "failed", broken)
    watched.poll(snapshot(5, row(failed=1)), snapshot(5, row(started=1), worker="other@h"))
    watched.poll(snapshot(6, row(failed=2)))
    assert watched.series()[series(INVALID, reason="fault")] == 2
    assert watched.series()[of("started_total")] == 1
    assert [record.message for record in caplog.records] == ["fault while counting a snapshot"]


# -- the worker itself


FULL: dict[str, Any] = {
    "celery": "5.7.0", "pool": "prefork", "slots": 4, "queues": ["celery", "mail", "bcast.1"], "processed": 12,
    "active": 2, "reserved": 3, "scheduled": 1, "memory": 500, "child_memory_max": 200, "memory_limit": 1000,
    "cpu_seconds": 1.5, "oom_kills": 1, "child_exits": {"recycled": 5, "killed": 2, "exited": 0, "vanished": 9},
    "runs_lost": 6, "faults": 7,
}  # fmt: skip


def full(**fields: Any) -> dict[str, Any]:
    return {**FULL, **fields}


def test_a_snapshot_shows_all_of_a_worker_without_heartbeats(watched: Watched) -> None:
    watched.wait_until(9)
    watched.poll(snapshot(8.5, **FULL))
    assert watched.series("celery_worker_") == {
        of_worker("up"): 1,
        of_worker("last_heartbeat_timestamp_seconds"): EPOCH + 9,
        of_worker("shutdown_graceful"): 0,
        of_worker("info", version="5.7.0", pool="prefork"): 1,
        of_worker("slots"): 4,
        of_worker("tasks_active"): 2,
        of_worker("tasks_reserved"): 3,
        of_worker("tasks_scheduled"): 1,
        of_worker("tasks_processed_total"): 12,
        of_worker("clock_skew_seconds"): -0.5,
        of_worker("memory_bytes"): 500,
        of_worker("memory_limit_bytes"): 1000,
        of_worker("child_memory_max_bytes"): 200,
        of_worker("cpu_seconds_total"): 1.5,
        of_worker("child_exits_total", reason="recycled"): 5,
        of_worker("child_exits_total", reason="killed"): 2,
        of_worker("child_exits_total", reason="exited"): 0,
        of_worker("oom_kills_total"): 1,
        of_worker("signals_runs_lost_total"): 6,
        of_worker("signals_faults_total"): 7,
    }


def test_queues_are_known_from_snapshots_with_their_workers(watched: Watched) -> None:
    watched.poll(snapshot(5, **FULL))
    shown = watched.series("celery_queue_")
    for queue in ("celery", "mail"):
        assert shown[series("celery_queue_workers", queue=queue)] == 1
        assert shown[series("celery_queue_slots", queue=queue)] == 4
    assert not any("bcast" in name for name in shown)


def test_an_older_snapshot_turns_no_gauge_back(watched: Watched) -> None:
    watched.poll(snapshot(9, **FULL), snapshot(8, **full(slots=1, cpu_seconds=0.5, memory=1)))
    before = snapshot(7, **full(slots=2), boot="older", started_at=EPOCH - 1)
    watched.poll(before)
    shown = watched.series("celery_worker_")
    assert (shown[of_worker("slots")], shown[of_worker("cpu_seconds_total")]) == (4, 1.5)
    assert shown[of_worker("memory_bytes")] == 500


def test_memory_that_is_not_known_any_more_is_not_shown(watched: Watched) -> None:
    watched.poll(snapshot(5, **FULL))
    watched.poll(snapshot(6, **full(memory=None)))
    assert of_worker("memory_bytes") not in watched.series()
    assert of_worker("memory_limit_bytes") in watched.series()
    watched.wait(60)
    assert of_worker("child_memory_max_bytes") not in watched.series()  # it is gone


def test_a_worker_without_heartbeats_is_gone_when_its_snapshots_stop(watched: Watched) -> None:
    watched.poll(snapshot(0))
    watched.wait_until(14.9)
    assert watched.series()[of_worker("up")] == 1
    watched.wait_until(15.1)
    assert (watched.series()[of_worker("up")], watched.series()[of_worker("shutdown_graceful")]) == (0, 0)


def test_the_final_snapshot_is_a_goodbye(watched: Watched) -> None:
    watched.poll(snapshot(5))
    watched.poll(snapshot(6, final=True))
    assert (watched.series()[of_worker("up")], watched.series()[of_worker("shutdown_graceful")]) == (0, 1)
    watched.poll(snapshot(20, boot="b", started_at=EPOCH + 19))
    assert (watched.series()[of_worker("up")], watched.series()[of_worker("shutdown_graceful")]) == (1, 0)


def test_heartbeats_stay_the_measure_of_life_of_who_sends_them(watched: Watched) -> None:
    watched.poll(snapshot(1))
    watched.hear(heartbeat(1, pid=1))
    watched.poll(snapshot(2, final=True))
    assert (watched.series()[of_worker("up")], watched.series()[of_worker("shutdown_graceful")]) == (1, 0)
    watched.wait_until(20)
    watched.poll(snapshot(20, final=False))
    assert watched.series()[of_worker("up")] == 0


def test_a_new_process_may_do_without_heartbeats(watched: Watched) -> None:
    watched.hear(heartbeat(1, pid=1))
    watched.poll(snapshot(2))
    watched.wait_until(60)
    watched.poll(snapshot(60, boot="b", started_at=EPOCH + 59))
    assert watched.series()[of_worker("up")] == 1


def test_a_new_process_without_heartbeats_is_one_to_ask_anew(watched: Watched) -> None:
    watched.poll(snapshot(5))
    before = watched.cluster.living_workers()["w@h"]
    watched.poll(snapshot(10))
    assert watched.cluster.living_workers()["w@h"] == before
    watched.poll(snapshot(15, boot="b", started_at=EPOCH + 14))
    assert watched.cluster.living_workers()["w@h"] == before + 1


def test_a_worker_is_kept_while_its_snapshots_come() -> None:
    """Its heartbeats stopped long ago: then it counts as gone, and is still shown."""
    watched = Watched()
    watched.poll(snapshot(0))
    watched.hear(heartbeat(1))
    for at in range(60, int(KEEP_SECONDS) + 180, 60):
        watched.wait_until(at)
        watched.poll(snapshot(at))
        assert of_worker("up") in watched.series()


def test_snapshots_that_waited_are_as_old_as_they_say() -> None:
    watched = Watched()
    watched.expect_snapshots()
    watched.wait_until(600)
    watched.poll(snapshot(100, row(started=3)))
    shown = watched.series()
    assert shown[of("started_total")] == 3
    assert shown[of_worker("up")] == 0
    assert shown[of_worker("last_heartbeat_timestamp_seconds")] == EPOCH + 100
    assert of_worker("clock_skew_seconds") not in shown


def test_every_series_of_a_worker_goes_two_hours_after_its_last_snapshot(watched: Watched) -> None:
    watched.poll(snapshot(5, **FULL))
    watched.series()
    watched.wait(KEEP_SECONDS + 10)
    assert watched.series("celery_worker_") == {}
    assert watched.registry.series == len(watched.series())


# -- what runs


def running(number: int, acknowledged: int = 0, since: float = 0.0, task: str = "add") -> list[Any]:
    return [task, "celery", number, acknowledged, EPOCH + since]


def test_what_runs_is_shown_with_its_age(watched: Watched) -> None:
    watched.wait_until(10)
    watched.poll(
        snapshot(10, running=[running(2, since=4), running(1, since=8, task="mail")]),
        snapshot(10, running=[running(3, since=1)], worker="other@h"),
    )
    shown = watched.series()
    assert (shown[of("running")], shown[of("running", task="mail")]) == (5, 1)
    assert (shown[of("oldest_running_seconds")], shown[of("oldest_running_seconds", task="mail")]) == (9, 2)
    watched.poll(snapshot(11, running=None))  # a further message of the same moment
    assert watched.series()[of("running")] == 5
    watched.poll(snapshot(12, running=[]))
    assert watched.series()[of("running")] == 3


VANISH: dict[str, Callable[[Watched], None]] = {
    "its snapshots stop": lambda watched: watched.wait(16),
    "another process takes its place": lambda watched: watched.poll(
        snapshot(10, boot="b", started_at=EPOCH + 9, running=[running(1, 0)])
    ),
    "it says goodbye with tasks in hand": lambda watched: watched.poll(
        snapshot(10, final=True, running=[running(3, 2)])
    ),
}


@pytest.mark.parametrize("vanish", VANISH.values(), ids=VANISH)
def test_what_will_not_be_delivered_again_is_lost_with_the_worker(
    vanish: Callable[[Watched], None], watched: Watched
) -> None:
    watched.poll(snapshot(5, running=[running(3, 2)]))
    vanish(watched)
    for _ in range(int(LOST_AFTER_SECONDS) - 1):
        assert watched.series()[of("lost_total")] == 0
        watched.wait(1)
    watched.wait(15)
    assert watched.series()[of("lost_total")] == 2
    watched.wait(300)
    assert watched.series()[of("lost_total")] == 2


def test_nothing_is_lost_when_the_worker_comes_back(watched: Watched) -> None:
    watched.poll(snapshot(0, running=[running(3, 2)]))
    watched.wait_until(20)
    watched.poll(snapshot(20, running=[running(1, 1)]))
    for second in range(25, 100, 5):
        watched.wait_until(second)
        watched.poll(snapshot(second, running=[]))
    assert watched.series()[of("lost_total")] == 0


def test_what_had_ended_when_the_worker_came_back_is_not_lost_when_it_goes_again(watched: Watched) -> None:
    watched.poll(snapshot(0, running=[running(3, 2)]))
    watched.wait_until(20)
    watched.poll(snapshot(20, running=[]))
    watched.wait(200)
    assert watched.series()[of("lost_total")] == 0


def test_what_a_worker_runs_that_does_not_count_all_is_for_its_events_to_tell(watched: Watched) -> None:
    watched.poll(snapshot(0, counts=False, running=[running(3, 2)]))
    watched.poll(snapshot(10, counts=False, boot="b", started_at=EPOCH + 9))
    watched.wait(200)
    assert watched.series()[of("running")] == 0
    assert watched.series()[of("lost_total")] == 0


def test_nothing_is_lost_when_a_process_is_replaced_after_its_goodbye(watched: Watched) -> None:
    watched.poll(snapshot(5, running=[running(3, 2)]), snapshot(6, final=True, running=[]))
    watched.poll(snapshot(10, boot="b", started_at=EPOCH + 9))
    watched.wait(200)
    assert watched.series()[of("lost_total")] == 0


def test_what_a_worker_with_events_ran_is_lost_once(watched: Watched) -> None:
    watched.hear(online(1, pid=1))
    watched.poll(snapshot(5, running=[running(3, 2)]))
    watched.wait_until(20)
    watched.poll(snapshot(20, boot="b", started_at=EPOCH + 19, pid=2))
    watched.hear(online(21, pid=2))
    watched.wait(STALE_SECONDS + LOST_AFTER_SECONDS)
    assert watched.series()[of("lost_total")] == 2


def test_histories_of_many_workers_cost_nothing_but_their_own(watched: Watched) -> None:
    """Ten workers, each with its own totals of the same row."""
    for at, other in pairwise(range(0, 60, 5)):
        watched.wait_until(other)
        watched.poll(*(snapshot(other, row(started=(at, other)), worker=f"w{n}@h") for n in range(10)))
    assert watched.series()[of("started_total")] == 10 * 55
