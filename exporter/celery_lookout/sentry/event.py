"""
The Sentry event that tells of a failure, as ``sentry_sdk.Client.capture_event`` takes it.

Only what a ``Failure`` has goes in: no arguments, no results, nothing of this process. Whatever a failure holds, its
Sentry event is JSON and has a bounded size. Shapes are those of "Event Payloads" in Sentry's developer documentation.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ..failures import Failure
from ..state.exceptions import UNKNOWN
from .frames import Places
from .tracebacks import HEADER, UNNAMED, Frame, LeftOut, Raised, parse
from .values import without_values

LOGGER: Final = "celery-lookout"

#: Bytes of JSON. Sentry takes 1 MB; a failure that needs this much tells no more with the rest of it.
LARGEST: Final = 200_000

#: Changing it would make new Sentry events of failures that were sent before.
_IDS: Final = uuid.UUID("7d2c52f1-5f0c-5a4e-9a46-3a2f0d6f4c11")

#: Characters of a tag's value that Sentry takes.
_TAG: Final = 200

#: What the class of these is when neither text says one; the others have no class of their own.
_CLASSES: Final = {
    "lost": "TaskLost",
    "unknown_task": "celery.exceptions.NotRegistered",
    "hard_time_limit": "billiard.exceptions.TimeLimitExceeded",
    "soft_time_limit": "billiard.exceptions.SoftTimeLimitExceeded",
    "worker_lost": "billiard.exceptions.WorkerLostError",
}

#: These stand in for the exception that was raised; the last is what Python prints where there is none.
_WRAPPERS: Final = frozenset({"ExceptionWithTraceback", "UnpickleableExceptionWrapper", "RemoteTraceback", "NoneType"})
_NAME = re.compile(r"([^\W\d][\w.<>]*)(?:\(|$)")
_TRACE = re.compile(r"(?!0{32})[0-9a-f]{32}")

#: Frames of the application that tell one fault from another.
_PLACES: Final = 5


class _Limits(Struct, frozen=True, gc=False):
    exceptions: int
    frames: int
    value: int
    #: Characters of a path, a function's name and a source line.
    text: int


#: The first that gives a Sentry event of no more than LARGEST; the last one does, whatever the characters.
_LIMITS: Final = (_Limits(50, 100, 4096, 512), _Limits(10, 40, 2048, 256), _Limits(3, 5, 200, 80))


def event_id(failure: Failure) -> str:
    """
    Return the same 32 hexadecimal digits for the same attempt, whoever tells of it and however often.

    A run that was counted as lost may yet tell how it ended; so that both arrive, the loss has an id of its own.
    """
    attempt = [failure.task_id, str(failure.retries)]
    if not failure.task_id:
        attempt += [failure.task, failure.worker, str(failure.at)]
    if failure.kind == "lost":
        attempt.append("lost")
    return uuid.uuid5(_IDS, _clean("\0".join(attempt))).hex


def sentry_event(failure: Failure, *, strip_prefixes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the Sentry event of *failure*; paths of files are shown without the longest of *strip_prefixes*."""
    fields = ("task_id", "task", "queue", "worker", "exception", "traceback")
    failure = replace(failure, **{name: _clean(getattr(failure, name)) for name in fields})
    event = _envelope(failure)
    chain = _chain(failure)
    files = (frame.file for raised in chain for frame in raised.frames if isinstance(frame, Frame))
    places = Places(failure.task, files, strip_prefixes)
    for limits in _LIMITS:
        values = [
            _exception(raised, number, places, limits) for number, raised in enumerate(chain[: limits.exceptions])
        ]
        event["exception"] = {"values": values[::-1]}
        event["fingerprint"] = _fingerprint(failure, values)
        if len(chain) > len(values):
            event["contexts"]["celery"]["exceptions_left_out"] = len(chain) - len(values)
        if len(json.dumps(event)) <= LARGEST:
            break
    return event


def _envelope(failure: Failure) -> dict[str, Any]:
    """Return all but the exceptions and what follows from them."""
    celery: dict[str, Any] = {
        "task_id": _short(failure.task_id, 512),
        "retries": failure.retries,
        "queue": _short(failure.queue, 512),
        "worker": _short(failure.worker, 512),
        "kind": failure.kind,
    }
    if failure.runtime is not None and math.isfinite(failure.runtime):
        celery["runtime"] = failure.runtime
    tags = {
        "task": failure.task,
        "queue": failure.queue,
        "worker": failure.worker,
        "retries": str(failure.retries),
        # The name that the SDK's own Celery integration gives it.
        "celery_task_id": failure.task_id,
        "kind": failure.kind,
    }
    event: dict[str, Any] = {
        "event_id": event_id(failure),
        "level": "error",
        "platform": "python",
        "logger": LOGGER,
        "transaction": _tag(failure.task) or UNKNOWN,
        "server_name": _tag(failure.worker.rpartition("@")[2]) or UNKNOWN,
        # Sentry marks a Sentry event with an empty tag as faulty.
        "tags": {key: text for key, value in tags.items() if (text := _tag(value))},
        "contexts": {"celery": celery},
    }
    timestamp = _timestamp(failure.at)
    if timestamp:
        event["timestamp"] = timestamp
    if failure.trace_id and _TRACE.fullmatch(failure.trace_id):
        # Sentry wants a span. Which one failed is not known; this one is the attempt's alone.
        span_id = uuid.uuid5(_IDS, f"span {event['event_id']}").hex[:16]
        event["contexts"]["trace"] = {"trace_id": failure.trace_id, "span_id": span_id, "op": "queue.task.celery"}
    return event


def _timestamp(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (OverflowError, OSError, ValueError):
        return ""


def _chain(failure: Failure) -> tuple[Raised, ...]:
    """Return the exceptions, the one that got out first."""
    if failure.kind == "lost":
        worker = failure.worker or "a worker"
        value = f"{_task(failure)} was running on {worker}, which vanished, and did not reappear"
        return (Raised(_CLASSES["lost"], value),)
    if failure.kind == "unknown_task":
        worker = failure.worker or "A worker"
        value = f"{worker} got a message for {_task(failure)}, a task that it does not have"
        return (Raised(_CLASSES["unknown_task"], value),)
    raised, *others = _without_quoted(parse(failure.traceback), failure)
    value = raised.value
    if raised.name in (UNNAMED, "NoneType") and value in ("", "None"):
        # Of an event there is still the repr.
        value = failure.exception if "(" in failure.exception else ""
    return (replace(raised, name=_class(failure, raised.name), value=value), *others)


def _without_quoted(chain: tuple[Raised, ...], failure: Failure) -> tuple[Raised, ...]:
    """
    Return *chain* without the exceptions that are part of a message.

    A message may quote the traceback of another process, say, and one exception in it that led to the next. By the
    text alone these come after the one that got out; but that one's class is told beside it.
    """
    match = _NAME.match(failure.exception)
    told = _split(match[1])[1] if match else UNNAMED
    if told in _WRAPPERS or told == _split(chain[0].name)[1]:
        return chain
    for number, raised in enumerate(chain):
        if _split(raised.name)[1] == told and HEADER in raised.value.split("\n"):
            _, found, rest = failure.traceback.partition(raised.value)
            return _below(chain, number, raised.value + rest.rstrip("\n") if found else raised.value)
    return chain


def _below(chain: Sequence[Raised], top: int, value: str) -> tuple[Raised, ...]:
    """Return what led to the exception at the place *top*, and first that one, with the message *value*."""
    places = {top: 0}
    kept = [replace(chain[top], value=value, parent=None, source="")]
    for number, raised in enumerate(chain):
        if raised.parent in places:
            places[number] = len(kept)
            kept.append(replace(raised, parent=places[raised.parent]))
    return tuple(kept)


def _task(failure: Failure) -> str:
    return failure.task or "A task"


def _class(failure: Failure, parsed: str) -> str:
    """Return the class of the exception that got out, with its module if that is known."""
    told = _NAME.match(failure.exception)
    for name in (parsed, told[1] if told else ""):
        if name and name.rpartition(".")[2] not in _WRAPPERS:
            return name
    return _CLASSES.get(failure.kind, UNKNOWN)


def _exception(raised: Raised, number: int, places: Places, limits: _Limits) -> dict[str, Any]:
    """Return one of ``exception.values``."""
    module, name = _split(raised.name)
    value = without_values(raised.value)
    if raised.more:
        value += f"\n… and {raised.more} more exceptions"
    # As SDKs have it: "chained" is what only led to the exception that got out.
    mechanism: dict[str, Any] = {"type": "chained" if number else "celery", "handled": False, "exception_id": number}
    if raised.parent is not None:
        mechanism["parent_id"] = raised.parent
    if raised.source:
        mechanism["source"] = raised.source
    if raised.is_group:
        mechanism["is_exception_group"] = True
    told: dict[str, Any] = {"type": _short(name, _TAG) or UNKNOWN, "value": _short(value, limits.value)}
    if module:
        told["module"] = _short(module, _TAG)
    told["mechanism"] = mechanism
    frames = _frames(raised.frames, places, limits)
    if frames:
        told["stacktrace"] = {"frames": frames}
    return told


def _split(name: str) -> tuple[str, str]:
    """Return module and class: ``shop.tasks.run.<locals>.Odd`` is the class Odd of shop.tasks."""
    module, _, bare = name.rpartition(".")
    if ".<locals>" in module:
        module = module.partition(".<locals>")[0].rpartition(".")[0]
    return module, bare


def _frames(frames: Sequence[Frame | LeftOut], places: Places, limits: _Limits) -> list[dict[str, Any]]:
    if len(frames) <= limits.frames:
        return [_frame(frame, places, limits) for frame in frames]
    # One of them is the gap.
    half = (limits.frames - 1) // 2
    head, tail = ([_frame(frame, places, limits) for frame in part] for part in (frames[:half], frames[-half:]))
    return [*head, _gap(f"{len(frames) - 2 * half} frames"), *tail]


def _frame(frame: Frame | LeftOut, places: Places, limits: _Limits) -> dict[str, Any]:
    if isinstance(frame, LeftOut):
        return _gap(f"{frame.characters} characters of the traceback")
    place = places.of(frame.file)
    told: dict[str, Any] = {
        # Of a path its end tells more.
        "filename": place.filename[-limits.text :],
        "abs_path": frame.file[-limits.text :],
        "function": _short(frame.function or "<module>", limits.text),
        "in_app": place.is_app,
    }
    if place.module:
        told["module"] = _short(place.module, limits.text)
    if frame.line is not None:
        told["lineno"] = frame.line
    if frame.source:
        told["context_line"] = _short(frame.source, limits.text)
    if frame.repeated:
        # Sentry shows variables with the frame and does not group by them: the number differs from run to run.
        told["vars"] = {"[Previous line repeated]": f"{frame.repeated} more times"}
    return told


def _gap(what: str) -> dict[str, Any]:
    """Return a frame that stands for what is left out. The number is a variable, so that it changes no group."""
    return {"filename": "[left out]", "function": "[left out]", "in_app": False, "vars": {"[left out]": what}}


def _fingerprint(failure: Failure, values: Sequence[dict[str, Any]]) -> list[str]:
    """
    Return what makes two failures one issue: the task, and of each exception that led here its class and place.

    Never a message, which may hold a name or a number: some servers' own grouping goes by it. Nor a folder or a line,
    which change with the release.
    """
    raised, *others = values
    parts = [raised["type"], _tag(failure.task) or UNKNOWN, *_places(raised, _PLACES)]
    for value in others:
        # Which members a group has, and in what order, is chance.
        if value["mechanism"].get("source") in ("__cause__", "__context__"):
            parts += [value["type"], *_places(value, 1)]
    return parts


def _places(value: dict[str, Any], number: int) -> list[str]:
    """Return file and function of the innermost frames of the application, the innermost last."""
    frames = value.get("stacktrace", {}).get("frames", [])
    places = [f"{PurePath(frame['filename']).name}:{frame['function']}" for frame in frames if frame["in_app"]]
    if value["type"] == "RecursionError":
        # In which of the functions that call each other there is no more room is chance.
        places = _until_one_repeats(places)
    # How often one calls itself depends on what it is given. Of each, the innermost call.
    return [*dict.fromkeys(reversed(places))][number - 1 :: -1]


def _until_one_repeats(places: Sequence[str]) -> list[str]:
    seen: dict[str, None] = {}
    for place in places:
        if place in seen:
            break
        seen[place] = None
    return [*seen]


def _clean(text: str) -> str:
    """Return *text* without what databases behind Sentry refuse: halves of characters, and NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _tag(text: str) -> str:
    return _short(" ".join(text.split()), _TAG)


def _short(text: str, limit: int) -> str:
    """Return *text*, without its end if it is too long."""
    return f"{text[: limit - 1]}…" if len(text) > limit else text
