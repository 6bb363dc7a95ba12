"""Whether RabbitMQ takes messages; what an alarm does is in ``acceptance/test_rabbitmq_faults.py``."""

from __future__ import annotations

from collections.abc import Iterator

import kombu
import pytest

from celery_lookout.broker import Broker
from celery_lookout.errors import ProbeFailed
from celery_lookout.probes.publishing import EXCHANGE, PublishingProbe
from tests import conftest
from tests.servers.process import wait_until

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def probe(rabbit_broker: conftest.Broker) -> Iterator[PublishingProbe]:
    probe = PublishingProbe(Broker(rabbit_broker.url))
    yield probe
    probe.close()


def test_who_was_blocked_is_not_on_a_new_connection(probe: PublishingProbe) -> None:
    """RabbitMQ may have restarted meanwhile, and says the end of an alarm only to those whom it told of it."""
    assert not probe.is_blocked()
    probe._set_blocked(True)
    assert probe.is_blocked()
    probe.close()
    assert not probe.is_blocked()


def test_an_exchange_that_was_deleted_is_made_anew(probe: PublishingProbe, rabbit_broker: conftest.Broker) -> None:
    assert not probe.is_blocked()
    delete_exchange(rabbit_broker)
    with pytest.raises(ProbeFailed, match="NOT_FOUND"):
        wait_until(probe.is_blocked)
    assert not probe.is_blocked()


def test_nothing_is_published_while_rabbitmq_takes_nothing(
    probe: PublishingProbe, rabbit_broker: conftest.Broker
) -> None:
    """It would wait in the connection's buffers; here RabbitMQ would complain that it leads nowhere."""
    assert not probe.is_blocked()
    probe._set_blocked(True)
    delete_exchange(rabbit_broker)
    assert [probe.is_blocked() for _ in range(4)] == [True] * 4


def delete_exchange(broker: conftest.Broker) -> None:
    with kombu.Connection(broker.url) as connection:
        connection.default_channel.exchange_delete(EXCHANGE)
