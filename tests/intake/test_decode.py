"""What anybody may write to the broker: usable events come out, everything else is counted, nothing raises."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lookout.intake.decode import (
    MAX_BATCH,
    MAX_BODY_BYTES,
    NEWEST_SECONDS,
    OLDEST_SECONDS,
    REASONS,
    EventDecoder,
)

NOW = 1_800_000_000.0

FAILED = {"type": "task-failed", "timestamp": NOW, "uuid": "1", "hostname": "w@h"}


class Intake:
    """A decoder and what it refused."""

    def __init__(self, *, accept_msgpack: bool = False) -> None:
        self.refused = Counter[str]()
        self.decoder = EventDecoder(self._refuse, accept_msgpack=accept_msgpack)

    def _refuse(self, reason: str, count: int) -> None:
        assert reason in REASONS
        if count:
            self.refused[reason] += count

    def body(self, body: Any, **options: Any) -> list[str]:
        """Return the types of the usable events in a body, given as bytes or as what JSON makes of it."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return [event.type for event in self.decoder.body(data, NOW, **options)]

    def redis(self, content: bytes, **fields: Any) -> list[str]:
        """The same for a kombu envelope around the body."""
        message = envelope(content) | fields
        return [event.type for event in self.decoder.redis_message(json.dumps(message).encode(), NOW)]


def envelope(body: bytes) -> dict[str, Any]:
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"hostname": "w@h"},
        "properties": {"delivery_info": {"exchange": "celeryev", "routing_key": "task.multi"}, "delivery_tag": "1"},
    }


def event(**fields: Any) -> dict[str, Any]:
    return {
        "type": "task-started", "timestamp": NOW, "hostname": "w@h", "uuid": "1", "utcoffset": 0, "pid": 1, "clock": 1,
    } | fields  # fmt: skip


STARTED = json.dumps(event()).encode()


@pytest.fixture
def intake() -> Intake:
    return Intake()


def test_one_event_and_a_batch(intake: Intake) -> None:
    assert intake.body(event()) == ["task-started"]
    assert intake.body([event(), event(type="task-succeeded", runtime=1)]) == ["task-started", "task-succeeded"]
    assert intake.body([]) == []
    assert not intake.refused


def test_unknown_types_and_fields_pass(intake: Intake) -> None:
    """They are for the state to count: a newer Celery may send them, and a task its own."""
    assert intake.body(event(type="my-own", worker="x", hostname="w@h", surprise={"a": [1]})) == ["my-own"]
    assert not intake.refused


def test_arguments_and_results_are_not_kept(intake: Intake) -> None:
    (decoded,) = intake.decoder.body(json.dumps(event(args="secret", kwargs="secret", result="secret")).encode(), NOW)
    assert "secret" not in repr(decoded)


#: Celery's own receivers log these or die of them, see the security chapter of the docs.
HOSTILE: dict[str, tuple[bytes, str]] = {
    "pickle": (pickle.dumps(event()), "malformed"),
    "broken JSON": (b'{"type": "task-started", ', "malformed"),
    "broken UTF-8": (b'{"type": "\xff\xfe"}', "malformed"),
    "plain text": (b"hello", "malformed"),
    "nothing": (b"", "malformed"),
    "deeply nested": (b"[" * 200_000 + b"]" * 200_000, "malformed"),
    "deeply nested objects": (b'{"type":' * 50_000 + b"1" + b"}" * 50_000, "field"),
    "deeply nested where nobody looks": (
        STARTED[:-1] + b', "x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "malformed",
    ),
    "batch cut short": (b"[" + STARTED + b"," + STARTED[:50], "malformed"),
    "number": (b"7", "field"),
    "null": (b"null", "field"),
    "string": (b'"task-started"', "field"),
    "without type": (b'{"timestamp": 1800000000, "uuid": "1"}', "field"),
    "without timestamp": (b'{"type": "task-started", "uuid": "1"}', "field"),
    "list with a number": (b"[1]", "field"),
    "list in a list": (b"[[]]", "field"),
    "NaN": (b'{"type": "task-started", "uuid": "1", "timestamp": NaN}', "malformed"),
    "infinity": (b'{"type": "task-started", "uuid": "1", "timestamp": 1e999}', "field"),
}


@pytest.mark.parametrize(("body", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_are_counted_and_skipped(body: bytes, reason: str, intake: Intake) -> None:
    assert intake.body(body) == []
    assert intake.refused == {reason: 1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clock", "abc"),
        ("clock", 1e26),
        ("clock", 10**26),
        ("clock", [1]),
        ("utcoffset", "q"),
        ("utcoffset", [1]),
        ("utcoffset", {}),
    ],
)
def test_a_field_of_the_wrong_type_refuses_the_event_though_nobody_reads_it(
    field: str, value: Any, intake: Intake
) -> None:
    """Celery's own receiver dies of text in either, and lets the third move its clock."""
    assert intake.body(event(**{field: value})) == []
    assert intake.refused == {"field": 1}


@pytest.mark.parametrize("field", ["clock", "utcoffset"])
def test_a_field_that_nobody_reads_may_be_null(field: str, intake: Intake) -> None:
    assert intake.body(event(**{field: None})) == ["task-started"]
    assert not intake.refused


@pytest.mark.parametrize(
    "fields",
    [
        {"type": 1},
        {"type": None},
        {"type": "t" * 513},
        {"timestamp": "now"},
        {"timestamp": None},
        {"hostname": 5},
        {"hostname": "h" * 256},
        {"uuid": None},
        {"uuid": ""},
        {"uuid": "u" * 256},
        {"root_id": 7},
        {"root_id": "r" * 256},
        {"parent_id": ["p"]},
        {"parent_id": "p" * 256},
        {"name": "n" * 513},
        {"name": ["add"]},
        {"queue": "q" * 256},
        {"queue": {"name": "celery"}},
        {"retries": -1},
        {"retries": "2"},
        {"retries": 2**60},
        {"retries": 1.5},
        {"eta": 12},
        {"eta": "2" * 65},
        {"runtime": "fast"},
        {"exception": 1},
        {"requeue": "yes"},
        {"terminated": 1},
        {"active": -1},
        {"processed": "many"},
        {"loadavg": [1, 2]},
        {"loadavg": "high"},
        {"freq": "often"},
        {"pid": True},
        {"type": "worker-heartbeat", "hostname": ""},
    ],
    ids=str,
)
def test_fields_of_the_wrong_kind_refuse_the_event(fields: dict[str, Any], intake: Intake) -> None:
    assert intake.body(event(**fields)) == []
    assert intake.refused == {"field": 1}


def test_tasks_need_a_uuid_and_workers_a_name(intake: Intake) -> None:
    assert intake.body(event(hostname="")) == ["task-started"]
    assert intake.body({"type": "worker-heartbeat", "timestamp": NOW, "hostname": "w@h"}) == ["worker-heartbeat"]
    assert intake.body({"type": "worker-heartbeat", "timestamp": NOW}) == []
    assert intake.refused == {"field": 1}


def test_whole_numbers_do_for_floats(intake: Intake) -> None:
    (decoded,) = intake.decoder.body(json.dumps(event(timestamp=int(NOW), runtime=2)).encode(), NOW)
    assert (decoded.timestamp, decoded.runtime) == (NOW, 2.0)


@pytest.mark.parametrize(
    ("offset", "usable"),
    [
        (-OLDEST_SECONDS + 1, True),
        (-OLDEST_SECONDS, False),
        (NEWEST_SECONDS - 1, True),
        (NEWEST_SECONDS, False),
        (-NOW, False),
        (1e300, False),
    ],
)
def test_timestamps_far_from_our_clock_are_refused(offset: float, usable: bool, intake: Intake) -> None:
    assert len(intake.body(event(timestamp=NOW + offset))) == usable
    assert intake.refused == ({} if usable else {"timestamp": 1})


@pytest.mark.parametrize("bad", [1, None, "x", {}, {"type": 3}, event(uuid=5), [event()]], ids=str)
def test_good_events_in_a_bad_batch_are_kept(bad: Any, intake: Intake) -> None:
    assert intake.body([event(), bad, event(type="task-failed")]) == ["task-started", "task-failed"]
    assert intake.refused == {"field": 1}


def test_each_bad_event_of_a_batch_is_counted_with_its_reason(intake: Intake) -> None:
    batch = [event(timestamp=1.0), event(), event(uuid=""), event(timestamp=2.0)]
    assert intake.body(batch) == ["task-started"]
    assert intake.refused == {"timestamp": 2, "field": 1}


def test_equal_events_in_a_batch_are_all_kept(intake: Intake) -> None:
    assert intake.body([event(), event(), event(timestamp=1.0)]) == ["task-started", "task-started"]
    assert intake.refused == {"timestamp": 1}


def test_a_batch_is_as_long_as_allowed(intake: Intake) -> None:
    assert len(intake.body([event()] * MAX_BATCH)) == MAX_BATCH
    assert not intake.refused
    assert intake.body([event()] * (MAX_BATCH + 1)) == []
    assert intake.refused == {"too_many": 1}


def test_bodies_over_the_limit_are_not_parsed(intake: Intake) -> None:
    start = STARTED[:-1] + b', "x": "'
    fitting = start + b"x" * (MAX_BODY_BYTES - len(start) - 2) + b'"}'
    assert intake.body(fitting) == ["task-started"]
    assert intake.body(fitting + b" ") == []
    assert intake.refused == {"too_large": 1}


def test_large_bad_batches_are_refused_whole(intake: Intake) -> None:
    """Taking them apart would cost more than they are worth."""
    assert intake.body([event(args="x" * 600_000), 1]) == []
    assert intake.refused == {"field": 1}


def test_msgpack_only_when_asked_for() -> None:
    body = msgspec.msgpack.encode(event())
    refusing, accepting = Intake(), Intake(accept_msgpack=True)
    for intake in (refusing, accepting):
        fields = {"content-type": "application/x-msgpack", "content-encoding": "binary"}
        assert intake.redis(body, **fields) == (["task-started"] if intake is accepting else [])
    assert refusing.refused == {"content_type": 1}
    assert not accepting.refused
    assert accepting.redis(STARTED) == ["task-started"]


def test_bad_msgpack_is_counted() -> None:
    intake = Intake(accept_msgpack=True)
    assert intake.body(msgspec.msgpack.encode([event(), 1, event()]), msgpack=True) == ["task-started"] * 2
    assert intake.body(b"\xc1", msgpack=True) == []
    assert intake.body(b"\x91" * 100_000, msgpack=True) == []
    assert intake.body(STARTED, msgpack=True) == []
    assert sum(intake.refused.values()) == 4


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"content-type": "application/x-python-serialize"}, "content_type"),
        ({"content-type": "text/plain"}, "content_type"),
        ({"content-type": "application/x-yaml"}, "content_type"),
        ({"content-type": None}, "content_type"),
        ({"content-type": 5}, "envelope"),
        ({"content-encoding": "gzip"}, "content_encoding"),
        ({"content-encoding": "utf-16"}, "content_encoding"),
        ({"content-encoding": ["utf-8"]}, "envelope"),
        ({"headers": {"compression": "application/x-gzip"}}, "compressed"),
        ({"headers": {"compression": 1}}, "envelope"),
        ({"headers": []}, "envelope"),
        ({"body": "not base64!"}, "envelope"),
        ({"body": "QUJD="}, "envelope"),
        ({"body": 12}, "envelope"),
        ({"body": None}, "envelope"),
    ],
    ids=str,
)
def test_damaged_envelopes_are_counted_and_skipped(fields: dict[str, Any], reason: str, intake: Intake) -> None:
    assert intake.redis(STARTED, **fields) == []
    assert intake.refused == {reason: 1}


def test_envelope_without_optional_parts(intake: Intake) -> None:
    assert intake.redis(STARTED, headers=None) == ["task-started"]
    assert intake.redis(STARTED, **{"content-encoding": None}) == ["task-started"]
    assert not intake.refused


@pytest.mark.parametrize("data", [b"", b"null", b"7", b"[]", b"{}", b"\xff", b"{" * 100_000, b'{"body": "'])
def test_what_is_no_envelope_is_counted(data: bytes, intake: Intake) -> None:
    assert intake.decoder.redis_message(data, NOW) == []
    assert intake.refused == {"envelope": 1}


def test_compressed_bodies_are_not_unpacked(intake: Intake) -> None:
    """A gzip bomb of 300 KB makes 300 MB."""
    bomb = gzip.compress(b"[" + b" " * 10_000_000 + b"]")
    assert intake.redis(bomb, headers={"compression": "application/x-gzip"}) == []
    assert intake.body(bomb) == []
    assert intake.refused == {"compressed": 1, "malformed": 1}


def test_envelopes_over_the_limit_are_not_parsed(intake: Intake) -> None:
    assert intake.redis(b"x" * (MAX_BODY_BYTES + MAX_BODY_BYTES // 4)) == []
    assert intake.redis(b"x" * (MAX_BODY_BYTES + 1)) == []
    assert intake.refused == {"too_large": 2}


def test_control_characters_and_surrogates_pass_as_text(intake: Intake) -> None:
    """The exposition deals with them."""
    body = b'{"type":"task-sent","timestamp":1800000000,"uuid":"1","name":"\\u0000\\ud83d\\ude00"}'
    (decoded,) = intake.decoder.body(body, NOW)
    assert decoded.name == "\0\U0001f600"


def test_half_a_surrogate_costs_no_event(intake: Intake) -> None:
    """The name of a file that is not UTF-8 is in a message: Celery writes it as JSON that no other reader takes."""
    texts = {
        "\udcff": "?",
        "a\ud800": "a?",
        "\udc00\ud800": "??",
        "\ud800\ud83d\ude00": "?\U0001f600",
        "\\ud800": "\\ud800",
        "\\\udcff": "\\?",
        "\U0001f600": "\U0001f600",
        "\ud83d\\ude00": "?\\ude00",
    }
    batch = [{**FAILED, "uuid": str(number), "exception": text} for number, text in enumerate(texts)]
    events = intake.decoder.body(json.dumps(batch).encode(), NOW)
    found = [(event.exception or "").replace("\N{REPLACEMENT CHARACTER}", "?") for event in events]
    assert found == [*texts.values()]
    (event,) = intake.decoder.body(json.dumps(batch[0]).encode(), NOW)
    assert event.exception == "\N{REPLACEMENT CHARACTER}"
    bad = json.dumps([*batch, {"type": "\ud800"}, 5]).encode()
    assert len(intake.decoder.body(bad, NOW)) == len(batch)
    assert intake.refused == {"field": 2}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
almost_events = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["task-sent", "task-failed", "worker-heartbeat"]) | json_values,
        "timestamp": st.just(NOW),
    },
    optional={
        name: st.just("w@h") | json_values
        for name in ("uuid", "hostname", "name", "queue", "retries", "eta", "loadavg", "exception", "active", "freq")
    },
)


def _one_answer_each(intake: Intake, events: list[str], expected: int) -> None:
    """Every message or event was either usable, or counted with a reason."""
    assert len(events) + sum(intake.refused.values()) == expected


@given(st.binary(max_size=300))
def test_any_bytes_give_an_answer(body: bytes) -> None:
    for decode in (Intake().body, Intake(accept_msgpack=True).redis):
        decode(body)
    intake = Intake()
    assert intake.decoder.redis_message(body, NOW) == []
    assert sum(intake.refused.values()) == 1


@given(st.lists(almost_events | json_values, max_size=5))
def test_any_batch_gives_an_answer_for_each_member(batch: list[Any]) -> None:
    intake = Intake()
    # One that is no JSON to others than Python ("NaN", say) spoils the whole message.
    events = intake.body(batch)
    if "malformed" not in intake.refused:
        _one_answer_each(intake, events, len(batch))


@given(almost_events | json_values.filter(lambda value: not isinstance(value, list)))
def test_any_value_gives_one_answer(value: Any) -> None:
    intake = Intake()
    _one_answer_each(intake, intake.body(value), 1)


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_a_damaged_message_gives_one_answer_or_its_event(position: int, damage: bytes) -> None:
    message = json.dumps(envelope(STARTED)).encode()
    position %= len(message)
    intake = Intake()
    events = intake.decoder.redis_message(message[:position] + damage + message[position + len(damage) :], NOW)
    _one_answer_each(intake, [event.type for event in events], 1)


@given(st.recursive(st.binary(max_size=10) | st.integers(-(2**63), 2**63), lambda inner: st.lists(inner, max_size=4)))
def test_any_msgpack_gives_an_answer(value: Any) -> None:
    decode: Callable[..., list[str]] = Intake(accept_msgpack=True).body
    assert decode(msgspec.msgpack.encode(value), msgpack=True) == []
