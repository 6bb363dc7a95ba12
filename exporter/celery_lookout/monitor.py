"""Everything that watches one broker: its listener, its collectors, and the state they feed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final

from .broker import Broker
from .collectors import PublishingCollector, QueueProbe, QueuesCollector, SnapshotsCollector, WorkersCollector
from .events import Event
from .findings import findings
from .intake.decode import REASONS, EventDecoder
from .intake.listener import Listener
from .intake.snapshot_source import SnapshotSource
from .intake.snapshots import REASONS as SNAPSHOT_REASONS
from .intake.source import EventSource
from .metrics.registry import Registry, Scope
from .metrics.spans import SpanMetrics
from .poller import Collector, Poller
from .probes.control import ControlProbe
from .probes.publishing import PublishingProbe
from .sentry.episodes import Episodes
from .sentry.forwarder import BrokerForwarder, Forwarder
from .settings import Settings
from .state.cluster import Cluster
from .state.restoring import ClusterReader
from .state.saved import SavedRecord
from .state.saving import saved
from .traces.collector import Sender, SpansCollector
from .traces.options import OtlpOptions
from .traces.table import SpanTable

#: Threads per broker: connecting, reading queues, asking workers, reading snapshots, listening whether the broker takes
#: messages and sending spans may all hang at once.
THREADS_PER_BROKER: Final = 6

#: Seconds between two polls of the snapshots. On Amazon SQS each is a request that costs money.
SNAPSHOTS_SECONDS: Final = 1.0
SQS_SNAPSHOTS_SECONDS: Final = 5.0

#: Seconds that the first events may have to wait for the snapshots that tell whose events count.
FIRST_SNAPSHOTS_SECONDS: Final = 5.0

#: What a guest is called where each reader has a name.
GUEST: Final = "doctor"

#: Seconds between two looks at what is due while nothing comes in: every read and every scrape looks, too.
TICK_SECONDS: Final = 1.0

#: Seconds between two looks at what may be wrong with the set-up: some heartbeats, and an answer from the workers.
EXPLAIN_SECONDS: Final = 10.0

#: Seconds between two looks at what is worth telling Sentry of the broker, its queues and its workers.
REPORT_SECONDS: Final = 5.0

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
        *,
        is_guest: bool = False,
        forwarder: Forwarder | None = None,
    ) -> None:
        """A guest takes no snapshots away from the sidecar that may run as well."""
        self.broker = broker
        self.name = broker.name or broker.masked_url
        forwards = None if forwarder is None else forwarder.of(broker.name)
        scope = Scope(registry, broker.name)
        self._clock = clock
        #: The spans made of the broker's events; None when none are wanted. A guest leaves them to the sidecar.
        self.spans, self._sending = self._span_parts(None if is_guest else settings.otlp, scope)
        trace_id_of = None if self.spans is None else self.spans.trace_id_of
        self.cluster = cluster = Cluster(scope, settings.cluster, forwards, trace_id_of=trace_id_of)
        for reason in REASONS:
            cluster.refused(reason, 0)
        for reason in SNAPSHOT_REASONS:
            cluster.refused_snapshot(reason, 0)
        decoder = EventDecoder(cluster.refused, accept_msgpack=settings.accept_msgpack)
        self._source = _source(broker, decoder, settings)
        self.listener = Listener(
            self._source,
            cluster,
            name=self.name,
            executor=executor,
            clock=clock,
            before_reading=self._count_snapshots,
            also=None if self.spans is None else self.spans.fold,
        )
        self.queues = QueuesCollector(
            _queue_probe(broker, settings), cluster, interval_seconds=settings.probe_interval_seconds, broker=self.name
        )
        snapshots = SnapshotsCollector(
            _snapshot_source(broker, settings.replica, is_guest=is_guest),
            cluster,
            interval_seconds=SQS_SNAPSHOTS_SECONDS if broker.scheme == "sqs" else SNAPSHOTS_SECONDS,
            # A second sidecar is refused RabbitMQ's events, and must not take snapshots from the first.
            may_read=lambda: self.is_up or is_guest or broker.kind != "amqp",
            clock=clock,
        )
        self._work = [self._tick, self._explain]
        if forwards is not None:
            episodes = Episodes(cluster, self.name, stuck_after=forwards.forwarder.options.stuck_after)
            self._work.append(partial(self._report, episodes, forwards))

        def poller(collector: Collector[Any, Any]) -> Poller[Any, Any]:
            return Poller(collector, cluster.exporter, executor, broker=self.name, clock=clock)

        self._snapshots = poller(snapshots)
        self.pollers = [poller(self.queues), self._snapshots]
        if broker.has_events:
            workers = WorkersCollector(
                ControlProbe(broker),
                cluster,
                round_seconds=settings.control_interval_seconds,
                enable_events=settings.enable_events,
                broker=self.name,
                clock=time.monotonic,
            )
            self.pollers.append(poller(workers))
        if broker.kind == "amqp":
            self.pollers.append(poller(PublishingCollector(PublishingProbe(broker), cluster, clock=clock)))
        if self._sending is not None:
            sending = poller(self._sending)
            self._sending.hurry = sending.hurry
            self.pollers.append(sending)

    def _span_parts(self, options: OtlpOptions | None, scope: Scope) -> tuple[SpanTable | None, SpansCollector | None]:
        """Return what makes spans of events and what sends them, if that is wanted."""
        if options is None or not self.broker.has_events:
            return None, None
        metrics = SpanMetrics(scope)
        table = SpanTable(
            system=_SYSTEMS.get(self.broker.kind, self.broker.scheme),
            queue_of=self._queue_of_sent,
            dropped=metrics.dropped.inc,
        )
        sender = _span_sender(options, self.broker)
        return table, SpansCollector(sender, table, metrics, broker=self.name, clock=self._clock)

    def _queue_of_sent(self, event: Event) -> str | None:
        return self.cluster.routes.queue_of_sent(event)

    @property
    def was_reached(self) -> bool:
        """Whether the broker has answered at least once."""
        return self.listener.reached.is_set()

    @property
    def is_up(self) -> bool:
        """Whether the broker answers now."""
        return bool(self.cluster.exporter.broker_up.value)

    @property
    def key(self) -> str:
        """What its part of a saved state is called: counts of one broker are never added to another's."""
        return f"broker {self.name.replace('***@', '')}"  # also of one that has got a password since

    def saved(self, now: float) -> Iterator[SavedRecord]:
        """Yield what is known of the cluster; call it after the end of ``run``."""
        return saved(self.cluster, now)

    def reader(self) -> ClusterReader:
        """Return what brings that back; use it before ``run``."""
        return ClusterReader(self.cluster, loses=self._source.loses_when_away)

    async def run(self) -> None:
        """Watch until cancelled."""
        self.cluster.precedence.hurry = self._snapshots.hurry
        try:
            async with asyncio.TaskGroup() as group:
                for work in (self.listener.run, *self._work, *(poller.run for poller in self.pollers)):
                    group.create_task(self._keep(work))
        finally:
            await asyncio.gather(*(poller.close() for poller in self.pollers), return_exceptions=True)
            if self._sending is not None:
                self._sending.give_up()

    async def _keep(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work*, and again after a fault of ours: one part of one broker must not end the watch over all."""
        while True:
            try:
                await work()
            except Exception:
                log.exception("fault of ours, beginning anew", extra={"broker": self.name})
                await asyncio.sleep(FAULT_SECONDS)

    async def _count_snapshots(self) -> None:
        """Take in the snapshots that wait, before the events that wait: they tell of which workers no events count."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SNAPSHOTS_SECONDS):
                await self._snapshots.next_poll()

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

    async def _report(self, episodes: Episodes, forwards: BrokerForwarder) -> None:
        """Forward each trouble when it begins."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self.refresh()
            for episode in episodes.look(self._clock()):
                forwards.take_episode(episode)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.cluster.tick(self._clock())


#: What OpenTelemetry calls the kinds of brokers; the others are called as in kombu.
_SYSTEMS: Final = {"amqp": "rabbitmq", "redis": "redis"}


def _span_sender(options: OtlpOptions, broker: Broker) -> Sender:
    from .traces.otlp import OtlpSender  # imported when needed: an extra, and large

    return OtlpSender(options, broker.name)


def _source(broker: Broker, decoder: EventDecoder, settings: Settings) -> EventSource:
    # Imported when needed: each brings its client library along.
    if broker.kind == "redis":
        from .intake.redis import RedisEvents

        return RedisEvents(broker, decoder)
    if broker.kind == "amqp":
        from .intake.amqp import AmqpEvents

        return AmqpEvents(broker, decoder, replica=settings.replica)
    if not broker.has_events:
        from .intake.silent import SilentEvents

        # A probe of its own: each serves one thread.
        return SilentEvents(partial(_queue_probe(broker, settings).collect, ()))
    from .intake.kombu import KombuEvents

    return KombuEvents(broker, decoder)


def _snapshot_source(broker: Broker, replica: str, *, is_guest: bool) -> SnapshotSource:
    replica = GUEST if is_guest else replica
    if broker.kind == "redis":
        from .intake.snapshots_redis import RedisSnapshots

        return RedisSnapshots(broker, replica=replica)
    if broker.kind == "amqp":
        from .intake.snapshots_amqp import AmqpSnapshots

        return AmqpSnapshots(broker, replica=replica, passing=is_guest)
    from .intake.snapshots_kombu import KombuSnapshots, SqsSnapshots

    return (SqsSnapshots if broker.scheme == "sqs" else KombuSnapshots)(broker, acknowledge=not is_guest)


def _queue_probe(broker: Broker, settings: Settings) -> QueueProbe:
    if broker.kind == "redis":
        from .probes.redis import RedisProbe

        return RedisProbe(broker)
    if broker.kind == "amqp":
        from .probes.rabbitmq import RabbitProbe

        return RabbitProbe(broker, settings.management_url)
    if broker.scheme == "sqs":
        from .probes.sqs import SqsProbe

        return SqsProbe(broker)
    from .probes.kombu import KombuProbe

    return KombuProbe(broker)
