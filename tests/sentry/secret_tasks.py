"""Tasks with something in their arguments and results that nobody may read elsewhere."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import shared_task


class Opaque:
    """A result that no serializer takes, and that quotes what it holds."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return f"<Opaque\n{self.secret}\n>"


def fail(secret: Any, *, key: Any) -> None:
    raise ValueError("no")


def succeed(secret: Any, *, key: Any) -> Any:
    return {"secret": secret, "key": key}


def retry_in_vain(self: Any, secret: Any, *, key: Any) -> None:
    # Without an exception of its own Celery raises one that quotes the arguments.
    raise self.retry(countdown=0)


def retry_in_vain_with_lines(self: Any, secret: Any, *, key: Any) -> None:
    # Not every repr is one line.
    self.retry(args=(Opaque(secret),), kwargs={"key": Opaque(key)}, countdown=0)


def return_opaque(secret: Any, *, key: Any) -> Any:
    return Opaque(secret)


def return_opaque_inside(secret: Any, *, key: Any) -> Any:
    return [{"result": Opaque(secret), "key": lambda: key}]


def lack_an_argument(secret: Any, *, key: Any, absent: Any) -> None:
    raise AssertionError


def time_limit(secret: Any, *, key: Any) -> None:
    time.sleep(30)


def soft_time_limit(secret: Any, *, key: Any) -> None:
    time.sleep(30)


def kill_self(secret: Any, *, key: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


TASKS: dict[Any, dict[str, Any]] = {
    fail: {},
    succeed: {},
    retry_in_vain: {"bind": True, "max_retries": 1},
    retry_in_vain_with_lines: {"bind": True, "max_retries": 0},
    return_opaque: {},
    return_opaque_inside: {},
    lack_an_argument: {"typing": False},
    time_limit: {"time_limit": 1},
    soft_time_limit: {"soft_time_limit": 1},
    kill_self: {},
}

for _function, _options in TASKS.items():
    shared_task(**_options, name=f"{__name__}.{_function.__name__}")(_function)
