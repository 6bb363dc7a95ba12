"""A broker's monitor as a whole, on real brokers: in which order it reads, and what it leaves to others."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import kombu
import msgspec
import pytest
import redis

from celery_lookout.broker import Broker
from celery_lookout.errors import ProbeFailed
from celery_lookout.intake.snapshot_source import NAME
from celery_lookout.metrics.registry import Registry
from celery_lookout.monitor import THREADS_PER_BROKER, Monitor
from celery_lookout.settings import Settings
from celery_lookout.state import coverage
from tests import conftest
from tests.clusters import EPOCH, of, parse, row, series, snapshot


class Watching:
    """A monitor that runs, and its registry."""

    def __init__(self, monitor: Monitor, registry: Registry) -> None:
        self.monitor = monitor
        self._registry = registry

    def shown(self) -> dict[str, float]:
        self.monitor.refresh()
        return parse(self._registry.render())

    async def becomes(self, name: str, value: float) -> None:
        """Wait until a series has that value."""
        await until(lambda: self.shown().get(name) == value)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # nothing tells when a number changes
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(url: str, *, is_guest: bool = False, replica: str = "") -> AsyncIterator[Watching]:
    broker, registry = Broker(url), Registry()
    settings = Settings((broker,), control_interval_seconds=600.0, replica=replica)
    with ThreadPoolExecutor(THREADS_PER_BROKER) as executor:
        monitor = Monitor(broker, settings, registry, executor, is_guest=is_guest)
        task = asyncio.create_task(monitor.run())
        try:
            yield Watching(monitor, registry)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Worker:
    """What a worker writes to RabbitMQ or Redis, as bytes: snapshots, and events."""

    def __init__(self, broker: conftest.Broker) -> None:
        self._broker = broker
        self._boot = time.time() - 60

    def tell(self, started: int) -> None:
        now = time.time()
        told = snapshot(now - EPOCH, row(started=started), started_at=self._boot, seq=started + 1)
        body = msgspec.json.encode(told)
        if self._broker.kind == "redis":
            with redis.Redis.from_url(self._broker.url) as client:
                client.xadd(NAME, {"body": body})
        else:
            self._publish(NAME, "", body)

    def start(self, uuid: str) -> None:
        now = time.time()
        common = {"hostname": "w@h", "pid": 1, "utcoffset": 0, "clock": 1}
        sent = {"type": "task-sent", "timestamp": now, "uuid": uuid, "name": "add", "queue": "celery", **common}
        events = [sent | {"hostname": "gen@h"}, {"type": "task-started", "timestamp": now, "uuid": uuid, **common}]
        self._publish("celeryev", "task.multi", json.dumps(events).encode())

    def _publish(self, exchange: str, routing_key: str, body: bytes) -> None:
        kind = "topic" if self._broker.kind == "amqp" and exchange == "celeryev" else "fanout"
        with kombu.Connection(self._broker.url) as connection:
            kombu.Producer(connection.default_channel, kombu.Exchange(exchange, kind)).publish(
                body, routing_key=routing_key, content_type="application/json", content_encoding="utf-8"
            )


STARTED = of("started_total")


@pytest.mark.rabbitmq
async def test_snapshots_that_waited_are_read_before_events_that_waited(
    rabbit_broker: conftest.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: so of a worker that told its counts, the events of that time are known to count for nothing."""
    worker = Worker(rabbit_broker)
    async with watching(rabbit_broker.url) as first:
        await first.becomes(series("celery_exporter_collector_success", collector="snapshots"), 1)
    worker.start("a")
    worker.start("b")
    worker.tell(2)
    monkeypatch.setattr(coverage, "HELD_LIMIT", 0)  # more events than can be held
    async with watching(rabbit_broker.url) as second:
        await second.becomes(series("celery_exporter_events_total", event="task-started"), 2)
        assert second.shown()["celery_exporter_snapshots_total"] == 1
        assert second.shown()[STARTED] == 2
        worker.start("c")
        await second.becomes(series("celery_exporter_events_total", event="task-started"), 3)
        worker.tell(3)
        await second.becomes(STARTED, 3)


async def test_events_do_not_wait_for_snapshots_that_cannot_be_read(
    redis_broker: conftest.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_lookout.monitor.FIRST_SNAPSHOTS_SECONDS", 0.05)
    go_on = threading.Event()

    def hang(*_: object) -> None:
        go_on.wait(60)
        raise ProbeFailed("the broker hangs")

    monkeypatch.setattr("celery_lookout.collectors.SnapshotsCollector.ask", hang)
    async with watching(redis_broker.url) as watched:
        try:
            await watched.becomes("celery_exporter_broker_up", 1)
            Worker(redis_broker).start("a")
            await watched.becomes(series("celery_exporter_events_total", event="task-started"), 1)
        finally:
            go_on.set()


@pytest.mark.rabbitmq
async def test_a_sidecar_that_is_refused_the_events_takes_no_snapshots(rabbit_broker: conftest.Broker) -> None:
    worker = Worker(rabbit_broker)
    async with watching(rabbit_broker.url) as first:
        await first.becomes(series("celery_exporter_collector_success", collector="snapshots"), 1)
        async with watching(rabbit_broker.url) as second:
            await until(lambda: "another sidecar" in (second.monitor.listener.problem or ""))
            for count in (1, 2, 3):
                worker.tell(count)
                await second.monitor._snapshots.next_poll()
            await first.becomes(STARTED, 3)
            await first.becomes("celery_exporter_snapshots_total", 3)
            assert second.shown()["celery_exporter_snapshots_total"] == 0


async def test_two_replicas_count_everything_each(broker: conftest.Broker) -> None:
    worker = Worker(broker)
    async with watching(broker.url) as first, watching(broker.url, replica="b") as second:
        for monitor in (first, second):
            await monitor.becomes(series("celery_exporter_collector_success", collector="snapshots"), 1)
        for count in range(1, 6):
            worker.tell(count)
        for monitor in (first, second):
            await monitor.becomes("celery_exporter_snapshots_total", 5)
            assert monitor.shown()[STARTED] == 5


async def test_a_guest_sees_snapshots_and_takes_none_away(broker: conftest.Broker) -> None:
    worker = Worker(broker)
    async with watching(broker.url) as monitor:
        await monitor.becomes(series("celery_exporter_collector_success", collector="snapshots"), 1)
        async with watching(broker.url, is_guest=True) as guest:
            await guest.becomes(series("celery_exporter_collector_success", collector="snapshots"), 1)
            for count in (1, 2, 3):
                worker.tell(count)
            await guest.becomes(STARTED, 3)
            await monitor.becomes("celery_exporter_snapshots_total", 3)


async def test_a_worker_that_is_not_known_yet_is_known_within_a_moment(broker: conftest.Broker) -> None:
    """Its first event makes the sidecar look for snapshots at once, and not when it is time to."""
    worker = Worker(broker)
    async with watching(broker.url) as monitor:
        await monitor.becomes(series("celery_exporter_collector_success", collector="snapshots"), 1)
        snapshots: Any = monitor.monitor._snapshots._collector
        snapshots._interval_seconds = 1e6
        await monitor.monitor._snapshots.next_poll()
        worker.start("a")
        await monitor.becomes(STARTED, 1)


async def test_a_fault_in_one_part_ends_neither_it_nor_the_others(
    redis_broker: conftest.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_lookout.monitor.TICK_SECONDS", 0.01)
    monkeypatch.setattr("celery_lookout.monitor.FAULT_SECONDS", 0.01)
    worker = Worker(redis_broker)
    async with watching(redis_broker.url) as watched:
        await watched.becomes("celery_exporter_broker_up", 1)
        begun = []

        def fault(now: float) -> None:
            begun.append(now)
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(watched.monitor.cluster, "tick", fault)
            await until(lambda: len(begun) > 2)
        worker.start("a")
        await watched.becomes(STARTED, 1)


def worked(watching: Watching, name: str, since: float) -> bool:
    """Say whether a collector has worked in the minute after *since*."""
    return since < watching.shown()[name] < since + 60


async def test_polls_go_on_when_the_clock_is_set_back(redis_broker: conftest.Broker) -> None:
    """By an hour: none of them waits until it is as late as before."""
    behind = 0.0
    broker, registry = Broker(redis_broker.url), Registry()
    settings = Settings((broker,), control_interval_seconds=0.2, probe_interval_seconds=0.2)
    with ThreadPoolExecutor(THREADS_PER_BROKER) as executor:
        monitor = Monitor(broker, settings, registry, executor, clock=lambda: time.time() - behind)
        watching = Watching(monitor, registry)
        task = asyncio.create_task(monitor.run())
        names = [
            series("celery_exporter_collector_last_success_timestamp_seconds", collector=name)
            for name in ("queues", "workers", "snapshots")
        ]
        try:
            await until(lambda: all(watching.shown().get(name, 0) > 0 for name in names))
            behind = 3600.0
            for _ in range(2):
                since = time.time() - behind
                for name in names:
                    await until(partial(worked, watching, name, since))
            assert watching.shown()["celery_exporter_broker_up"] == 1
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
