"""What RabbitMQ and its administrators can do to us besides hanging and dying: named, counted exactly, and passing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.conftest import Broker
from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.sidecar import Metrics, Sidecar
from tests.servers.workers import Client, Worker

pytestmark = [pytest.mark.rabbitmq, pytest.mark.usefixtures("stamped")]

Start = Callable[..., Sidecar]
StartWorker = Callable[..., Worker]
MakeClient = Callable[..., Client]

UP = "celery_exporter_broker_up"
SUCCEEDED = "celery_task_succeeded_total"
LOST = "celery_exporter_events_lost_total"
RECONNECTS = "celery_exporter_broker_reconnects_total"

#: What is counted once per task, whatever comes twice.
EXACT = ("sent_total", "received_total", "started_total", "succeeded_total", "queue_wait_seconds_count")


@dataclass
class Scene:
    """A sidecar, and how many tasks ran while it or its queue was there."""

    sidecar: Sidecar
    client: Client
    ran: int = 0

    def run(self, count: int = 5) -> None:
        self.client.wait(*[self.client.send("noop") for _ in range(count)], seconds=60)
        self.ran += count

    def goes_on(self, count: int = 5) -> Metrics:
        """Run tasks, and hold the sidecar to having counted all that ever ran, each once."""
        self.run(count)
        self.sidecar.wait_for(SUCCEEDED, self.ran, 60)
        metrics = self.sidecar.wait_for(UP, 1)
        assert {name: metrics.get(f"celery_task_{name}") for name in EXACT} == dict.fromkeys(EXACT, self.ran)
        assert metrics.get("celery_exporter_events_invalid_total") == 0
        assert metrics.get("celery_task_lost_total") in (None, 0)
        assert set(metrics.by("celery_worker_up", "worker").values()) == {1}
        assert self.sidecar.get("/-/healthy").status == 200
        return metrics

    def is_told(self, *words: str) -> None:
        """Wait until one line of the log has all the words."""

        def told() -> bool:
            return any(all(word in line for word in words) for line in self.sidecar.log.read_text().splitlines())

        wait_until(told, 40, f"no word of {words}")

    def collector_becomes(self, name: str, value: int) -> None:
        self.sidecar.wait_for("celery_exporter_collector_success", value, 40, collector=name)


def queues(server: RabbitServer) -> set[str]:
    return {queue["name"] for queue in server.management("GET", "queues/%2F?columns=name")}


def test_an_alarm_that_silences_workers_is_named_and_does_not_make_them_dead(
    own_rabbit: RabbitServer, start_sidecar: Start, start_worker: StartWorker, make_client: MakeClient
) -> None:
    """While it is short of memory RabbitMQ reads nothing of publishers: no heartbeat comes, for longer than a life."""
    sidecar = start_sidecar(own_rabbit.url(), "--rabbitmq.management-url", own_rabbit.management_url)
    start_worker(own_rabbit.url())
    start_worker(own_rabbit.url(), name="told@host", queues=("other",), signals={"interval": 1.0})
    scene = Scene(sidecar, make_client(own_rabbit.url()))
    scene.goes_on()
    own_rabbit.control("set_vm_memory_high_watermark", "0.0000001")
    scene.collector_becomes("publishing", 0)
    scene.is_told("collector=publishing", "short of memory or disk")
    heard = "celery_exporter_last_event_timestamp_seconds"
    polled = "celery_exporter_collector_last_success_timestamp_seconds"

    def silence() -> float:
        metrics = sidecar.metrics()
        assert set(metrics.by("celery_worker_up", "worker").values()) == {1}
        assert metrics.get("celery_queue_length", queue="celery") == 0
        return (metrics.get(polled, collector="queues") or 0.0) - (metrics.get(heard) or 0.0)

    wait_until(lambda: silence() > 12, 40, "the alarm silences nobody")
    assert len(sidecar.metrics().by("celery_worker_up", "worker")) == 2
    assert sidecar.value(UP) == 1
    own_rabbit.control("set_vm_memory_high_watermark", "0.4")
    scene.collector_becomes("publishing", 1)
    assert scene.goes_on().get(LOST) == 0


def test_what_is_deleted_is_made_anew(
    own_rabbit: RabbitServer, start_sidecar: Start, start_worker: StartWorker, make_client: MakeClient
) -> None:
    """Queues of ours and of Celery, the exchange of events, the virtual host; then the password changes for a while."""
    sidecar = start_sidecar(own_rabbit.url(), "--rabbitmq.management-url", own_rabbit.management_url)
    worker = start_worker(own_rabbit.url(), signals={"interval": 1.0})
    scene = Scene(sidecar, make_client(own_rabbit.url()))
    scene.goes_on()
    for name in ("celery-lookout.events.v1", "celery-lookout.signals.v1"):
        own_rabbit.management("DELETE", f"queues/%2F/{name}")
    scene.is_told("the event queue was deleted")
    sidecar.wait_for(RECONNECTS, 1)
    wait_until(lambda: queues(own_rabbit) >= {"celery-lookout.events.v1", "celery-lookout.signals.v1"})
    scene.goes_on()

    worker.stop()  # Celery's worker ends when it finds no exchange for its events
    own_rabbit.management("DELETE", "exchanges/%2F/celeryev")
    scene.is_told("no exchange 'celeryev'")
    sidecar.wait_for(RECONNECTS, 2)
    own_rabbit.management("DELETE", "exchanges/%2F/celeryev")
    own_rabbit.management("PUT", "exchanges/%2F/celeryev", {"type": "topic", "durable": True})
    wait_until(lambda: len(own_rabbit.management("GET", "exchanges/%2F/celeryev/bindings/source")) == 1, 30)
    assert sidecar.value(RECONNECTS) == 2

    for _ in range(3):
        scene.client.send("noop")
    sidecar.wait_for("celery_queue_length", 3, queue="celery")
    own_rabbit.management("DELETE", "queues/%2F/celery/contents")
    sidecar.wait_for("celery_queue_length", 0, queue="celery")
    own_rabbit.management("DELETE", "queues/%2F/celery")
    wait_until(lambda: not sidecar.metrics().has("celery_queue_length", queue="celery"), 40)

    own_rabbit.management("DELETE", "vhosts/%2F")
    scene.is_told("vhost / not found")
    sidecar.wait_for(UP, 0)
    own_rabbit.management("PUT", "vhosts/%2F")
    own_rabbit.management("PUT", "permissions/%2F/guest", {"configure": ".*", "write": ".*", "read": ".*"})
    sidecar.wait_for(UP, 1)

    own_rabbit.control("change_password", "guest", "another-secret")
    own_rabbit.control("close_all_connections", "test")
    sidecar.wait_for(UP, 0)
    scene.is_told("broker unavailable", "test")
    scene.is_told("collector=queues", "ACCESS_REFUSED")
    own_rabbit.control("change_password", "guest", "guest")
    sidecar.wait_for(UP, 1)
    for name in ("queues", "workers", "snapshots", "publishing"):
        scene.collector_becomes(name, 1)
    scene.client.close()
    scene.client = make_client(own_rabbit.url(), task_publish_retry=True)
    worker.start()
    before = sidecar.value(SUCCEEDED) or 0
    scene.run()
    metrics = sidecar.wait_for(SUCCEEDED, before + 5)
    assert metrics.get("celery_worker_up", worker="worker@host") == 1


def test_cuts_in_the_middle_of_frames_change_no_count(
    rabbit_broker: Broker, start_sidecar: Start, start_worker: StartWorker, make_client: MakeClient
) -> None:
    """Events come again after a cut, and snapshots; then half a second of delay, then a trickle."""
    port = urlsplit(rabbit_broker.url).port
    assert port is not None
    with FaultProxy(port) as proxy:
        url = rabbit_broker.url.replace(f":{port}", f":{proxy.port}")
        sidecar = start_sidecar(url, "--rabbitmq.management-url", rabbit_broker.management_url)
        start_worker(rabbit_broker.url)
        start_worker(rabbit_broker.url, name="told@host", queues=("told",), signals={"interval": 1.0}, events=False)
        scene = Scene(sidecar, make_client(rabbit_broker.url))
        scene.goes_on()
        for offset in (1, 300, 1500, 9001):
            connections = proxy.connections
            proxy.cut_after = proxy.bytes + offset
            told = [scene.client.send("noop", queue="told") for _ in range(5)]
            scene.run(25)
            scene.client.wait(*told)
            scene.ran += len(told)
            wait_until(lambda before=connections: proxy.connections > before)  # type: ignore[misc]
            proxy.cut_after = None
            sidecar.wait_for(UP, 1)
        assert (scene.goes_on().get(RECONNECTS) or 0) > 0
        proxy.latency = 0.5
        scene.goes_on()
        proxy.latency, proxy.rate = 0.0, 1000
        scene.run(1)
        # What task-sent alone tells may come too late for the task's wait.
        sidecar.wait_for("celery_task_sent_total", scene.ran, 60)
        assert sidecar.wait_for(SUCCEEDED, scene.ran, 60).get(LOST) == 0


def test_when_the_management_api_hangs_depths_go_on(
    rabbit_broker: Broker, start_sidecar: Start, make_client: MakeClient
) -> None:
    """What only it knows is not shown meanwhile, and is back soon after."""
    port = urlsplit(rabbit_broker.management_url).port
    assert port is not None
    client = make_client(rabbit_broker.url)
    with FaultProxy(port) as proxy:
        url = rabbit_broker.management_url.replace(f":{port}", f":{proxy.port}")
        sidecar = start_sidecar(rabbit_broker.url, "--rabbitmq.management-url", url)
        client.send("noop", queue="busy")
        sidecar.wait_for("celery_queue_unacked", 0, queue="busy")
        proxy.mode = "blackhole"
        wait_until(lambda: not sidecar.metrics().has("celery_queue_unacked", queue="busy"))
        client.send("noop", queue="busy")
        metrics = sidecar.wait_for("celery_queue_length", 2, queue="busy")
        assert metrics.get("celery_exporter_collector_success", collector="queues") == 1
        wait_until(lambda: "management API is not in use" in sidecar.log.read_text())
        proxy.mode = "pass"
        sidecar.wait_for("celery_queue_unacked", 0, queue="busy")
