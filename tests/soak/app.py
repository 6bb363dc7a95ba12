"""
The application under load. Each run of a task writes down what becomes of it, before Celery knows: the truth.

One file for each process that runs tasks, one line for each thing that happens.
"""

from __future__ import annotations

import functools
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from celery import Celery

app = Celery("soak", broker=os.environ.get("SAMPLE_BROKER"))
app.conf.update(
    task_send_sent_event=True,
    task_ignore_result=True,
    task_publish_retry=False,
    broker_connection_retry_on_startup=True,
    worker_send_task_events="SAMPLE_SIGNALS" not in os.environ,
)

if "SAMPLE_SIGNALS" in os.environ:
    import celery_lookout_signals

    celery_lookout_signals.install()


def _note(task: Any, what: str) -> None:
    with _ledger(os.getpid()).open("a") as ledger:
        ledger.write(f"{task.request.delivery_info['routing_key']} {what}\n")


@functools.cache
def _ledger(pid: int) -> Path:
    return Path(os.environ["SAMPLE_RESULTS"]) / f"{pid}.ledger"


def truth(folder: Path) -> Counter[tuple[str, str]]:
    """Return how often what happened, by queue and by what: ``started``, ``succeeded``, ``failed``, ``retried``."""
    lines = (line.split() for path in folder.glob("*.ledger") for line in path.read_text().splitlines())
    return Counter((queue, what) for queue, what in lines)


def good(self: Any) -> None:
    """Succeed."""
    _note(self, "started")
    _note(self, "succeeded")


def bad(self: Any) -> None:
    """Fail."""
    _note(self, "started")
    _note(self, "failed")
    raise ValueError("no such order")


def again(self: Any) -> None:
    """Retry once, then succeed."""
    _note(self, "started")
    if self.request.retries:
        _note(self, "succeeded")
        return
    _note(self, "retried")
    raise self.retry(countdown=0.5)


def killed(self: Any) -> None:
    """Die as under the out-of-memory killer."""
    _note(self, "started")
    _note(self, "failed")
    os.kill(os.getpid(), signal.SIGKILL)


for function in (good, bad, again, killed):
    app.task(function, bind=True, name=f"soak.{function.__name__}", lazy=False)
