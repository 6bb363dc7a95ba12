"""A sidecar on Amazon SQS, where Celery has neither events nor remote control."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.acceptance.test_doctor import run_doctor
from tests.conftest import Broker
from tests.servers.process import free_port
from tests.servers.sidecar import Sidecar
from tests.servers.sqs import SqsServer
from tests.servers.workers import Client, Worker


def transport(options: Mapping[str, Any]) -> list[str]:
    return ["--broker.transport-options", json.dumps(options)]


def test_depths_are_shown_and_nothing_fails(
    sqs_broker: Broker,
    sqs_server: SqsServer,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    options = {**sqs_broker.transport_options, "queue_name_prefix": "shop-"}
    conf = {"broker_transport_options": options}
    client = make_client(sqs_broker.url, **conf)
    client.send("noop", queue="mail")
    client.send("sleep_late", 60.0)
    # Not on the command line, where its password would be warned of.
    sidecar = start_sidecar("", *transport(options), env={"CELERY_BROKER_URL": sqs_broker.url})
    sidecar.wait_for("celery_queue_length", 1, queue="mail")
    sidecar.wait_for("celery_queue_length", 1, queue="celery")
    start_worker(sqs_broker.url, conf=conf, concurrency=1)
    metrics = sidecar.wait_for("celery_queue_unacked", 1, queue="celery")
    assert metrics.by("celery_queue_length", "queue") == {("mail",): 1}
    assert metrics.by("celery_exporter_collector_success", "collector") == {("queues",): 1, ("snapshots",): 1}
    assert metrics.get("celery_exporter_broker_up") == 1
    assert not metrics.has("celery_queue_consumers")
    assert "level=warning" not in sidecar.log.read_text()
    urls = sqs_server.client(options["region"]).list_queues()["QueueUrls"]
    assert [url.rpartition("/")[2] for url in urls] == ["shop-mail", "shop-celery"]


def test_the_doctor_says_what_is_missing(sqs_broker: Broker) -> None:
    code, said = run_doctor(sqs_broker.url, *transport(sqs_broker.transport_options), seconds=2)
    assert code == 1
    assert "Amazon SQS has no events" in said
    assert "install celery_lookout_signals in the workers" in said


def test_the_doctor_finds_no_broker_at_a_wrong_endpoint() -> None:
    code, said = run_doctor(
        f"sqs://key:hunter2@127.0.0.1:{free_port()}", *transport({"region": "eu-west-1"}), seconds=3
    )
    assert code == 2
    assert "Could not connect to the endpoint URL" in said
    assert "hunter2" not in said


def test_workers_with_the_package_are_seen_as_on_any_broker(
    sqs_broker: Broker,
    stamped: None,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """Counts, waits and depth."""
    options = {**sqs_broker.transport_options, "queue_name_prefix": "shop-"}
    conf = {"broker_transport_options": options}
    client = make_client(sqs_broker.url, **conf)
    sidecar = start_sidecar(sqs_broker.url, *transport(options), "--queue", "later")
    start_worker(sqs_broker.url, name="w@host", queues=("celery", "mail"), conf=conf, signals={})
    results = [client.send("add", n, 1) for n in range(20)] + [client.send("send_mail") for _ in range(5)]
    results += [client.send("fail") for _ in range(3)] + [client.send("kill_self"), client.send("hard_limit", 60.0)]
    for _ in range(4):
        client.send("noop", queue="later")
    client.wait(*results, seconds=60)
    sidecar.wait_for("celery_task_failed_total", 5, seconds=40)
    metrics = sidecar.wait_for("celery_task_succeeded_total", 25, seconds=40)
    published = {
        ("sample.add", "celery"): 20,
        ("sample.send_mail", "mail"): 5,
        ("sample.fail", "celery"): 3,
        ("sample.kill_self", "celery"): 1,
        ("sample.hard_limit", "celery"): 1,
    }
    for name in ("received_total", "started_total", "queue_wait_seconds_count"):
        assert metrics.by(f"celery_task_{name}", "task", "queue") == published, name
    assert metrics.by("celery_task_exceptions_total", "task", "exception") == {
        ("sample.fail", "ValueError"): 3,
        ("sample.kill_self", "WorkerLostError"): 1,
        ("sample.hard_limit", "TimeLimitExceeded"): 1,
    }
    assert metrics.by("celery_queue_length", "queue") == {("later",): 4}
    assert metrics.by("celery_queue_slots", "queue") == {("celery",): 2, ("mail",): 2}
    assert metrics.by("celery_worker_up", "worker") == {("w@host",): 1}
    assert metrics.get("celery_exporter_snapshots_invalid_total") == 0
    collectors = metrics.by("celery_exporter_collector_success", "collector")
    assert collectors == {("queues",): 1, ("snapshots",): 1}
