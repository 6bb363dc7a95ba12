from __future__ import annotations

import pytest

from celery_lookout.demo import load, tasks
from celery_lookout.demo.run import WORKERS

#: Sorted, since Celery keeps them in an order that differs between processes, and several run the tests.
SHOP = sorted(name for name in tasks.app.tasks if name.startswith("shop."))


@pytest.mark.parametrize("name", SHOP)
def test_every_task_has_a_worker(name: str) -> None:
    """A queue without a worker would only ever grow."""
    consumed = {queue for _, queues, _ in WORKERS for queue in queues.split(",")}
    assert tasks.app.amqp.router.route({}, name)["queue"].name in consumed


def test_the_load_is_right_on_average() -> None:
    assert sum(load.tasks_due(2.5, 0.2) for _ in range(10_000)) == pytest.approx(5_000, rel=0.1)
