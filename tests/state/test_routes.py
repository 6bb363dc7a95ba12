"""From exchange and routing key to queue."""

from __future__ import annotations

import pytest

from celery_lookout.readings import ConsumedQueue
from celery_lookout.state.routes import Routes
from tests.clusters import Watched, of, sent

DELAY = "0." * 26 + "1.1."


@pytest.fixture
def routes() -> Routes:
    routes = Routes()
    routes.learn([ConsumedQueue("mail", "post", "letters"), ConsumedQueue("celery", "celery", "celery")])
    return routes


@pytest.mark.parametrize(
    ("exchange", "routing_key", "queue"),
    [
        ("post", "letters", "mail"),
        ("", "anything", "anything"),
        ("", "", None),
        ("post", "parcels", None),
        ("elsewhere", "letters", None),
        ("celery_delayed_27", DELAY + "letters", "mail"),
        ("celery_delayed_27", DELAY + "nobody", None),
        ("celery_delayed_27", "0." * 27 + "letters", None),
    ],
)
def test_queue_of_a_route(exchange: str, routing_key: str, queue: str | None, routes: Routes) -> None:
    assert routes.queue_of(exchange, routing_key) == queue


def test_the_queue_that_task_sent_names_wins(routes: Routes) -> None:
    assert routes.queue_of_sent(sent(0, queue="named", exchange="post", routing_key="letters")) == "named"
    assert routes.queue_of_sent(sent(0, queue=None, exchange="post", routing_key="letters")) == "mail"
    assert routes.queue_of_sent(sent(0, queue=None)) is None


def test_native_delayed_delivery_counts_for_the_real_queue() -> None:
    """The delay in the routing key would make a label of each message."""
    watched = Watched()
    watched.cluster.routes.learn([ConsumedQueue("mail", "post", "letters")])
    watched.hear(sent(0, uuid="a", queue=None, exchange="celery_delayed_27", routing_key=DELAY + "letters"))
    watched.hear(sent(0, uuid="b", queue=None, exchange="celery_delayed_27", routing_key=DELAY + "nobody"))
    assert watched.changes() == {of("sent_total", queue="mail"): 1, of("sent_total", queue="unknown"): 1}
