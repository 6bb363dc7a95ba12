"""Celery's canvas runs unchanged with the package installed: the same results, and other people's headers untouched."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import kombu
import pytest
import redis
from celery.signals import before_task_publish

from celery_lookout_signals._stamp import stamp
from tests.conftest import Broker
from tests.servers.celery_versions import NEWEST
from tests.servers.process import wait_until
from tests.servers.workers import Client, Worker
from tests.signals import canvas_tasks
from tests.signals.snapshots import Reader, observations

HEADER = "celery-lookout-published"

#: Canvases that fail on purpose, in whole or in part.
UNSUCCESSFUL = {
    "failure", "chain that fails", "group with a failure", "chord with a failure", "retries in vain", "errback",
    "errback in place",
}  # fmt: skip

#: Totals, and how Celery's log puts them.
LOGGED = {
    "received": "received",
    "succeeded": "succeeded in",
    "failed": "raised unexpected",
    "retried": "retry",
    "ignored": "ignored",
}

#: Without them a worker has less to say to itself.
QUIET = ("--without-gossip", "--without-mingle")


@contextmanager
def stamping() -> Iterator[None]:
    """Stamp what this process publishes, as after ``install()``."""
    before_task_publish.connect(stamp, weak=False, dispatch_uid=__name__)
    try:
        yield
    finally:
        before_task_publish.disconnect(dispatch_uid=__name__)


class Publisher:
    """A process that publishes all canvases and waits for their results, with or without the package as its worker."""

    def __init__(self, worker: Worker, run: str) -> None:
        self.run = run
        self._process = subprocess.Popen(
            [worker.argv[0], "-m", canvas_tasks.__name__, run],
            env={**os.environ, **worker.env},
            stdout=subprocess.PIPE,
            text=True,
        )
        #: Our stamps that tasks found among their headers.
        self.stamps: list[float] = []

    def outcomes(self) -> dict[str, Any]:
        """Wait for all; return what became of them, without the run's name and our header."""
        output, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        text = output.replace(self.run, "RUN")
        return {what: self._without_our_header(value) for what, value in json.loads(text).items()}

    def _without_our_header(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._without_our_header(part) for part in value]
        if isinstance(value, dict) and HEADER in value:
            self.stamps.append(value[HEADER])
            # Celery has None for no headers at all.
            return {key: part for key, part in value.items() if key != HEADER} or None
        return value


def logged(worker: Worker) -> dict[str, dict[str, float]]:
    """Return what the worker's own log says became of the runs of each task: the other witness of our counts."""
    pattern = re.compile(rf"Task ([\w.]+)\[[^]]+\] ({'|'.join(LOGGED.values())})")
    totals = {word: total for total, word in LOGGED.items()}
    found: dict[str, Counter[str]] = {}
    for task, word in pattern.findall(worker.log.read_text()):
        # Celery logs what is applied in place like everything else; it is a part of the task that does so.
        if not task.startswith("canvas.inner"):
            found.setdefault(task, Counter())[totals[word]] += 1
    return {task: dict(row) for task, row in found.items()}


@pytest.mark.redis
@pytest.mark.parametrize(
    ("celery", "protocol"),
    [
        pytest.param(NEWEST, 2, id="protocol 2"),
        pytest.param(NEWEST, 1, id="protocol 1"),
        pytest.param("5.3.6", 2, id="5.3.6", marks=pytest.mark.old_celery),
    ],
)
def test_canvas_gives_the_same_results_with_and_without(
    broker: Broker,
    redis_broker: Broker,
    celery: str,
    protocol: int,
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    conf = {"result_backend": redis_broker.url, "task_protocol": protocol}
    workers, publishers = {}, {}
    for run, signals in (("unwatched", None), ("watched", {"interval": 0.5})):
        workers[run] = start_worker(
            broker.url, name=f"{run}@host", queues=(run,), celery=celery, events=False, sent_events=False,
            signals=signals, imports=[canvas_tasks.__name__], conf={**conf, "task_default_queue": run}, options=QUIET,
        )  # fmt: skip
        publishers[run] = Publisher(workers[run], run)
    outcomes = {run: publisher.outcomes() for run, publisher in publishers.items()}
    assert outcomes["watched"] == outcomes["unwatched"]
    unsuccessful = {what for what, outcome in outcomes["watched"].items() if "FAILURE" in str(outcome)}
    assert unsuccessful == UNSUCCESSFUL & outcomes["watched"].keys()
    assert publishers["unwatched"].stamps == []

    # Then: everything was counted that the worker's log tells of, nothing else, and nothing of the other worker.
    reader = Reader(broker.url)
    workers["watched"].stop()
    assert reader.wait_final()["faults"] == 0
    assert {snapshot["node"] for snapshot in reader.snapshots} == {"watched@host"}
    counted = {
        task: {key: total for key, total in row.items() if key in LOGGED}
        for (task, queue), row in reader.counts().items()
        if queue == "watched"
    }
    assert counted == logged(workers["watched"])
    assert len(counted) == len(reader.counts())
    # All messages were stamped, those too that the worker published itself, and the tasks found the stamps.
    waits = {task: observations(row, "wait") for (task, _), row in reader.totals().items()}
    assert waits == {task: row["received"] for task, row in counted.items()}
    assert len(publishers["watched"].stamps) == sum(waits[f"canvas.{task}"] for task in stamp_tellers(protocol))


def stamp_tellers(protocol: int) -> list[str]:
    """Return the tasks whose result has the headers of each of their runs."""
    return ["retry", "seen", "gather"] if protocol == 2 else ["retry", "seen"]


def take_message(broker: Broker, queue: str) -> dict[str, Any]:
    """Take the oldest message of *queue* as any consumer sees it, without what is new in every delivery."""

    def get() -> Any:
        return channel.basic_get(queue, no_ack=True)

    with kombu.Connection(broker.url) as connection, connection.channel() as channel:
        message = wait_until(get)
        properties = {key: value for key, value in message.properties.items() if key != "delivery_tag"}
        headers, properties["application_headers"] = message.headers, None
        return {
            "headers": headers,
            "properties": properties,
            "body": message.body,
            "content": (message.content_type, message.content_encoding),
        }


@pytest.mark.parametrize("protocol", [2, 1])
def test_a_message_differs_by_the_stamp_and_by_nothing_else(
    broker: Broker, protocol: int, make_client: Callable[..., Client]
) -> None:
    client = make_client(broker.url, sent_events=False, task_protocol=protocol, result_backend=None)
    own_headers = {"mine": "untouched", "number": 7}
    moment = datetime(2040, 1, 1, tzinfo=UTC)

    def publish() -> dict[str, Any]:
        client.send("add", 1, 2, queue="raw", task_id="fixed", priority=3, eta=moment, headers=own_headers)
        return take_message(broker, "raw")

    plain = publish()
    before = time.time()
    with stamping():
        stamped = publish()
    after = time.time()

    published = stamped["headers"].pop(HEADER)
    timestamp = stamped["properties"].pop("timestamp")
    assert stamped == plain
    assert before - 1e-6 <= published <= after + 1e-6
    assert (type(published), timestamp) == (float, int(published))
    # And nothing stays behind with the caller.
    assert own_headers == {"mine": "untouched", "number": 7}


@pytest.mark.redis
@pytest.mark.parametrize("protocol", [2, 1])
def test_each_retry_has_a_stamp_of_its_own_and_keeps_other_headers(
    broker: Broker,
    redis_broker: Broker,
    protocol: int,
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    conf = {"result_backend": redis_broker.url, "task_protocol": protocol}
    start_worker(
        broker.url, signals={}, events=False, sent_events=False, imports=[canvas_tasks.__name__], conf=conf,
        options=QUIET,
    )  # fmt: skip
    client = make_client(broker.url, sent_events=False, task_protocol=protocol, result_backend=None)
    sent = client.app.send_task("canvas.retry", (3, []), headers={"mine": "untouched", HEADER: 1.5}, task_id="retried")
    assert sent.id == "retried"

    attempts = wait_until(lambda: stored_result(redis_broker, "retried"))
    # Celery itself adds "meth" when it reads protocol 1.
    assert [(retries, set(headers) - {HEADER, "meth"}, headers["mine"]) for retries, headers, *_ in attempts] == [
        (retries, {"mine"}, "untouched") for retries in range(4)
    ]
    # The first came from a publisher without the package, with a stamp that somebody else made up.
    stamps = [headers[HEADER] for _, headers, *_ in attempts]
    assert stamps[0] == 1.5
    assert stamps[1] > time.time() - 60
    # Each retry was published after the one before it had run.
    assert all(later > earlier for earlier, later in itertools.pairwise(stamps[1:]))


def stored_result(backend: Broker, task_id: str) -> Any:
    """Return a task's result from Redis; None while there is none."""
    with redis.Redis.from_url(backend.url) as client:
        stored: Any = client.get(f"celery-task-meta-{task_id}")
    return stored and json.loads(stored)["status"] == "SUCCESS" and json.loads(stored)["result"]
