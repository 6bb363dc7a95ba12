"""
Tasks and canvases after those of Celery's own integration tests (``t/integration``), for two runs that are compared.

A worker gets the tasks by ``imports=[canvas_tasks.__name__]``. ``python -m tests.signals.canvas_tasks RUN``, in a
worker's environment, publishes all canvases and prints what became of them. Nothing here knows of us: ids carry the
name of the run, and that is all that may differ between two. Every supported Celery loads this file.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import chain, chord, current_app, group
from celery.canvas import StampingVisitor
from celery.result import GroupResult, allow_join_result

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Broken(Exception):
    """Raised on purpose."""


class Visitor(StampingVisitor):  # type: ignore[misc]  # celery ships no types
    """Somebody else's stamps."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"stamped_headers": ["tenant", "release"], "tenant": "acme", "release": "1.2"}


def identity(x: Any) -> Any:
    return x


def add(x: int, y: int) -> int:
    return x + y


def total(numbers: list[int]) -> int:
    return sum(numbers)


def fail(*_: Any) -> None:
    raise Broken("as expected")


def nothing(*_: Any) -> None:
    """Return no result, and keep none."""


def ids(self: Any, previous: Any = None) -> Any:
    """Tell whom this task takes for its root and its parent."""
    return [*(previous or []), [self.request.id, self.request.root_id, self.request.parent_id]]


def inner(x: int) -> int:
    """Only ever applied in place."""
    return x + 1


def inner_fail() -> None:
    """Only ever applied in place."""
    raise Broken("in place")


def outer(self: Any, x: int) -> list[Any]:
    """Apply others in place, one after the other and as a chain; then know one's own id again."""
    task, failing = self.app.tasks["canvas.inner"], self.app.tasks["canvas.inner_fail"]
    before = self.request.id
    with allow_join_result():  # an eager chain waits for its links
        results = [task.apply((x,)).result, (task.s(x) | task.s()).apply().result, repr(failing.apply().result)]
    return [*results, task(x), before == self.request.id]


def retry(self: Any, times: int, seen: list[Any]) -> list[Any]:
    """Retry *times* times; tell what each attempt found in its request."""
    request = self.request
    stamped = sorted(request.stamped_headers or ())
    seen = [*seen, [request.retries, request.headers, request.stamps, stamped]]
    if self.request.retries < times:
        raise self.retry(args=(times, seen), exc=Broken("not yet"), countdown=0.05, max_retries=times)
    return seen


def retry_in_vain(self: Any) -> None:
    raise self.retry(exc=Broken("never"), countdown=0.05, max_retries=1)


def replace(self: Any, x: int) -> Any:
    return self.replace(self.app.tasks["canvas.add"].s(x, 1) | self.app.tasks["canvas.add"].s(2))


def replace_by_group(self: Any, x: int) -> Any:
    return self.replace(group(self.app.tasks["canvas.add"].s(x, n) for n in range(3)))


def add_to_chord(self: Any, numbers: list[int]) -> int:
    for number in numbers:
        self.add_to_chord(self.app.tasks["canvas.add"].s(number, 1))
    return 0


def publish(self: Any, x: int) -> str:
    """Publish another task from a worker; its result is looked up by id."""
    return str(self.app.tasks["canvas.add"].apply_async((x, x), task_id=f"{self.request.id}-child").id)


def _client(app: Any) -> Any:
    """Return the Redis client of *app*'s result backend."""
    return app.backend.client


def note(message: Any, *, key: str) -> None:
    """Append to a list in Redis: an errback of the old style, whose own result nobody holds."""
    _client(current_app).rpush(key, str(message))


def errback(request: Any, error: Any, traceback: Any, key: str = "") -> None:
    """The new style, called in place where the task failed."""
    _client(current_app).rpush(key, f"{request.id} {error!r}")


def seen(self: Any, previous: Any = None) -> list[Any]:
    """Tell, after those before in the chain, what this task's own request has of headers and stamps."""
    request = self.request
    stamped = sorted(request.stamped_headers or ())
    return [*(previous or []), [self.name, request.headers, request.stamps, stamped]]


def gather(self: Any, results: list[Any]) -> list[Any]:
    """The body of a chord of ``seen``."""
    return [*results, *seen(self)]


_BOUND = {"bind": True}
_TASKS: list[tuple[Any, dict[str, Any]]] = [
    (identity, {}),
    (add, {}),
    (total, {}),
    (fail, {}),
    (nothing, {"ignore_result": True}),
    (ids, _BOUND),
    (inner, {}),
    (inner_fail, {}),
    (outer, _BOUND),
    (retry, _BOUND),
    (retry_in_vain, _BOUND),
    (replace, _BOUND),
    (replace_by_group, _BOUND),
    (add_to_chord, _BOUND),
    (publish, _BOUND),
    (note, {}),
    (errback, {}),
    (seen, _BOUND),
    (gather, _BOUND),
]


def register(app: Any) -> None:
    """Add all tasks to *app*."""
    for function, options in _TASKS:
        app.task(function, name=f"canvas.{function.__name__}", shared=False, lazy=False, **options)


def canvases(app: Any, run: str) -> dict[str, Any]:
    """Return everything that is published, by name; *run* is in all ids and keys."""

    def task(name: str, *args: Any, **options: Any) -> Any:
        return app.tasks[f"canvas.{name}"].s(*args).set(**options)

    def doubles(count: int) -> Any:
        return group(task("add", n, n) for n in range(count))

    soon = datetime.now(timezone.utc) + timedelta(seconds=0.5)  # noqa: UP017  # old Pythons run this
    linked = task("add", 1, 1, link=task("add", 10, task_id=f"{run}-linked"))
    failing = task("fail", link_error=app.tasks["canvas.note"].s(key=f"{run}-notes"))
    in_place = app.tasks["canvas.errback"].s(key=f"{run}-notes")
    return {
        "task": task("add", 1, 2),
        "failure": task("fail"),
        "no result": task("nothing"),
        "chain": chain(task("add", 1, 2), task("add", 4), task("add", 8)),
        "chain that fails": chain(task("add", 1, 2), task("fail"), task("add", 8)),
        "group": doubles(5),
        "group with a failure": group(task("add", 1, 2), task("fail")),
        "chord": chord(doubles(4), task("total")),
        "chord with a failure": chord([task("add", 1, 1), task("fail")], task("total")),
        "chord of one": chord([task("add", 1, 1)], task("total")),
        "chord of chords": chord([chord(doubles(3), task("total")) for _ in range(2)], task("total")),
        "chord whose body is a chain": chord(doubles(3), chain(task("total"), task("add", 1))),
        "chord of chains": chord([chain(task("add", n, 1), task("add", 2)) for n in range(3)], task("total")),
        "chords in a row": chain(
            doubles(2), task("total"), task("identity"), group(task("add", 1), task("add", 2)), task("total")
        ),
        "nested groups in a chain": chain(
            task("identity", 1), group(task("add", 1), group(task("add", 2), task("add", 3))), task("total")
        ),
        "group of chains": group(chain(task("add", n, n), task("add", 1)) for n in range(3)),
        "chunks": app.tasks["canvas.add"].chunks([(n, n) for n in range(6)], 2).group(),
        "starmap": app.tasks["canvas.add"].starmap([(1, 2), (3, 4)]),
        "map": app.tasks["canvas.identity"].map([1, 2]),
        "countdown": task("add", 1, 1, countdown=0.5),
        "eta": task("add", 2, 2, eta=soon),
        "expires": task("add", 3, 3, expires=60),
        "retries": task("retry", 2, []),
        "retries with headers": task("retry", 2, [], headers={"mine": "untouched"}),
        "retries in vain": task("retry_in_vain"),
        "replaced": task("replace", 1),
        "replaced in a chain": chain(task("identity", 1), task("replace"), task("add", 1)),
        "replaced by a group": task("replace_by_group", 1),
        "added to a chord": chord([task("add_to_chord", [1, 2, 3])], task("total")),
        "applied in place": task("outer", 1),
        "published in a worker": task("publish", 4, task_id=f"{run}-publisher"),
        "linked": linked,
        "errback": failing,
        "errback in place": task("fail", task_id=f"{run}-failed", link_error=in_place),
        "ids": chain(
            task("ids", task_id=f"{run}-1"),
            task("ids", task_id=f"{run}-2"),
            task("ids", task_id=f"{run}-3"),
        ),
        "headers": chain(task("seen", headers={"mine": "untouched", "number": 7}), task("seen")),
    }


#: What other tasks of the canvases publish: name, and id after the run's.
FURTHER = {"linked callback": "linked", "child": "publisher-child"}


def stamped_canvases(app: Any, run: str) -> dict[str, Any]:
    """Return canvases that carry the stamps of :class:`Visitor`."""

    def task(name: str, *args: Any) -> Any:
        return app.tasks[f"canvas.{name}"].s(*args)

    found = {
        "stamped task": task("seen"),
        "stamped chain": chain(task("seen"), task("seen")),
        "stamped group": group(task("seen"), task("seen")),
        "stamped chord": chord([task("seen"), task("seen")], task("gather")),
        "stamped retries": task("retry", 2, []),
    }
    for signature in found.values():
        signature.stamp(visitor=Visitor())
    return found


#: Under protocol 1 the end of a chain never hears that its beginning failed, and a group's results come in any order.
_NEED_PROTOCOL_2 = frozenset({"chain that fails", "replaced by a group"})


def main(run: str) -> None:
    """Publish everything, wait, and print what became of it as a JSON object."""
    from tests.servers.sample_app import app

    register(app)
    signatures = canvases(app, run)
    if app.conf.task_protocol == 2:
        signatures.update(stamped_canvases(app, run))
    else:
        signatures = {what: found for what, found in signatures.items() if what not in _NEED_PROTOCOL_2}
    results = {what: signature.apply_async() for what, signature in signatures.items()}
    results.update({what: app.AsyncResult(f"{run}-{ending}") for what, ending in FURTHER.items()})
    key, client = f"{run}-notes", _client(app)

    def pending() -> list[str]:
        missing = [what for what, result in results.items() if what != "no result" and not result.ready()]
        return missing + ["notes"] * (client.llen(key) < 2)

    deadline = time.monotonic() + 30
    while pending():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came of {pending()}")
        time.sleep(0.02)
    outcomes = {what: _outcome(result) for what, result in results.items()}
    outcomes["notes"] = sorted(_UUID.sub("UUID", note.decode()) for note in client.lrange(key, 0, -1))
    print(json.dumps(outcomes), flush=True)
    # Results that are collected at exit would still talk to Redis.
    os._exit(0)


def _outcome(result: Any) -> Any:
    """Return what became of *result*, which is ready, in JSON types and without the ids that Celery made up."""
    if isinstance(result, GroupResult):
        return [_outcome(child) for child in result.results]  # pyright: ignore[reportGeneralTypeIssues]  # a list since __init__
    value = result.result
    return [result.state, _UUID.sub("UUID", repr(value)) if isinstance(value, BaseException) else value]


if "SAMPLE_BROKER" in os.environ and __name__ != "__main__":
    register(current_app)
if __name__ == "__main__":
    main(sys.argv[1])
