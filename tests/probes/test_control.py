from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import kombu
import pytest
import redis

from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable, ProbeFailed
from celery_lookout.probes import pidbox
from celery_lookout.probes.control import ControlProbe
from celery_lookout.readings import ConsumedQueue, WorkerReading
from tests import conftest
from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.workers import Client, Worker

MakeProbe = Callable[..., ControlProbe]
MakeClient = Callable[..., Client]
StartWorker = Callable[..., Worker]


def ask_all(probe: ControlProbe, workers: list[str], *, answers: int) -> list[WorkerReading]:
    """Ask until so many answer: on a busy machine a worker can take longer than the second that it is given."""

    def readings() -> list[WorkerReading] | None:
        found = probe.collect(workers)
        return found if len(found) == answers else None

    found = wait_until(readings)
    assert found is not None
    return found


def ask(probe: ControlProbe) -> WorkerReading:
    """Ask the only worker."""
    return ask_all(probe, ["worker@host"], answers=1)[0]


@pytest.fixture
def make_probe() -> Iterator[MakeProbe]:
    """Return a function that makes a probe: ``make_probe(url, global_keyprefix="x:")``."""
    probes: list[ControlProbe] = []

    def make(url: str, **transport_options: Any) -> ControlProbe:
        probes.append(ControlProbe(Broker(url, transport_options=transport_options)))
        return probes[-1]

    yield make
    for probe in probes:
        probe.close()


def test_two_known_workers_are_read_in_milliseconds(
    broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker, make_client: MakeClient
) -> None:
    start_worker(broker.url, name="a@host", queues=["celery", "mail"], concurrency=2)
    start_worker(broker.url, name="b@host", pool="threads", concurrency=3)
    client = make_client(broker.url)
    client.wait(*(client.send("noop") for _ in range(5)))
    probe = make_probe(broker.url)

    discovered = probe.collect([])
    assert [reading.worker for reading in discovered] == ["a@host", "b@host"]

    started = time.perf_counter()
    first, second = ask_all(probe, ["b@host", "a@host"], answers=2)
    print(f"{broker.kind}: 2 known workers in {(time.perf_counter() - started) * 1000:.1f} ms")

    assert (first.worker, first.pool, first.slots, first.scheduled) == ("a@host", "prefork", 2, 0)
    assert (second.worker, second.pool, second.slots, second.scheduled) == ("b@host", "threads", 3, 0)
    assert (first.processed or 0) + (second.processed or 0) == 5
    assert first.queues == (
        ConsumedQueue("celery", exchange="celery", routing_key="celery"),
        ConsumedQueue("mail", exchange="mail", routing_key="mail"),
    )
    for reading in (first, second):
        assert 10_000_000 < (reading.main_max_memory_bytes or 0) < 1_000_000_000
        assert 0 < (reading.main_cpu_seconds or 0) < 60
    assert probe.known_workers() == {"a@host", "b@host"}
    assert probe.invalid_replies == 0


@pytest.mark.old_celery
@pytest.mark.redis
@pytest.mark.parametrize("celery", ["5.3.6", "5.5.3"])
def test_old_workers_are_understood(
    celery: str,
    redis_broker: conftest.Broker,
    make_probe: MakeProbe,
    start_worker: StartWorker,
    make_client: MakeClient,
) -> None:
    start_worker(redis_broker.url, celery=celery, events=False, concurrency=1)
    client, probe = make_client(redis_broker.url), make_probe(redis_broker.url)
    running, later = client.send("sleep", 60), client.send("noop", countdown=600)
    wait_until(lambda: probe.active(["worker@host"]))
    wait_until(lambda: probe.held("worker@host", [running.id, later.id, "unknown"]) == {running.id, later.id})
    reading = ask(probe)
    assert (reading.pool, reading.slots, reading.scheduled, reading.processed) == ("prefork", 1, 1, 1)
    assert probe.enable_events("worker@host") is True
    assert probe.invalid_replies == 0


@pytest.mark.redis
def test_solo_has_one_slot(redis_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker) -> None:
    start_worker(redis_broker.url, pool="solo", concurrency=8)
    reading = ask(make_probe(redis_broker.url))
    assert (reading.pool, reading.slots) == ("solo", 1)


@pytest.mark.redis
def test_a_pool_that_grew_is_seen_to_have_grown(
    redis_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker, make_client: MakeClient
) -> None:
    start_worker(redis_broker.url, concurrency=2)
    probe = make_probe(redis_broker.url)
    assert ask(probe).slots == 2
    make_client(redis_broker.url).control("pool_grow", arguments={"n": 2})
    # The processes come with the pool's next upkeep, seconds later.
    wait_until(lambda: ask(probe).slots == 4)
    assert ask(probe).scheduled == 0


@pytest.mark.redis
def test_autoscaled_slots_are_those_of_the_moment(
    redis_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker, make_client: MakeClient
) -> None:
    start_worker(redis_broker.url, concurrency=1, options=["--autoscale=3,1"])
    client, probe = make_client(redis_broker.url), make_probe(redis_broker.url)
    assert ask(probe).slots == 1
    for _ in range(3):
        client.send("sleep", 60)
    wait_until(lambda: ask(probe).slots == 3)


def test_tasks_held_for_their_eta_are_counted(
    broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker, make_client: MakeClient
) -> None:
    """Also where the multiplier of the command line contradicts the settings."""
    start_worker(broker.url, name="settings@host", queues=["one"], prefetch=4)
    start_worker(broker.url, name="option@host", queues=["two"], prefetch=1)
    client, probe = make_client(broker.url), make_probe(broker.url)
    for queue in ("one", "two"):
        for _ in range(50):
            client.send("noop", queue=queue, countdown=600)
        client.send("sleep", 60, queue=queue)

    def scheduled() -> list[int | None]:
        return [reading.scheduled for reading in probe.collect(["settings@host", "option@host"])]

    wait_until(lambda: scheduled() == [50, 50])
    # The first is now derived from the prefetch count, the second still counted.
    assert scheduled() == [50, 50]
    client.send("noop", queue="one", countdown=600)
    client.send("noop", queue="two", countdown=600)
    wait_until(lambda: scheduled() == [51, 51])


@pytest.mark.redis
def test_unlimited_prefetch_tells_nothing_about_held_tasks(
    redis_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker
) -> None:
    start_worker(redis_broker.url, prefetch=0, conf={"worker_prefetch_multiplier": 0})
    reading = ask(make_probe(redis_broker.url))
    assert reading.scheduled is None


@pytest.mark.redis
def test_a_silent_worker_costs_only_itself(
    redis_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker
) -> None:
    start_worker(redis_broker.url)
    readings = ask_all(make_probe(redis_broker.url), ["gone@host", "worker@host"], answers=1)
    assert [reading.worker for reading in readings] == ["worker@host"]


def test_no_worker_is_no_reading(broker: conftest.Broker, make_probe: MakeProbe) -> None:
    probe = make_probe(broker.url)
    assert probe.collect([]) == []
    assert probe.collect(["gone@host"]) == []
    assert probe.known_workers() == frozenset()
    assert probe.active([]) == []


def test_active_and_reserved_tasks_are_told_with_their_route(
    broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker, make_client: MakeClient
) -> None:
    start_worker(broker.url, concurrency=1, queues=["mail"])
    client, probe = make_client(broker.url), make_probe(broker.url)
    before = time.time()
    running = client.send("sleep", 60, queue="mail")
    wait_until(lambda: probe.active(["worker@host"]))
    waiting = client.send("sleep", float("nan"), queue="mail")
    wait_until(lambda: len(probe.active(["worker@host"], reserved=True)) == 2)

    (worker, first), (_, second) = probe.active(["worker@host"], reserved=True)
    assert worker == "worker@host"
    assert (first.task_id, first.name, first.exchange, first.routing_key) == (running.id, "sample.sleep", "", "mail")
    assert first.started_at is not None
    assert before <= first.started_at <= time.time()
    assert (second.task_id, second.started_at) == (waiting.id, None)


def test_held_tasks_are_recognised_among_many(
    broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker, make_client: MakeClient
) -> None:
    start_worker(broker.url, concurrency=1)
    client, probe = make_client(broker.url), make_probe(broker.url)
    held = {client.send("sleep", 60).id} | {client.send("noop", countdown=600).id for _ in range(30)}
    strangers = [f"unknown-{number}" for number in range(220)]
    wait_until(lambda: probe.held("worker@host", [*strangers, *held]) == held)
    assert probe.held("worker@host", []) == set()


@pytest.mark.redis
def test_a_worker_that_does_not_answer_is_not_said_to_hold_nothing(
    redis_broker: conftest.Broker, make_probe: MakeProbe
) -> None:
    with pytest.raises(ProbeFailed, match="gone@host"):
        make_probe(redis_broker.url).held("gone@host", ["some-id"])


def test_events_are_turned_on(
    broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker, make_client: MakeClient
) -> None:
    start_worker(broker.url, events=False)
    probe = make_probe(broker.url)
    assert probe.enable_events("worker@host") is True
    replies = make_client(broker.url).control("enable_events")
    assert replies == [{"worker@host": {"ok": "task events already enabled"}}]
    assert probe.enable_events("worker@host") is True
    assert probe.enable_events("gone@host") is False


@pytest.mark.redis
def test_why_events_cannot_be_turned_on_is_said(
    redis_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker
) -> None:
    start_worker(redis_broker.url, events=False, options=["--without-gossip", "--without-heartbeat"])
    with pytest.raises(ProbeFailed, match="event dispatcher unavailable"):
        make_probe(redis_broker.url).enable_events("worker@host")


@pytest.mark.redis
def test_prefix_and_fanout_options_reach_the_workers(
    redis_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker
) -> None:
    options = {"global_keyprefix": "shop:", "fanout_prefix": "/own.", "fanout_patterns": False}
    start_worker(redis_broker.url, conf={"broker_transport_options": options})
    ask(make_probe(redis_broker.url, **options))
    assert make_probe(redis_broker.url).collect(["worker@host"]) == []


@pytest.mark.redis
def test_nothing_is_left_behind_on_redis(
    redis_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker
) -> None:
    start_worker(redis_broker.url)
    with redis.Redis.from_url(redis_broker.url) as client:
        before = contents(client)
        probe = make_probe(redis_broker.url)
        probe.collect(["worker@host"])
        probe.collect(["gone@host"])
        assert b"_kombu.binding.reply.celery.pidbox" in contents(client)
        probe.close()
        assert contents(client) == before


@pytest.mark.rabbitmq
def test_one_queue_is_used_on_rabbitmq_and_removed(
    rabbit_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker
) -> None:
    start_worker(rabbit_broker.url)
    probe = make_probe(rabbit_broker.url)

    def our_queues() -> list[str]:
        assert isinstance(rabbit_broker.server, RabbitServer)
        queues = rabbit_broker.server.management("GET", f"queues/{rabbit_broker.vhost}?columns=name")
        return [queue["name"] for queue in queues if queue["name"].startswith("celery-lookout-")]

    for _ in range(3):
        probe.collect(["worker@host"])
    assert len(our_queues()) == 1
    probe.close()
    wait_until(lambda: our_queues() == [])


@pytest.mark.rabbitmq
def test_missing_rights_are_named(rabbit_broker: conftest.Broker, make_probe: MakeProbe) -> None:
    assert isinstance(rabbit_broker.server, RabbitServer)
    rights = {"configure": "^$", "write": ".*", "read": ".*"}
    rabbit_broker.server.management("PUT", f"permissions/{rabbit_broker.vhost}/{rabbit_broker.vhost}", rights)
    with pytest.raises(ProbeFailed, match=r"ACCESS_REFUSED.*'celery\.pidbox'.*rights to configure"):
        make_probe(rabbit_broker.url).collect([])


@pytest.mark.redis
def test_waiting_for_answers_redelivers_nothing(redis_broker: conftest.Broker, make_probe: MakeProbe) -> None:
    """
    A consumer of kombu's puts back what was not acknowledged in time, by its own visibility timeout.

    A task that runs for hours under an application's longer timeout would run twice, because of us.
    """
    with redis.Redis.from_url(redis_broker.url) as client:
        message = {"body": "", "headers": {}, "properties": {"delivery_info": {}, "delivery_tag": "tag", "priority": 0}}
        client.hset("unacked", "tag", json.dumps([message, "", "celery"]))
        client.zadd("unacked_index", {"tag": time.time() - 90_000})
        client.sadd("_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
        probe = make_probe(redis_broker.url)
        for _ in range(3):
            probe.collect(["gone@host"])
        assert client.hlen("unacked") == 1
        assert client.llen("celery") == 0


@pytest.mark.redis
def test_a_compressed_reply_is_not_expanded(redis_broker: conftest.Broker) -> None:
    box = pidbox.Pidbox(Broker(redis_broker.url))
    box.ask("ping", timeout=0.01)
    bomb = gzip.compress(b'{"evil@host": "' + b"0" * 50_000_000 + b'"}')
    box._ticket = "guessed"
    with kombu.Connection(redis_broker.url) as connection:
        connection.Producer(auto_declare=False).publish(
            bomb,
            exchange="",
            routing_key=box._reply_queue.name,
            content_type="application/json",
            content_encoding="utf-8",
            headers={"compression": "application/x-gzip", "ticket": "guessed"},
        )
    assert box._drain(5.0)
    assert (box._replies, box.invalid_replies) == ({}, 1)
    box.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"7",
        b"null",
        b"[]",
        b"{}",
        b'{"a@h": 1, "b@h": 2}',
        b'{"": {}}',
        b'{"a\\nb": {}}',
        b'{"a@h": ',
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a@h": NaN' + b"[" * 200_000,
        json.dumps({"x" * 300: {}}).encode(),
        None,
    ],
)
def test_an_answer_of_the_wrong_form_is_refused(body: object) -> None:
    assert pidbox._checked(SimpleNamespace(body=body, content_type="application/json")) is None


def test_an_answer_that_is_not_json_is_refused() -> None:
    assert (
        pidbox._checked(SimpleNamespace(body=b"cos\nsystem\n", content_type="application/x-python-serialize")) is None
    )


def test_numbers_that_only_python_calls_json_are_read() -> None:
    message = SimpleNamespace(body=b'{"a@h": {"x": Infinity, "y": NaN}}', content_type="application/json")
    assert {name: bytes(raw) for name, raw in (pidbox._checked(message) or {}).items()} == {
        "a@h": b'{"x":null,"y":null}'
    }


@pytest.mark.parametrize(
    "stats",
    [
        {"pid": "1"},
        {"pid": -1},
        {"pid": 1, "total": {"sample.noop": -3}},
        {"pid": 1, "total": [1]},
        {"pid": 1, "pool": {"max-concurrency": "many"}},
        {"pid": 1, "rusage": {"utime": -1}},
        {"pid": 1, "prefetch_count": 2**70},
        {"error": "KeyError('stats')"},
        ["pid", 1],
        None,
    ],
)
def test_an_answer_of_the_wrong_content_is_refused(stats: object, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = ControlProbe(Broker("redis://localhost"))
    answer = pidbox._decode(json.dumps({"a@h": stats}).encode())
    monkeypatch.setattr(probe._pidbox, "ask", lambda command, *args, **options: answer if command == "stats" else {})
    assert probe.collect(["a@h"]) == []
    assert probe.invalid_replies == 1


def test_a_worker_that_tells_only_its_process_id_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = ControlProbe(Broker("redis://localhost"))
    answer = pidbox._decode(b'{"a@h": {"pid": 7, "pool": "N/A", "rusage": "N/A"}}')
    monkeypatch.setattr(probe._pidbox, "ask", lambda command, *args, **options: answer if command == "stats" else {})
    (reading,) = probe.collect(["a@h"])
    assert (reading.pool, reading.slots, reading.scheduled, reading.processed, reading.queues) == (None,) * 5
    assert (reading.main_max_memory_bytes, reading.main_cpu_seconds) == (None, None)


@pytest.mark.redis
def test_a_hung_redis_is_given_up_within_ten_seconds(own_redis: RedisServer, make_probe: MakeProbe) -> None:
    hung_is_unavailable(own_redis, make_probe)


@pytest.mark.rabbitmq
def test_a_hung_rabbitmq_is_given_up_within_ten_seconds(own_rabbit: RabbitServer, make_probe: MakeProbe) -> None:
    hung_is_unavailable(own_rabbit, make_probe)


@pytest.mark.rabbitmq
def test_rabbitmq_may_be_slow_to_notice_that_our_connection_is_gone(
    rabbit_broker: conftest.Broker, make_probe: MakeProbe
) -> None:
    port = urlsplit(rabbit_broker.url).port
    assert port is not None
    with FaultProxy(port) as proxy:
        proxy.strand = True
        probe = make_probe(rabbit_broker.url.replace(f":{port}", f":{proxy.port}"))
        probe.collect(["gone@host"])
        proxy.mode = "blackhole"
        with pytest.raises(BrokerUnavailable):
            probe.collect(["gone@host"])
        proxy.mode = "pass"
        assert probe.collect(["gone@host"]) == []


@pytest.mark.redis
def test_a_restart_costs_no_answer(own_redis: RedisServer, make_probe: MakeProbe, start_worker: StartWorker) -> None:
    start_worker(own_redis.url())
    probe = make_probe(own_redis.url())
    assert len(probe.collect(["worker@host"])) == 1
    own_redis.restart()
    wait_until(lambda: len(probe.collect(["worker@host"])) == 1)


@pytest.mark.redis
def test_a_flush_costs_no_answer(
    redis_broker: conftest.Broker, make_probe: MakeProbe, start_worker: StartWorker
) -> None:
    """It takes the way to our reply queue with it, which newer versions of kombu mend after 20 seconds."""
    start_worker(redis_broker.url)
    probe = make_probe(redis_broker.url)
    ask(probe)
    with redis.Redis.from_url(redis_broker.url) as client:
        client.flushdb()
    wait_until(lambda: probe.collect(["worker@host"]), 10)


def test_a_transport_without_fanout_has_no_remote_control(make_probe: MakeProbe) -> None:
    with pytest.raises(ProbeFailed, match="no remote control"):
        make_probe("pyro://localhost").collect([])


def hung_is_unavailable(server: RedisServer | RabbitServer, make_probe: MakeProbe) -> None:
    probe = make_probe(server.url())
    probe.collect(["gone@host"])
    server.pause()
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        probe.collect(["gone@host"])
    assert time.monotonic() - started < 10
    server.resume()
    assert probe.collect(["gone@host"]) == []


def contents(client: redis.Redis) -> dict[bytes, Any]:
    """All sets of the database, which is where kombu remembers queues, and the names of all other keys."""
    keys: Any = client.keys()
    return {key: client.smembers(key) if client.type(key) == b"set" else None for key in keys}
