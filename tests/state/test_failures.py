from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from celery_lookout.events import Event
from celery_lookout.failures import TEXT_LIMIT, Failure, FailureSink
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.snapshots import BeatSnapshot, WorkerSnapshot
from celery_lookout.snapshots import Failure as Told
from celery_lookout.state.cluster import LOST_AFTER_SECONDS, Cluster, ClusterOptions

NOW = 1_800_000_000.0
TRACEBACK = "Traceback (most recent call last):\nValueError: no\n"
TOLD = Told(
    task_id="id",
    task="shop.mail",
    queue="mail",
    retries=1,
    at=NOW - 1,
    kind="exception",
    exception="builtins.ValueError",
    traceback=TRACEBACK,
    fingerprint="f",
    runtime=2.5,
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    sentry_event_id="9c" * 16,
    expected=True,
)


class Sink(FailureSink):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.untold = 0
        self.beats: list[BeatSnapshot] = []

    def take(self, failure: Failure) -> None:
        self.failures.append(failure)

    def take_untold(self, count: int) -> None:
        self.untold += count

    def take_beat(self, snapshot: BeatSnapshot, now: float) -> None:
        self.beats.append(snapshot)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def cluster(sink: Sink) -> Cluster:
    return Cluster(Scope(Registry()), ClusterOptions(), sink)


def event(kind: str, at: float, **fields: Any) -> Event:
    return Event(type=f"task-{kind}", timestamp=at, uuid="id", hostname="mail@web-1", **fields)


def life(**failed: Any) -> Iterable[Event]:
    yield event("sent", NOW - 5, name="shop.mail", queue="mail", retries=0)
    yield event("received", NOW - 4, name="shop.mail", retries=0)
    yield event("started", NOW - 3)
    yield event("failed", NOW - 1, **failed)


def test_a_failed_event_is_told_once(cluster: Cluster, sink: Sink) -> None:
    events = list(life(exception="ValueError('no')", traceback=TRACEBACK))
    cluster.fold([*events, replace(events[-1], timestamp=NOW)], NOW)  # Celery 5.7 sends two for one hard time limit
    assert sink.failures == [
        Failure(
            kind="exception",
            task_id="id",
            task="shop.mail",
            queue="mail",
            worker="mail@web-1",
            retries=0,
            at=NOW - 1,
            exception="ValueError('no')",
            traceback=TRACEBACK,
            runtime=2.0,
        )
    ]


@pytest.mark.parametrize(
    ("exception", "traceback", "kind"),
    [
        ("ExceptionWithTraceback()", "billiard.exceptions.WorkerLostError: signal 9", "worker_lost"),
        ("ExceptionWithTraceback()", "billiard.exceptions.TimeLimitExceeded: TimeLimitExceeded(5,)", "hard_time_limit"),
        ("SoftTimeLimitExceeded()", "billiard.exceptions.SoftTimeLimitExceeded: ()", "soft_time_limit"),
        ("NotRegistered('shop.mail')", None, "unknown_task"),
    ],
)
def test_kinds(cluster: Cluster, sink: Sink, exception: str, traceback: str | None, kind: str) -> None:
    cluster.fold(life(exception=exception, traceback=traceback), NOW)
    assert [failure.kind for failure in sink.failures] == [kind]


@pytest.mark.parametrize(
    ("exception", "task"),
    [
        ("NotRegistered('shop.gone')", "shop.gone"),
        ("NotRegistered('a\\'b')", "unknown"),
        ("ValueError('x')", "unknown"),
    ],
)
def test_a_task_that_no_worker_knows_is_named(cluster: Cluster, sink: Sink, exception: str, task: str) -> None:
    cluster.fold([event("failed", NOW, exception=exception)], NOW)
    cluster.tick(NOW + 2)
    assert [failure.task for failure in sink.failures] == [task]


def test_long_texts_are_cut(cluster: Cluster, sink: Sink) -> None:
    cluster.fold(life(exception="x" * 10**6, traceback="y" * 10**6), NOW)
    (failure,) = sink.failures
    assert len(failure.exception) < TEXT_LIMIT + 100
    assert len(failure.traceback) < TEXT_LIMIT + 100
    assert "characters left out" in failure.traceback


def test_what_is_no_failure_is_not_told(cluster: Cluster, sink: Sink) -> None:
    cluster.fold(life(exception="Reject('no')", traceback=TRACEBACK), NOW)
    assert sink.failures == []


def test_a_task_lost_with_its_worker_is_told(cluster: Cluster, sink: Sink) -> None:
    heartbeat = Event(type="worker-heartbeat", timestamp=NOW - 3, hostname="mail@web-1", freq=2.0)
    cluster.fold([heartbeat, *list(life())[:3]], NOW)
    for second in range(int(LOST_AFTER_SECONDS) + 30):
        cluster.tick(NOW + second)
    (failure,) = sink.failures
    assert (failure.kind, failure.task_id, failure.task, failure.worker) == ("lost", "id", "shop.mail", "mail@web-1")


def snapshot(seq: int, *, failures: tuple[Told, ...] = (), left_out: int = 0, counts: bool = True) -> WorkerSnapshot:
    return WorkerSnapshot(
        v=1,
        node="mail@web-1",
        boot="b",
        seq=seq,
        at=NOW + seq,
        started_at=NOW - 100,
        interval=5.0,
        final=False,
        counts=counts,
        processed=0,
        failures=failures,
        failures_left_out=left_out,
    )


def test_a_snapshots_failures_are_told_once(cluster: Cluster, sink: Sink) -> None:
    first = snapshot(1, failures=(TOLD,))
    cluster.take_snapshots([], [first], NOW)
    cluster.take_snapshots([], [first, snapshot(2)], NOW)
    (failure,) = sink.failures
    assert (failure.kind, failure.exception, failure.retries) == ("exception", "builtins.ValueError", 1)
    assert (failure.worker, failure.runtime) == ("mail@web-1", 2.5)
    assert (failure.trace_id, failure.sentry_event_id) == (TOLD.trace_id, TOLD.sentry_event_id)
    assert failure.expected


def test_those_told_before_this_process_began_are_not(cluster: Cluster, sink: Sink) -> None:
    cluster.take_snapshots([snapshot(7, failures=(TOLD,), left_out=5)], [snapshot(8, left_out=6)], NOW)
    assert (sink.failures, sink.untold) == ([], 1)


def test_a_kind_that_we_do_not_know_is_an_exception(cluster: Cluster, sink: Sink) -> None:
    told = replace(TOLD, kind="eaten")
    cluster.take_snapshots([], [snapshot(1, failures=(told,))], NOW)
    assert [failure.kind for failure in sink.failures] == ["exception"]


@pytest.mark.parametrize(
    ("left_out", "untold"),
    [
        ([(1, 3), (2, 3), (3, 8)], 8),
        ([(5, 3), (6, 4)], 1),  # of those before the first one that we see nobody knows who counted them
        ([(1, 3), (2, 0), (3, 4)], 4),
    ],
)
def test_what_snapshots_leave_out_is_counted(
    cluster: Cluster, sink: Sink, left_out: list[tuple[int, int]], untold: int
) -> None:
    for seq, count in left_out:
        cluster.take_snapshots([], [snapshot(seq, left_out=count)], NOW)
    assert sink.untold == untold


def test_a_worker_whose_snapshots_do_not_count_is_heard_by_its_events(cluster: Cluster, sink: Sink) -> None:
    cluster.take_snapshots([], [snapshot(1, failures=(TOLD,), left_out=2, counts=False)], NOW)
    assert (sink.failures, sink.untold) == ([], 0)


def test_beats_snapshots_are_passed_on(cluster: Cluster, sink: Sink) -> None:
    told = BeatSnapshot(v=1, node="beat@w", boot="b", seq=1, at=NOW, started_at=NOW, interval=5.0, final=False)
    cluster.take_snapshots([told], [], NOW)
    assert sink.beats == []
    cluster.take_snapshots([], [replace(told, seq=2)], NOW)
    assert len(sink.beats) == 1
