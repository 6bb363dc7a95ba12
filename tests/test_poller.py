"""A collector that fails or hangs costs its own metrics and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from threading import Event

import pytest

from celery_lookout import poller as module
from celery_lookout.errors import ProbeFailed
from celery_lookout.poller import Poller
from tests.clusters import EPOCH, Watched, series


class FakeCollector:
    """Answers with the question and what it is told to, and remembers what it took."""

    interval_seconds = 1.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken: list[str] = []
        self.answer: Callable[[], str] = lambda: "answer"
        self.asks: str | None = "question"
        self.closed = False

    def question(self) -> str | None:
        return self.asks

    def ask(self, question: str) -> str:
        return f"{question} {self.answer()}"

    def take(self, answer: str) -> None:
        self.taken.append(answer)

    def close(self) -> None:
        self.closed = True


def failing(error: Exception) -> Callable[[], str]:
    def answer() -> str:
        raise error

    return answer


class Polled:
    """Two pollers of one cluster."""

    def __init__(self, executor: Executor) -> None:
        self.watched = Watched()
        self.queues, self.workers = FakeCollector("queues"), FakeCollector("workers")
        self.pollers = [
            Poller(collector, self.watched.cluster.exporter, executor, broker="shop", clock=lambda: self.watched.now)
            for collector in (self.queues, self.workers)
        ]

    async def poll(self) -> None:
        for poller in self.pollers:
            await poller.poll()

    def shown(self, name: str, collector: str) -> float:
        return self.watched.series()[series(f"celery_exporter_collector_{name}", collector=collector)]


@pytest.fixture
def polled() -> Iterator[Polled]:
    with ThreadPoolExecutor(2) as executor:
        yield Polled(executor)


async def test_an_answer_is_taken_and_shown_as_success(polled: Polled) -> None:
    await polled.poll()
    assert polled.queues.taken == ["question answer"]
    assert polled.shown("success", "queues") == 1
    assert polled.shown("last_success_timestamp_seconds", "queues") == EPOCH
    assert 0 <= polled.shown("duration_seconds", "queues") < 5


@pytest.mark.parametrize("error", [ProbeFailed("no right to read"), KeyError("surprise")])
async def test_a_failure_costs_its_own_metrics_only(error: Exception, polled: Polled) -> None:
    await polled.poll()
    polled.watched.wait(10)
    polled.queues.answer = failing(error)
    await polled.poll()
    assert (polled.shown("success", "queues"), polled.shown("success", "workers")) == (0, 1)
    assert polled.shown("last_success_timestamp_seconds", "queues") == EPOCH
    assert polled.shown("last_success_timestamp_seconds", "workers") == EPOCH + 10
    assert len(polled.workers.taken) == 2


async def test_a_fault_while_taking_the_answer_in_is_a_failure(polled: Polled) -> None:
    def take(answer: str) -> None:
        raise TypeError(answer)

    polled.queues.take = take  # type: ignore[method-assign]  # a fake
    await polled.poll()
    assert (polled.shown("success", "queues"), polled.shown("success", "workers")) == (0, 1)


async def test_a_collector_without_a_question_is_not_asked(polled: Polled) -> None:
    polled.queues.asks = None
    await polled.poll()
    assert polled.queues.taken == []
    assert len(polled.workers.taken) == 1


async def test_an_answer_past_the_limit_is_a_failure_at_once_and_taken_when_it_comes(
    polled: Polled, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, hung = asyncio.Event(), Event()
    monkeypatch.setattr(module, "LIMIT_SECONDS", 0.01)
    monkeypatch.setattr(module.log, "warning", lambda *_arguments, **_options: failed.set())

    def answer() -> str:
        hung.wait(10)
        return "late"

    polled.queues.answer = answer
    poll = asyncio.ensure_future(polled.pollers[0].poll())
    await failed.wait()
    assert polled.shown("success", "queues") == 0
    assert polled.pollers[0].problem == "no answer within 0.01 s"
    hung.set()
    await poll
    assert polled.queues.taken == ["question late"]
    assert polled.shown("success", "queues") == 1


async def test_the_goodbye_comes_after_the_last_question(polled: Polled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe serves one thread at a time: one that hangs past the limit is left alone, and closes when it is done."""
    monkeypatch.setattr(module, "FAREWELL_SECONDS", 0.01)
    hung = Event()

    def answer() -> str:
        hung.wait(10)
        return "late"

    polled.queues.answer = answer
    poll = asyncio.ensure_future(polled.pollers[0].poll())
    await asyncio.sleep(0)
    await polled.pollers[0].close()
    assert not polled.queues.closed
    hung.set()
    await poll
    assert polled.queues.closed


async def test_a_goodbye_that_hangs_is_not_waited_for(polled: Polled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAREWELL_SECONDS", 0.01)
    go_on, is_over = Event(), Event()

    def close() -> None:
        go_on.wait(10)
        is_over.set()

    monkeypatch.setattr(polled.queues, "close", close)
    await polled.pollers[0].close()
    assert not is_over.is_set()
    go_on.set()


@pytest.fixture
async def running(polled: Polled, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Poller[str, str]]:
    """A poller that has polled and would not poll again by itself."""
    monkeypatch.setattr(polled.queues, "interval_seconds", 1e6)
    task = asyncio.ensure_future(polled.pollers[0].run())
    await polled.pollers[0].next_poll()
    polled.queues.taken.clear()
    yield polled.pollers[0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_poll_can_be_had_before_its_time(polled: Polled, running: Poller[str, str]) -> None:
    await running.next_poll()
    assert len(polled.queues.taken) == 1
    await asyncio.gather(running.next_poll(), running.next_poll())
    assert len(polled.queues.taken) == 2


async def test_a_poll_under_way_is_not_the_next(polled: Polled, running: Poller[str, str]) -> None:
    began, go_on = Event(), Event()

    def answer() -> str:
        began.set()
        go_on.wait(10)
        return "late"

    polled.queues.answer = answer
    first = asyncio.ensure_future(running.next_poll())
    await asyncio.to_thread(began.wait, 10)
    second = asyncio.ensure_future(running.next_poll())
    go_on.set()
    await first
    assert not second.done()
    await second
    assert len(polled.queues.taken) == 2


async def test_who_waits_for_a_poll_is_told_of_one_that_failed_too(polled: Polled, running: Poller[str, str]) -> None:
    polled.queues.answer = failing(KeyError("surprise"))
    await running.next_poll()
    polled.queues.asks = None
    await running.next_poll()
    assert polled.queues.taken == []


async def test_the_answer_under_way_at_the_end_is_taken(polled: Polled) -> None:
    """What a broker has handed over does not come again."""
    began, go_on = Event(), Event()

    def answer() -> str:
        began.set()
        go_on.wait(10)
        return "read"

    polled.queues.answer = answer
    task = asyncio.ensure_future(polled.pollers[0].run())
    await asyncio.to_thread(began.wait, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    closing = asyncio.ensure_future(polled.pollers[0].close())
    go_on.set()
    await closing
    assert polled.queues.taken == ["question read"]
    assert polled.queues.closed


async def test_one_that_failed_at_the_end_is_nobodys_concern(polled: Polled) -> None:
    began, go_on = Event(), Event()

    def answer() -> str:
        began.set()
        go_on.wait(10)
        raise ProbeFailed("no right to read")

    polled.queues.answer = answer
    task = asyncio.ensure_future(polled.pollers[0].run())
    await asyncio.to_thread(began.wait, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    go_on.set()
    await polled.pollers[0].close()
    assert (polled.queues.taken, polled.queues.closed) == ([], True)


async def test_only_the_first_failure_and_the_recovery_are_logged(
    polled: Polled, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celery_lookout")
    polled.queues.answer = failing(ProbeFailed("no right to read"))
    for _ in range(3):
        await polled.pollers[0].poll()
    polled.queues.answer = lambda: "fine"
    for _ in range(2):
        await polled.pollers[0].poll()
    assert caplog.messages == ["collector failed", "collector works again"]
    assert vars(caplog.records[0])["error"] == "no right to read"
    assert vars(caplog.records[0])["broker"] == "shop"
