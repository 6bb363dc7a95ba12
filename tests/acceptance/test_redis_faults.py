"""What Redis can do to us besides hanging and dying: each fault is named, costs what it must, and passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy
from tests.servers.redis import RedisServer
from tests.servers.sentinel import RedisGroup
from tests.servers.sidecar import Metrics, Sidecar
from tests.servers.workers import Client, Worker

pytestmark = pytest.mark.redis

STARTED = "celery_task_started_total"
SUCCEEDED = "celery_task_succeeded_total"
LOST = "celery_exporter_events_lost_total"
HEARTBEAT = "celery_worker_last_heartbeat_timestamp_seconds"
#: Told by remote control alone.
CPU = "celery_worker_main_cpu_seconds_total"


@dataclass
class Scene:
    """A Redis, a worker that knows nothing of us, a client and a sidecar."""

    server: RedisServer
    sidecar: Sidecar
    worker: Worker
    client: Client
    ran: int = 0

    def admin(self) -> redis.Redis:
        return redis.Redis.from_url(self.server.url(), decode_responses=True)

    def run(self, count: int = 5) -> None:
        self.client.wait(*[self.client.send("noop") for _ in range(count)], seconds=60)
        self.ran += count

    def heartbeats(self, count: int = 2) -> None:
        """Wait for more of them: with two, what was lost in a gap is known."""
        for _ in range(count):
            before = self.sidecar.value(HEARTBEAT) or 0.0
            wait_until(lambda before=before: (self.sidecar.value(HEARTBEAT) or 0.0) > before, 40)  # type: ignore[misc]

    def is_counted(self) -> bool:
        """Say whether every task that ran was counted, or as lost."""
        metrics = self.sidecar.metrics()
        return (metrics.get(STARTED) or 0) + (metrics.get(LOST) or 0) == self.ran

    def goes_on(self, count: int = 5, *, lost: int = 0) -> Metrics:
        """Run tasks and hold the sidecar to having counted all but so many *lost*, and to calling nobody dead."""
        self.run(count)
        self.sidecar.wait_for(SUCCEEDED, self.ran - lost)
        metrics = self.sidecar.wait_for("celery_exporter_broker_up", 1)
        assert metrics.get("celery_worker_up", worker=self.worker.node) == 1
        assert metrics.get("celery_task_lost_total") in (None, 0)
        assert self.sidecar.get("/-/healthy").status == 200
        return metrics

    def is_told(self, *words: str) -> None:
        """Wait until the log names the fault, for none of which more rights would be of use."""
        wait_until(lambda: all(word in self.sidecar.log.read_text() for word in words), 40, f"no word of {words}")
        assert " needs +" not in self.sidecar.log.read_text()

    def collector_becomes(self, name: str, value: int) -> None:
        self.sidecar.wait_for("celery_exporter_collector_success", value, 40, collector=name)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One for all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("faults")
    with (
        RedisServer(folder / "redis", options=["--enable-protected-configs", "yes"]) as server,
        Worker(server.url(), folder) as worker,
        Sidecar(server.url(), folder / "sidecar", "--control.interval", "1") as sidecar,
        Client(server.url(), folder, task_publish_retry=True) as client,
    ):
        scene = Scene(server, sidecar, worker, client)
        scene.run()
        sidecar.wait_for(SUCCEEDED, scene.ran)
        wait_until(lambda: sidecar.value(CPU) is not None)
        yield scene
        print(sidecar.log_tail())


def test_after_a_flush_workers_are_asked_again(scene: Scene) -> None:
    """FLUSHALL takes the way to our reply queue with it, and Celery's worker drops the answers without a word."""
    for name in ("noop", "add"):
        scene.client.send("noop", queue=name)
    scene.sidecar.wait_for("celery_queue_length", 1, queue="add")
    with scene.admin() as admin:
        admin.flushall()
    scene.sidecar.wait_for("celery_queue_length", 0, queue="add")
    told = scene.sidecar.value(CPU) or 0.0
    scene.run(50)  # costs some of its time, so that an answer shows
    wait_until(lambda: (scene.sidecar.value(CPU) or 0.0) > told, 40, "the worker is not heard any more")
    assert scene.goes_on().get(LOST) == 0


def test_a_redis_that_refuses_to_write_is_named_and_still_heard(scene: Scene, tmp_path: Path) -> None:
    """Out of memory, then unable to save: events go on, since publishing writes nothing."""
    sidecar = scene.sidecar
    with scene.admin() as admin:
        admin.config_set("maxmemory", "1")
        scene.collector_becomes("workers", 0)
        scene.is_told("used memory > 'maxmemory'")
        scene.heartbeats()
        admin.config_set("maxmemory", "0")
        scene.collector_becomes("workers", 1)
        scene.goes_on()

        folder = tmp_path / "dumps"
        folder.mkdir()
        admin.config_set("dir", str(folder))
        folder.rmdir()
        admin.config_set("save", "1 1")
        admin.set("changed", 1)
        wait_until(lambda: refuses_pings(admin), 30, "Redis saves")
        scene.collector_becomes("workers", 0)
        scene.is_told("MISCONF")
        # Nobody says anything now but Redis, which refuses each of our PINGs.
        scene.worker.stop()
        reconnects = sidecar.value("celery_exporter_broker_reconnects_total")
        silent_for(sidecar, seconds=4.0)
        assert sidecar.value("celery_exporter_broker_up") == 1
        assert sidecar.value("celery_exporter_broker_reconnects_total") == reconnects
        admin.config_set("stop-writes-on-bgsave-error", "no")
    scene.worker.start()
    scene.goes_on()
    scene.collector_becomes("workers", 1)


def refuses_pings(admin: redis.Redis) -> bool:
    try:
        admin.ping()
    except redis.ResponseError as error:
        return "MISCONF" in str(error)
    return False


def silent_for(sidecar: Sidecar, *, seconds: float) -> None:
    """Wait until no event came for so long."""
    event = "celery_exporter_last_event_timestamp_seconds"
    wait_until(lambda: _now(sidecar) - (sidecar.value(event) or 0.0) > seconds, 30)


def _now(sidecar: Sidecar) -> float:
    """Return the time of the newest poll of the queues, which goes on while Redis can be read."""
    return sidecar.value("celery_exporter_collector_last_success_timestamp_seconds", collector="queues") or 0.0


def test_a_changed_password_is_named_until_it_fits_again(scene: Scene) -> None:
    """Connections that are there stay; new ones are refused."""
    with scene.admin() as admin:
        admin.config_set("requirepass", "other")
        admin.client_kill_filter(_type="normal", skipme=True)
        admin.client_kill_filter(_type="pubsub", skipme=True)
        scene.sidecar.wait_for("celery_exporter_broker_up", 0)
        scene.is_told("Authentication required")
        scene.collector_becomes("queues", 0)
        assert scene.sidecar.get("/-/healthy").status == 200
        assert scene.sidecar.value("celery_worker_up") == 1
        admin.config_set("requirepass", "")
    scene.sidecar.wait_for("celery_exporter_broker_up", 1)
    scene.collector_becomes("queues", 1)
    scene.goes_on()


def test_a_restart_under_a_living_worker_loses_only_what_was_lost(scene: Scene) -> None:
    """The worker greets again with all it ever counted, and its long task is neither lost nor started twice."""
    scene.client.send("sleep", 8.0)
    scene.sidecar.wait_for("celery_task_running", 1, task="sample.sleep")
    scene.ran += 1
    scene.heartbeats(3)
    scene.server.kill()
    scene.sidecar.wait_for("celery_exporter_broker_up", 0)
    scene.server.start()
    scene.sidecar.wait_for("celery_exporter_broker_up", 1)
    scene.heartbeats(3)
    assert scene.sidecar.value(LOST) == 0
    scene.sidecar.wait_for(SUCCEEDED, 1, task="sample.sleep")
    assert scene.goes_on().get(LOST) == 0


def test_cuts_in_the_middle_of_messages_lose_what_is_said_to_be_lost(
    own_redis: RedisServer,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    url = own_redis.url()
    with FaultProxy(own_redis.port) as proxy:
        sidecar = start_sidecar(url.replace(str(own_redis.port), str(proxy.port)))
        scene = Scene(own_redis, sidecar, start_worker(url), make_client(url))
        scene.run()
        sidecar.wait_for(SUCCEEDED, scene.ran)
        scene.heartbeats(2)
        for offset in (1, 214, 2048, 6001):
            connections = proxy.connections
            proxy.cut_after = proxy.bytes + offset
            scene.run(25)
            wait_until(lambda before=connections: proxy.connections > before)  # type: ignore[misc]
            proxy.cut_after = None
            sidecar.wait_for("celery_exporter_broker_up", 1)
        scene.heartbeats(2)
        wait_until(scene.is_counted, 30, f"{scene.ran} tasks ran: {sidecar.metrics().get(STARTED)} heard")
        assert sidecar.value("celery_exporter_events_invalid_total") == 0

        before = sidecar.value(LOST)
        proxy.latency = 0.5
        scene.goes_on(lost=int(scene.ran - (sidecar.value(SUCCEEDED) or 0)))
        proxy.latency, proxy.rate = 0.0, 1000
        metrics = scene.goes_on(1, lost=int(scene.ran - (sidecar.value(SUCCEEDED) or 0)))
        assert metrics.get(LOST) == before
        assert proxy.connections > 8


def test_failing_over_leads_to_the_new_master(
    tmp_path: Path,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """As planned, where the old master becomes a replica, then by a kill."""
    options = {"master_name": "shop"}
    with RedisGroup(tmp_path / "group") as group:
        sidecar = start_sidecar(group.url, "--broker.transport-options", json.dumps(options), "--control.interval", "1")
        worker = start_worker(group.url, conf={"broker_transport_options": options})
        first = group.master()
        scene = Scene(first, sidecar, worker, make_client(group.url, broker_transport_options=options))
        scene.run()
        sidecar.wait_for(SUCCEEDED, scene.ran)

        def goes_on(connections: int) -> None:
            """Hold everybody to the new master; the worker may take its time, and nobody calls it dead."""
            wait_until(lambda: (sidecar.value("celery_exporter_broker_reconnects_total") or 0) >= connections, 30)
            scene.client.close()
            scene.client = make_client(group.url, broker_transport_options=options)
            scene.goes_on()
            for name in ("queues", "workers", "snapshots"):
                scene.collector_becomes(name, 1)

        group.sentinel.fail_over()
        wait_until(lambda: group.master() is not first, 30, "no failover")
        goes_on(1)
        wait_until(lambda: group.sentinel.replicas() > 0, 60, "nobody is fit to be the master")
        second = group.master()
        second.kill()
        wait_until(lambda: group.master() is not second, 30, "no failover")
        goes_on(2)


def test_a_master_that_became_a_replica_is_named(own_redis: RedisServer, scene: Scene) -> None:
    """It keeps its connections, passes on what is published on the new master, and refuses to write."""
    scene.server.replicate(own_redis.port)
    scene.collector_becomes("workers", 0)
    scene.is_told("replica")
    with redis.Redis.from_url(own_redis.url()) as master:
        master.publish("/0.celeryev/worker.heartbeat", b"garbage")
    scene.sidecar.wait_for("celery_exporter_events_invalid_total", 1)
    with scene.admin() as admin:
        admin.replicaof("NO", "ONE")
    scene.collector_becomes("workers", 1)
    scene.worker.restart()  # Celery's worker does not survive that
    assert scene.goes_on().get(LOST) == 0
