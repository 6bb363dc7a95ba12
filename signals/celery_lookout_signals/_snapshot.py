"""
A snapshot's messages, and which rows they carried.

One message has as many rows as fit; the rest of the same moment follows in more. What was sent is noted only for
messages that the broker took.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ._records import Failure
from ._totals import Row, Totals, changes, newest, wire_row

VERSION = 1

#: Rows of one message: with Celery's usual names some 50 KB, of which Amazon SQS takes 256.
ROWS_PER_MESSAGE = 100

#: Exemplars of one message, shared out evenly among its rows: some 70 KB more.
EXEMPLARS_PER_MESSAGE = 600


class Envelope:
    """What every snapshot of one process has in common."""

    def __init__(self, kind: str, node: str) -> None:
        self._kind = kind
        self._node = node
        self._boot = os.urandom(8).hex()
        self._started_at = time.time()
        self._seq = 0

    def wrap(self, fields: Mapping[str, Any], *, interval: float, final: bool) -> str:
        """Return the next message, with these *fields* in it."""
        self._seq += 1
        message = {
            "v": VERSION,
            "kind": self._kind,
            "node": self._node,
            "boot": self._boot,
            "seq": self._seq,
            "at": round(time.time(), 3),
            "started_at": round(self._started_at, 3),
            "interval": interval,
            "final": final,
            **fields,
        }
        text = json.dumps(message, separators=(",", ":"), ensure_ascii=False)
        # Names and messages of exceptions may have halves of characters in them, which no JSON can have.
        return text.encode("utf-8", "replace").decode()


class Part:
    """Rows that travel in one message."""

    def __init__(self, rows: list[tuple[Row, dict[str, list[float]]]]) -> None:
        self._rows = rows

    def wire(self) -> list[dict[str, Any]]:
        """Return the rows as the message has them."""
        share = EXEMPLARS_PER_MESSAGE // max(len(self._rows), 1)
        return [wire_row(row, totals, newest(row, share)) for row, totals in self._rows]

    def was_taken(self) -> None:
        """Take note that the broker has the message."""
        for row, totals in self._rows:
            for key in totals:
                row.sent[key] = row.totals[key]
            row.exemplars.clear()


def parts(totals: Totals, *, everything: bool) -> Iterator[Part]:
    """Yield the rows that changed, or *everything*, in parts that fit into a message; at least one, if an empty one."""
    rows = [(row, found) for row in totals if (found := changes(row, everything=everything))]
    for start in range(0, max(len(rows), 1), ROWS_PER_MESSAGE):
        yield Part(rows[start : start + ROWS_PER_MESSAGE])


def wire_failures(failures: list[Failure]) -> list[dict[str, Any]]:
    """Return *failures* as the message has them."""
    return [failure._asdict() for failure in failures]
