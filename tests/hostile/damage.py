"""What anybody may write: odd texts and numbers, and real messages of real workers with something wrong in them."""

from __future__ import annotations

import copy
import json
import random
from functools import cache
from typing import Any, Final

from hypothesis import strategies as st

from tests.golden.folding import RECORDINGS, SNAPSHOTS, load

TEXTS: Final = (
    "", '"', "\\", "\n", "\r\n", "\0", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u202egnp.exe", "\u200f", "👩‍👩‍👧",
    "e\u0301" * 9, "\ud800", "\udc00\ud800", "\ufeff", "_other", "unknown", "{}", 'a="b",', "# EOF", "# HELP x", "NaN",
    "%s%d%", "x" * 300, "y" * 5_000, "\x01a", "\x02a", "a\\", "celery\x00",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
    "4bf92f3577b34da6a3ce929d0e0e4736", "ExceptionWithTraceback()", "A" * 200 + "(", '\n  File "' * 50, "exception:",
    "runtime:succeeded:16", "runtime:succeeded:17", "wait:sum", "peak:0",
)  # fmt: skip

NUMBERS: Final = (
    0, -0.0, -1, 1, 0.5, 1e308, -1e308, 1e-320, 1e12, 1e18, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63),
    float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip

#: Any JSON, and what Python takes for it.
values: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none() | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS) | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=9), children, max_size=4),
    max_leaves=6,
)


@cache
def recorded_bodies() -> list[tuple[float, Any]]:
    """Return bodies of real events of all recorded versions, with the times they came."""
    return [body for recording in RECORDINGS for body in load(recording)[1]]


@cache
def recorded_snapshots() -> list[Any]:
    """Return bodies of snapshots."""
    found: list[Any] = json.loads(SNAPSHOTS.read_text("utf-8"))
    return found


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container in *value* with each of its keys or indices."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    for key in keys:
        found += _places(value[key])
    return found


def damaged(body: Any, chance: random.Random, wounds: int = 2) -> Any:
    """Return a copy of *body* in which some fields are gone, doubled, exchanged, or something else."""
    body = copy.deepcopy(body)
    for _ in range(chance.randint(1, wounds)):
        places = _places(body)
        if not places:
            return body
        holder, key = chance.choice(places)
        other, other_key = chance.choice(places)
        kind = chance.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder += [holder[key]] * chance.randint(1, 3)
        elif kind == 2:
            holder[key] = copy.deepcopy(other[other_key])
        elif kind == 3:
            holder[key] = [holder[key]]
        elif kind == 4 and isinstance(holder, dict):
            holder[chance.choice(TEXTS)] = holder.pop(key)
        elif kind == 5 and isinstance(holder[key], str):
            holder[key] += chance.choice(TEXTS)
        elif kind == 6:
            holder[key] = chance.choice(NUMBERS)
        else:
            holder[key] = chance.choice(TEXTS)
    return body


def as_bytes(body: Any, chance: random.Random) -> bytes:
    """Return *body* as JSON; now and then cut, with a wrong byte, or with each key doubled."""
    text = json.dumps(body).encode()
    kind = chance.randrange(20)
    at = chance.randrange(len(text)) if text else 0
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
    if kind == 2 and text.startswith(b"{"):
        return text[:-1] + b"," + text[1:]
    return text
