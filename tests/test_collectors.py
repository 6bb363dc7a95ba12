"""Whom the workers' collector asks, and what becomes of a question that got no answer; snapshots on their way in."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from celery_lookout import collectors as module
from celery_lookout.collectors import UNTOLD_SECONDS, SnapshotsAnswer, SnapshotsCollector, WorkersCollector
from celery_lookout.errors import BrokerUnavailable
from celery_lookout.intake.snapshot_source import Message
from celery_lookout.probes.control import ControlProbe
from celery_lookout.readings import WorkerReading
from tests.clusters import Watched, of, online, row, series, snapshot, started


class FakeProbe:
    """Answers for every worker it is asked about."""

    def __init__(self) -> None:
        self.invalid_replies = 0
        self.enabled: list[str] = []

    def enable_events(self, worker: str) -> None:
        self.enabled.append(worker)

    def collect(self, workers: Any) -> list[WorkerReading]:
        return [WorkerReading(worker, 0.0, slots=1) for worker in workers]

    def active(self, _workers: Any, *, reserved: bool) -> list[Any]:
        assert reserved
        return []


def collector(watched: Watched, probe: FakeProbe, *, enable_events: bool = False) -> WorkersCollector:
    return WorkersCollector(
        cast("ControlProbe", probe),
        watched.cluster,
        round_seconds=15.0,
        enable_events=enable_events,
        broker="shop",
        clock=lambda: watched.now,
    )


def test_a_worker_is_a_stranger_until_it_could_be_asked() -> None:
    """A failed poll does not count, and is tried again with the next round, not at once."""
    watched, probe = Watched(), FakeProbe()
    workers = collector(watched, probe)
    watched.hear(online(0))
    first = workers.question()
    assert first is not None
    assert first.strangers == {"w@h"}
    assert workers.question() is None  # the first was never answered
    watched.wait(16)
    watched.hear(online(16))
    again = workers.question()
    assert again is not None
    assert again.strangers == {"w@h"}
    workers.take(workers.ask(again))
    assert workers.question() is None


def test_refused_replies_are_counted_once() -> None:
    watched, probe = Watched(), FakeProbe()
    workers = collector(watched, probe)
    shown = 'celery_exporter_events_invalid_total{reason="reply"}'
    for second, total in ((0, 2), (16, 2), (32, 5)):
        watched.wait_until(second)
        watched.hear(online(second))
        probe.invalid_replies = total
        question = workers.question()
        assert question is not None
        workers.take(workers.ask(question))
        assert watched.series()[shown] == total
    assert watched.series()[series("celery_worker_slots", worker="w@h")] == 1


def test_events_are_switched_on_only_in_workers_without_snapshots() -> None:
    watched, probe = Watched(), FakeProbe()
    watched.expect_snapshots()
    workers = collector(watched, probe, enable_events=True)
    watched.hear(online(0), online(0, worker="covered@h"))
    assert workers.question() is not None  # nobody is asked before that is known
    workers.take(workers.ask(module.WorkersQuestion(True, frozenset(), frozenset(), frozenset(), {})))
    watched.poll(snapshot(0, worker="covered@h"))
    question = workers.question()
    assert question is not None
    assert question.strangers == {"w@h", "covered@h"}
    workers.ask(question)
    assert probe.enabled == ["w@h"]


class FakeSource:
    """Has chunks of messages, or errors, one for each read."""

    def __init__(self, *chunks: list[Message] | Exception) -> None:
        self.chunks = list(chunks)
        self.settled = 0

    def settle(self) -> None:
        self.settled += 1

    def read(self) -> list[Message]:
        if not self.chunks:
            return []
        chunk = self.chunks.pop(0)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def close(self) -> None:
        pass


def message(at: float, started: int, **properties: Any) -> Message:
    return Message(msgspec.json.encode(snapshot(at, row(started=(started - 1, started)))), **properties)


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    watched.expect_snapshots()
    return watched


def snapshots(watched: Watched, source: FakeSource, *, may_read: bool = True) -> SnapshotsCollector:
    return SnapshotsCollector(
        source, watched.cluster, interval_seconds=1.0, may_read=lambda: may_read, clock=lambda: watched.now
    )


def poll(collector: SnapshotsCollector) -> SnapshotsAnswer:
    number = collector.question()
    assert number is not None
    answer = collector.ask(number)
    collector.take(answer)
    return answer


def test_polls_are_rare_until_somebody_has_told_something(watched: Watched) -> None:
    collector = snapshots(watched, FakeSource([message(0, 1, is_old=True)], [message(5, 2)]))
    assert collector.interval_seconds == UNTOLD_SECONDS
    poll(collector)
    assert collector.interval_seconds == 1.0


def test_all_chunks_are_read_and_old_ones_do_not_count(watched: Watched) -> None:
    source = FakeSource([message(0, 1, is_old=True)], [message(5, 2), message(10, 3)])
    poll(snapshots(watched, source))
    shown = watched.series()
    assert shown[of("started_total")] == 2
    assert shown["celery_exporter_snapshots_total"] == 2
    assert source.settled == 1


def test_refusals_are_counted_by_reason(watched: Watched) -> None:
    poll(snapshots(watched, FakeSource([Message(b"{"), Message(b"{"), Message(b"{}", content_type="text/plain")])))
    name = "celery_exporter_snapshots_invalid_total"
    assert watched.series(name) == {series(name, reason="malformed"): 2, series(name, reason="content_type"): 1}


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), KeyError("surprise")])
def test_what_was_read_before_a_failure_counts_and_the_failure_shows(error: Exception, watched: Watched) -> None:
    """It does not come again. Workers that waited for this poll wait no longer."""
    watched.hear(started(0))
    collector = snapshots(watched, FakeSource([message(5, 1)], error))
    with pytest.raises(type(error)):
        poll(collector)
    assert watched.series()[of("started_total")] == 1
    assert not watched.cluster.precedence._waiting


def test_a_poll_that_leaves_something_behind_decides_nothing_and_another_follows(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_BYTES", 1)
    asked = watched.expect_snapshots()
    watched.hear(started(0, worker="other@h"))
    collector = snapshots(watched, FakeSource([message(5, 1)], [message(6, 2)]))
    poll(collector)
    assert watched.series()[of("started_total")] == 1
    assert watched.cluster.precedence._waiting
    assert len(asked) == 2
    poll(collector)
    poll(collector)
    assert watched.series()[of("started_total")] == 2
    assert not watched.cluster.precedence._waiting


def test_nothing_is_read_while_it_must_not(watched: Watched) -> None:
    assert snapshots(watched, FakeSource(), may_read=False).question() is None
