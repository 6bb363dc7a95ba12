"""The taker of Sentry events, against the client that everybody uses."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import sentry_sdk

from tests.servers.ingest import Ingest
from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy


@pytest.mark.parametrize("compression", [{}, {"transport_compression_level": 0}])
def test_sentry_events_are_kept_as_sent(
    ingest: Ingest, make_sentry: Callable[..., sentry_sdk.Client], compression: dict[str, Any]
) -> None:
    client = make_sentry(ingest.dsn_of("7"), _experiments=compression)
    for name in ("first", "second\n{line}"):
        client.capture_event({"message": name, "level": "warning", "event_id": name[0] * 32})
    first, second = ingest.wait_for(2)
    assert (first["message"], first["level"], first["event_id"]) == ("first", "warning", "f" * 32)
    assert second["message"] == "second\n{line}"
    assert [envelope.project for envelope in ingest.envelopes] == ["7", "7"]
    assert ingest.items("event", "8") == ingest.check_ins == []
    assert b"second\\n{line}" in ingest.raw


def test_an_item_may_lack_a_length(ingest: Ingest) -> None:
    body = b'{}\n{"type":"check_in"}\n{"status":"ok"}\n{"type":"attachment","length":3}\na\nb\n{"type":"check_in"}\n{}'
    with urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{ingest.port}/api/1/envelope/", data=body), timeout=5
    ) as answer:
        assert answer.status == 200
    assert ingest.check_ins == [{"status": "ok"}, {}]
    assert ingest.envelopes[0].items[1].payload == b"a\nb"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/api/1/envelope/", b"no JSON", 400), ("/api/1/envelope/", b"[]", 400), ("/api/1/store/", b"{}", 404)],
)
def test_what_is_no_envelope_is_refused(ingest: Ingest, path: str, body: bytes, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{ingest.port}{path}", data=body, method="POST"), timeout=5
        )
    with refused.value:
        assert refused.value.code == status
    assert (ingest.envelopes, ingest.requests[0].body) == ([], body)


@pytest.mark.parametrize("status", [400, 401, 403, 413, 500])
def test_a_refused_sentry_event_is_not_kept(
    ingest: Ingest, make_sentry: Callable[..., sentry_sdk.Client], status: int
) -> None:
    ingest.status = status
    client = make_sentry(ingest.dsn)
    client.capture_event({"message": "refused"})
    client.flush(5)
    # The second is the client's report of what it lost.
    assert {request.status for request in ingest.requests} == {status}
    assert [b"refused" in request.body for request in ingest.requests].count(True) == 1
    ingest.status = 200
    client.capture_event({"message": "taken"})
    assert [event["message"] for event in ingest.wait_for(1)] == ["taken"]


@pytest.mark.parametrize(
    ("status", "headers"),
    [(429, {"Retry-After": "60"}), (200, {"X-Sentry-Rate-Limits": "60:error:organization"})],
)
def test_a_client_that_was_told_to_wait_does(
    ingest: Ingest, make_sentry: Callable[..., sentry_sdk.Client], status: int, headers: dict[str, str]
) -> None:
    ingest.status, ingest.headers = status, headers
    client = make_sentry(ingest.dsn)
    for _ in range(3):
        client.capture_event({"message": "too many"})
        client.flush(5)
    assert [b"too many" in request.body for request in ingest.requests].count(True) == 1


def test_a_slow_answer_is_not_waited_for_at_the_end(make_sentry: Callable[..., sentry_sdk.Client]) -> None:
    with Ingest() as ingest:
        ingest.delay_seconds = 60
        client = make_sentry(ingest.dsn)
        client.capture_event({"message": "patience"})
        ingest.wait_for(1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2


def test_a_proxy_makes_it_unreachable(ingest: Ingest, make_sentry: Callable[..., sentry_sdk.Client]) -> None:
    with FaultProxy(ingest.port) as proxy:
        proxy.mode = "refuse"
        client = make_sentry(ingest.dsn_of("1", port=proxy.port))
        client.capture_event({"message": "lost"})
        wait_until(lambda: proxy.connections)
        client.flush(5)
        proxy.mode = "pass"
        client.capture_event({"message": "found"})
        assert [event["message"] for event in ingest.wait_for(1)] == ["found"]
