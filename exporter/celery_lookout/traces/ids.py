"""
Ids of traces and spans, from those of tasks alone.

Nothing has to be looked up, so two sidecars, or one before and after a restart, give a task the same ids.
"""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID, uuid5

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")

#: Where the ids of tasks that are no UUIDs become some.
_NAMESPACE: Final = UUID("7c3f1c0e-5d0b-4e0e-9f63-6a8f0f6f2a11")

_MASK: Final = 2**64 - 1

#: What a further attempt adds to the id of a span. Odd, so that no two of 2**64 attempts share one.
_ATTEMPT: Final = 0x9E3779B97F4A7C15

#: What tells the span of a task's publishing from the one of its run.
_PUBLISHED: Final = 0xC2B2AE3D27D4EB4F


def uuid_of(task_id: str) -> int:
    """Return the id as 128 bits, never 0; one that is no UUID has some made of it."""
    if _UUID.fullmatch(task_id):
        number = int(task_id.replace("-", ""), 16)
        if number:
            return number
    return uuid5(_NAMESPACE, task_id).int


def trace_id(root_id: str) -> int:
    """Return the id of the trace of all tasks that have this root."""
    return uuid_of(root_id)


def run_span_id(task_id: str, number: int) -> int:
    """Return the id of the span of the run *number* of a task; of the first, 0, it is the end of the task's UUID."""
    bits = uuid_of(task_id)
    if bits >> 76 & 0xF == 1:  # version 1: all from one machine end the same
        bits ^= bits >> 64
    return (bits + number * _ATTEMPT) & _MASK or 1


def publish_span_id(task_id: str, number: int) -> int:
    """Return the id of the span of the publishing that led to that run."""
    return run_span_id(task_id, number) ^ _PUBLISHED or 1
