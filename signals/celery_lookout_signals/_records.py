"""
What is told of one task inside a worker, and its form on the pipe from a pool process to the main process.

A run is one record of fixed form with three names behind it. All of it is at most ``PIPE_BUF`` bytes, which the kernel
writes whole or not at all, so records of several processes never mix. A failure has a traceback and may need several.
"""

from __future__ import annotations

import json
import os
import select
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

#: The end of a run without an outcome: the main process learns what became of the task.
ABORTED = "aborted"

#: How a run can end, but for the last in the words of the wire format. Their order is the pipe's, which never leaves a
#: worker.
OUTCOMES = (
    "succeeded", "failed", "retried", "ignored", "rejected", "requeued", "revoked", "expired", "terminated", ABORTED,
)  # fmt: skip
_OUTCOME_NUMBERS = {outcome: number for number, outcome in enumerate(OUTCOMES)}

#: For a number that could not be measured.
UNMEASURED = -1.0

#: Characters of a name that are kept; AMQP allows no longer queue name.
NAME_LIMIT = 255


class Run(NamedTuple):
    """One attempt that ended. Numbers are ``UNMEASURED`` (or 0 for sizes) where they could not be measured."""

    task: str
    queue: str
    outcome: str
    #: Class of the exception of a failed or retried run, without its module.
    exception: str = ""
    #: Of the message.
    attempt: int = 0
    retries: int = 0
    #: Whether the body was entered; a revoked task's was not.
    started: bool = True
    #: Unix time.
    ended_at: float = 0.0
    runtime: float = UNMEASURED
    wait: float = UNMEASURED
    cpu: float = UNMEASURED
    growth: int = 0
    peak: int = 0
    #: Records that the process could not hand over before this one.
    lost_before: int = 0
    faults: int = 0
    #: Of a run that is an exemplar: the id of its trace, and that of the task. Empty of all others.
    trace_id: str = ""
    task_id: str = ""


class Failure(NamedTuple):
    """One failure told in full: the fields of ``docs/wire.md``."""

    task_id: str
    task: str
    queue: str
    retries: int
    at: float
    kind: str
    exception: str
    traceback: str
    fingerprint: str
    runtime: float | None = None
    trace_id: str | None = None
    sentry_event_id: str | None = None
    expected: bool = False


_FRAME = struct.Struct("<HB")  # length of the rest, kind
_RUN = struct.Struct("<BqI?ddddQQQQ")
_FRAMED_RUN = struct.Struct(_FRAME.format + _RUN.format[1:])
_PART = struct.Struct("<IB")  # process, whether more parts follow
#: A run that is an exemplar has two more names behind the others.
_RUN_KIND, _PART_KIND, _EXEMPLAR_KIND = 1, 2, 3
#: Largest count in a record.
_MOST = 2**32 - 1

_PIPE_BUF = select.PIPE_BUF
#: POSIX allows a PIPE_BUF so small that three long names do not fit.
_NAMES_LIMIT = _PIPE_BUF - _FRAME.size - _RUN.size
_PART_BYTES = _PIPE_BUF - _FRAME.size - _PART.size


def whole(number: Any) -> int:
    """Return a count that came with a message as a whole number that a record can hold; 0 for what is none."""
    # Not a number, and infinity, fail the comparison.
    return int(number) if isinstance(number, (int, float)) and 0 < number <= _MOST else 0


def encode_run(run: Run) -> bytes:
    """Return the record of *run*, at most ``PIPE_BUF`` bytes."""
    names, kind = _encode_names(run.task, run.queue, run.exception), _RUN_KIND
    if run.trace_id:
        ids = "\0{}\0{}".format(run.trace_id, run.task_id[:NAME_LIMIT].replace("\0", " ")).encode("utf-8", "replace")
        if len(names) + len(ids) <= _NAMES_LIMIT:
            names, kind = names + ids, _EXEMPLAR_KIND
    numbers = run[4:15]  # from attempt to faults
    return _FRAMED_RUN.pack(_RUN.size + len(names), kind, _OUTCOME_NUMBERS[run.outcome], *numbers) + names


def encode_failure(failure: Failure) -> list[bytes]:
    """Return the records of *failure*, each at most ``PIPE_BUF`` bytes."""
    data = json.dumps(failure).encode()
    chunks = [data[start : start + _PART_BYTES] for start in range(0, len(data), _PART_BYTES)]
    pid = os.getpid()
    return [
        _FRAME.pack(_PART.size + len(chunk), _PART_KIND) + _PART.pack(pid, number < len(chunks) - 1) + chunk
        for number, chunk in enumerate(chunks)
    ]


class Decoder:
    """Takes the pipe's bytes apart, in pieces as they come."""

    def __init__(self) -> None:
        self._pending = b""
        #: Beginnings of failures, by process. One that was killed half-way leaves its beginning here.
        self._parts: dict[int, bytes] = {}

    def feed(self, data: bytes) -> Iterator[Run | Failure]:
        """Yield the records that *data* completes."""
        data = self._pending + data
        at, end = 0, len(data)
        while end - at >= _FRAME.size:
            size, kind = _FRAME.unpack_from(data, at)
            body = at + _FRAME.size
            if body + size > end:
                break
            at = body + size
            if kind == _RUN_KIND:
                yield _decode_run(data, body, at)
            elif kind == _EXEMPLAR_KIND:
                names, trace_id, task_id = data[body + _RUN.size : at].rsplit(b"\0", 2)
                run = _decode_run(data, body, body + _RUN.size + len(names))
                yield run._replace(trace_id=trace_id.decode(), task_id=task_id.decode())
            else:
                failure = self._join(data[body:at])
                if failure is not None:
                    yield failure
        self._pending = data[at:]

    def forget(self, pid: int) -> None:
        """Drop what the process *pid*, which is gone, had only begun to tell."""
        self._parts.pop(pid, None)

    def _join(self, part: bytes) -> Failure | None:
        pid, more = _PART.unpack_from(part)
        data = self._parts.pop(pid, b"") + part[_PART.size :]
        if more:
            self._parts[pid] = data
            return None
        try:
            return Failure(*json.loads(data))
        except (ValueError, TypeError):
            return None  # a part of it was lost in a full pipe


def _decode_run(data: bytes, start: int, end: int) -> Run:
    outcome, *numbers = _RUN.unpack_from(data, start)
    task, queue, exception = _decode_names(data[start + _RUN.size : end])
    return Run(task, queue, OUTCOMES[outcome], exception, *numbers)


# A worker has few names and many runs.


@lru_cache(maxsize=1000)
def _encode_names(*names: str) -> bytes:
    return "\0".join(name[:NAME_LIMIT].replace("\0", " ") for name in names).encode("utf-8", "replace")[:_NAMES_LIMIT]


@lru_cache(maxsize=1000)
def _decode_names(data: bytes) -> tuple[str, str, str]:
    task, queue, exception = (*data.decode("utf-8", "replace").split("\0"), "", "", "")[:3]
    return task, queue, exception
