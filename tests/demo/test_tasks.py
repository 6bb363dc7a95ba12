from __future__ import annotations

import pytest

from celery_lookout.demo import load, tasks
from celery_lookout.demo.run import LATENCY_SLOS, WORKERS

#: Sorted, since Celery keeps them in an order that differs between processes, and several run the tests.
SHOP = sorted(name for name in tasks.app.tasks if name.startswith("shop."))

CONSUMED = {queue for worker in WORKERS for queue in worker.queues.split(",")}


@pytest.mark.parametrize("name", SHOP)
def test_every_task_has_a_worker(name: str) -> None:
    """A queue without a worker would only ever grow."""
    assert tasks.app.amqp.router.route({}, name)["queue"].name in CONSUMED


def test_every_latency_slo_is_of_a_queue() -> None:
    assert LATENCY_SLOS.keys() < CONSUMED


def test_beat_sends_tasks_that_exist() -> None:
    assert {entry["task"] for entry in tasks.app.conf.beat_schedule.values()} <= set(SHOP)


def test_the_load_is_right_on_average() -> None:
    assert sum(load.tasks_due(2.5, 0.2) for _ in range(10_000)) == pytest.approx(5_000, rel=0.1)
