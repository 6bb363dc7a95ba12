"""
The Celery application of an imaginary web shop: something of everything that can happen to a task.

Only child processes import this. The broker comes from ``CELERY_BROKER_URL``, which Celery reads itself.

It has the one line of ``celery_lookout_signals``, as any application may, and does without where that is not installed;
``CELERY_LOOKOUT_SIGNALS=0`` switches it off in one process.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.schedules import crontab

try:
    import celery_lookout_signals
except ImportError:
    pass  # then workers have to be started with -E
else:
    celery_lookout_signals.install()

app = Celery("shop")
app.conf.update(
    task_default_queue="celery",
    task_routes={"shop.mail.*": "mail", "shop.images.*": "images", "shop.reports.*": "reports"},
    # With -E at the workers this is how the sidecar learns of tasks where the package is not installed.
    task_send_sent_event=True,
    task_ignore_result=True,
    # A backlog shall stay in the queue, where it can be seen, not in the workers' memory.
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    beat_schedule={
        "count-stock": {"task": "shop.orders.count_stock", "schedule": 5.0},
        "leaky-report": {"task": "shop.reports.leaky", "schedule": 4.0},
        # Never sent, unless the demo runs in the morning: what an entry looks like that waits.
        "newsletter": {"task": "shop.mail.send_newsletter", "schedule": crontab(hour=7, minute=30)},
    },
)

#: The mail server is down for the first OUTAGE_SECONDS of every OUTAGE_PERIOD_SECONDS (by the wall clock).
OUTAGE_SECONDS = 25
OUTAGE_PERIOD_SECONDS = 100

#: An image in memory, in bytes: so large that the C library gives all of it back afterwards, as a task should that does
#: not leak.
IMAGE_BYTES = (34_000_000, 50_000_000)

#: What each leaky report leaves behind, in bytes. Its process is replaced before this adds up to much.
LEAK_BYTES = 8_000_000

_leaked: list[bytes] = []


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


@app.task(name="shop.orders.count_stock")
def count_stock() -> None:
    """Sent by beat; when nothing has changed there is no outcome worth keeping."""
    _work(0.05, 0.2)
    if _happens(0.5):
        raise Ignore


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


@app.task(name="shop.mail.send_newsletter")
def send_newsletter() -> None:
    """Sent by beat once a day."""
    _work(0.5, 1)


@app.task(name="shop.images.resize", acks_late=True, time_limit=4)
def resize() -> None:
    """
    Hold an image in memory, which takes some CPU, too.

    Some are not uploaded yet and go back to the queue, some are none. Get stuck now and then, for the hard time limit,
    and rarely be killed as if for its memory.
    """
    if _happens(0.01):
        raise Reject("not uploaded yet", requeue=True)
    if _happens(0.01):
        raise Reject("not an image", requeue=False)
    image = b"\xff" * random.randint(*IMAGE_BYTES)
    if _happens(0.005):
        time.sleep(60)
    if _happens(0.002):
        os.kill(os.getpid(), signal.SIGKILL)
    _work(0.2, 0.6)
    del image
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


@app.task(name="shop.reports.leaky")
def leaky_report() -> None:
    """Sent by beat; leave memory behind with every run, as a cache without a limit does."""
    _work(0.05, 0.1)
    _leaked.append(b"r" * LEAK_BYTES)
