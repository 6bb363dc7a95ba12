"""Whom the workers' collector asks, and what becomes of a question that got no answer."""

from __future__ import annotations

from typing import Any, cast

from celery_lookout.collectors import WorkersCollector
from celery_lookout.probes.control import ControlProbe
from celery_lookout.readings import WorkerReading
from tests.clusters import Watched, online, series


class FakeProbe:
    """Answers for every worker it is asked about."""

    def __init__(self) -> None:
        self.invalid_replies = 0

    def collect(self, workers: Any) -> list[WorkerReading]:
        return [WorkerReading(worker, 0.0, slots=1) for worker in workers]

    def active(self, _workers: Any, *, reserved: bool) -> list[Any]:
        assert reserved
        return []


def collector(watched: Watched, probe: FakeProbe) -> WorkersCollector:
    return WorkersCollector(
        cast("ControlProbe", probe),
        watched.cluster,
        round_seconds=15.0,
        enable_events=False,
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
