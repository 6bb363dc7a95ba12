"""Everything that watches one broker: its listener, its collectors, and the state they feed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Final

from .broker import Broker
from .collectors import QueueProbe, QueuesCollector, WorkersCollector
from .findings import findings
from .intake.decode import REASONS, EventDecoder
from .intake.listener import Listener
from .intake.source import EventSource
from .metrics.registry import Registry, Scope
from .poller import Poller
from .probes.control import ControlProbe
from .settings import Settings
from .state.cluster import Cluster

#: Seconds between two looks at what is due while nothing comes in: every read and every scrape looks, too.
TICK_SECONDS: Final = 1.0

#: Seconds between two looks at what may be wrong with the set-up: some heartbeats, and an answer from the workers.
EXPLAIN_SECONDS: Final = 10.0

#: Seconds before a part that failed by a fault of ours begins anew.
FAULT_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class Monitor:
    """Watches one broker. What goes wrong with this one touches no other."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        registry: Registry,
        executor: Executor,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.broker = broker
        self.name = broker.name or broker.masked_url
        self.cluster = cluster = Cluster(Scope(registry, broker.name), settings.cluster)
        self._clock = clock
        for reason in REASONS:
            cluster.refused(reason, 0)
        decoder = EventDecoder(cluster.refused, accept_msgpack=settings.accept_msgpack)
        self.listener = Listener(
            _source(broker, decoder, settings), cluster, name=self.name, executor=executor, clock=clock
        )
        self.queues = QueuesCollector(
            _queue_probe(broker, settings), cluster, interval_seconds=settings.probe_interval_seconds, broker=self.name
        )
        workers = WorkersCollector(
            ControlProbe(broker),
            cluster,
            round_seconds=settings.control_interval_seconds,
            enable_events=settings.enable_events,
            broker=self.name,
            clock=clock,
        )
        self.pollers = (
            Poller(self.queues, cluster.exporter, executor, broker=self.name, clock=clock),
            Poller(workers, cluster.exporter, executor, broker=self.name, clock=clock),
        )

    @property
    def was_reached(self) -> bool:
        """Whether the broker has answered at least once."""
        return self.listener.reached.is_set()

    @property
    def is_up(self) -> bool:
        """Whether the broker answers now."""
        return bool(self.cluster.exporter.broker_up.value)

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for work in (self.listener.run, self._tick, self._explain, *(poller.run for poller in self.pollers)):
                    group.create_task(self._keep(work))
        finally:
            await asyncio.gather(*(poller.close() for poller in self.pollers), return_exceptions=True)

    async def _keep(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work*, and again after a fault of ours: one part of one broker must not end the watch over all."""
        while True:
            try:
                await work()
            except Exception:
                log.exception("fault of ours, beginning anew", extra={"broker": self.name})
                await asyncio.sleep(FAULT_SECONDS)

    def refresh(self) -> None:
        """Take in what the broker sent until now, and bring all numbers up to date."""
        self.listener.drain()
        self.cluster.refresh(self._clock())

    async def _explain(self) -> None:
        """Log what is wrong with the set-up, each thing once."""
        said = {"collector", "broker"}  # these say it themselves, when it happens
        while True:
            await asyncio.sleep(EXPLAIN_SECONDS)
            for finding in findings(self):
                if finding.level != "ok" and finding.topic not in said:
                    said.add(finding.topic)
                    log.warning(finding.what, extra={"broker": self.name, "mend": finding.mend})

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.cluster.tick(self._clock())


def _source(broker: Broker, decoder: EventDecoder, settings: Settings) -> EventSource:
    # Imported when needed: each brings its client library along.
    if broker.kind == "redis":
        from .intake.redis import RedisEvents

        return RedisEvents(broker, decoder)
    if broker.kind == "amqp":
        from .intake.amqp import AmqpEvents

        return AmqpEvents(broker, decoder, replica=settings.rabbitmq_replica)
    from .intake.kombu import KombuEvents

    return KombuEvents(broker, decoder)


def _queue_probe(broker: Broker, settings: Settings) -> QueueProbe:
    if broker.kind == "redis":
        from .probes.redis import RedisProbe

        return RedisProbe(broker)
    if broker.kind == "amqp":
        from .probes.rabbitmq import RabbitProbe

        return RabbitProbe(broker, settings.management_url)
    from .probes.kombu import KombuProbe

    return KombuProbe(broker)
