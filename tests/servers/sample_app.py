"""
A Celery application with one task for each outcome.

Workers of every supported Celery version load this file, so it imports nothing of ours unless asked to, and
reads its settings from the environment. Tests call make_app() for a client that knows the same tasks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded


class Unpicklable(Exception):
    """An exception that cannot leave its process as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.callback = lambda: message


class ExpectedFailure(Exception):
    """A failure that the task announces."""


class Temporary(Exception):
    """Goes away after some attempts."""


def noop() -> None:
    """Do nothing."""


def add(x: int, y: int) -> int:
    """Return the sum."""
    return x + y


def sleep(seconds: float) -> float:
    """Wait in small steps, so that a soft time limit or a revoke can interrupt."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
    return seconds


def burn(seconds: float) -> None:
    """Use the processor."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def allocate(megabytes: int, seconds: float = 0.0) -> int:
    """Hold memory for a while and give it back."""
    block = bytearray(os.urandom(1024)) * (megabytes * 1024)
    time.sleep(seconds)
    return len(block)


_leaked: list[bytearray] = []


def leak(megabytes: int) -> int:
    """Keep memory for as long as the process lives."""
    _leaked.append(bytearray(os.urandom(1024)) * (megabytes * 1024))
    return len(_leaked)


def fail(message: str = "broken") -> None:
    """Raise ValueError."""
    raise ValueError(message)


def fail_as_announced() -> None:
    """Raise an exception that the task lists in ``throws``."""
    raise ExpectedFailure("no such customer")


def fail_unpicklable() -> None:
    """Raise an exception that cannot be pickled."""
    raise Unpicklable("cannot travel")


def fail_in_chain() -> None:
    """Raise from another exception."""
    try:
        fail("the cause")
    except ValueError as error:
        raise RuntimeError("the effect") from error


def retry_then_succeed(self: Any, times: int = 2, countdown: float = 0.05) -> int:
    """Retry *times* times, then succeed."""
    if self.request.retries < times:
        raise self.retry(exc=Temporary("not yet"), countdown=countdown, max_retries=times)
    return int(self.request.retries)


def retry_exhaust(self: Any, countdown: float = 0.05) -> None:
    """Retry as often as allowed (twice), then fail with the last exception."""
    try:
        raise Temporary("never")
    except Temporary as error:
        raise self.retry(exc=error, countdown=countdown) from error


def soft_limit_handled(seconds: float = 30.0) -> str:
    """Meet the soft time limit and end well."""
    try:
        sleep(seconds)
    except SoftTimeLimitExceeded:
        return "stopped early"
    return "done"


def kill_self() -> None:
    """Die as under the out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def exit_self(code: int = 3) -> None:
    """Leave the pool process through SystemExit."""
    sys.exit(code)


def ignore() -> None:
    """End without a state."""
    raise Ignore


def reject() -> None:
    """Send the message away; needs acks_late."""
    raise Reject("not mine", requeue=False)


def reject_requeue(self: Any, path: str) -> str:
    """
    Send the message back on the first delivery, accept it on the second; *path* is a file that remembers the first.

    Brokers do not agree about the redelivered flag.
    """
    if not os.path.exists(path):  # noqa: PTH110
        with open(path, "w"):  # noqa: PTH123
            pass
        raise Reject("once more", requeue=True)
    return "second delivery"


def spawn(self: Any, children: int = 2) -> list[str]:
    """Publish children, which then have this task as parent and root."""
    return [self.app.tasks["sample.add"].delay(number, 1).id for number in range(children)]


def send_mail(recipient: str = "ada@example.com") -> str:
    """Goes to the queue ``mail`` by a route."""
    return recipient


#: Function and task options; the name is ``sample.`` and the function's name.
TASKS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (noop, {}),
    (add, {}),
    (sleep, {}),
    (burn, {}),
    (allocate, {}),
    (leak, {}),
    (fail, {}),
    (fail_as_announced, {"throws": (ExpectedFailure,)}),
    (fail_unpicklable, {}),
    (fail_in_chain, {}),
    (retry_then_succeed, {"bind": True}),
    (retry_exhaust, {"bind": True, "max_retries": 2}),
    (soft_limit_handled, {"soft_time_limit": 1}),
    (kill_self, {}),
    (exit_self, {}),
    (ignore, {}),
    (reject, {"acks_late": True}),
    (reject_requeue, {"bind": True, "acks_late": True}),
    (spawn, {"bind": True}),
    (send_mail, {}),
]

#: The same function under other options: name, function, options.
VARIANTS: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    ("sample.hard_limit", sleep, {"time_limit": 1}),
    ("sample.soft_limit", sleep, {"soft_time_limit": 1}),
    ("sample.sleep_late", sleep, {"acks_late": True, "reject_on_worker_lost": True}),
    ("sample.kill_self_late", kill_self, {"acks_late": True}),
]


def make_app(broker_url: str, results: str = "", *, current: bool = False, **conf: Any) -> Any:
    """
    Return an application with all tasks on *broker_url*.

    *results* is a folder: results in files leave the broker's contents to the test. *conf* are Celery settings. Only
    a worker makes its application the current one; clients in the test process must not see each other.
    """
    app = Celery("sample", set_as_current=current)
    app.conf.update(
        broker_url=broker_url,
        result_backend=f"file://{results}" if results else None,
        worker_send_task_events=True,
        task_send_sent_event=True,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=True,
        task_routes={"sample.send_mail": {"queue": "mail"}},
        task_publish_retry=False,
    )
    app.conf.update(conf)
    for function, options in TASKS:
        app.task(function, name=f"sample.{function.__name__}", shared=False, lazy=False, **options)
    for name, function, options in VARIANTS:
        app.task(function, name=name, shared=False, lazy=False, **options)
    return app


def _from_environment() -> Any:
    conf = json.loads(os.environ.get("SAMPLE_CONF", "{}"))
    return make_app(os.environ["SAMPLE_BROKER"], os.environ.get("SAMPLE_RESULTS", ""), current=True, **conf)


if os.environ.get("SAMPLE_SIGNALS"):
    import celery_lookout_signals

    celery_lookout_signals.install(**json.loads(os.environ["SAMPLE_SIGNALS"]))

if "SAMPLE_BROKER" in os.environ:
    app = _from_environment()
