"""Finished spans leave in batches; what is not taken is counted, and nobody waits for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from celery_lookout.errors import ProbeFailed
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.metrics.spans import SpanMetrics
from celery_lookout.traces.collector import BATCH, SpansCollector
from celery_lookout.traces.spans import Span
from celery_lookout.traces.table import SpanTable
from tests.clusters import EPOCH, parse, received, series, succeeded


class FakeSender:
    """Keeps the sizes of what it is sent, and fails as told."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.problem: Exception | None = None
        self.closed = False

    def send(self, spans: Sequence[Span]) -> None:
        self.sizes.append(len(spans))
        if self.problem is not None:
            raise self.problem

    def close(self) -> None:
        self.closed = True


class Sending:
    """A collector of spans, without a poller."""

    def __init__(self) -> None:
        self.registry = Registry()
        metrics = SpanMetrics(Scope(self.registry))
        self.sender = FakeSender()
        self.table = SpanTable(system="redis", queue_of=lambda event: None, dropped=metrics.dropped.inc)
        self.collector = SpansCollector(self.sender, self.table, metrics, broker="shop", clock=lambda: EPOCH + 9)
        self.collector.hurry = lambda: self.hurried.append(True)
        self.hurried: list[bool] = []

    def run(self, number: int) -> None:
        """Let tasks run, of each of which there is one span."""
        for index in range(number):
            uuid = f"00000000-0000-4000-8000-{index:012x}"
            self.table.fold([received(1, uuid=uuid), succeeded(2, uuid=uuid)], EPOCH + 2)

    def poll(self) -> bool:
        """Poll once; return False when there was nothing to ask."""
        question = self.collector.question()
        if question is None:
            return False
        self.collector.take(self.collector.ask(question))
        return True

    def shown(self) -> dict[str, float]:
        """Return what is counted, by outcome."""
        values = parse(self.registry.render())
        name = "celery_exporter_spans_total"
        return {outcome: values[series(name, outcome=outcome)] for outcome in ("sent", "failed", "dropped")}


@pytest.fixture
def sending() -> Sending:
    return Sending()


def test_all_outcomes_are_there_from_the_start(sending: Sending) -> None:
    assert sending.shown() == {"sent": 0, "failed": 0, "dropped": 0}


def test_the_collector_is_asked_at_the_start_and_left_alone_while_nothing_runs(sending: Sending) -> None:
    assert sending.poll()
    assert not sending.poll()
    assert sending.sender.sizes == [0]


def test_a_batch_at_a_time_and_the_next_at_once(sending: Sending) -> None:
    sending.poll()
    sending.run(2 * BATCH + 10)
    for hurried in (1, 1, 1):
        sending.poll()
        assert len(sending.hurried) == hurried
    assert sending.sender.sizes == [0, BATCH, BATCH, 10]
    assert sending.shown() == {"sent": 2 * BATCH + 10, "failed": 0, "dropped": 0}


@pytest.mark.parametrize("problem", [ProbeFailed("status 503"), RuntimeError("a fault of ours")])
def test_a_batch_that_is_not_taken_is_lost_and_the_collector_asked_until_it_answers(
    problem: Exception, sending: Sending
) -> None:
    sending.poll()
    sending.run(100)
    sending.sender.problem = problem
    for _ in range(3):
        with pytest.raises(type(problem)):
            sending.poll()
    assert sending.sender.sizes == [0, 100, 0, 0]
    assert sending.shown() == {"sent": 0, "failed": 100, "dropped": 0}


def test_what_waited_is_sent_when_the_collector_is_back(sending: Sending) -> None:
    sending.sender.problem = ProbeFailed("status 503")
    with pytest.raises(ProbeFailed):
        sending.poll()
    sending.run(100)
    with pytest.raises(ProbeFailed):
        sending.poll()
    sending.sender.problem = None
    sending.poll()
    sending.poll()
    assert sending.sender.sizes == [0, 1, 1, 98]
    assert sending.shown() == {"sent": 99, "failed": 1, "dropped": 0}


def test_at_the_end_what_has_not_settled_is_sent_too(sending: Sending, caplog: pytest.LogCaptureFixture) -> None:
    sending.run(BATCH + 1)
    sending.collector.close()
    sending.collector.give_up()
    assert sending.sender.sizes == [BATCH, 1]
    assert sending.sender.closed
    assert sending.shown() == {"sent": BATCH + 1, "failed": 0, "dropped": 0}
    assert not caplog.records


def test_at_the_end_what_is_not_taken_is_counted_and_logged(sending: Sending, caplog: pytest.LogCaptureFixture) -> None:
    sending.run(BATCH + 1)
    sending.sender.problem = ProbeFailed("status 503")
    sending.collector.close()
    sending.collector.give_up()
    assert sending.sender.closed
    assert sending.shown() == {"sent": 0, "failed": 0, "dropped": BATCH + 1}
    (record,) = caplog.records
    assert (record.levelno, record.__dict__["spans"]) == (logging.WARNING, BATCH + 1)


def test_what_is_under_way_at_the_end_is_counted(sending: Sending) -> None:
    """The poller does not close a collector whose thread still waits."""
    sending.poll()
    sending.run(10)
    assert sending.collector.question() is not None
    sending.run(20)
    sending.collector.give_up()
    assert sending.shown()["dropped"] == 20
