from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout_signals._stamp import PUBLISHED_HEADER, published, stamp, waits_from


def test_a_stamp_overwrites_that_of_the_attempt_before_and_touches_nothing_else() -> None:
    headers: dict[str, Any] = {PUBLISHED_HEADER: 1.0, "mine": 1}
    properties: dict[str, Any] = {"timestamp": 1, "priority": 3}
    before = time.time()
    stamp(headers=headers, properties=properties, body=(), sender="a.task")
    after = time.time()
    published_at, timestamp = headers.pop(PUBLISHED_HEADER), properties.pop("timestamp")
    assert before - 1e-6 <= published_at <= after + 1e-6
    assert timestamp == int(published_at)
    assert isinstance(timestamp, int)
    assert (headers, properties) == ({"mine": 1}, {"priority": 3})


@pytest.mark.parametrize("headers", [None, "text", ()])
def test_what_is_no_mapping_is_left_alone(headers: Any) -> None:
    stamp(headers=headers, properties=headers)


@settings(deadline=None)
@given(
    published=st.floats(0, 4e9),
    eta=st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001  # the offset is given below
    offset=st.none() | st.integers(-14 * 60, 14 * 60),
)
def test_a_task_waits_from_its_publish_or_its_eta_whichever_is_later(
    published: float, eta: datetime, offset: int | None
) -> None:
    moment = eta.replace(tzinfo=UTC if offset is None else timezone(timedelta(minutes=offset)))
    text = (eta if offset is None else moment).isoformat()
    assert waits_from(published, text) == max(published, moment.timestamp())
    assert waits_from(published, None) == published


@pytest.mark.parametrize("suffix", ["", "Z", "+00:00"])
def test_celerys_forms_of_utc_are_read(suffix: str) -> None:
    assert waits_from(0.0, f"2030-01-01T00:00:00{suffix}") == 1893456000.0
    assert waits_from(0, f"2030-01-01T00:00:00.250000{suffix}") == 1893456000.25


@pytest.mark.parametrize("found", [None, True, "1893456000", [1.0], {}])
def test_what_is_no_number_is_no_stamp(found: Any) -> None:
    assert published({PUBLISHED_HEADER: found}) is None
    assert waits_from(None, "2030-01-01T00:00:00") is None


@pytest.mark.parametrize("eta", ["", "soon", 12, [], "0001-01-01T00:00:00+14:00", "2030-99-99T00:00:00"])
def test_an_eta_that_is_none_does_not_count(eta: Any) -> None:
    assert waits_from(1.5, eta) == 1.5


def test_a_stamp_that_is_not_a_number_is_none() -> None:
    assert published({PUBLISHED_HEADER: float("nan")}) is None


def test_a_stamp_that_is_too_large_is_none() -> None:
    assert published({PUBLISHED_HEADER: 10**400}) is None


@pytest.mark.parametrize(
    ("request_fields", "found"),
    [
        ({PUBLISHED_HEADER: 1.5}, 1.5),
        ({"headers": {PUBLISHED_HEADER: 1.5}}, 1.5),
        ({PUBLISHED_HEADER: 2.5, "headers": {PUBLISHED_HEADER: 1.5}}, 2.5),
        ({"headers": None}, None),
        ({"headers": ["no mapping"]}, None),
        ({}, None),
    ],
)
def test_the_stamp_is_found_where_each_protocol_puts_it(request_fields: dict[str, Any], found: Any) -> None:
    assert published(request_fields) == found
