"""What became of the spans made from events; only there with ``--otlp.endpoint``."""

from __future__ import annotations

from typing import Final

from .registry import Scope

OUTCOMES: Final = ("sent", "failed", "dropped")


class SpanMetrics:
    """The spans of one broker by outcome."""

    def __init__(self, scope: Scope) -> None:
        spans = scope.counter(
            "celery_exporter_spans_total",
            "Spans by what became of them. failed: the collector did not take them; dropped: no room, or nobody told"
            " to what task they belong.",
            ("outcome",),
        )
        self.sent, self.failed, self.dropped = (spans.child(outcome) for outcome in OUTCOMES)
