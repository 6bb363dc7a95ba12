"""Tasks that fail, one for each shape that a traceback has. record.py has a worker run them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from celery import shared_task


class OutOfStock(Exception):
    """A class of the application's own."""


class Unpicklable(Exception):
    """An exception that cannot leave its process as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.callback = lambda: message


STOCK: dict[str, int] = {}


def simple() -> None:
    raise OutOfStock("item 17")


def multi_line() -> None:
    raise ValueError("first line\nsecond: line\n\tthird")


def explicit_cause() -> None:
    try:
        STOCK["absent"]
    except KeyError as error:
        raise OutOfStock("no such item") from error


def implicit_context() -> None:
    try:
        STOCK["absent"]
    except KeyError:
        raise OutOfStock("no such item")  # noqa: B904


def recursion(number: int = 0) -> None:
    recursion(number + 1)


def group() -> None:
    errors: list[Exception] = []
    for call in (simple, explicit_cause, _inner_group):
        try:
            call()
        except Exception as error:  # noqa: BLE001  # one for each member
            errors.append(error)
    raise ExceptionGroup("three at once", errors)


def _inner_group() -> None:
    raise ExceptionGroup("never raised themselves", [ValueError(number) for number in range(20)])


def notes() -> None:
    error = OutOfStock("item 17")
    error.add_note("while packing order 4")
    error.add_note("on a Tuesday,\nin the rain")
    raise error


def syntax_error() -> None:
    compile("total = = 3", "/app/shop/prices.py", "exec")


def unpicklable() -> None:
    raise Unpicklable("cannot travel")


def retry_exhausted(self: Any) -> None:
    try:
        simple()
    except OutOfStock as error:
        raise self.retry(exc=error, countdown=0) from error


def other_process() -> None:
    # What people do who want processes in a pool process.
    vars(multiprocessing.current_process())["_config"]["daemon"] = False
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        pool.submit(explicit_cause).result()


def time_limit() -> None:
    time.sleep(30)


def soft_time_limit() -> None:
    time.sleep(30)


def worker_lost() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


#: Function and task options, in the order in which they run: what kills its process comes last.
TASKS: dict[Any, dict[str, Any]] = {
    simple: {},
    multi_line: {},
    explicit_cause: {},
    implicit_context: {},
    recursion: {},
    group: {},
    notes: {},
    syntax_error: {},
    unpicklable: {},
    retry_exhausted: {"bind": True, "max_retries": 1},
    other_process: {},
    soft_time_limit: {"soft_time_limit": 1},
    time_limit: {"time_limit": 1},
    worker_lost: {},
}

for _function, _options in TASKS.items():
    shared_task(**_options, name=f"{__name__}.{_function.__name__}")(_function)
