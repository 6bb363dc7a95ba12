"""
Somebody is called, and told when it is over: worker, broker, sidecar, Prometheus and Alertmanager, all real.

The rules are those that ship, with every length of time divided by sixty; routes and inhibition are those of
``alerts/alertmanager.example.yml``. What Celery and the sidecar do takes as long as it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from celery_lookout.assets.rules import RuleOptions, rule_file
from celery_lookout.assets.thresholds import Thresholds
from tests.conftest import Broker
from tests.servers.alertmanager import Alertmanager, example
from tests.servers.pager import Page, Pager
from tests.servers.process import wait_until
from tests.servers.prometheus import PrometheusServer, quick_config
from tests.servers.redis import RedisServer
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker

pytestmark = pytest.mark.prometheus

#: A minute of the rules is a second here. The blind one is let off: heartbeats come every two seconds even here.
RULES = RuleOptions(scale=1 / 60, thresholds=Thresholds(blind_silence=600))


@dataclass(frozen=True)
class Scene:
    """A worker that consumes the queue ``mail``, and all that stands between it and somebody's sleep."""

    sidecar: Sidecar
    worker: Worker
    client: Client
    alertmanager: Alertmanager
    pager: Pager

    def let_work_wait(self) -> None:
        """Stop the worker, as a deployment does that never starts the next one, and publish."""
        self.worker.stop()
        for _ in range(7):
            self.client.send("send_mail")


@pytest.fixture
def stage(
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
    start_prometheus: Callable[..., PrometheusServer],
    start_alertmanager: Callable[..., Alertmanager],
    pager: Pager,
) -> Callable[..., Scene]:
    """Return a function that starts everything on a broker and waits until it has been at peace for a moment."""

    def start(broker_url: str, *options: str) -> Scene:
        sidecar = start_sidecar(broker_url, "--probe.interval", "1", *options)
        alertmanager = start_alertmanager(example(pager.url))
        prometheus = start_prometheus(
            quick_config("celery-lookout", f"127.0.0.1:{sidecar.port}", alertmanager=alertmanager.address),
            # Like the rules: a second for Prometheus's minute between two words about the same alert.
            options=["--rules.alert.resend-delay=1s"],
        )
        worker = start_worker(broker_url, queues=["mail"], concurrency=1, prefetch=1)
        client = make_client(broker_url)
        client.wait(*[client.send("send_mail") for _ in range(5)])
        wait_until(lambda: prometheus.query('celery_task_succeeded_total{queue="mail"} == 5'))
        prometheus.load_rules(rule_file(RULES))
        wait_until(lambda: prometheus.query('queue:celery_queue_backlog:sum{queue="mail"} == 0'))
        return Scene(sidecar, worker, client, alertmanager, pager)

    return start


def told(page: Page, since: float) -> None:
    """Print how long it took; ``pytest -s`` shows it."""
    print(f"{page.name} {page.status} after {page.at - since:.1f} s")


def test_a_queue_that_nobody_works_on(broker: Broker, stage: Callable[..., Scene]) -> None:
    """The worker is stopped, and work comes: one page names the queue, and ends when the worker is back."""
    management = ["--rabbitmq.management-url", broker.management_url] if broker.management_url else []
    scene = stage(broker.url, *management)

    stopped = time.monotonic()
    scene.let_work_wait()
    page = scene.pager.wait_for("CeleryQueueNoConsumers", queue="mail", job="celery-lookout")
    told(page, stopped)
    assert page.receiver == "celery-pager"
    assert page.annotations["summary"] == "Nobody consumes queue mail"
    assert page.annotations["description"].startswith("7 tasks wait in queue mail")
    assert page.annotations["runbook_url"].endswith("CeleryQueueNoConsumers.md")
    assert "var-queue=mail" in page.annotations["dashboard_url"]

    started = time.monotonic()
    scene.worker.start()
    resolved = scene.pager.wait_for("CeleryQueueNoConsumers", "resolved", queue="mail")
    told(resolved, started)
    assert [one.name for one in scene.pager.pages] == ["CeleryQueueNoConsumers"] * 2, scene.pager


@pytest.mark.redis
def test_a_storm_of_failures(redis_broker: Broker, stage: Callable[..., Scene]) -> None:
    """The page names task and queue, and ends when the failures have."""
    scene = stage(redis_broker.url)

    began = time.monotonic()
    for _ in range(30):
        scene.client.send("fail", queue="mail")
    page = scene.pager.wait_for("CeleryTaskFailureSpike", task="sample.fail", queue="mail")
    told(page, began)
    assert page.receiver == "celery-pager"
    assert page.annotations["summary"] == "Task sample.fail in queue mail fails"

    resolved = scene.pager.wait_for("CeleryTaskFailureSpike", "resolved", task="sample.fail")
    told(resolved, began)
    # The queue's error budget may have its own page, by how many failures Prometheus saw happen.
    spikes = [one for one in scene.pager.pages if one.name == "CeleryTaskFailureSpike"]
    assert [(one.status, one.labels["task"]) for one in spikes] == [
        ("firing", "sample.fail"),
        ("resolved", "sample.fail"),
    ]
    assert {one.labels.get("queue") for one in scene.pager.pages} == {"mail"}, scene.pager


@pytest.mark.redis
def test_the_sidecar_dies_while_a_page_is_open(redis_broker: Broker, stage: Callable[..., Scene]) -> None:
    """There is a page at every moment, and nobody is told that the queue is well while nobody can know."""
    scene = stage(redis_broker.url)
    scene.let_work_wait()
    first = scene.pager.wait_for("CeleryQueueNoConsumers", queue="mail")

    killed = time.monotonic()
    scene.sidecar.kill()
    page = scene.pager.wait_for("CeleryExporterDown", job="celery-lookout")
    told(page, killed)
    # The queue's alert holds on for five of the rules' minutes, then Prometheus has nothing to hold on to.
    wait_until(lambda: not scene.alertmanager.alerts('alertname="CeleryQueueNoConsumers"'))
    assert [one.name for one in scene.pager.open()] == ["CeleryQueueNoConsumers", "CeleryExporterDown"]

    scene.worker.start()
    back = time.monotonic()
    scene.sidecar.start()
    over = scene.pager.wait_for("CeleryExporterDown", "resolved", job="celery-lookout")
    told(over, back)
    assert scene.pager.silence(first.at, over.at, "celery-pager") == 0, scene.pager
    # What ended while it was muted is told now.
    told(scene.pager.wait_for("CeleryQueueNoConsumers", "resolved", queue="mail"), back)


@pytest.mark.redis
def test_the_broker_dies(own_redis: RedisServer, stage: Callable[..., Scene]) -> None:
    """One page, whatever else is wrong because of it."""
    scene = stage(own_redis.url(), "--queue.latency-slo", "mail=4")
    for _ in range(5):
        scene.client.send("sleep", 60.0, queue="mail")
    scene.sidecar.wait_for("celery_queue_length", 3, queue="mail")

    killed = time.monotonic()
    own_redis.kill()
    page = scene.pager.wait_for("CeleryExporterBrokerDown", job="celery-lookout")
    told(page, killed)
    # What waits gets older all the same.
    wait_until(lambda: scene.alertmanager.alerts('alertname="CeleryQueueLatencySLOBreached"'))
    # Somebody else's alert that begins now is told after what began before.
    scene.alertmanager.post([{**page.labels, "job": "another"}])
    scene.pager.wait_for("CeleryExporterBrokerDown", job="another")
    assert [one.labels["job"] for one in scene.pager.pages] == ["celery-lookout", "another"], scene.pager
    (muted,) = scene.alertmanager.alerts('alertname="CeleryQueueLatencySLOBreached"')
    assert muted["status"]["state"] == "suppressed"

    back = time.monotonic()
    own_redis.start()
    told(scene.pager.wait_for("CeleryExporterBrokerDown", "resolved", job="celery-lookout"), back)
