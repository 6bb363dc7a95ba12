"""The users of docs/permissions.md, made by the very commands written there, are enough and not too much."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kombu
import pytest
import redis
from amqp.exceptions import AccessRefused
from botocore.exceptions import ClientError

from celery_lookout.broker import Broker
from celery_lookout.probes.sqs import SqsProbe
from celery_lookout.readings import QueueReading
from tests.servers.process import wait_until
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.sidecar import Metrics, Sidecar
from tests.servers.sqs import SqsServer
from tests.servers.workers import Client, Worker

PAGE = (Path(__file__).parents[2] / "docs" / "permissions.md").read_text("utf-8")


def commands(heading: str) -> list[list[str]]:
    """Return the commands below *heading*, each split as a shell does."""
    block = re.search(rf"^## {heading}$.*?```console\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert block is not None, heading
    return [shlex.split(line) for line in block[1].replace("\\\n", " ").splitlines()]


def redis_user(server: RedisServer, heading: str) -> str:
    """Make the user of the page's section, and return the broker URL for it."""
    [[program, *command]] = commands(heading)
    assert program == "redis-cli"
    with redis.Redis.from_url(server.url()) as admin:
        admin.execute_command(*command)
    return server.url().replace("://", f"://{command[2]}:secret@")


def refused(server: RedisServer) -> list[str]:
    """Return what Redis refused. Since 7.2 drivers try to say their name, and live with a refusal."""
    with redis.Redis.from_url(server.url(), decode_responses=True) as admin:
        objects = [str(entry["object"]) for entry in admin.acl_log()]
    return [name for name in objects if not name.startswith("client")]


def run_tasks(url: str, client: Client) -> None:
    """Make something of everything that is polled: a result, a task that runs, one that waits, one with an ETA."""
    client.wait(*[client.send("noop") for _ in range(5)])
    client.send("noop", countdown=600)
    for _ in range(12):
        client.send("sleep", 30.0)


def all_is_seen(metrics: Metrics, *more_collectors: str) -> bool:
    return (
        metrics.by("celery_exporter_collector_success", "collector")
        == {(name,): 1 for name in ("queues", "workers", "snapshots", *more_collectors)}
        and (metrics.get("celery_exporter_snapshots_total") or 0) > 0
        and metrics.get("celery_task_succeeded_total", queue="celery") == 5
        and (metrics.get("celery_queue_length", queue="celery") or 0) > 0
        and (metrics.get("celery_queue_oldest_task_age_seconds", queue="celery") or 0) > 0
        and metrics.get("celery_worker_slots") == 2
        and metrics.get("celery_worker_tasks_scheduled") == 1
        and metrics.get("celery_queue_workers", queue="celery") == 1
        and metrics.get("celery_exporter_broker_up") == 1
    )


@pytest.mark.redis
def test_the_redis_user_is_enough(
    own_redis: RedisServer,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    url = redis_user(own_redis, "Redis 7 and Valkey")
    start_worker(own_redis.url(), signals={"interval": 1.0})
    sidecar = start_sidecar(url, "--control.interval", "2")
    run_tasks(own_redis.url(), make_client(own_redis.url()))
    wait_until(lambda: all_is_seen(sidecar.metrics()), 30, "something is not seen")
    assert (sidecar.value("celery_broker_unacked") or 0) > 0
    assert refused(own_redis) == []


@pytest.mark.redis
def test_the_redis_user_cannot_touch_tasks(own_redis: RedisServer) -> None:
    with redis.Redis.from_url(redis_user(own_redis, "Redis 7 and Valkey")) as user:
        for command in (
            ("LPUSH", "celery", "x"),
            ("BRPOP", "celery", "1"),
            ("DEL", "celery"),
            ("SADD", "celery", "x"),
            ("EVAL", "return redis.call('DEL', KEYS[1])", "1", "celery"),
            ("PUBLISH", "/0.celeryev/worker.heartbeat", "{}"),
            ("CONFIG", "GET", "*"),
            ("FLUSHALL",),
        ):
            with pytest.raises(redis.ResponseError, match=r"(?i)permission|not allowed|can't"):
                user.execute_command(*command)


@pytest.mark.redis
def test_the_reading_redis_user_is_enough_for_tasks_and_queues(
    own_redis: RedisServer,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    url = redis_user(own_redis, "Redis, reading only")
    start_worker(own_redis.url())
    sidecar = start_sidecar(url, "--control.interval", "2")
    run_tasks(own_redis.url(), make_client(own_redis.url()))
    sidecar.wait_for("celery_task_succeeded_total", 5, queue="celery")
    wait_until(lambda: (sidecar.value("celery_queue_oldest_task_age_seconds", queue="celery") or 0) > 0)
    metrics = sidecar.wait_for("celery_exporter_collector_success", 0, collector="workers")
    assert metrics.get("celery_exporter_collector_success", collector="queues") == 1
    assert metrics.get("celery_exporter_collector_success", collector="snapshots") == 1  # there are none
    assert (metrics.get("celery_queue_length", queue="celery") or 0) > 0
    assert (metrics.get("celery_broker_unacked") or 0) > 0
    assert metrics.get("celery_worker_up", worker="worker@host") == 1
    for name in ("slots", "main_max_memory_bytes", "main_cpu_seconds_total"):
        assert not metrics.has(f"celery_worker_{name}")
    with redis.Redis.from_url(url) as user, pytest.raises(redis.ResponseError):
        user.eval("return redis.call('DEL', KEYS[1])", 1, "celery")


def rabbit_user(server: RabbitServer) -> str:
    """Make the page's user through the management API, which means the same as rabbitmqctl; return its broker URL."""
    add, permissions, tags = commands("RabbitMQ")
    assert [add[1], permissions[1], tags[1]] == ["add_user", "set_permissions", "set_user_tags"]
    user, password = add[2:]
    assert permissions[2:5] == ["-p", "/", user]
    rights = dict(zip(("configure", "write", "read"), permissions[5:], strict=True))
    server.management("PUT", f"users/{user}", {"password": password, "tags": ",".join(tags[3:])})
    server.management("PUT", f"permissions/{quote('/', safe='')}/{user}", rights)
    return server.url(user=user, password=password)


@pytest.mark.rabbitmq
def test_the_rabbitmq_user_is_enough(
    own_rabbit: RabbitServer,
    start_sidecar: Callable[..., Sidecar],
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    url = rabbit_user(own_rabbit)
    # The sidecar comes first, so that it has to declare Celery's exchanges.
    sidecar = start_sidecar(url, "--control.interval", "2", "--rabbitmq.management-url", own_rabbit.management_url)
    start_worker(own_rabbit.url(), signals={"interval": 1.0})
    run_tasks(own_rabbit.url(), make_client(own_rabbit.url()))
    wait_until(lambda: all_is_seen(sidecar.metrics(), "publishing"), 30, "something is not seen")
    wait_until(lambda: (sidecar.value("celery_queue_unacked", queue="celery") or 0) > 0, 15)
    assert "refused" not in sidecar.log.read_text().lower()


@pytest.mark.rabbitmq
def test_the_rabbitmq_user_cannot_touch_tasks(own_rabbit: RabbitServer) -> None:
    with kombu.Connection(own_rabbit.url()) as admin:
        admin.default_channel.queue_declare("celery")
    with kombu.Connection(rabbit_user(own_rabbit)) as connection:
        attempts: list[Callable[[Any], object]] = [
            lambda channel: channel.basic_get("celery"),
            lambda channel: channel.queue_purge("celery"),
            lambda channel: channel.queue_delete("celery"),
            lambda channel: channel.queue_bind("celery", "celeryev", routing_key="#"),
        ]
        for attempt in attempts:
            with pytest.raises(AccessRefused):
                attempt(connection.channel())


def sqs_rights(*names: str) -> list[dict[str, Any]]:
    """Return the named statements of the page's policy."""
    block = re.search(r"^## Amazon SQS$.*?```json\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert block is not None
    return [statement for statement in json.loads(block[1])["Statement"] if statement["Sid"] in names]


def test_the_sqs_user_is_enough_and_cannot_touch_tasks(own_sqs: SqsServer) -> None:
    region = "us-east-1"
    url = own_sqs.client(region).create_queue(QueueName="shop-celery")["QueueUrl"]
    own_sqs.client(region).send_message(QueueUrl=url, MessageBody="{}")
    user = own_sqs.add_user(sqs_rights("Find", "Depth"))

    options = {"region": region, "is_secure": False, "queue_name_prefix": "shop-"}
    probe = SqsProbe(Broker(own_sqs.url(user), transport_options=options))
    assert probe.discover() == {"celery"}
    assert probe.collect(["celery"]).queues == (QueueReading("celery", ready=1, unacked=0),)
    probe.close()

    client = own_sqs.client(region, user=user)
    attempts: list[Callable[[], object]] = [
        lambda: client.receive_message(QueueUrl=url),
        lambda: client.send_message(QueueUrl=url, MessageBody="{}"),
        lambda: client.purge_queue(QueueUrl=url),
        lambda: client.delete_queue(QueueUrl=url),
        lambda: client.create_queue(QueueName="shop-other"),
    ]
    for attempt in attempts:
        with pytest.raises(ClientError, match="is not authorized"):
            attempt()
