from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from celery_lookout.errors import BrokerUnavailable, ProbeFailed
from celery_lookout.intake.listener import Listener
from celery_lookout.intake.silent import SilentEvents
from tests.clusters import Watched
from tests.servers.process import wait_until


class FakeBroker:
    """Is there or not, as the test says, and counts who looks."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.looks = 0

    def look(self) -> None:
        self.looks += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def looking_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "broker-look"]


def test_nothing_is_read_while_the_broker_is_there() -> None:
    broker = FakeBroker()
    source = SilentEvents(broker.look, seconds=0.01)
    source.open()
    wait_until(lambda: broker.looks > 2)
    assert source.read(0.0) == ([], False)
    assert source.fileno() > 0
    source.close()
    wait_until(lambda: not looking_threads())


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), ProbeFailed("gone")])
def test_a_broker_that_is_gone_or_refuses_all_is_unavailable(error: Exception) -> None:
    broker = FakeBroker()
    source = SilentEvents(broker.look, seconds=0.01)
    source.open()
    broker.error = error
    wait_until(lambda: not looking_threads())
    with pytest.raises(BrokerUnavailable, match="gone"):
        source.read(0.0)
    source.close()
    with pytest.raises(BrokerUnavailable, match="gone"):
        source.open()
    broker.error = None
    source.open()
    assert source.read(0.0) == ([], False)
    source.close()


async def test_an_outage_is_seen_and_logged_once(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    broker, watched = FakeBroker(), Watched()
    source = SilentEvents(broker.look, seconds=0.01)
    listener = Listener(source, watched.cluster, name="shop", executor=executor, clock=lambda: watched.now)

    async def becomes(value: int) -> None:
        await asyncio.to_thread(wait_until, lambda: watched.cluster.exporter.broker_up.value == value)

    running = asyncio.ensure_future(listener.run())
    try:
        await becomes(1)
        assert listener.reached.is_set()
        broker.error = BrokerUnavailable("gone")
        await becomes(0)
        looks = broker.looks
        await asyncio.to_thread(wait_until, lambda: broker.looks > looks + 1)
        broker.error = None
        await becomes(1)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert [record.message for record in caplog.records] == [
        "connected",
        "broker unavailable, trying again until it answers",
        "connected",
    ]
