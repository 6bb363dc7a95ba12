from __future__ import annotations

import json

import pytest

from celery_lookout.probes.message_tail import PUBLISHED_HEADER, TAIL_BYTES, read_tail
from celery_lookout.readings import QueueHead

NOW = 1_800_000_000.0


def element(*, body: str = "W1tdLCB7fSwge31d", headers: object = None, **properties: object) -> bytes:
    """A list element as kombu writes it."""
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers or {"lang": "py", "task": "sample.add"},
            "properties": {
                "correlation_id": "b9a0",
                "reply_to": "a-reply-queue",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "celery"},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": "365601aa-281e-4385-9b94-5ad43404504d",
                **properties,
            },
        }
    ).encode()


def test_the_task_id_is_read() -> None:
    assert read_tail(element(), NOW) == QueueHead(task_id="b9a0")


def test_the_timestamp_property_tells_when_it_was_published() -> None:
    assert read_tail(element(timestamp=1_799_999_000), NOW).published_at == 1_799_999_000.0


def test_our_header_is_finer_than_the_property() -> None:
    headers = {"task": "sample.add", PUBLISHED_HEADER: 1_799_999_000.25}
    assert read_tail(element(headers=headers, timestamp=1_799_999_000), NOW).published_at == 1_799_999_000.25


def test_only_the_tail_of_a_large_message_is_needed() -> None:
    large = element(body="x" * 5_000_000, timestamp=1_799_999_000)
    assert read_tail(large[-TAIL_BYTES:], NOW) == QueueHead("b9a0", 1_799_999_000.0)


def test_a_cut_through_a_character_does_no_harm() -> None:
    large = element(headers={"note": "é" * 2000}).decode().encode("utf-8", "surrogatepass")
    assert read_tail(large[-TAIL_BYTES:], NOW).task_id == "b9a0"


def test_properties_inside_a_header_are_not_taken_for_the_message_s_own() -> None:
    forged = {"x": {"properties": {"correlation_id": "forged"}}}
    assert read_tail(element(headers=forged), NOW).task_id == "b9a0"
    forged_last = json.dumps({"properties": {"correlation_id": "b9a0"}, "headers": forged}).encode()
    assert read_tail(forged_last, NOW) == QueueHead()


@pytest.mark.parametrize("timestamp", [0, -5, NOW + 200_000, "1799999000", None, True, [1], float("inf")])
def test_an_absurd_time_is_not_known(timestamp: object) -> None:
    assert read_tail(element(timestamp=timestamp), NOW) == QueueHead(task_id="b9a0")


@pytest.mark.parametrize("task_id", ["", "x" * 300, "a\nb", "\x1b[2J", 7, None, ["b9a0"]])
def test_an_absurd_task_id_is_not_known(task_id: object) -> None:
    assert read_tail(element(correlation_id=task_id), NOW) == QueueHead()


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"\xff" * 2000,
        b"null",
        b'"properties": {',
        b'{"properties": []}',
        b'{"properties": {"correlation_id": "b9a0"}} trailing',
        b'"properties": {' * 60,
        b'"properties": ' + b'{"a":' * 180,
        b'"properties": {"timestamp": NaN}}',
        b'"properties": {"timestamp": ' + b"9" * 900 + b"}}",
    ],
)
def test_what_is_no_message_tells_nothing(tail: bytes) -> None:
    assert read_tail(tail, NOW) == QueueHead()
