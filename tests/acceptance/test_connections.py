"""Every way to reach a broker that Celery knows: the sidecar hears the same workers there, and sees the same queues."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.servers.process import free_port
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.sentinel import SentinelServer
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker


@dataclass
class Way:
    """A broker URL with the Celery settings that go with it."""

    url: str
    transport_options: dict[str, Any] = field(default_factory=dict)
    use_ssl: dict[str, Any] | None = None

    @property
    def celery_settings(self) -> dict[str, Any]:
        ssl = {"broker_use_ssl": self.use_ssl} if self.use_ssl else {}
        return {"broker_transport_options": self.transport_options, **ssl}

    @property
    def sidecar_options(self) -> list[str]:
        options = ["--broker.transport-options", json.dumps(self.transport_options)]
        return options + (["--broker.use-ssl", json.dumps(self.use_ssl)] if self.use_ssl else [])


@pytest.fixture
def watch(
    start_sidecar: Callable[..., Sidecar], start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> Callable[[Way], None]:
    """Return a function that runs ten tasks over a way and holds the sidecar to seeing them."""

    def check(way: Way) -> None:
        sidecar = start_sidecar(way.url, *way.sidecar_options)
        start_worker(way.url, queues=("celery", "mail"), conf=way.celery_settings)
        client = make_client(way.url, **way.celery_settings)
        client.wait(*[client.send("noop", queue="mail") for _ in range(10)])
        metrics = sidecar.wait_for("celery_task_succeeded_total", 10, task="sample.noop", queue="mail")
        assert metrics.get("celery_exporter_events_invalid_total") == 0
        sidecar.wait_for("celery_queue_workers", 1, queue="mail")
        for _ in range(3):
            client.send("noop", queue="nobody")
        metrics = sidecar.wait_for("celery_queue_length", 3, queue="nobody")
        collectors = metrics.by("celery_exporter_collector_success", "collector")
        names = ["queues", "workers", "snapshots", *(["publishing"] if way.url.startswith("amqp") else [])]
        assert collectors == {(name,): 1 for name in names}

    return check


@pytest.mark.redis
@pytest.mark.parametrize(
    "options",
    [
        {"global_keyprefix": "shop:"},
        {"fanout_prefix": False},
        {"fanout_prefix": "/shop."},
        {"fanout_patterns": False},
        {"global_keyprefix": "shop:", "fanout_prefix": False, "fanout_patterns": False},
        {"priority_steps": [0, 5], "sep": "/"},
    ],
    ids=json.dumps,
)
def test_redis_with_transport_options(
    options: dict[str, Any], redis_server: RedisServer, own_redis: RedisServer, watch: Callable[[Way], None]
) -> None:
    # Without a prefix pub/sub is shared by all databases, so it cannot be the run's Redis.
    watch(Way(own_redis.url(5), options))


@pytest.mark.redis
def test_two_databases_of_one_redis_are_told_apart(
    own_redis: RedisServer,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Pub/sub ignores databases; the channel's prefix does not."""
    sidecar = start_sidecar(own_redis.url(1))
    start_worker(own_redis.url(1), name="one@host")
    start_worker(own_redis.url(11), name="eleven@host")
    ours, theirs = make_client(own_redis.url(1)), make_client(own_redis.url(11))
    theirs.wait(*[theirs.send("noop") for _ in range(7)])
    ours.wait(*[ours.send("noop") for _ in range(5)])
    metrics = sidecar.wait_for("celery_task_succeeded_total", 5)
    assert metrics.by("celery_worker_up", "worker").keys() <= {("one@host",)}


@pytest.mark.redis
def test_redis_with_a_password(tmp_path: Path, watch: Callable[[Way], None]) -> None:
    with RedisServer(tmp_path / "redis", password="p@ss/word") as server:
        watch(Way(f"redis://:p%40ss%2Fword@127.0.0.1:{server.port}/0"))


@pytest.mark.redis
def test_redis_on_a_unix_socket(tmp_path: Path, watch: Callable[[Way], None]) -> None:
    path = tmp_path / "r.sock"
    with RedisServer(tmp_path / "redis", options=["--unixsocket", str(path)]):
        watch(Way(f"redis+socket://{path}?virtual_host=4"))


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """Files of a server certificate for 127.0.0.1: ``ca``, ``cert`` and ``key``."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    server.cert_chain_pems[0].write_to_path(paths["cert"])
    server.private_key_pem.write_to_path(paths["key"])
    return paths


@pytest.mark.redis
def test_redis_over_tls(tmp_path: Path, certificates: dict[str, str], watch: Callable[[Way], None]) -> None:
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", certificates["ca"]]
    options += ["--tls-cert-file", certificates["cert"], "--tls-key-file", certificates["key"]]
    with RedisServer(tmp_path / "redis", options=options):
        watch(
            Way(
                f"rediss://127.0.0.1:{port}/0",
                use_ssl={"ssl_cert_reqs": "required", "ssl_ca_certs": certificates["ca"]},
            )
        )


@pytest.mark.rabbitmq
def test_rabbitmq_over_tls(tmp_path: Path, certificates: dict[str, str], watch: Callable[[Way], None]) -> None:
    port = free_port()
    config = [
        f"listeners.ssl.1 = 127.0.0.1:{port}",
        f"ssl_options.cacertfile = {certificates['ca']}",
        f"ssl_options.certfile = {certificates['cert']}",
        f"ssl_options.keyfile = {certificates['key']}",
    ]
    with RabbitServer(tmp_path / "rabbitmq", config="\n".join(config)):
        watch(Way(f"amqps://guest:guest@127.0.0.1:{port}//", use_ssl={"ca_certs": certificates["ca"], "cert_reqs": 2}))


@pytest.fixture
def sentinel(own_redis: RedisServer, tmp_path: Path) -> Iterator[SentinelServer]:
    with SentinelServer(tmp_path / "sentinel", own_redis) as server:
        yield server


@pytest.mark.redis
def test_redis_behind_sentinel(sentinel: SentinelServer, watch: Callable[[Way], None]) -> None:
    watch(Way(f"sentinel://127.0.0.1:{sentinel.port}/0", {"master_name": "shop"}))


def test_a_transport_without_a_server(tmp_path: Path, watch: Callable[[Way], None]) -> None:
    """Kombu's filesystem transport stands for all those that have no reader of their own here."""
    folders = {"data_folder_in": "messages", "data_folder_out": "messages", "control_folder": "control"}
    options = {name: str(tmp_path / folder) for name, folder in folders.items()}
    for folder in options.values():
        Path(folder).mkdir(exist_ok=True)
    watch(Way("filesystem://", options))
