"""
Loaded by a worker beside the package (``imports=[sabotage.__name__]``): does it the harm that ``env(...)`` asked for.

It comes after ``install()`` and before the worker forks.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from celery import signals

_VARIABLE = "SABOTAGE"


class Bug(Exception):
    """One of ours."""


def env(
    *, broken: Sequence[str] = (), killed_after: Sequence[str] = (), settings: Mapping[str, object] | None = None
) -> dict[str, str]:
    """
    Return the environment for a worker.

    *broken* are functions that raise, as ``module:Class.method`` or ``module:function``. The pool process that ran a
    task of *killed_after* is killed right after our handler of its end. *settings* are module constants,
    ``module:NAME``, and their values.
    """
    wanted = {"broken": list(broken), "killed_after": list(killed_after), "settings": dict(settings or {})}
    return {_VARIABLE: json.dumps(wanted)}


def _place(where: str) -> tuple[Any, str]:
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(f"celery_lookout_signals.{module}")
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    assert hasattr(owner, name), where
    return owner, name


def _raising(name: str) -> Callable[..., NoReturn]:
    def raise_bug(*_: Any, **__: Any) -> NoReturn:
        raise Bug("as asked for")

    raise_bug.__name__ = name  # by which a fault is logged
    return raise_bug


def _kill(names: Sequence[str]) -> None:
    def kill(task: Any = None, **_: Any) -> None:
        if task.name in names:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # not to be reached

    def connect(**_: Any) -> None:
        signals.task_postrun.connect(kill, weak=False)

    # Signals are sent in the order of their connection: ours, of either signal, has been called before.
    signals.worker_process_init.connect(connect, weak=False)


def _do(wanted: Mapping[str, Any]) -> None:
    for where in wanted["broken"]:
        owner, name = _place(where)
        setattr(owner, name, _raising(name))
    for where, value in wanted["settings"].items():
        setattr(*_place(where), value)
    if wanted["killed_after"]:
        _kill(wanted["killed_after"])


if _VARIABLE in os.environ:
    _do(json.loads(os.environ[_VARIABLE]))
