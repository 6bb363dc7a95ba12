"""Messages: how many, and what is in each."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from celery_lookout_signals._records import Failure
from celery_lookout_signals._snapshot import ROWS_PER_MESSAGE, Envelope, parts, wire_failures
from celery_lookout_signals._totals import ROWS_LIMIT, Totals


def wrap(envelope: Envelope, **fields: Any) -> Any:
    return json.loads(envelope.wrap(fields, interval=5.0, final=False))


def test_messages_of_a_boot_are_numbered_and_boots_differ() -> None:
    first, second = Envelope("worker", "w@host"), Envelope("worker", "w@host")
    messages = [wrap(first), wrap(first), wrap(second)]
    assert [message["seq"] for message in messages] == [1, 2, 1]
    boots = [message["boot"] for message in messages]
    assert boots[0] == boots[1] != boots[2]
    started, at = messages[0]["started_at"], messages[0]["at"]
    assert 0 <= at - started < 5
    del messages[0]["boot"], messages[0]["at"], messages[0]["started_at"]
    assert messages[0] == {
        "v": 1,
        "kind": "worker",
        "node": "w@host",
        "seq": 1,
        "interval": 5.0,
        "final": False,
    }


def test_rows_are_parted_and_each_is_sent_once() -> None:
    totals = Totals()
    for number in range(ROWS_LIMIT):
        totals.count_received(f"task{number}", "q", redelivered=False)
    found = list(parts(totals, everything=False))
    assert [len(part.wire()) for part in found] == [ROWS_PER_MESSAGE] * 10
    assert [row["task"] for part in found for row in part.wire()] == [f"task{number}" for number in range(ROWS_LIMIT)]
    # The broker took the first and the third.
    for part in (found[0], found[2]):
        part.was_taken()
    again = [row["task"] for part in parts(totals, everything=False) for row in part.wire()]
    assert again == [f"task{number}" for number in range(ROWS_LIMIT) if number // 100 not in (0, 2)]


def test_there_is_a_message_even_if_nothing_changed() -> None:
    assert [part.wire() for part in parts(Totals(), everything=True)] == [[]]


@pytest.mark.parametrize("field", ["traceback", "task", "exception", "task_id"])
def test_text_that_is_none_does_not_spoil_the_message(field: str) -> None:
    """A file name that is not UTF-8 gets lone surrogates into an exception's message."""
    texts: dict[str, Any] = {"task_id": "id", "task": "task", "exception": "Boom", "traceback": "text"} | {
        field: "odd \udcff"
    }
    failure = Failure(queue="q", retries=0, at=1.5, kind="exception", fingerprint="print", **texts)
    body = Envelope("worker", "w@host").wrap({"failures": wire_failures([failure])}, interval=5.0, final=False)
    msgspec.json.decode(body.encode())
