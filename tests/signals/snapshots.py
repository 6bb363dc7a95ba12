"""
A reader of snapshots, written after ``docs/wire.md`` and nothing else: it shares no code with either program.

It holds every snapshot to the page: strict JSON, exactly the fields that are described, and totals that never fall.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import kombu
import pytest
import redis
from amqp.exceptions import NotFound

from tests.servers.process import wait_until

NAME = "celery-lookout.signals.v1"

Snapshot = dict[str, Any]
Totals = dict[tuple[str, str], dict[str, float]]

_COMMON = {"v", "kind", "node", "boot", "seq", "at", "started_at", "interval", "final"}
_WORKER = {
    "celery", "pid", "pool", "slots", "queues", "counts", "processed", "active", "reserved", "scheduled", "memory",
    "child_memory_max", "memory_limit", "cpu_seconds", "oom_kills", "child_exits", "runs_lost", "faults", "running",
    "rows", "failures", "failures_left_out",
}  # fmt: skip
_BEAT = {"entries", "entries_left_out"}
_ROW = {"task", "queue", "last_success_at", "last_failure_at", "totals", "exemplars"}
_FAILURE = {
    "task_id", "task", "queue", "retries", "at", "kind", "exception", "traceback", "fingerprint", "runtime",
    "trace_id", "sentry_event_id", "expected",
}  # fmt: skip
_ENTRY = {"entry", "task", "last_sent_at", "next_due_at"}

#: Totals that were measured, not counted: these or what begins so.
_MEASURED = ("runtime:", "wait:", "peak:", "cpu_seconds", "memory_growth_bytes")


class Reader:
    """All snapshots that came to one broker while this reader looked; each is read once, and kept."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._last_id = "-"
        self.snapshots: list[Snapshot] = []
        self.sizes: list[int] = []

    def read(self) -> list[Snapshot]:
        """Read what is new, and return all."""
        for body in self._stream() if self._url.startswith("redis") else self._queue():
            self.sizes.append(len(body))
            self.snapshots.append(parse(body))
        return self.snapshots

    def _stream(self) -> Iterable[bytes]:
        with redis.Redis.from_url(self._url) as client:
            # After the first look: what follows the last entry, without it.
            entries: Any = client.xrange(NAME, self._last_id, "+")
        for number, fields in entries:
            assert fields.keys() == {b"body"}
            self._last_id = f"({number.decode()}"
            yield fields[b"body"]

    def _queue(self) -> Iterable[bytes]:
        with kombu.Connection(self._url) as connection, connection.channel() as channel:
            while True:
                try:
                    message = channel.basic_get(NAME, no_ack=True)
                except NotFound:
                    return
                if message is None:
                    return
                assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
                body = message.body
                yield body.encode() if isinstance(body, str) else bytes(body)

    def totals(self, node: str = "") -> Totals:
        """Return what *node*'s snapshots, or all, add up to."""
        return fold(snapshot for snapshot in self.snapshots if node in ("", snapshot["node"]))

    def counts(self, node: str = "") -> Totals:
        """Return the totals without those that were measured."""
        return counts(self.totals(node))

    def wait_for(self, condition: Callable[[Reader], object], seconds: float = 20.0) -> Reader:
        """Read until *condition* holds of this reader."""

        def holds() -> object:
            self.read()
            return condition(self)

        try:
            wait_until(holds, seconds)
        except pytest.fail.Exception:
            print("last snapshot:", *self.snapshots[-1:], "counts:", self.counts(), sep="\n")
            raise
        return self

    def wait_final(self, seconds: float = 20.0) -> Snapshot:
        """Return the last snapshot of a worker that says goodbye."""
        self.wait_for(lambda reader: any(one["final"] for one in reader.snapshots[-1:]), seconds)
        return self.snapshots[-1]

    def failures(self) -> list[dict[str, Any]]:
        """Return all failures that were told."""
        return [failure for snapshot in self.snapshots for failure in snapshot.get("failures", ())]


def exists(url: str) -> bool:
    """Say whether the broker has a stream, or a queue or an exchange, for snapshots."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            return bool(client.exists(NAME))
    found = []
    with kombu.Connection(url) as connection:
        for declare in ("queue_declare", "exchange_declare"):
            arguments = {"type": "fanout"} if declare == "exchange_declare" else {}
            try:
                getattr(connection.channel(), declare)(NAME, passive=True, **arguments)
                found.append(declare)
            except NotFound:
                pass
    return bool(found)


def parse(body: bytes) -> Snapshot:
    """Return the snapshot in *body*; fails the test where it is not as the page says."""
    snapshot: Snapshot = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    # Python reads lone surrogates, which are not text, and other readers refuse the whole message for them.
    json.dumps(snapshot, ensure_ascii=False).encode("utf-8")
    assert snapshot["v"] == 1
    fields = {"worker": _WORKER, "beat": _BEAT}[snapshot["kind"]]
    assert snapshot.keys() == _COMMON | fields
    if snapshot["kind"] == "worker":
        assert snapshot["child_exits"].keys() == {"recycled", "killed", "exited"}
        assert len(snapshot["rows"]) <= 100
        assert len(snapshot["failures"]) <= 20
        assert snapshot["failures_left_out"] >= 0
        assert snapshot["runs_lost"] >= 0
        for row in snapshot["rows"]:
            assert row.keys() == _ROW
            assert row["totals"]
            assert all(0 <= before <= now for before, now in row["totals"].values()), row
            # Of what is told, and nothing else.
            assert row["exemplars"].keys() <= row["totals"].keys()
            assert len(row["exemplars"]) <= 64
            for trace_id, task_id, value, at in row["exemplars"].values():
                assert len(trace_id) == 32
                assert task_id
                assert value >= 0
                assert snapshot["started_at"] < at <= snapshot["at"]
        for failure in snapshot["failures"]:
            assert failure.keys() == _FAILURE
            assert len(failure["traceback"].encode()) <= 16 * 1024
    for entry in snapshot.get("entries", ()):
        assert entry.keys() == _ENTRY
    return snapshot


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def fold(snapshots: Iterable[Snapshot]) -> Totals:
    """
    Return the totals of all boots together.

    Of a boot whose totals are known, what ``now`` is above them is added; of another, what ``now`` is above ``before``.
    """
    known: dict[tuple[str, str, str, str], float] = {}
    totals: Totals = {}
    for snapshot in snapshots:
        for row in snapshot.get("rows", ()):
            mine = totals.setdefault((row["task"], row["queue"]), {})
            for key, (before, now) in row["totals"].items():
                place = (snapshot["boot"], row["task"], row["queue"], key)
                base = known.get(place, before)
                known[place] = max(base, now)
                mine[key] = mine.get(key, 0) + max(now - base, 0)
    return totals


def counts(totals: Mapping[tuple[str, str], Mapping[str, float]]) -> Totals:
    """Return *totals* without what was measured."""
    return {
        row: {key: total for key, total in found.items() if not key.startswith(_MEASURED)}
        for row, found in totals.items()
    }


def observations(totals: Mapping[str, float], histogram: str) -> float:
    """Return how many values a row's *histogram* has: ``wait``, ``peak`` or ``runtime:succeeded``."""
    prefix = f"{histogram}:"
    return sum(n for key, n in totals.items() if key.startswith(prefix) and key != f"{prefix}sum")
