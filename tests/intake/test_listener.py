"""When a connection is given up, when the broker is tried again, and how a listener leaves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable
from celery_lookout.events import Event
from celery_lookout.intake import listener as module
from celery_lookout.intake.amqp import AmqpEvents
from celery_lookout.intake.decode import EventDecoder
from celery_lookout.intake.listener import FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS, READS_AT_A_TIME, Listener
from celery_lookout.intake.source import EventSource
from tests import conftest
from tests.clusters import Watched, heartbeat
from tests.servers.proxy import FaultProxy


class FakeSource:
    """Is there or not, speaks or not, and breaks when it is told to."""

    live = True

    def __init__(self) -> None:
        self.answers_beats = True
        self.loses_when_away = False
        #: What the next attempts to connect come to; those after them succeed.
        self.refusals: list[bool] = []
        self.calls: list[str] = []
        self.beats = 0
        self.speaks = False
        #: Events that nobody was told of: one comes with each reading.
        self.left: list[Event] = []
        self.fault: Exception | None = None
        self._sockets = socket.socketpair()

    def open(self) -> None:
        self.calls.append("open")
        if self.refusals and self.refusals.pop(0):
            raise BrokerUnavailable("refused")

    def fileno(self) -> int:
        return self._sockets[0].fileno()

    def read(self, now: float) -> tuple[list[Event], bool]:
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        if self.left:
            return [self.left.pop()], True
        spoke, self.speaks = self.speaks, False
        return [], spoke

    def settle(self) -> None:
        pass

    def beat(self) -> None:
        self.beats += 1

    def farewell(self) -> None:
        self.calls.append("farewell")

    def close(self) -> None:
        self.calls.append("close")

    @property
    def opened(self) -> int:
        return self.calls.count("open")

    @property
    def closed(self) -> int:
        return self.calls.count("close")

    def discard(self) -> None:
        for end in self._sockets:
            end.close()


@pytest.fixture
def source() -> Iterator[FakeSource]:
    source = FakeSource()
    yield source
    source.discard()


@asynccontextmanager
async def listening(source: EventSource) -> AsyncIterator[tuple[Listener, Watched]]:
    """A listener that runs, and whom it tells."""
    watched = Watched()
    with ThreadPoolExecutor(1) as executor:
        listener = Listener(source, watched.cluster, name="shop", executor=executor, clock=lambda: watched.now)
        running = asyncio.ensure_future(listener.run())
        try:
            yield listener, watched
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # nothing tells when a number changes
            await asyncio.sleep(0.02)


def up(watched: Watched) -> bool:
    return bool(watched.cluster.exporter.broker_up.value)


def test_the_broker_is_tried_twice_a_second_and_later_every_five() -> None:
    for attempt in range(1, 2000):
        longest = min(FIRST_WAIT_SECONDS * 2.0 ** min(attempt - 1, 100), LAST_WAIT_SECONDS)
        assert longest / 2 <= module._wait_before(attempt) <= longest


async def test_after_a_success_it_is_tried_soon_again(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each connection that did not last is let go."""
    waits: list[int] = []

    def wait_before(attempt: int) -> float:
        waits.append(attempt)
        return 0.0

    monkeypatch.setattr(module, "_wait_before", wait_before)
    source.refusals = [True, True, False, True, False]
    async with listening(source) as (listener, watched):
        await until(lambda: source.opened == 3 and up(watched))
        assert (waits, listener.problem) == ([1, 2], None)
        source.fault = BrokerUnavailable("gone")
        await until(lambda: source.opened == 5 and up(watched))
        assert waits == [1, 2, 1, 2]
        assert source.closed == 4
        assert watched.cluster.exporter.reconnects.value == 1


async def test_a_fault_of_ours_is_a_reason_to_connect_anew(source: FakeSource) -> None:
    async with listening(source) as (_, watched):
        await until(lambda: up(watched))
        source.fault = KeyError("surprise")
        await until(lambda: source.opened == 2 and up(watched))
        assert source.closed == 1


@pytest.mark.parametrize("answers_beats", [True, False])
async def test_silence_that_is_none_changes_nothing(source: FakeSource, answers_beats: bool) -> None:
    """After a pause of ours what the broker said waits to be read; some say nothing unless something happens."""
    source.answers_beats = answers_beats
    async with listening(source) as (listener, watched):
        await until(lambda: source.beats)
        listener._heard_at -= 3600
        source.speaks = answers_beats
        beats = source.beats
        await until(lambda: source.beats > beats)
        assert up(watched)
        assert (source.opened, source.closed) == (1, 0)


@pytest.mark.parametrize("loses_when_away", [True, False])
async def test_what_would_be_gone_is_read_before_it_says_goodbye(source: FakeSource, loses_when_away: bool) -> None:
    source.loses_when_away = loses_when_away
    count = 2 * READS_AT_A_TIME + 1
    async with listening(source) as (listener, _):
        await listener.reached.wait()
        await asyncio.sleep(0)
        source.left = [heartbeat(number) for number in range(count)]
    assert source.calls == ["open", "farewell", "close"]
    assert len(source.left) == (0 if loses_when_away else count)


@pytest.mark.rabbitmq
async def test_a_broker_that_says_nothing_is_down_and_then_given_up(
    rabbit_broker: conftest.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends heartbeats without being asked. One that was only slow is found again on the same connection."""
    with FaultProxy(rabbit_broker.server.port) as proxy:
        url = rabbit_broker.url.replace(f":{rabbit_broker.server.port}/", f":{proxy.port}/")
        source = AmqpEvents(Broker(url), EventDecoder(lambda *_: None))
        async with listening(source) as (listener, watched):
            await until(lambda: up(watched))
            monkeypatch.setattr(module, "SILENT_SECONDS", 3.0)
            proxy.mode = "blackhole"
            await until(lambda: not up(watched))
            proxy.mode = "pass"
            await until(lambda: up(watched))
            assert watched.cluster.exporter.reconnects.value == 0
            proxy.mode = "blackhole"
            monkeypatch.setattr(module, "ABANDONED_SECONDS", 3.0)
            await until(lambda: listener.problem)
            assert "no answer for" in (listener.problem or "")
            proxy.mode = "pass"
            await until(lambda: up(watched))
            assert watched.cluster.exporter.reconnects.value == 1
