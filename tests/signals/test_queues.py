"""Which queue a message came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from celery import Celery
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast

from celery_lookout_signals import _queues
from celery_lookout_signals._queues import UNKNOWN, QueueNames, _matches


def names(*queues: Queue, consumed: Sequence[str] | None = None) -> QueueNames:
    """Return what finds names for an application with *queues*, of which a worker consumes all or *consumed*."""
    app = Celery("queues", broker="memory://", set_as_current=False)
    app.conf.task_queues = queues or None
    if consumed is not None:
        app.amqp.queues.select(consumed)
    return QueueNames(app)


def info(exchange: str | None, routing_key: str | None) -> dict[str, Any]:
    return {"exchange": exchange, "routing_key": routing_key, "redelivered": False}


TOPIC = Exchange("topics", "topic")
DIRECT = Exchange("direct", "direct")
FANOUT = Exchange("fans", "fanout")


@pytest.mark.parametrize("exchange", ["", None])
def test_the_default_exchange_has_the_queue_for_its_routing_key(exchange: str | None) -> None:
    assert names().name_of(info(exchange, "mail")) == "mail"
    assert names().name_of(info(exchange, "")) == UNKNOWN
    assert names().name_of(info(exchange, None)) == UNKNOWN


@pytest.mark.parametrize("delivery_info", [None, "text", [], {}])
def test_without_delivery_info_the_queue_is_unknown(delivery_info: Any) -> None:
    assert names().name_of(delivery_info) == UNKNOWN


def test_a_direct_exchange_binds_by_equal_keys() -> None:
    found = names(Queue("mail", DIRECT, "post"), Queue("images", DIRECT, "image"))
    assert found.name_of(info("direct", "post")) == "mail"
    assert found.name_of(info("direct", "image")) == "images"
    assert found.name_of(info("direct", "mail")) == UNKNOWN
    assert found.name_of(info("other", "post")) == UNKNOWN


def test_a_fanout_exchange_binds_whatever_the_key() -> None:
    found = names(Queue("mail", FANOUT), Queue("images", DIRECT, "image"))
    assert found.name_of(info("fans", "anything")) == "mail"
    assert found.name_of(info("fans", "")) == "mail"


def test_a_topic_exchange_binds_by_patterns() -> None:
    found = names(Queue("mail", TOPIC, "mail.#"), Queue("images", TOPIC, "*.image"))
    assert found.name_of(info("topics", "mail")) == "mail"
    assert found.name_of(info("topics", "mail.sent.now")) == "mail"
    assert found.name_of(info("topics", "big.image")) == "images"
    assert found.name_of(info("topics", "very.big.image")) == UNKNOWN
    # Both fit, and the message went to both queues.
    assert found.name_of(info("topics", "mail.image")) == UNKNOWN


def test_several_bindings_of_a_queue_are_one() -> None:
    bindings = [binding(TOPIC, "mail.*"), binding(TOPIC, "*.sent"), binding(DIRECT, "post")]
    found = names(Queue("mail", bindings=bindings), Queue("images", DIRECT, "image"))
    for exchange, key in (("topics", "mail.sent"), ("topics", "mail.x"), ("topics", "x.sent"), ("direct", "post")):
        assert found.name_of(info(exchange, key)) == "mail"


def test_of_two_queues_the_one_that_this_worker_consumes_is_meant() -> None:
    queues = Queue("one", FANOUT), Queue("two", FANOUT), Queue("three", DIRECT, "three")
    assert names(*queues).name_of(info("fans", "")) == UNKNOWN
    assert names(*queues, consumed=["one", "three"]).name_of(info("fans", "")) == "one"
    # A queue that is not consumed any more may still be in what was fetched before.
    assert names(*queues, consumed=["one"]).name_of(info("direct", "three")) == "three"


@pytest.mark.parametrize("delay", ["0." * 28, "0." * 27 + "1.", "1.0." * 14])
def test_delayed_delivery_of_rabbitmq_hides_the_routing_key_behind_the_delay(delay: str) -> None:
    found = names(Queue("mail", DIRECT, "post"), Queue("images", TOPIC, "image.#"))
    assert found.name_of(info("celery_delayed_delivery", f"{delay}post")) == "mail"
    assert found.name_of(info("celery_delayed_27", f"{delay}image.big")) == "images"
    # Bound by Celery itself, by the name of the queue.
    assert found.name_of(info("celery_delayed_delivery", f"{delay}mail")) == "mail"
    assert found.name_of(info("celery_delayed_delivery", f"{delay}other")) == UNKNOWN


def test_digits_of_a_routing_key_are_no_delay() -> None:
    found = names(Queue("bits", TOPIC, "0.1.#"), Queue("post", DIRECT, "post"))
    assert found.name_of(info("topics", "0.1.0.1")) == "bits"
    assert found.name_of(info("topics", "0." * 27 + "post")) == UNKNOWN


def test_a_broadcast_is_called_by_the_name_that_all_workers_know() -> None:
    found = names(Broadcast("news"), Queue("celery", DIRECT, "celery"))
    assert found.name_of(info("news", "")) == "news"
    assert found.consumed() == ["celery"]


def test_consumed_queues_are_those_of_this_worker() -> None:
    queues = Queue("b", DIRECT, "b"), Queue("a", DIRECT, "a"), Queue("c", DIRECT, "c")
    assert names(*queues).consumed() == ["a", "b", "c"]
    assert names(*queues, consumed=["c", "a"]).consumed() == ["a", "c"]


def test_a_route_is_looked_up_once_and_an_unknown_one_again() -> None:
    """A queue may be added while the worker runs."""
    found = names(Queue("mail", DIRECT, "post"))
    assert found.name_of(info("direct", "image")) == UNKNOWN
    found._app.amqp.queues.add(Queue("images", DIRECT, "image"))
    assert found.name_of(info("direct", "image")) == "images"
    del found._app.amqp.queues["images"]
    assert found.name_of(info("direct", "image")) == "images"


def test_another_thread_may_add_a_queue_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pool of threads a worker is told to in one thread, and we look in another."""
    found = names(Queue("mail", DIRECT, "post"), Queue("images", DIRECT, "image"))
    bindings = _queues._bindings

    def add(queue: Queue) -> Iterable[tuple[str, str, str]]:
        found._app.amqp.queues.select_add(Queue(f"more.{queue.name}", DIRECT, "more"))
        return bindings(queue)

    monkeypatch.setattr(_queues, "_bindings", add)
    assert found.name_of(info("direct", "image")) == "images"


def test_made_up_routes_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queues, "_LIMIT", 10)
    found = names(Queue("mail", FANOUT))
    assert {found.name_of(info("fans", f"key{number}")) for number in range(100)} == {"mail"}
    assert len(found._known) == 10


words = st.lists(st.sampled_from(["a", "b", "a+"]), max_size=5)
patterns = st.lists(st.sampled_from(["a", "b", "a+", "*", "#"]), max_size=5)


def binds(pattern: list[str], key: list[str]) -> bool:
    """Say the same as AMQP's text: ``*`` is one word, ``#`` any number of words."""
    if not pattern:
        return not key
    first, *rest = pattern
    if first == "#":
        return binds(rest, key) or bool(key and binds(pattern, key[1:]))
    return bool(key) and (first in ("*", key[0])) and binds(rest, key[1:])


@settings(deadline=None)
@given(pattern=patterns.filter(bool), key=words)
@example(pattern=["#", "#", "a"], key=["a"])
def test_topics_match_as_amqp_says(pattern: list[str], key: list[str]) -> None:
    assert _matches("topic", ".".join(pattern), ".".join(key)) == binds(pattern, key)
