"""
Which failures go to Sentry, and when.

Taking one costs microseconds and never waits: what is wanted and within the limits is queued, and one task sends the
queue. Each that is wanted ends in ``celery_exporter_sentry_events_total``, whatever becomes of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from ..failures import KILLS, Failure
from ..metrics.exporter import SentryMetrics, SentryOutcome
from ..poller import FAREWELL_SECONDS
from ..snapshots import BeatSnapshot
from ..state.exceptions import UNKNOWN, exception_class
from .checkins import CheckIns
from .episodes import Episode, episode_event
from .event import event_id, sentry_event
from .limits import Limits
from .options import SentryOptions

#: Events that wait to be sent; what comes after is dropped. A minute's worth and more, by default.
QUEUE_SIZE: Final = 100

_SAMPLES: Final = 2**32

log = logging.getLogger(__name__)


class Delivery(Protocol):
    """Sends events; see ``delivery``."""

    async def send(self, event: dict[str, Any]) -> SentryOutcome:
        """Send one and say what became of it."""

    async def close(self) -> None:
        """Close the connection."""


class Forwarder:
    """Forwards to one Sentry project what goes wrong on all brokers."""

    def __init__(
        self,
        options: SentryOptions,
        metrics: SentryMetrics,
        delivery: Delivery,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self._count = metrics.count
        self._delivery = delivery
        self._clock = clock
        self._limits = Limits(options.limit, options.limit_per_fault, clock())
        self._queue: asyncio.Queue[Callable[[], dict[str, Any]]] = asyncio.Queue(QUEUE_SIZE)
        self._sender: asyncio.Task[None] | None = None

    def of(self, broker: str | None) -> BrokerForwarder:
        """Return what forwards for the broker of that name."""
        return BrokerForwarder(self, broker, CheckIns())

    def take_failure(self, failure: Failure, broker: str | None) -> None:
        """Queue the event of *failure*, if it is wanted."""
        if not _is_due(failure, self.options.mode):
            return
        kind = exception_class(failure.exception, failure.traceback)
        if kind == UNKNOWN:
            kind = failure.kind
        if not self.options.wants(failure.task, kind):
            return
        # By the id, so that two sidecars choose the same ones.
        if self.options.sample_rate < 1 and int(event_id(failure)[:8], 16) >= self.options.sample_rate * _SAMPLES:
            self._count("sampled")
            return
        build = partial(sentry_event, failure, strip_prefixes=self.options.strip_prefixes)
        self._submit((failure.task, kind), partial(_of_broker, build, broker))

    def take_untold(self, count: int) -> None:
        """Count failures that no snapshot told in full, since there were too many."""
        if count and self.options.mode == "all":
            self._count("rate_limited", count)

    def take_episode(self, episode: Episode, broker: str | None) -> None:
        """Queue the event of *episode*."""
        self._submit((episode.kind, episode.subject), partial(_of_broker, partial(episode_event, episode), broker))

    def take_check_in(self, check_in: dict[str, Any]) -> None:
        """Queue a check-in. No limit is for them: there is about one a minute and entry."""
        self._enqueue(lambda: check_in)

    def _submit(self, kind: tuple[str, str], build: Callable[[], dict[str, Any]]) -> None:
        if self._limits.admit(kind, self._clock()):
            self._enqueue(build)
        else:
            self._count("rate_limited")

    def _enqueue(self, build: Callable[[], dict[str, Any]]) -> None:
        try:
            self._queue.put_nowait(build)
        except asyncio.QueueFull:
            self._count("dropped")

    def start(self) -> None:
        """Begin to send."""
        self._sender = asyncio.create_task(self._send_all())

    async def stop(self) -> None:
        """Send for a moment what waits, and end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._queue.join()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        left = self._queue.qsize()
        if left:
            self._count("dropped", left)
            log.warning("events for Sentry dropped at the end", extra={"events": left})
        await self._delivery.close()

    async def _send_all(self) -> None:
        while True:
            build = await self._queue.get()
            outcome: SentryOutcome = "dropped"
            try:
                # Making it takes milliseconds.
                outcome = await self._delivery.send(await asyncio.to_thread(build))
            except Exception:  # a fault of ours costs the event that met it
                log.exception("fault while forwarding to Sentry")
            finally:
                self._count(outcome)
                self._queue.task_done()


class BrokerForwarder(NamedTuple):
    """Forwards what goes wrong on one broker."""

    forwarder: Forwarder
    broker: str | None
    check_ins: CheckIns

    def take(self, failure: Failure) -> None:
        """Forward *failure*, if it is wanted."""
        self.forwarder.take_failure(failure, self.broker)

    def take_untold(self, count: int) -> None:
        """Count failures that nobody tells in full."""
        self.forwarder.take_untold(count)

    def take_beat(self, snapshot: BeatSnapshot, now: float) -> None:
        """Check in for what beat has sent, if that is wanted."""
        if self.forwarder.options.crons:
            for check_in in self.check_ins.of(snapshot, now):
                self.forwarder.take_check_in(check_in)

    def take_episode(self, episode: Episode) -> None:
        """Forward *episode*."""
        self.forwarder.take_episode(episode, self.broker)


def _is_due(failure: Failure, mode: str) -> bool:
    """Say whether *failure* is ours to report."""
    if failure.sentry_event_id is not None or failure.expected:
        return False  # the worker's own SDK did, or nobody is to
    if mode == "all":
        return True
    return failure.kind in KILLS or failure.kind == "unknown_task" or failure.retries > 0


def _of_broker(build: Callable[[], dict[str, Any]], broker: str | None) -> dict[str, Any]:
    event = build()
    if broker is not None:
        event["tags"]["broker"] = broker
    return event
