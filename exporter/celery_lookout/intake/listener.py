"""
Keeps one broker's event stream flowing into its state: connects, reads, notices silence, connects again, for ever.

One wake-up takes all that came since the last; after it has run dry the socket is left alone for a moment, so that a
thousand events a second cost two wake-ups and not a thousand. A scrape does not wait for that: it reads first.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from ..errors import BrokerUnavailable
from ..events import Event
from ..state.cluster import Cluster
from .source import EventSource

#: Seconds to leave a socket alone once it has been read dry. Never after a read that left something behind. Redis would
#: drop us if 60,000 events a second began within one.
PAUSE_SECONDS: Final = 0.5

#: The same while more than so many events a second come: Redis drops a subscriber for whom 32 MiB wait, and a scrape
#: reads all that waits before it answers.
BUSY_PAUSE_SECONDS: Final = 0.1
BUSY_RATE: Final = 1500.0

#: Buffers read in one go before other work gets its turn: some ten milliseconds.
READS_AT_A_TIME: Final = 8

#: Seconds without a word after which the broker counts as down; it is asked for a word every second.
SILENT_SECONDS: Final = 5.0

#: Seconds of silence after which the connection is given up. A broker that was only paused has said something by then,
#: and what it published meanwhile still comes through the old connection.
ABANDONED_SECONDS: Final = 30.0

#: Turns of reading at the end, of what a broker that keeps nothing would drop: about a second at most.
LAST_TURNS: Final = 50

#: Waits between attempts to connect, in seconds: they double from the first to the last, and vary by up to a half.
FIRST_WAIT_SECONDS: Final = 0.5
LAST_WAIT_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class Listener:
    """Reads one source into one cluster."""

    def __init__(
        self,
        source: EventSource,
        cluster: Cluster,
        *,
        name: str,
        executor: Executor,
        clock: Callable[[], float] = time.time,
        before_reading: Callable[[], Awaitable[None]] | None = None,
        also: Callable[[Sequence[Event], float], None] | None = None,
    ) -> None:
        """
        *before_reading* is awaited once, between the first connection and the first event.

        *also* is called with events and the time they were read at, before the cluster is; it must not raise.
        """
        self._before_reading = before_reading
        self._also = also
        self._source = source
        self._cluster = cluster
        self._name = name
        self._executor = executor
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: int | None = None
        self._next_turn: asyncio.TimerHandle | None = None
        self._failed: asyncio.Future[None] | None = None
        self._heard_at = 0.0
        self._silent = False
        #: Events since the last pause began, and when that was.
        self._came = 0
        self._paused_at = 0.0
        #: Why there is no connection; None while there is one.
        self.problem: str | None = None
        #: Set once the broker has been reached; stays set.
        self.reached = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled."""
        self._loop = asyncio.get_running_loop()
        attempts = 0
        connected_before = False
        self._cluster.broker_lost(self._clock())
        try:
            while True:
                try:
                    await self._loop.run_in_executor(self._executor, self._source.open)
                    attempts = 0
                    self._found(again=connected_before)
                    connected_before = True
                    if self._before_reading is not None:
                        before_reading, self._before_reading = self._before_reading, None
                        await before_reading()
                    await self._listen()
                except BrokerUnavailable as error:
                    self._source.close()
                    self._lost(error, first=attempts == 0)
                attempts += 1
                await asyncio.sleep(_wait_before(attempts))
        finally:
            self._unwatch()
            await self._leave()

    async def _leave(self) -> None:
        """Let the broker know what was read, if it does not keep us waiting, and close."""
        assert self._loop is not None  # noqa: S101  # set by run()
        try:
            await self._loop.run_in_executor(self._executor, self._source.farewell)
        finally:
            self._source.close()

    def drain(self) -> None:
        """Take in what has come, up to some ten milliseconds of it, before a scrape is rendered."""
        self._read()

    def _read(self) -> bool | None:
        """Read and count; return whether something was left behind, None when nothing came or nobody is there."""
        if self._failed is None or self._failed.done():
            return None
        source, cluster = self._source, self._cluster
        came = more = False
        try:
            for _ in range(READS_AT_A_TIME):
                now = self._clock()
                events, more = source.read(now)
                if more:
                    self._heard()
                if events:
                    self._came += len(events)
                    if self._also is not None:
                        self._also(events, now)
                    cluster.fold(events, now, live=source.live)
                came = came or more or bool(events)
                if not more:
                    break
            source.settle()
        except BrokerUnavailable as error:
            self._give_up(error)
            return None
        except Exception as error:  # a fault of ours must not leave the sidecar deaf: begin anew
            log.exception("fault while reading events", extra={"broker": self._name})
            self._give_up(BrokerUnavailable(f"fault while reading events: {type(error).__name__}"))
            return None
        return more if came else None

    def _give_up(self, error: BrokerUnavailable) -> None:
        if self._failed is not None:
            self._failed.set_exception(error)

    async def _listen(self) -> None:
        """Read until the connection is gone; raises BrokerUnavailable then."""
        assert self._loop is not None  # noqa: S101  # set by run()
        self._failed = self._loop.create_future()
        try:
            self._watch()
            while True:
                done, _ = await asyncio.wait({self._failed}, timeout=1.0)
                if done:
                    self._failed.result()
                # First what is there: after a pause of the whole process, silence would be taken for the broker's.
                self.drain()
                self._source.beat()
                self._check_silence()
        except asyncio.CancelledError:
            if self._source.loses_when_away:
                self._read_dry()
            raise
        finally:
            self._failed = None
            self._unwatch()

    def _read_dry(self) -> None:
        for _ in range(LAST_TURNS):
            if not self._read():
                break
        if self._failed is not None and self._failed.done():
            self._failed.exception()  # the connection broke, and nobody is left to care

    def _watch(self) -> None:
        if self._loop is not None and self._failed is not None and not self._failed.done() and self._watched is None:
            self._watched = self._source.fileno()
            self._loop.add_reader(self._watched, self._turn)

    def _unwatch(self) -> None:
        if self._loop is not None and self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._watched = None
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None

    def _turn(self) -> None:
        """Read. While something comes, look again after a pause: asking the kernel when costs more than looking."""
        assert self._loop is not None  # noqa: S101  # set by run()
        self._unwatch()
        is_left = self._read()
        if is_left is None:
            self._watch()
        else:
            self._next_turn = self._loop.call_later(0.0 if is_left else self._pause(), self._turn)

    def _pause(self) -> float:
        """Begin a pause; return its length in seconds, which is longer where little comes."""
        assert self._loop is not None  # noqa: S101  # set by run()
        now = self._loop.time()
        is_busy = self._came > BUSY_RATE * (now - self._paused_at)
        self._came, self._paused_at = 0, now
        return BUSY_PAUSE_SECONDS if is_busy else PAUSE_SECONDS

    def _heard(self) -> None:
        assert self._loop is not None  # noqa: S101  # set by run()
        self._heard_at = self._loop.time()
        if self._silent:
            self._silent = False
            log.info("broker answers again", extra={"broker": self._name})
            self._cluster.broker_found(self._clock(), gap=False)

    def _check_silence(self) -> None:
        assert self._loop is not None  # noqa: S101  # set by run()
        if not self._source.answers_beats:
            return
        silence = self._loop.time() - self._heard_at
        if silence > ABANDONED_SECONDS:
            raise BrokerUnavailable(f"no answer for {silence:.0f} s")
        if silence > SILENT_SECONDS and not self._silent:
            self._silent = True
            log.warning("broker is silent", extra={"broker": self._name, "seconds": round(silence, 1)})
            self._cluster.broker_lost(self._clock())

    def _found(self, *, again: bool) -> None:
        assert self._loop is not None  # noqa: S101  # set by run()
        self._heard_at = self._loop.time()
        self._silent = False
        self.problem = None
        # Also where events wait for us: the queue may have been full, or lost with the broker.
        self._cluster.broker_found(self._clock(), gap=again or self._cluster.goes_on)
        if again:
            self._cluster.exporter.reconnects.inc()
        self.reached.set()
        log.info("connected", extra={"broker": self._name})

    def _lost(self, error: BrokerUnavailable, *, first: bool) -> None:
        self.problem = str(error)
        self._cluster.broker_lost(self._clock())
        log.log(
            logging.WARNING if first else logging.DEBUG,
            "broker unavailable, trying again until it answers",
            extra={"broker": self._name, "error": str(error)},
        )


def _wait_before(attempt: int) -> float:
    """Return the seconds to wait before the *attempt*-th attempt to connect again, counted from 1."""
    longest = min(FIRST_WAIT_SECONDS * 2.0 ** min(attempt - 1, 10), LAST_WAIT_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # spreads reconnections, hides nothing
