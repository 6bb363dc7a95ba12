"""
Runs a blocking poll again and again in a thread, with a limit on how long it may take.

Whatever happens to it becomes three metrics with the collector's name; the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, Generic, Protocol, TypeVar

from .errors import LookoutError
from .metrics.exporter import ExporterMetrics

#: Seconds after which a poll counts as failed, even if its thread still waits for the broker.
LIMIT_SECONDS: Final = 20.0

#: Seconds that the end may wait for a poll under way, and again for the broker's goodbye.
FAREWELL_SECONDS: Final = 2.0

Question = TypeVar("Question")
Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


class Collector(Protocol[Question, Answer]):
    """
    One kind of poll.

    ``question`` and ``take`` run on the event loop, where the state lives; ``ask`` runs in a thread, blocks as it
    likes, and touches no state. ``ask`` raises LookoutError when it has no answer.
    """

    name: str

    @property
    def interval_seconds(self) -> float:
        """Seconds from one poll to the next."""

    def question(self) -> Question | None:
        """Return what to ask, gathered from the state; None when there is nothing to ask now."""

    def ask(self, question: Question) -> Answer:
        """Ask it."""

    def take(self, answer: Answer) -> None:
        """Bring the answer into the state."""

    def close(self) -> None:
        """Take leave of the broker; runs in a thread, after the last ``ask``."""


class Poller(Generic[Question, Answer]):
    """Runs one collector for ever."""

    def __init__(
        self,
        collector: Collector[Question, Answer],
        metrics: ExporterMetrics,
        executor: Executor,
        *,
        broker: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = collector.name
        self._collector = collector
        self._executor = executor
        self._extra = {"collector": collector.name, "broker": broker}
        self._clock = clock
        self._asking: asyncio.Future[Answer] | None = None
        #: Nobody waits any more for what is being asked.
        self._is_left = False
        self._success = metrics.collector_success.child(collector.name)
        self._duration = metrics.collector_duration.child(collector.name)
        self._last_success = metrics.collector_last_success.child(collector.name)
        self._hurried = asyncio.Event()
        self._awaited: list[asyncio.Future[None]] = []
        #: Why the last poll failed; None if it did not.
        self.problem: str | None = None

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            self._hurried.clear()
            awaited, self._awaited = self._awaited, []
            await self.poll()
            for future in awaited:
                if not future.done():
                    future.set_result(None)
            # Not wait_for, which before Python 3.12 may swallow a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._collector.interval_seconds):
                    await self._hurried.wait()

    def hurry(self) -> None:
        """Poll as soon as possible. A poll under way began before now, and another follows it."""
        self._hurried.set()

    async def next_poll(self) -> None:
        """Poll as soon as possible, and return when a poll that began after the call is over, whatever came of it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.append(future)
        self.hurry()
        await future

    async def close(self) -> None:
        """Take the answer that is under way, and leave of the broker, if it does not keep us waiting."""
        loop = asyncio.get_running_loop()
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=FAREWELL_SECONDS)
            if not self._asking.done() or self._asking.cancelled():
                self._is_left = True  # a probe serves one thread at a time
                return
            with contextlib.suppress(Exception):
                self._collector.take(self._asking.result())
        await asyncio.wait({loop.run_in_executor(self._executor, self._collector.close)}, timeout=FAREWELL_SECONDS)

    async def poll(self) -> None:
        """Poll once. A poll that takes too long is waited for, since a probe serves one thread at a time."""
        question = self._collector.question()
        if question is None:
            return
        loop = asyncio.get_running_loop()
        started = loop.time()
        self._asking = future = loop.run_in_executor(self._executor, self._ask, question)
        done, _ = await asyncio.wait({future}, timeout=LIMIT_SECONDS)
        if not done:
            self._failed(f"no answer within {LIMIT_SECONDS:g} s")
        try:
            answer = await future
            self._asking = None
            self._collector.take(answer)
        except LookoutError as error:
            self._failed(str(error))
        except Exception as error:  # a collector that fails costs its own metrics, nothing else
            self._failed(f"{type(error).__name__}: {error}")
            log.debug("collector failed unexpectedly", exc_info=True, extra=self._extra)
        else:
            self._worked()
        self._duration.set(round(loop.time() - started, 4))

    def _ask(self, question: Question) -> Answer:
        try:
            return self._collector.ask(question)
        finally:
            if self._is_left:
                self._collector.close()

    def _worked(self) -> None:
        self._success.set(1)
        self._last_success.set(round(self._clock(), 3))
        if self.problem is not None:
            self.problem = None
            log.info("collector works again", extra=self._extra)

    def _failed(self, problem: str) -> None:
        self._success.set(0)
        if self.problem is None:
            log.warning("collector failed", extra=self._extra | {"error": problem})
        self.problem = problem
