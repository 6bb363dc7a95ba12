"""Whoever may publish to the broker may publish anything: none of it stops the sidecar, all of it is counted."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import amqp
import psutil
import redis

from tests.conftest import Broker
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker

MEMORY_LIMIT = 300 * 2**20


def event(**fields: object) -> bytes:
    """Return a heartbeat with *fields* changed, as JSON."""
    good = {"type": "worker-heartbeat", "hostname": "evil@host", "timestamp": time.time(), "pid": 1, "freq": 2.0}
    return json.dumps(good | fields).encode()


#: What is wrong, the body, message properties that differ from Celery's, and how often it is counted as what.
HOSTILE: list[tuple[str, bytes, dict[str, Any], dict[str, int]]] = [
    ("broken JSON", b'{"type": "task-sent", ', {}, {"malformed": 1}),
    ("broken UTF-8", b"\xff\xfe\x00", {}, {"malformed": 1}),
    ("a number", b"17", {}, {"field": 1}),
    ("null", b"null", {}, {"field": 1}),
    ("a string", b'"task-sent"', {}, {"field": 1}),
    ("no type", b'{"hostname": "evil@host", "timestamp": 1.0}', {}, {"field": 1}),
    ("a list with numbers", b"[1, 2, 3]", {}, {"field": 3}),
    ("deep nesting", b"[" * 200_000, {}, {"malformed": 1}),
    ("a clock that is text", event(clock="abc"), {}, {"field": 1}),
    ("an offset that is text", event(utcoffset="q"), {}, {"field": 1}),
    ("a clock past all counting", event(clock=10**26), {}, {"field": 1}),
    ("a count that is text", event(active="many"), {}, {"field": 1}),
    ("a count past all counting", event(processed=10**26), {}, {"field": 1}),
    ("a list as task id", event(type="task-started", uuid=["a"]), {}, {"field": 1}),
    ("no task id", event(type="task-started"), {}, {"field": 1}),
    ("a name of a megabyte", event(type="task-received", uuid="a", name="x" * 2**20), {}, {"field": 1}),
    ("a time in the year 5000", event(timestamp=95_617_584_000.0), {}, {"timestamp": 1}),
    ("an unknown type", event(type="worker-nz", alive=1), {}, {}),
    ("six megabytes", event(padding="x" * 6 * 2**20), {}, {"too_large": 1}),
    ("two thousand events", b"[" + b",".join([event()] * 2000) + b"]", {}, {"too_many": 1}),
    ("pickle", b"cos\nsystem\n(S'true'\ntR.", {"content_type": "application/x-python-serialize"}, {"content_type": 1}),
    ("plain text", b"hello", {"content_type": "text/plain"}, {"content_type": 1}),
    ("an unknown encoding", event(), {"content_encoding": "rot13"}, {"content_encoding": 1}),
    ("a gzip bomb", gzip.compress(b" " * 2**28), {"compression": "application/x-gzip"}, {"compressed": 1}),
]


def publish(broker: Broker, body: bytes, properties: dict[str, Any]) -> None:
    """Publish *body* to the event exchange as raw as the broker allows."""
    content_type = properties.get("content_type", "application/json")
    content_encoding = properties.get("content_encoding", "utf-8")
    headers = {"hostname": "evil@host"}
    if "compression" in properties:
        headers["compression"] = properties["compression"]
    if broker.kind == "redis":
        envelope = {
            "body": base64.b64encode(body).decode(),
            "content-encoding": content_encoding,
            "content-type": content_type,
            "headers": headers,
            "properties": {"body_encoding": "base64", "delivery_tag": "x"},
        }
        publish_to_redis(broker, json.dumps(envelope).encode())
        return
    host, _, rest = broker.url.partition("@")[2].partition("/")
    user, _, password = broker.url.removeprefix("amqp://").partition("@")[0].partition(":")
    with amqp.Connection(host, userid=user, password=password, virtual_host=rest) as connection:
        message = amqp.Message(
            body,  # pyright: ignore[reportArgumentType]  # untyped, and takes bytes
            content_type=content_type,
            content_encoding=content_encoding,
            application_headers=headers,
        )
        # A method, but amqp assigns it, and pyright forgets that it is bound.
        connection.channel().basic_publish(  # pyright: ignore[reportCallIssue]
            message, exchange="celeryev", routing_key="worker.heartbeat"
        )


def publish_to_redis(broker: Broker, data: bytes) -> None:
    """Publish *data* on the channel of the broker's events, whatever it is."""
    with redis.Redis.from_url(broker.url) as connection:
        heard = connection.publish(f"/{broker.url.rpartition('/')[2]}.celeryev/worker.heartbeat", data)
        assert heard == 1, "nobody listened"


def test_every_hostile_message_is_counted_and_survived(
    broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    sidecar = start_sidecar(broker.url)
    expected: dict[str, int] = {}
    for name, body, properties, reasons in HOSTILE:
        print(name)
        publish(broker, body, properties)
        for reason, count in reasons.items():
            expected[reason] = expected.get(reason, 0) + count
    if broker.kind == "redis":
        for data in (b"", b"not an envelope", b'{"body": 5}', b'{"body": "*not base64*"}', b"{}"):
            publish_to_redis(broker, data)
            expected["envelope"] = expected.get("envelope", 0) + 1

    start_worker(broker.url, name="good@host")
    client = make_client(broker.url)
    client.wait(*[client.send("noop") for _ in range(10)])
    metrics = sidecar.wait_for("celery_task_succeeded_total", 10)

    refused = metrics.by("celery_exporter_events_invalid_total", "reason")
    assert refused == {(reason,): count for reason, count in expected.items()}
    assert metrics.get("celery_exporter_events_total", event="_other") == 1
    assert metrics.get("celery_worker_up", worker="good@host") == 1
    memory = psutil.Process(sidecar.pid).memory_info().rss
    assert memory < MEMORY_LIMIT
    assert "Traceback" not in sidecar.log.read_text()
    print(f"resident memory afterwards: {memory / 2**20:.0f} MiB")
