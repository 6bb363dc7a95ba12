"""
The shop's visitors: publish tasks in waves, so that a backlog of images grows and drains about once a minute.

Run as a child process (``python -m celery_lookout.demo.load``) until it is told to end. The figures give some ten tasks
a second in calm times and twice as many in a rush, which costs a few percent of one core.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from .tasks import app, checkout, expire_cart, monthly_report, preview_report, resize

#: A rush starts with every period and lasts this long; then there is time to drain what it left behind.
RUSH_SECONDS = 25.0
PERIOD_SECONDS = 60.0

#: Seconds between two rounds of publishing.
ROUND_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Flow:
    """One kind of task that visitors cause: how many a second in calm times and in a rush."""

    task: Any
    calm: float
    rush: float
    countdown: float | None = None
    expires: float | None = None
    #: On Redis 0 comes first and 9 last.
    priority: int | None = None
    #: Share that is revoked at once.
    revoked: float = 0.0


#: Two image processes manage some four a second: the rush leaves about seventy behind, and calm lets them catch up.
FLOWS = (
    Flow(checkout, calm=2, rush=4),
    Flow(resize, calm=0.5, rush=5.5),
    Flow(resize, calm=0.3, rush=1.5, priority=6),  # those of a supplier, who can wait
    Flow(expire_cart, calm=0.4, rush=0.8, countdown=20, revoked=0.5),
    Flow(monthly_report, calm=0.1, rush=0.1),
    Flow(preview_report, calm=0.2, rush=0.3, expires=4),
)


def tasks_due(per_second: float, seconds: float) -> int:
    """Return how many tasks to publish for *seconds* of a flow; random, and right on average."""
    exact = per_second * seconds
    return int(exact) + (random.random() < exact % 1)


def publish(flow: Flow, count: int) -> None:
    """Send *count* tasks of *flow*."""
    for _ in range(count):
        result = flow.task.apply_async(countdown=flow.countdown, expires=flow.expires, priority=flow.priority)
        if random.random() < flow.revoked:
            app.control.revoke(result.id)


def main() -> None:
    """Publish until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    started = last = time.monotonic()
    while True:
        time.sleep(ROUND_SECONDS)
        now = time.monotonic()
        is_rush = (now - started) % PERIOD_SECONDS < RUSH_SECONDS
        for flow in FLOWS:
            publish(flow, tasks_due(flow.rush if is_rush else flow.calm, now - last))
        last = now


if __name__ == "__main__":
    main()
