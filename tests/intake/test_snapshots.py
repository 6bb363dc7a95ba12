"""What anybody may write where snapshots wait: usable ones come out, everything else is counted, nothing raises."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lookout.intake.decode import MAX_BODY_BYTES, NEWEST_SECONDS, OLDEST_SECONDS
from celery_lookout.intake.snapshot_source import Message
from celery_lookout.intake.snapshots import REASONS, SALVAGE_BYTES, SnapshotDecoder
from celery_lookout.snapshots import AnySnapshot, BeatSnapshot, WorkerSnapshot

NOW = 1_800_000_000.0


class Intake:
    """A decoder and what it refused."""

    def __init__(self) -> None:
        self.refused = Counter[str]()
        self.decoder = SnapshotDecoder(self._refuse)

    def _refuse(self, reason: str, count: int) -> None:
        assert reason in REASONS
        self.refused[reason] += count

    def body(self, body: Any) -> AnySnapshot | None:
        """Return the snapshot in a body, given as bytes or as what JSON makes of it."""
        return self.decoder.body(body if isinstance(body, bytes) else json.dumps(body).encode(), NOW)

    def worker(self, body: Any) -> WorkerSnapshot:
        found = self.body(body)
        assert isinstance(found, WorkerSnapshot)
        return found


@pytest.fixture
def intake() -> Intake:
    return Intake()


def head(kind: str, **fields: Any) -> dict[str, Any]:
    return {
        "v": 1, "kind": kind, "node": "w@h", "boot": "a", "seq": 1, "at": NOW, "started_at": NOW - 60, "interval": 5,
        "final": False,
    } | fields  # fmt: skip


ROW = {"task": "add", "queue": "celery", "last_success_at": NOW, "last_failure_at": None, "totals": {"started": [0, 1]}}
FAILURE = {
    "task_id": "1", "task": "add", "queue": "celery", "retries": 0, "at": NOW, "kind": "exception",
    "exception": "builtins.ValueError", "traceback": "ValueError: x", "fingerprint": "f", "runtime": 0.5,
    "trace_id": None, "sentry_event_id": None,
}  # fmt: skip
ENTRY = {"entry": "hourly", "task": "add", "last_sent_at": None, "next_due_at": NOW}


def worker(**fields: Any) -> dict[str, Any]:
    return head("worker", counts=True, processed=3, rows=[ROW], failures=[FAILURE]) | fields


def beat(**fields: Any) -> dict[str, Any]:
    return head("beat", entries=[ENTRY], entries_left_out=0) | fields


def test_a_worker_and_beat_are_told_apart(intake: Intake) -> None:
    assert isinstance(intake.body(worker()), WorkerSnapshot)
    assert isinstance(intake.body(beat()), BeatSnapshot)
    assert not intake.refused


def test_fields_that_nobody_knows_are_left_alone(intake: Intake) -> None:
    row, failure = ROW | {"mood": "good"}, FAILURE | {"arguments": []}
    found = intake.worker(
        worker(mood="good", rows=[row], failures=[failure], running=[["add", "q", 1, 0, NOW, "more"]])
    )
    assert (len(found.rows), len(found.failures)) == (1, 1)
    assert found.running is not None
    assert found.running[0].number == 1
    assert not intake.refused


@pytest.mark.parametrize("field", ["pool", "slots", "active", "memory", "cpu_seconds", "oom_kills", "running"])
def test_what_a_worker_cannot_know_may_be_null_or_missing(field: str, intake: Intake) -> None:
    assert getattr(intake.worker(worker(**{field: None})), field) is None
    assert getattr(intake.worker(worker()), field) is None


@pytest.mark.parametrize("field", ["v", "node", "boot", "seq", "at", "started_at", "interval", "final", "kind"])
@pytest.mark.parametrize("make", [worker, beat])
def test_what_every_snapshot_has_must_be_there(field: str, make: Callable[[], dict[str, Any]], intake: Intake) -> None:
    body = make()
    del body[field]
    assert intake.body(body) is None
    assert intake.refused == {"field": 1}


LONG = "x" * 600


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "flower"},
        {"node": ""},
        {"node": LONG},
        {"node": 7},
        {"boot": None},
        {"seq": -1},
        {"seq": 1.5},
        {"at": "now"},
        {"interval": 0},
        {"interval": 1e9},
        {"final": 0},
        {"counts": None},
        {"processed": 2**60},
        {"queues": "celery"},
        {"queues": ["q"] * 1001},
        {"slots": True},
        {"memory": -1},
        {"child_exits": {"killed": -1}},
        {"child_exits": {str(number): 1 for number in range(21)}},
        {"running": [["add", "celery", 1]]},
        {"running": [["add", "celery", "1", 0, NOW]]},
        {"rows": [ROW] * 1001},
        {"failures": [FAILURE] * 101},
        {"rows": {}},
    ],
    ids=str,
)
def test_fields_of_the_wrong_type_or_size_are_refused(fields: dict[str, Any], intake: Intake) -> None:
    assert intake.body(worker(**fields)) is None
    assert intake.refused["field"] >= 1
    assert intake.refused.keys() == {"field"}


@pytest.mark.parametrize(
    "bad",
    [
        {"task": None},
        {"task": LONG},
        {"queue": LONG},
        {"totals": {"started": [0]}},
        {"totals": {"started": [0, -1]}},
        {"totals": {"started": [0, "1"]}},
        {"totals": {"started": 1}},
        {"totals": {"cpu_seconds": [0, 1e30]}},
        {"totals": {LONG: [0, 1]}},
        {"totals": {str(number): [0, 1] for number in range(601)}},
        {"last_success_at": "now"},
        {"exemplars": []},
        {"exemplars": {"failed": {}}},
        {"exemplars": {"failed": []}},
        {"exemplars": {"failed": ["4b", "id", 1]}},
        {"exemplars": {"failed": [None, "id", 1, NOW]}},
        {"exemplars": {"failed": [LONG, "id", 1, NOW]}},
        {"exemplars": {"failed": ["4b", LONG, 1, NOW]}},
        {"exemplars": {"failed": ["4b", "id", -1, NOW]}},
        {"exemplars": {"failed": ["4b", "id", 1, 1e12]}},
        {"exemplars": {LONG: ["4b", "id", 1, NOW]}},
        {"exemplars": {str(number): ["4b", "id", 1, NOW] for number in range(601)}},
    ],
    ids=lambda bad: str(bad)[:40],
)
def test_a_bad_row_costs_the_others_nothing(bad: dict[str, Any], intake: Intake) -> None:
    found = intake.worker(worker(rows=[ROW, ROW | bad, ROW], failures=[FAILURE, {"task_id": 1}]))
    assert (len(found.rows), len(found.failures)) == (2, 1)
    assert intake.refused == {"field": 2}


def test_an_exemplar_of_the_future_may_tell_more(intake: Intake) -> None:
    row = ROW | {"exemplars": {"failed": ["4b", "id", 1, NOW, "a span", {}]}}
    [found] = intake.worker(worker(rows=[row])).rows
    assert found.exemplars["failed"].at == NOW
    assert intake.refused == {}


def test_a_bad_entry_costs_the_others_nothing(intake: Intake) -> None:
    found = intake.body(beat(entries=[ENTRY, {"entry": 1}, ENTRY]))
    assert isinstance(found, BeatSnapshot)
    assert len(found.entries) == 2
    assert intake.refused == {"field": 1}


def test_a_large_snapshot_with_a_bad_row_is_refused_whole(intake: Intake) -> None:
    assert intake.body(worker(mood="x" * SALVAGE_BYTES, rows=[{}])) is None
    assert intake.refused == {"field": 1}


@pytest.mark.parametrize("body", [{"v": 2}, worker(v=2, node=7), {"v": 0, "at": "noon"}])
def test_another_version_is_refused_as_such_whatever_its_fields(body: Any, intake: Intake) -> None:
    assert intake.body(body) is None
    assert intake.refused == {"version": 1}


@pytest.mark.parametrize(
    ("at", "usable"),
    [
        (NOW - OLDEST_SECONDS + 1, True),
        (NOW - OLDEST_SECONDS - 1, False),
        (NOW + NEWEST_SECONDS - 1, True),
        (NOW + NEWEST_SECONDS + 1, False),
    ],
)
def test_times_too_far_from_now_are_refused(at: float, usable: bool, intake: Intake) -> None:
    assert (intake.body(worker(at=at)) is not None) == usable
    assert intake.refused == ({} if usable else {"timestamp": 1})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff\xfe", b'{"v": 1, "mood": ' + b"[" * 100_000,
        json.dumps(worker()).encode().replace(b"w@h", b"\xff@h"),
        json.dumps(worker()).replace('"processed": 3', '"processed": NaN').encode(),
        json.dumps(worker(slots=float("inf"))).encode(),
        json.dumps(worker()).encode("utf-16"),
    ],
    ids=range(8),
)  # fmt: skip
def test_what_is_no_json_is_malformed(body: bytes, intake: Intake) -> None:
    assert intake.body(body) is None
    assert intake.refused == {"malformed": 1}


def test_numbers_that_are_too_large_for_one_are_refused(intake: Intake) -> None:
    body = json.dumps(worker(cpu_seconds=0.125)).replace("0.125", "1e400").encode()
    assert intake.body(body) is None
    assert sum(intake.refused.values()) == 1


@pytest.mark.parametrize("body", [b"7", b"[]", b'"x"', b"null"])
def test_json_that_is_no_object_is_no_snapshot(body: bytes, intake: Intake) -> None:
    assert intake.body(body) is None
    assert intake.refused == {"field": 1}


def test_a_body_may_be_so_large_and_no_larger(intake: Intake) -> None:
    body = json.dumps(worker()).encode()
    assert intake.body(body + b" " * (MAX_BODY_BYTES - len(body))) is not None
    assert intake.body(body + b" " * (MAX_BODY_BYTES - len(body) + 1)) is None
    assert intake.refused == {"too_large": 1}


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"is_compressed": True}, "compressed"),
        ({"content_type": "application/x-python-serialize"}, "content_type"),
        ({"content_type": None}, "content_type"),
    ],
)
def test_a_body_of_another_kind_is_not_even_looked_at(properties: dict[str, Any], reason: str, intake: Intake) -> None:
    assert intake.decoder.message(Message(json.dumps(worker()).encode(), **properties), NOW) is None
    assert intake.refused == {reason: 1}


@given(st.binary())
def test_no_bytes_raise(body: bytes) -> None:
    intake = Intake()
    assert intake.body(body) is None
    assert sum(intake.refused.values()) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


@given(st.sampled_from([worker, beat]), st.data(), json_values)
def test_no_structure_raises(make: Callable[[], dict[str, Any]], data: st.DataObject, value: Any) -> None:
    """Any field, also within a row, a failure or an entry, is replaced by anything."""
    body = json.loads(json.dumps(make()))
    target = data.draw(
        st.sampled_from([body, *body.get("rows", []), *body.get("failures", []), *body.get("entries", [])])
    )
    target[data.draw(st.sampled_from(sorted(target)))] = value
    intake = Intake()
    found = intake.body(body)
    assert (found is not None) or sum(intake.refused.values()) >= 1
    if found is not None:
        assert msgspec.json.decode(msgspec.json.encode(found), type=WorkerSnapshot | BeatSnapshot) == found
