"""
The edge between Celery and us: whatever goes wrong in our code, the task runs and its outcome is unchanged.

Every function that Celery calls is wrapped once, here, or notes its faults here itself. A fault is logged once per
kind, and counted.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, Callable

log = logging.getLogger("celery_lookout_signals")

#: Kinds that were logged: the name of the function and the class of exception.
_logged: set[tuple[str, str]] = set()

#: Faults of this process that nobody was told of yet.
_untold = 0


def guarded(function: Callable[..., Any]) -> Callable[..., None]:
    """Return *function* with its exceptions logged and counted; ``BaseException`` passes, for it is not about us."""

    @functools.wraps(function)
    def guard(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # the edge
            note(function.__name__, error)

    return guard


def note(where: str, error: Exception) -> None:
    """Count a fault, and log it if it is the first of its kind."""
    global _untold  # noqa: PLW0603  # one number per process
    _untold += 1
    kind = (where, type(error).__name__)
    if kind not in _logged:
        _logged.add(kind)
        log.error("fault in %s: tasks are not affected, numbers may be incomplete", where, exc_info=error)


def take_faults() -> int:
    """Return the faults since the last call."""
    global _untold
    taken, _untold = _untold, 0
    return taken
