"""
Failures told in full: what somebody needs who wants to know why.

They are few whatever happens: a storm of failures is counted, and some of it is told.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

#: Longest traceback, in bytes. Of a longer one the middle goes: the end has the exception, the beginning the task.
TRACEBACK_LIMIT = 16 * 1024

#: Of these, bytes for the note that says how much is left out.
_NOTE_BYTES = 64

#: Failures of one kind that one process tells of at once, and then one in so many seconds.
SAME_KIND_BURST = 5
SAME_KIND_SECONDS = 1.0

#: Failures of any kind that a process tells of at once, and then in a second.
BURST = 30
PER_SECOND = 4

#: Class of exception to the kind of failure, where it is not simply an exception.
KINDS = {
    "SoftTimeLimitExceeded": "soft_time_limit",
    "TimeLimitExceeded": "hard_time_limit",
    "WorkerLostError": "worker_lost",
}

#: What ``MaxRetriesExceededError`` says of the task's arguments: they are nobody's business. Their ``repr()`` may have
#: several lines; it ends where another exception begins, if one does.
_ARGUMENTS = re.compile(
    r"(Can't retry [^\n]{1,600}?\]) args:"
    r".*?(?=\n\n(?:The above exception was the direct cause|During handling of the above exception)|\Z)",
    re.DOTALL,
)

_FRAME = re.compile(r'^\s+File "([^"]+)", line \d+, in (\S+)', re.MULTILINE)
#: Frames, from the innermost, that make two failures the same.
_FRAMES = 5


class _Bucket:
    """So many at once; what was taken comes back bit by bit."""

    def __init__(self, size: int, per_second: float, now: float) -> None:
        self._size, self._per_second = size, per_second
        self._left, self._at = float(size), now

    def left(self, now: float) -> float:
        """Return how many there are to take."""
        self._left = min(self._left + (now - self._at) * self._per_second, self._size)
        self._at = now
        return self._left

    def take(self) -> None:
        """Take one, which must be there."""
        self._left -= 1


class Limiter:
    """Says which failures of one process are told."""

    def __init__(self) -> None:
        self._all = _Bucket(BURST, PER_SECOND, time.monotonic())
        #: By task and exception; those that are full again are forgotten.
        self._kinds: dict[tuple[str, str], _Bucket] = {}

    def admits(self, task: str, exception: str) -> bool:
        """Say whether a failure of *task* with this class is to be told now."""
        now, kind = time.monotonic(), (task, exception)
        if self._all.left(now) < 1:
            return False
        bucket = self._kinds.get(kind)
        if bucket is None:
            self._kinds = {one: other for one, other in self._kinds.items() if other.left(now) < SAME_KIND_BURST}
            bucket = self._kinds[kind] = _Bucket(SAME_KIND_BURST, 1 / SAME_KIND_SECONDS, now)
        if bucket.left(now) < 1:
            return False
        self._all.take()
        bucket.take()
        return True


def class_name(error: BaseException) -> str:
    """Return the class of *error* with its module, as Python prints it at the end of a traceback."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def shortened(traceback: str) -> str:
    """Return *traceback* without a task's arguments, and with its middle left out if it is too long."""
    traceback = _ARGUMENTS.sub(r"\1", traceback)
    data = traceback.encode("utf-8", "replace")
    if len(data) <= TRACEBACK_LIMIT:
        return traceback
    half = (TRACEBACK_LIMIT - _NOTE_BYTES) // 2
    # A character that is cut in two goes as well.
    head, tail = data[:half].decode("utf-8", "ignore"), data[-half:].decode("utf-8", "ignore")
    return f"{head}\n  [… {len(traceback) - len(head) - len(tail)} characters left out …]\n{tail}"


def fingerprint(task: str, exception: str, traceback: str) -> str:
    """Return a text that is the same for failures at the same place, whatever their message and line numbers."""
    frames = [f"{Path(path).name}:{function}" for path, function in _FRAME.findall(traceback)]
    parts = (task, exception, *frames[-_FRAMES:])
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:16]
