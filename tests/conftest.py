"""
Fixtures for real brokers, workers and clients.

One Redis, one RabbitMQ, one SQS and one bugsink serve the whole run; every test gets its own database, virtual host,
region or project. Tests that kill or freeze a server ask for their own (``own_redis``, ``own_rabbit``, ``own_sqs``,
``own_bugsink``). What is not installed skips its tests, or fails them when REQUIRE_REAL is set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.servers.alertmanager import Alertmanager, find_amtool
from tests.servers.bugsink import BugsinkServer, Project
from tests.servers.ingest import Ingest
from tests.servers.otlp import OtlpReceiver
from tests.servers.pager import Pager
from tests.servers.process import Server, guardian
from tests.servers.prometheus import PrometheusServer, find_promtool
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.sqs import SqsServer
from tests.servers.workers import Client, Worker


@dataclass(frozen=True)
class Broker:
    """A broker that belongs to one test: *url* leads to an empty database, virtual host or region."""

    kind: Literal["redis", "amqp", "sqs"]
    url: str
    server: RedisServer | RabbitServer | SqsServer
    #: RabbitMQ only: the management API, with the credentials of *url*'s user.
    management_url: str = ""
    vhost: str = ""
    #: SQS only: what the worker, the client and the sidecar need besides the URL.
    transport_options: Mapping[str, Any] = field(default_factory=dict)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the end of the log of every server the test started, when it fails."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for server in item.stash.get(_servers_key, []):
            report.sections.append((f"log of {server.name}", server.log_tail()))


_servers_key: pytest.StashKey[list[Server]] = pytest.StashKey()


def pytest_sessionfinish() -> None:
    guardian.dismiss()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The run's Redis. Do not kill, pause or flush it: others use it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """The run's RabbitMQ. Do not kill or pause it: others use it."""
    with RabbitServer(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(scope="session")
def sqs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqsServer]:
    """The run's SQS. Do not kill or pause it: others use it."""
    with SqsServer(tmp_path_factory.mktemp("sqs")) as server:
        yield server


@pytest.fixture(scope="session")
def bugsink_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BugsinkServer]:
    """The run's Sentry-compatible server. Do not kill or pause it: others use it."""
    with BugsinkServer(tmp_path_factory.mktemp("bugsink")) as server:
        yield server


_numbers = itertools.count(1)


@pytest.fixture
def redis_broker(redis_server: RedisServer) -> Broker:
    """An empty database of the run's Redis."""
    return Broker("redis", redis_server.url(next(_numbers)), redis_server)


@pytest.fixture
def rabbit_broker(rabbit_server: RabbitServer) -> Iterator[Broker]:
    """A new virtual host of the run's RabbitMQ, with a user who may use nothing else."""
    name = f"test{next(_numbers)}"
    url = rabbit_server.add_vhost(name, user=name, password=f"{name}-secret")
    management_url = rabbit_server.management_url.replace("://", f"://{name}:{name}-secret@")
    yield Broker("amqp", url, rabbit_server, management_url, name)
    rabbit_server.remove_vhost(name, user=name)


@pytest.fixture
def sqs_broker(sqs_server: SqsServer) -> Broker:
    """A region of the run's SQS. Workers and clients need its options: ``conf={"broker_transport_options": ...}``."""
    # The long poll of a killed worker would still take a message.
    options = {"region": f"test-{next(_numbers)}", "is_secure": False, "wait_time_seconds": 0, "polling_interval": 0.2}
    return Broker("sqs", sqs_server.url(), sqs_server, transport_options=options)


@pytest.fixture(
    params=[pytest.param("redis", marks=pytest.mark.redis), pytest.param("amqp", marks=pytest.mark.rabbitmq)]
)
def broker(request: pytest.FixtureRequest) -> Broker:
    """Run the test once on Redis and once on RabbitMQ."""
    broker: Broker = request.getfixturevalue("redis_broker" if request.param == "redis" else "rabbit_broker")
    return broker


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for this test alone, to be killed, paused and restarted; it keeps its data over a restart."""
    with RedisServer(tmp_path / "redis", keep_data=True) as server:
        yield server


@pytest.fixture
def own_rabbit(tmp_path: Path) -> Iterator[RabbitServer]:
    """A RabbitMQ for this test alone; takes some seconds to start."""
    with RabbitServer(tmp_path / "rabbitmq") as server:
        yield server


@pytest.fixture
def own_sqs(tmp_path: Path) -> Iterator[SqsServer]:
    """An SQS for this test alone, to be killed, paused and restarted; it forgets its queues then."""
    with SqsServer(tmp_path / "sqs") as server:
        yield server


@pytest.fixture
def own_bugsink(tmp_path: Path) -> Iterator[BugsinkServer]:
    """A Sentry-compatible server for this test alone, to be killed, paused and restarted; it keeps what it has."""
    with BugsinkServer(tmp_path / "bugsink") as server:
        yield server


@pytest.fixture
def sentry_project(bugsink_server: BugsinkServer) -> Project:
    """A new project of the run's Sentry-compatible server; its ``dsn`` is what clients need."""
    return bugsink_server.add_project()


@pytest.fixture
def start_worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """
    Return a function that starts a worker and waits until it is ready: ``start_worker(broker.url, name="a@host")``.

    Its options are those of tests.servers.workers.Worker. All workers of a test share one folder of results with
    ``make_client``; they are stopped when the test ends, and their logs shown when it failed.
    """
    workers: list[Worker] = []
    request.node.stash[_servers_key] = workers

    def start(broker_url: str, **options: Any) -> Worker:
        worker = Worker(broker_url, tmp_path, **options)
        workers.append(worker)
        return worker.start()

    yield start
    for worker in workers:
        # Nothing is owed to the tasks still running; a test that cares stops its worker itself.
        worker.kill()


@pytest.fixture
def make_client(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Return a function that makes a client: ``make_client(broker.url, task_default_queue="x")``."""
    clients: list[Client] = []

    def make(broker_url: str, **options: Any) -> Client:
        clients.append(Client(broker_url, tmp_path, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[Callable[..., PrometheusServer]]:
    """Return a function that starts Prometheus with a configuration text: ``start_prometheus(text, options=[...])``."""
    servers: list[PrometheusServer] = []

    def start(config: str, **more: Any) -> PrometheusServer:
        servers.append(PrometheusServer(tmp_path / f"prometheus{len(servers)}", config, **more))
        return servers[-1].start()

    yield start
    for server in servers:
        server.discard()


@pytest.fixture(scope="session")
def promtool() -> Path:
    """The promtool binary."""
    return find_promtool()


@pytest.fixture
def pager() -> Iterator[Pager]:
    """Somebody who is called: a webhook for Alertmanager that keeps what it is told."""
    with Pager() as pager:
        yield pager


@pytest.fixture
def start_alertmanager(tmp_path: Path) -> Iterator[Callable[[Mapping[str, Any]], Alertmanager]]:
    """Return a function that starts Alertmanager with a configuration: ``start_alertmanager(example(pager.url))``."""
    servers: list[Alertmanager] = []

    def start(config: Mapping[str, Any]) -> Alertmanager:
        servers.append(Alertmanager(tmp_path / f"alertmanager{len(servers)}", config))
        return servers[-1].start()

    yield start
    for server in servers:
        server.discard()


@pytest.fixture(scope="session")
def amtool() -> Path:
    """The amtool binary."""
    return find_amtool()


@pytest.fixture
def otlp() -> Iterator[OtlpReceiver]:
    """A receiver of spans that keeps what it is sent, and can be told to refuse or to be slow."""
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def ingest() -> Iterator[Ingest]:
    """A taker of Sentry events that keeps what it is sent, and can be told to refuse, to limit or to be slow."""
    with Ingest() as ingest:
        yield ingest
