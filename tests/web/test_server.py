"""The endpoints: what they answer before and after the broker was reached, and to hostile names."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from celery_lookout.broker import Broker
from celery_lookout.metrics.exporter import ProcessMetrics
from celery_lookout.metrics.registry import Registry
from celery_lookout.metrics.web import WebMetrics
from celery_lookout.monitor import Monitor
from celery_lookout.readings import BrokerReading, QueueReading
from celery_lookout.settings import Settings
from celery_lookout.web.server import WebServer
from celery_lookout.web.status import page
from tests.clusters import EPOCH, families, heartbeat, received, sent, started

Client = TestClient[Any, Any]

#: What somebody may call a task or a queue, and without the line break a worker.
HOSTILE = "<script>alert('1')</script>&\"\n"
WORKER = HOSTILE.strip()

BROKERS = (Broker("redis://:hunter2@localhost:1/0", "shop"), Broker("amqp://user:hunter2@localhost:1//", "mail"))


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


class Site:
    """Two monitors that never connect, and the pages about them."""

    def __init__(self, executor: Executor) -> None:
        self.registry = Registry()
        settings = Settings(brokers=BROKERS)
        self.monitors = [Monitor(broker, settings, self.registry, executor, lambda: EPOCH) for broker in BROKERS]
        process = ProcessMetrics(self.registry, "1.2.3")
        metrics = WebMetrics(self.registry, config_file=False)
        self.server = WebServer(self.monitors, self.registry, process, metrics, telemetry_path="/metrics")

    def reach(self, *names: str) -> None:
        for monitor in self.monitors:
            if monitor.name in names:
                monitor.listener.reached.set()
                monitor.cluster.broker_found(EPOCH, gap=False)


@pytest.fixture
def site(executor: Executor) -> Site:
    return Site(executor)


@pytest.fixture
async def client(site: Site) -> AsyncIterator[Client]:
    app = site.server._runner.app
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_healthy_whatever_the_brokers_do(client: Client) -> None:
    response = await client.get("/-/healthy")
    assert (response.status, await response.text()) == (200, "celery-lookout is healthy\n")


async def test_ready_once_every_broker_was_reached(site: Site, client: Client) -> None:
    response = await client.get("/-/ready")
    assert (response.status, await response.text()) == (503, "never reached yet: shop, mail\n")
    site.reach("shop")
    response = await client.get("/-/ready")
    assert (response.status, await response.text()) == (503, "never reached yet: mail\n")
    site.reach("mail")
    response = await client.get("/-/ready")
    assert (response.status, await response.text()) == (200, "celery-lookout is ready\n")


async def test_ready_stays_when_a_broker_goes_away(site: Site, client: Client) -> None:
    site.reach("shop", "mail")
    site.monitors[0].cluster.broker_lost(EPOCH)
    assert (await client.get("/-/ready")).status == 200
    text = await (await client.get("/metrics")).text()
    assert 'celery_exporter_broker_up{broker="shop"} 0\n' in text
    assert 'celery_exporter_broker_up{broker="mail"} 1\n' in text


async def test_metrics_show_everything_up_to_now(site: Site, client: Client) -> None:
    site.monitors[0].cluster.fold([heartbeat(0), sent(0), received(0), started(0)], EPOCH)
    response = await client.get("/metrics", headers={"Accept-Encoding": "identity"})
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    text = await response.text()
    assert 'celery_task_running{task="add",queue="celery",broker="shop"} 1\n' in text
    assert 'celery_exporter_build_info{version="1.2.3"} 1\n' in text
    assert {"celery_exporter_events_invalid", "celery_worker_up", "python_info"} <= {
        family.name for family in families(text)
    }


async def test_every_reason_to_refuse_is_there_from_the_start(client: Client) -> None:
    text = await (await client.get("/metrics")).text()
    reasons = set(re.findall(r'events_invalid_total\{reason="(\w+)",broker="shop"\} 0\n', text))
    assert {"malformed", "field", "compressed", "too_large", "timestamp", "content_type"} <= reasons


async def test_metrics_in_openmetrics_and_gzip(client: Client) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}
    response = await client.get("/metrics", headers=accept)
    assert response.headers["Content-Encoding"] == "gzip"
    assert families(await response.text(), openmetrics=True)


async def test_status_is_json_for_machines(site: Site, client: Client) -> None:
    site.reach("shop")
    site.monitors[0].cluster.fold([heartbeat(0), sent(0, name=HOSTILE), started(0)], EPOCH)
    site.monitors[0].cluster.take_broker(BrokerReading(EPOCH, (QueueReading("celery", 3),)))
    content = await (await client.get("/api/v1/status")).json()
    shop, mail = content["brokers"]
    assert (shop["name"], shop["url"], shop["up"]) == ("shop", "redis://***@localhost:1/0", True)
    assert (mail["name"], mail["url"], mail["up"]) == ("mail", "amqp://***@localhost:1//", False)
    assert [(row["queue"], row["length"]) for row in shop["queues"]] == [("celery", 3)]
    assert [(row["worker"], row["state"], row["running"]) for row in shop["workers"]] == [("w@h", "up", 1)]
    assert any("cannot be reached" in hint for hint in mail["hints"])


async def test_hostile_names_are_text_on_every_page(site: Site, client: Client) -> None:
    cluster = site.monitors[0].cluster
    site.reach("shop", "mail")
    cluster.fold([heartbeat(0, worker=WORKER, sw_ver=HOSTILE)], EPOCH)
    cluster.fold([sent(0, name=HOSTILE, queue=HOSTILE), started(0, worker=WORKER)], EPOCH)
    shown = await (await client.get("/")).text()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") >= 4
    content = await (await client.get("/api/v1/status")).json()
    assert content["brokers"][0]["workers"][0]["worker"] == WORKER
    text = await (await client.get("/metrics")).text()
    assert all(line.startswith(("#", "celery_", "python_", "process_")) for line in text.splitlines())
    assert {
        sample.labels["worker"] for family in families(text) for sample in family.samples if "worker" in sample.labels
    } == {WORKER}


async def test_no_page_shows_a_password(client: Client) -> None:
    for path in ("/", "/metrics", "/api/v1/status", "/-/ready"):
        assert "hunter2" not in await (await client.get(path)).text()


async def test_the_page_links_to_the_metrics_and_names_each_broker(site: Site, client: Client) -> None:
    site.reach("shop")
    shown = await (await client.get("/")).text()
    assert "href='/metrics'" in shown
    assert re.search(r"<h2>shop .*answers</span>", shown)
    assert re.search(r"<h2>mail .*does not answer</span>", shown)
    assert "No queue seen yet." in shown


async def test_other_paths_are_not_found(client: Client) -> None:
    assert (await client.get("/no-such-page")).status == 404


def test_the_page_escapes_its_own_address() -> None:
    assert "<x>" not in page({"version": "<x>", "brokers": []}, "/<x>")
