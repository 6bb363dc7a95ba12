"""
The class of exception behind a failed or retried task.

Neither field of the event is right alone. For kills and hard time limits ``exception`` is ``ExceptionWithTraceback()``
and the class stands in the last line of ``traceback``; for an unpicklable exception the traceback ends in the wrapper's
name and ``exception`` has the class. Seen in Celery 5.3 to 5.7.
"""

from __future__ import annotations

import re
from typing import Final, Literal

UNKNOWN: Final = "unknown"

#: Classes that tell of a time limit or the death of the pool process, and what they count as.
TERMINATIONS: Final[dict[str, Literal["soft_time_limit", "hard_time_limit", "worker_lost"]]] = {
    "SoftTimeLimitExceeded": "soft_time_limit",
    "TimeLimitExceeded": "hard_time_limit",
    "WorkerLostError": "worker_lost",
}

_CALL = re.compile(r"([^\W\d][\w.]*)\(")
_NAME = re.compile(r"([^\W\d][\w.]*)(?::|$)", re.MULTILINE)
_WRAPPERS: Final = frozenset({"ExceptionWithTraceback", "UnpickleableExceptionWrapper"})

#: Characters of a class name that a label shows.
_LONGEST: Final = 100


def exception_class(exception: str | None, traceback: str | None) -> str:
    """Return the bare class name, without its module; ``unknown`` when neither text shows one."""
    call = _CALL.match(exception or "")
    name = _bare(call.group(1)) if call else None
    if name is None or name in _WRAPPERS:
        raised = _raised(traceback or "")
        name = raised if raised is not None and raised not in _WRAPPERS else None
    return name or UNKNOWN


def _raised(traceback: str) -> str | None:
    """
    Return the class on the line that follows the last frame.

    Not simply the last line, since a message may have several.
    """
    frame = traceback.rfind('\n  File "')
    line_end = traceback.find("\n", frame + 1)
    while line_end != -1 and traceback.startswith("  ", line_end + 1):
        line_end = traceback.find("\n", line_end + 1)
    found = _NAME.match(traceback, line_end + 1)
    return _bare(found.group(1)) if found else None


def _bare(dotted: str) -> str:
    return dotted.rpartition(".")[2][:_LONGEST]
