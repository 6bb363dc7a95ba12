"""Sends finished spans, a batch at a time, in a thread of the pollers' pool."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from ..metrics.spans import SpanMetrics
from ..poller import FAREWELL_SECONDS
from .spans import Span
from .table import SpanTable

#: Spans in one request, as OpenTelemetry's own batches have.
BATCH: Final = 512

#: The same while it is not known to be taken: what is not, is lost.
PROBE: Final = 1

log = logging.getLogger(__name__)


class Sender(Protocol):
    """What takes spans to where they go."""

    def send(self, spans: Sequence[Span]) -> None:
        """Send them; none at all asks whether somebody is there. Raises ProbeFailed when they were not taken."""

    def close(self) -> None:
        """Close the connection, and give up what is under way."""


class Sent(NamedTuple):
    """How many spans were to be sent, and what went wrong."""

    number: int
    problem: Exception | None


class SpansCollector:
    """
    Takes what the table has finished.

    A batch that was not taken is not tried again, beyond what the sender itself does: others wait behind it. As long as
    the collector is away, little is sent, and the rest waits.
    """

    name = "otlp"
    interval_seconds = 1.0

    def __init__(
        self, sender: Sender, table: SpanTable, metrics: SpanMetrics, *, broker: str, clock: Callable[[], float]
    ) -> None:
        self._sender = sender
        self._table = table
        self._metrics = metrics
        self._broker = broker
        self._clock = clock
        self._under_way = 0
        #: Not known to work: not tried yet, or failed. Then it is asked also when there is nothing to send.
        self._doubtful = True
        #: Asks for the next poll at once; set by who polls.
        self.hurry: Callable[[], None] | None = None

    def question(self) -> list[Span] | None:
        """Return the next batch; None when there is none."""
        self._table.tick(self._clock())
        spans = self._table.take(PROBE if self._doubtful else BATCH)
        self._under_way = len(spans)
        return spans if spans or self._doubtful else None

    def ask(self, question: list[Span]) -> Sent:
        """Send it."""
        try:
            self._sender.send(question)
        except Exception as error:  # noqa: BLE001  # whatever it was: how many are lost has to be counted
            return Sent(len(question), error)
        return Sent(len(question), None)

    def take(self, answer: Sent) -> None:
        """Count what became of the batch. Raises what went wrong."""
        self._under_way = 0
        self._doubtful = answer.problem is not None
        if answer.problem is not None:
            self._metrics.failed.inc(answer.number)
            raise answer.problem
        self._metrics.sent.inc(answer.number)
        if self._table.waiting >= BATCH and self.hurry is not None:
            self.hurry()

    def close(self) -> None:
        """Send what is left, for as long as we may stay. Nobody folds events any more."""
        deadline = time.monotonic() + FAREWELL_SECONDS / 2
        self._table.flush()
        while time.monotonic() < deadline and (spans := self._table.take(BATCH)):
            self._under_way = len(spans)
            answer = self.ask(spans)
            if answer.problem is not None:
                break
            self._under_way = 0
            self._metrics.sent.inc(answer.number)
        self._sender.close()

    def give_up(self) -> None:
        """Count as dropped what could not be sent until the end, and say so."""
        self._table.flush()
        left = self._under_way + self._table.waiting
        self._metrics.dropped.inc(left)
        if left:
            log.warning("spans not sent before the end", extra={"broker": self._broker, "spans": left})
