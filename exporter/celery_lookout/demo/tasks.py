"""
The Celery application of an imaginary web shop: something of everything that can happen to a task.

Only child processes import this. The broker comes from ``CELERY_BROKER_URL``, which Celery reads itself.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

from celery import Celery

app = Celery("shop")
app.conf.update(
    task_default_queue="celery",
    task_routes={"shop.mail.*": "mail", "shop.images.*": "images", "shop.reports.*": "reports"},
    # The two settings by which the sidecar learns of tasks, without a change to the tasks themselves.
    task_send_sent_event=True,
    worker_send_task_events=True,
    task_ignore_result=True,
    # A backlog shall stay in the queue, where it can be seen, not in the workers' memory.
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)

#: The mail server is down for the first OUTAGE_SECONDS of every OUTAGE_PERIOD_SECONDS (by the wall clock).
OUTAGE_SECONDS = 25
OUTAGE_PERIOD_SECONDS = 100


class PaymentDeclined(Exception):
    """The bank said no."""


class StockConflict(Exception):
    """Someone else changed the same row."""


def _work(shortest_seconds: float, longest_seconds: float) -> None:
    """Take some time, but no CPU."""
    time.sleep(random.uniform(shortest_seconds, longest_seconds))


def _happens(probability: float) -> bool:
    return random.random() < probability


@app.task(name="shop.orders.checkout")
def checkout() -> None:
    """Take the money; ask for what follows from it."""
    _work(0.02, 0.12)
    if _happens(0.04):
        raise PaymentDeclined("card expired")
    if _happens(0.01):
        raise KeyError("shipping_address")
    app.send_task("shop.orders.update_stock")
    app.send_task("shop.mail.send_receipt")


@app.task(name="shop.orders.update_stock", bind=True, max_retries=3, default_retry_delay=1)
def update_stock(self: Any) -> None:
    """Retry on a conflict; the retries nearly always help."""
    _work(0.01, 0.05)
    if _happens(0.1):
        raise self.retry(exc=StockConflict("row changed"))


@app.task(name="shop.orders.expire_cart")
def expire_cart() -> None:
    """Sent with a countdown; revoked when the cart was bought in time."""
    _work(0.01, 0.03)


@app.task(
    name="shop.mail.send_receipt",
    autoretry_for=(ConnectionRefusedError,),
    max_retries=2,
    retry_backoff=4,
    retry_jitter=False,
)
def send_receipt() -> None:
    """Retry while the mail server is down, which is long enough for some to run out of retries."""
    if time.time() % OUTAGE_PERIOD_SECONDS < OUTAGE_SECONDS:
        raise ConnectionRefusedError("mail server refused the connection")
    _work(0.03, 0.15)


@app.task(name="shop.images.resize", acks_late=True, time_limit=4)
def resize() -> None:
    """Get stuck now and then, for the hard time limit, and rarely be killed as if for its memory."""
    if _happens(0.005):
        time.sleep(60)
    if _happens(0.002):
        os.kill(os.getpid(), signal.SIGKILL)
    _work(0.2, 0.6)
    if _happens(0.01):
        raise OSError("image file is truncated")


@app.task(name="shop.reports.monthly", soft_time_limit=6)
def monthly_report() -> None:
    """Slow, and one in five too slow for its soft time limit."""
    _work(2, 7)


@app.task(name="shop.reports.preview")
def preview_report() -> None:
    """Sent with an expiry that is short enough to pass while a monthly report runs."""
    _work(0.3, 1)
