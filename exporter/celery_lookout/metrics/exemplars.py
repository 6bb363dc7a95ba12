"""
Exemplars: with a number, one task that it is about and the trace of it.

Only OpenMetrics can show them. What makes no exemplar is left out, for it must not cost the scrape: a scraper refuses
all of a text of which it cannot read one.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from .registry import escape

#: Characters of all names and values of an exemplar's labels together. Source: OpenMetrics 1.0.
LABELS_LIMIT: Final = 128

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NO_TRACE: Final = "0" * 32


class Exemplar(NamedTuple):
    """An exemplar of one series: the value that was observed, and when, in Unix time."""

    value: float
    at: float
    #: What follows the series' own value in its line.
    text: str


def exemplar(trace_id: str, task_id: str, value: float, at: float) -> Exemplar | None:
    """
    Return the exemplar of a task's observation; None where the trace id is none.

    Without the task id where that is empty or too long, or has a quote in it: prometheus-client's parser, for one,
    cannot read an exemplar's quote.
    """
    if _TRACE_ID.fullmatch(trace_id) is None or trace_id == _NO_TRACE:
        return None
    at = round(at, 3)
    labels = f'trace_id="{trace_id}"'
    length = len("trace_id") + len(trace_id) + len("task_id") + len(task_id)
    if task_id and length <= LABELS_LIMIT and '"' not in task_id:
        labels += f',task_id="{escape(task_id)}"'
    return Exemplar(value, at, f" # {{{labels}}} {float(value)!r} {at:.3f}")
