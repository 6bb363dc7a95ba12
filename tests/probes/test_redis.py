from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable, ProbeFailed
from celery_lookout.probes.redis import RedisProbe
from celery_lookout.readings import QueueHead, QueueReading
from tests import conftest
from tests.servers.process import wait_until
from tests.servers.redis import RedisServer
from tests.servers.workers import Client, Worker

pytestmark = pytest.mark.redis

MakeProbe = Callable[..., RedisProbe]


@pytest.fixture
def make_probe() -> Iterator[MakeProbe]:
    """Return a function that makes a probe: ``make_probe(url, global_keyprefix="x:")``."""
    probes: list[RedisProbe] = []

    def make(url: str, **transport_options: Any) -> RedisProbe:
        probes.append(RedisProbe(Broker(url, transport_options=transport_options)))
        return probes[-1]

    yield make
    for probe in probes:
        probe.close()


@pytest.fixture
def raw(redis_broker: conftest.Broker) -> Iterator[redis.Redis]:
    """A plain client of the test's database."""
    with redis.Redis.from_url(redis_broker.url, retry=Retry(NoBackoff(), 0)) as client:
        yield client


def read(probe: RedisProbe, name: str) -> QueueReading:
    (reading,) = probe.collect([name]).queues
    assert reading.name == name
    return reading


def test_an_empty_queue_is_read_as_zero(redis_broker: conftest.Broker, make_probe: MakeProbe) -> None:
    reading = make_probe(redis_broker.url).collect(["celery"])
    assert reading.queues == (QueueReading("celery", ready=0),)
    assert (reading.unacked, reading.oldest_unacked_at, reading.visibility_timeout_seconds) == (0, None, 3600.0)


def test_no_queue_is_a_reading_too(redis_broker: conftest.Broker, make_probe: MakeProbe) -> None:
    assert make_probe(redis_broker.url).collect([]).queues == ()


def test_priorities_are_summed_and_shown_apart(
    redis_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client], raw: redis.Redis
) -> None:
    probe, client = make_probe(redis_broker.url), make_client(redis_broker.url)
    for priority in (0, 3, 6, 9):
        for _ in range(10):
            client.send("noop", queue="mixed", priority=priority)
    client.send("noop", queue="plain")

    assert read(probe, "mixed").ready == 40
    assert read(probe, "mixed").by_priority == {0: 10, 3: 10, 6: 10, 9: 10}
    assert read(probe, "plain").by_priority == {}

    # Priorities stay visible while the queue is polled.
    raw.flushdb()
    both = probe.collect(["mixed", "plain"]).queues
    assert [reading.by_priority for reading in both] == [{}, {}]  # "mixed" was left out of the last poll
    client.send("noop", queue="mixed", priority=9)
    assert read(probe, "mixed").by_priority == {0: 0, 3: 0, 6: 0, 9: 1}
    raw.flushdb()
    assert read(probe, "mixed").by_priority == {0: 0, 3: 0, 6: 0, 9: 0}


def test_custom_priority_steps_are_read(
    redis_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client]
) -> None:
    options = {"priority_steps": [0, 1, 2], "sep": ":"}
    client = make_client(redis_broker.url, broker_transport_options=options)
    client.send("noop", queue="mixed", priority=1)
    assert read(make_probe(redis_broker.url, **options), "mixed").by_priority == {0: 0, 1: 1, 2: 0}


def test_the_oldest_message_is_the_head(
    redis_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client]
) -> None:
    client, probe = make_client(redis_broker.url), make_probe(redis_broker.url)
    first = client.send("noop", queue="aged")
    client.send("noop", queue="aged")
    assert read(probe, "aged").head == QueueHead(task_id=first.id)


def test_the_head_is_the_oldest_over_all_priorities_if_all_tell_their_age(
    redis_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client]
) -> None:
    client, probe = make_client(redis_broker.url), make_probe(redis_broker.url)
    now = int(time.time())
    young = client.send("noop", queue="aged", priority=0, timestamp=now - 10)
    old = client.send("noop", queue="aged", priority=9, timestamp=now - 600)
    reading = read(probe, "aged")
    assert reading.head == QueueHead(old.id, now - 600.0)
    assert reading.heads == (QueueHead(young.id, now - 10.0), QueueHead(old.id, now - 600.0))

    unstamped = client.send("noop", queue="aged", priority=3)
    reading = read(probe, "aged")
    assert reading.head == QueueHead()
    assert [head.task_id for head in reading.heads] == [young.id, unstamped.id, old.id]


def test_a_five_megabyte_head_costs_no_more_than_a_small_one(
    redis_broker: conftest.Broker, make_probe: MakeProbe, make_client: Callable[..., Client], raw: redis.Redis
) -> None:
    large = make_client(redis_broker.url).send("send_mail", "x" * 5_000_000, queue="large")
    probe = make_probe(redis_broker.url)
    sent_before = int(raw.info("stats")["total_net_output_bytes"])
    assert read(probe, "large").head == QueueHead(large.id)
    assert int(raw.info("stats")["total_net_output_bytes"]) - sent_before < 100_000


def test_held_and_waiting_tasks_are_told_apart(
    redis_broker: conftest.Broker,
    make_probe: MakeProbe,
    make_client: Callable[..., Client],
    start_worker: Callable[..., Worker],
) -> None:
    """50 wait for their ETA in the worker, 1 runs, 3 are ready: only the last are the queue's length."""
    start_worker(redis_broker.url, concurrency=1, prefetch=1)
    client, probe = make_client(redis_broker.url), make_probe(redis_broker.url)
    before = time.time()
    for _ in range(50):
        client.send("noop", countdown=600)
    wait_until(lambda: probe.collect([]).unacked == 50)
    client.send("sleep_late", 60)
    wait_until(lambda: probe.collect([]).unacked == 51)
    for _ in range(3):
        client.send("sleep_late", 60)

    reading = probe.collect(["celery"])
    assert reading.queues[0].ready == 3
    assert reading.unacked == 51
    assert reading.oldest_unacked_at is not None
    assert before <= reading.oldest_unacked_at <= time.time()


def test_a_queue_whose_workers_left_is_still_found_and_read(
    redis_broker: conftest.Broker,
    make_probe: MakeProbe,
    make_client: Callable[..., Client],
    start_worker: Callable[..., Worker],
) -> None:
    start_worker(redis_broker.url, queues=["orphaned", "mail"]).stop()
    client = make_client(redis_broker.url)
    for _ in range(2):
        client.send("noop", queue="orphaned")
    probe = make_probe(redis_broker.url)
    assert probe.discover() == {"orphaned", "mail"}
    assert not probe.discovery_incomplete
    assert read(probe, "orphaned").ready == 2


def test_plumbing_and_nonsense_are_not_discovered(
    redis_broker: conftest.Broker, make_probe: MakeProbe, raw: redis.Redis
) -> None:
    separator = "\x06\x16"
    names = [
        "good",
        "a@b.celery.pidbox",
        "celeryev.1f",
        "bcast.7c",
        "bad\nname",
        "x" * 300,
        "",
        "celery-lookout.events",
    ]
    for name in names:
        raw.sadd("_kombu.binding.celery", separator.join(["celery", "", name]))
    raw.sadd("_kombu.binding.celeryev", separator.join(["#", "", "receiver"]))
    raw.sadd("_kombu.binding.reply.celery.pidbox", separator.join(["", "", "replies"]))
    raw.sadd("_kombu.binding_permanent.other", separator.join(["", "", "permanent"]))
    raw.set("_kombu.binding.notaset", "x")
    assert make_probe(redis_broker.url).discover() == {"good"}


def test_the_global_key_prefix_is_on_every_key(
    redis_broker: conftest.Broker,
    make_probe: MakeProbe,
    make_client: Callable[..., Client],
    start_worker: Callable[..., Worker],
) -> None:
    options = {"global_keyprefix": "shop[1]*:"}
    start_worker(redis_broker.url, concurrency=1, prefetch=1, conf={"broker_transport_options": options})
    client = make_client(redis_broker.url, broker_transport_options=options)
    client.send("noop", countdown=600)
    waiting = client.send("noop", queue="mail", priority=6)

    probe = make_probe(redis_broker.url, **options)
    wait_until(lambda: probe.collect([]).unacked == 1)
    assert probe.discover() == {"celery", "mail"}
    assert read(probe, "mail").by_priority == {0: 0, 3: 0, 6: 1, 9: 0}
    assert read(probe, "mail").head == QueueHead(waiting.id)
    assert probe.collect([]).oldest_unacked_at is not None
    assert read(make_probe(redis_broker.url), "mail").ready == 0


def test_a_key_of_another_kind_costs_only_its_own_queue(
    redis_broker: conftest.Broker, make_probe: MakeProbe, raw: redis.Redis
) -> None:
    raw.set("hijacked", "not a list")
    raw.lpush("junk", b"\xff" * 5000)
    reading = make_probe(redis_broker.url).collect(["hijacked", "junk"])
    assert reading.queues == (QueueReading("junk", ready=1, head=QueueHead(), heads=(QueueHead(),)),)


def test_without_the_right_to_run_scripts_the_head_is_read_all_the_same(
    own_redis: RedisServer, make_probe: MakeProbe, make_client: Callable[..., Client]
) -> None:
    task = make_client(own_redis.url()).send("noop", queue="aged")
    set_rights(own_redis, "~*", "+@all", "-@scripting")
    probe = make_probe(own_redis.url().replace("://", "://reader:hush@"))
    for try_again in (probe.discover, probe.close):
        assert read(probe, "aged").head == QueueHead(task.id)
        assert read(probe, "aged").head == QueueHead(task.id)
        assert "only the end of a queue's oldest message" in (probe.refusal or "")
        set_rights(own_redis, "~*", "+@all")
        try_again()
        assert read(probe, "aged").head == QueueHead(task.id)
        assert probe.refusal is None
        set_rights(own_redis, "~*", "+@all", "-@scripting")


def test_without_the_right_to_read_a_message_depths_are_read_all_the_same(
    own_redis: RedisServer, make_probe: MakeProbe
) -> None:
    with redis.Redis.from_url(own_redis.url()) as client:
        client.lpush("celery", "{}")
    set_rights(own_redis, "~*", "+@all", "-lindex")
    probe = make_probe(own_redis.url().replace("://", "://reader:hush@"))
    assert read(probe, "celery") == QueueReading("celery", ready=1)
    assert "'lindex'" in (probe.refusal or "")


def test_missing_rights_are_named(own_redis: RedisServer, make_probe: MakeProbe) -> None:
    set_rights(own_redis, "~other*", "+@connection", "+info")
    probe = make_probe(own_redis.url().replace("://", "://reader:hush@"))
    with pytest.raises(ProbeFailed, match=r"\+llen \+hlen") as failure:
        probe.collect(["celery"])
    assert "hush" not in str(failure.value)


def test_a_wrong_password_is_not_repeated(own_redis: RedisServer, make_probe: MakeProbe) -> None:
    probe = make_probe(own_redis.url().replace("://", "://reader:hush@"))
    with pytest.raises(BrokerUnavailable, match="invalid username-password pair") as failure:
        probe.collect(["celery"])
    assert "hush" not in str(failure.value)


def test_a_hung_redis_is_given_up_within_ten_seconds(own_redis: RedisServer, make_probe: MakeProbe) -> None:
    connected, fresh = make_probe(own_redis.url()), make_probe(own_redis.url())
    connected.collect(["celery"])
    own_redis.pause()
    for probe in (connected, fresh):
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            probe.collect(["celery"])
        assert time.monotonic() - started < 10
    own_redis.resume()
    assert read(connected, "celery").ready == 0


def test_a_restart_costs_no_poll(own_redis: RedisServer, make_probe: MakeProbe) -> None:
    probe = make_probe(own_redis.url())
    probe.collect(["celery"])
    own_redis.restart()
    assert read(probe, "celery").ready == 0
    own_redis.kill()
    with pytest.raises(BrokerUnavailable, match="refused"):
        probe.collect(["celery"])


def set_rights(server: RedisServer, *rules: str) -> None:
    """Make a user ``reader`` with password ``hush``."""
    with redis.Redis.from_url(server.url()) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">hush", "resetkeys", "-@all", *rules)
