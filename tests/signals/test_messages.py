"""What a message says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from celery_lookout_signals._messages import Message, Messages
from celery_lookout_signals._queues import UNKNOWN, QueueNames
from celery_lookout_signals._records import UNMEASURED
from celery_lookout_signals._stamp import PUBLISHED_HEADER


def read(**fields: Any) -> Message:
    return Messages(QueueNames(app=None)).read({"id": "one", "task": "send", **fields})


def test_all_that_a_message_can_say() -> None:
    info = {"exchange": "", "routing_key": "mail", "redelivered": True}
    eta = "1970-01-01T00:01:00+00:00"
    found = read(delivery_info=info, retries=2, eta=eta, **{PUBLISHED_HEADER: 50.5})
    assert found[1:] == ("send", "mail", 2, True, 60.0)
    assert found.wait(62.5) == 2.5


def test_nothing_is_needed() -> None:
    nothing = (UNKNOWN, UNKNOWN, 0, False, None)
    assert read(task=None)[1:] == nothing
    assert read(task=None, delivery_info="mail", retries="many", eta=1, **{PUBLISHED_HEADER: "now"})[1:] == nothing


@pytest.mark.parametrize(("stamp", "started_at"), [(None, 10.0), (5.0, None)])
def test_a_wait_needs_both_ends(stamp: float | None, started_at: float | None) -> None:
    assert read(**{PUBLISHED_HEADER: stamp}).wait(started_at) == UNMEASURED


def test_no_wait_is_negative() -> None:
    assert read(**{PUBLISHED_HEADER: 5.0}).wait(4.0) == 0.0


def test_one_id_may_stand_for_several_messages() -> None:
    assert read(**{PUBLISHED_HEADER: 5.0}).attempt == read(**{PUBLISHED_HEADER: 5.0}).attempt
    assert read(**{PUBLISHED_HEADER: 5.0}).attempt != read(**{PUBLISHED_HEADER: 6.0}).attempt
    assert read().attempt != read(id="two").attempt
    assert read().attempt != read(retries=1).attempt
    assert read().attempt != read(delivery_info={"redelivered": True}).attempt
