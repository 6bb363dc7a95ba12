"""Sidecars and workers that go and come back: snapshots neither pile up, nor get lost, nor count twice."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import kombu
import psutil
import pytest
import redis
from celery import Celery

from celery_lookout_signals._channel import MESSAGES_LIMIT, NAME, Channel
from tests.conftest import Broker
from tests.servers.process import wait_until
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker

pytestmark = pytest.mark.usefixtures("stamped")

OFTEN = {"interval": 1.0}
SUCCEEDED = "celery_task_succeeded_total"

Start = Callable[..., Any]


def waiting(broker: Broker) -> int:
    """Return how many snapshots the broker keeps."""
    if broker.kind == "redis":
        return int(redis.Redis.from_url(broker.url).xlen(NAME))
    with kombu.Connection(broker.url) as connection, connection.channel() as channel:
        return int(channel.queue_declare(NAME, passive=True).message_count)


def fill(broker: Broker, count: int) -> None:
    """Publish *count* snapshots of a worker that nobody is interested in, through the package's own channel."""
    channel = Channel(Celery(broker=broker.url))
    for number in range(1, count + 1):
        now = time.time()
        other = {"v": 1, "kind": "beat", "node": "beat@other", "boot": "b", "seq": number, "at": now, "started_at": now}
        more = {"interval": 5.0, "final": False, "entries": [], "entries_left_out": 0}
        assert channel.publish(json.dumps(other | more))
    channel.close()


def run(client: Client, count: int) -> None:
    client.wait(*[client.send("add", 1, 1) for _ in range(count)], seconds=60)


class Watch:
    """Scrapes all the time, as Prometheus would, and remembers one counter."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._done = threading.Event()
        self.sidecar: Sidecar | None = None
        #: None where there was no answer, or no such counter.
        self.samples: list[float | None] = []

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._scrape)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _scrape(self) -> None:
        while not self._done.wait(0.1):
            sidecar = self.sidecar
            try:
                self.samples.append(None if sidecar is None else sidecar.value(self._name))
            except (OSError, AssertionError):
                self.samples.append(None)

    def wait_for(self, value: float) -> None:
        """Wait until the last sample is *value*."""
        wait_until(lambda: self.samples[-1:] == [value], 30, f"{self._name} is not {value}")

    def increase(self) -> float:
        """Return what ``increase()`` makes of it over the whole time: a fall is a restart from 0."""
        values = [0.0, *(value for value in self.samples if value is not None)]
        return sum(after - before if after >= before else after for before, after in itertools.pairwise(values))

    def falls(self) -> list[tuple[float, float]]:
        """Return each fall, as what was before and after."""
        values = [value for value in self.samples if value is not None]
        return [(before, after) for before, after in itertools.pairwise(values) if after < before]


def test_the_broker_keeps_at_most_the_cap(broker: Broker) -> None:
    fill(broker, MESSAGES_LIMIT + 300)
    wait_until(lambda: waiting(broker) == MESSAGES_LIMIT, message=f"{waiting(broker)} snapshots wait")
    if broker.kind == "redis":
        assert 6 * 3600 - 60 < int(redis.Redis.from_url(broker.url).ttl(NAME)) <= 6 * 3600


def test_what_ran_while_the_sidecar_was_stopped_is_counted_by_the_next(
    broker: Broker, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    client = make_client(broker.url)
    start_worker(broker.url, name="w@host", events=False, signals=OFTEN)
    sidecar = start_sidecar(broker.url)
    run(client, 100)
    sidecar.wait_for(SUCCEEDED, 100)
    sidecar.stop()
    run(client, 300)
    metrics = start_sidecar(broker.url).wait_for(SUCCEEDED, 300)
    for name in ("received_total", "started_total", "queue_wait_seconds_count"):
        assert metrics.by(f"celery_task_{name}", "task", "queue") == {("sample.add", "celery"): 300}


def test_totals_are_right_after_more_than_the_broker_keeps(
    broker: Broker, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    """A sidecar that cannot read for an hour misses most of the snapshots, and what they told is in the next."""
    client = make_client(broker.url)
    start_worker(broker.url, name="w@host", events=False, signals=OFTEN)
    sidecar = start_sidecar(broker.url)
    run(client, 100)
    sidecar.wait_for(SUCCEEDED, 100)
    sidecar.pause()
    run(client, 200)
    fill(broker, MESSAGES_LIMIT)
    assert waiting(broker) <= MESSAGES_LIMIT
    sidecar.resume()
    run(client, 1)
    sidecar.wait_for(SUCCEEDED, 301)
    run(client, 10)
    metrics = sidecar.wait_for(SUCCEEDED, 311)
    assert metrics.by("celery_task_started_total", "task") == {("sample.add",): 311}


def test_counters_never_fall_but_to_a_new_beginning_and_never_exceed_the_truth(
    broker: Broker, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    client = make_client(broker.url)
    with Watch(SUCCEEDED) as watch:
        worker = start_worker(broker.url, name="w@host", events=False, signals=OFTEN)
        first = watch.sidecar = start_sidecar(broker.url)
        run(client, 100)
        watch.wait_for(100)
        worker.restart()
        run(client, 50)
        watch.wait_for(150)
        worker.kill()
        worker.start()
        run(client, 50)
        watch.wait_for(200)
        first.stop()
        second = watch.sidecar = start_sidecar(broker.url)
        run(client, 30)
        watch.wait_for(30)
        second.signal_group(signal.SIGKILL)
        watch.sidecar = start_sidecar(broker.url)
        run(client, 20)
        wait_until(lambda: (watch.samples[-1] or 0) >= 20)
    assert all(after <= 50 for _, after in watch.falls()), watch.falls()
    assert len(watch.falls()) <= 2
    assert 230 <= watch.increase() <= 250


def test_a_worker_that_went_away_is_counted_to_its_end(
    broker: Broker, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    """The last snapshot comes with the shutdown, however seldom others do."""
    client = make_client(broker.url)
    sidecar = start_sidecar(broker.url)
    worker = start_worker(broker.url, name="w@host", events=False, signals={"interval": 600.0})
    run(client, 40)
    worker.stop()
    metrics = sidecar.wait_for(SUCCEEDED, 40)
    assert metrics.get("celery_worker_shutdown_graceful", worker="w@host") == 1


@pytest.mark.parametrize("stop", ["stop_cold", "terminate twice"])
def test_a_cold_shutdown_is_counted_to_its_end(
    broker: Broker, stop: str, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    client = make_client(broker.url)
    sidecar = start_sidecar(broker.url)
    worker: Worker = start_worker(broker.url, name="w@host", concurrency=2, events=False, signals={"interval": 600.0})
    run(client, 40)
    client.send("sleep", 60.0)
    # A task that is not running yet is waited for, whatever Celery is told.
    wait_until(lambda: any(reply["w@host"] for reply in client.control("active", timeout=0.5)))
    if stop == "stop_cold":
        worker.stop_cold()
    else:
        main = psutil.Process(worker.pid)
        main.send_signal(signal.SIGINT)
        wait_until(lambda: b"Warm shutdown" in worker.log.read_bytes())
        main.send_signal(signal.SIGINT)
        wait_until(lambda: not worker.is_running)
    sidecar.wait_for(SUCCEEDED, 40)


def test_one_connection_serves_a_worker_of_any_size(broker: Broker, start_worker: Start) -> None:
    def sockets(concurrency: int, signals: dict[str, float] | None) -> int:
        name = f"w{concurrency}{bool(signals)}@host"
        worker = start_worker(broker.url, name=name, concurrency=concurrency, events=False, signals=signals)
        main = psutil.Process(worker.pid)
        port = broker.server.port
        found: set[Any] = set()

        def settled() -> bool:
            before, now = set(found), set[Any]()
            for process in (main, *main.children(recursive=True)):
                # Of a socket that listens it is an empty tuple.
                now.update(one.laddr for one in process.net_connections() if getattr(one.raddr, "port", 0) == port)
            found.clear()
            found.update(now)
            told = signals is None or waiting(broker) >= seen + 3
            return before == now and told and bool(now)

        seen = waiting(broker) if signals else 0
        wait_until(settled)
        worker.stop()
        return len(found)

    fill(broker, 1)
    assert sockets(1, OFTEN) == sockets(4, OFTEN) == sockets(1, None) + 1 == sockets(4, None) + 1
