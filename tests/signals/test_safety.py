"""Whatever goes wrong in the package or at the broker, tasks run and end as they would without it."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import signals

import celery_lookout_signals
from celery_lookout_signals import _guard, _hooks
from celery_lookout_signals._channel import Channel
from tests.conftest import Broker
from tests.servers.celery_versions import NEWEST
from tests.servers.process import wait_until
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.workers import Client, Worker
from tests.signals import canvas_tasks, sabotage
from tests.signals.snapshots import Reader, exists

#: What a worker needs besides the package's arguments so that it has nothing to publish but our snapshots.
QUIET = {"events": False, "sent_events": False, "options": ("--without-gossip", "--without-mingle")}

Start = Callable[..., Worker]
Make = Callable[..., Client]


# -- faults of ours


def outcomes(client: Client) -> list[Any]:
    """Run a task of each kind; return states and results."""
    results = [
        client.send("add", 2, 3),
        client.send("fail"),
        client.send("fail_as_announced"),
        client.send("fail_unpicklable"),
        client.send("retry_then_succeed"),
        client.send("retry_exhaust"),
        client.send("soft_limit", 30.0),
        *[client.send("nope.unknown") for _ in range(2)],
        *[client.send("add", 1, 1, expires=1e-6) for _ in range(2)],
        client.send("noop"),
    ]
    return [(state, repr(result.result)) for state, result in zip(client.wait(*results), results, strict=True)]


UNPICKLABLE = ("tests.servers.sample_app", "Unpicklable", ("cannot travel",), "Unpicklable('cannot travel')")

OUTCOMES = [
    ("SUCCESS", "5"),
    ("FAILURE", "ValueError('broken')"),
    ("FAILURE", "ExpectedFailure('no such customer')"),
    ("FAILURE", f"UnpickleableExceptionWrapper{UNPICKLABLE!r}"),
    ("SUCCESS", "2"),
    ("FAILURE", "Temporary('never')"),
    ("FAILURE", "SoftTimeLimitExceeded()"),
    *[("FAILURE", "Task of kind 'nope.unknown' never registered, please make sure it's imported.")] * 2,
    *[("REVOKED", "TaskRevokedError('expired')")] * 2,
    ("SUCCESS", "None"),
]


def logged_faults(worker: Worker) -> Counter[tuple[str, str]]:
    """Return how often a process logged a fault of a handler. Before Celery sets up logging, lines have no prefix."""
    lines = re.findall(r"^(?:.*ERROR/(\S+)\] )?fault in (\w+):", worker.log.read_text(), re.MULTILINE)
    return Counter((process or "MainProcess", handler) for process, handler in lines)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("broken", "in_pool", "in_main"),
    [
        pytest.param(
            ["_runs:Runs.begin", "_gatherer:Gatherer.received", "_gatherer:Gatherer.unknown", "_worker:parts"],
            {"_task_prerun"},
            {"_worker_init", "_task_received", "_task_unknown", "tick", "_stop", "_worker_shutdown"},
            id="at the beginning of runs",
        ),
        pytest.param(
            ["_runs:Runs.end", "_runs:Runs.fail", "_gatherer:Gatherer.revoked", "_channel:_way"],
            {"_task_postrun", "_task_failure"},
            {"_task_revoked"},
            id="at the end of runs",
        ),
        pytest.param(
            ["_totals:Totals.row", "_queues:QueueNames.name_of", "_stamp:time"],
            {"_task_prerun", "stamp"},
            {"_task_unknown", "_task_revoked", "tick"},
            id="in what is common",
        ),
        pytest.param(["_worker:WorkerSide.__init__"], set(), {"_worker_init"}, id="at the start"),
        pytest.param(["_worker:WorkerSide.run_in_child"], {"_worker_process_init"}, set(), id="after the fork"),
    ],
)
def test_a_fault_changes_no_outcome_and_is_logged_once(
    broken: list[str],
    in_pool: set[str],
    in_main: set[str],
    redis_broker: Broker,
    start_worker: Start,
    make_client: Make,
) -> None:
    harm = sabotage.env(broken=broken)
    worker = start_worker(
        redis_broker.url, signals={"interval": 0.5}, imports=[sabotage.__name__], env=harm, concurrency=1, **QUIET
    )
    client = make_client(redis_broker.url, sent_events=False)
    assert outcomes(client) == OUTCOMES
    worker.stop()
    expected = {("ForkPoolWorker-1", name) for name in in_pool} | {("MainProcess", name) for name in in_main}
    faults = logged_faults(worker)
    if ("MainProcess", "tick") in expected:  # what a run told since the last tick is met when the worker stops
        expected |= {("MainProcess", "_stop")} & faults.keys()
    assert faults == dict.fromkeys(expected, 1)
    assert worker.process is not None
    assert worker.process.returncode == 0


def final_snapshot(worker: Worker, reader: Reader) -> dict[str, Any]:
    worker.stop()
    return reader.wait_final()


def test_faults_of_a_pool_process_are_counted(broker: Broker, start_worker: Start, make_client: Make) -> None:
    """Three failures could not be told in full; they are counted as ever, and so are the faults."""
    harm = sabotage.env(broken=["_runs:Runs.fail"])
    worker = start_worker(broker.url, signals={}, imports=[sabotage.__name__], env=harm, concurrency=1, **QUIET)
    client = make_client(broker.url, sent_events=False)
    client.wait(*[client.send("fail") for _ in range(3)], client.send("noop"))
    reader = Reader(broker.url)
    last = final_snapshot(worker, reader)
    assert reader.counts() == {
        ("sample.fail", "celery"): {"received": 3, "started": 3, "failed": 3, "exception:ValueError": 3},
        ("sample.noop", "celery"): {"received": 1, "started": 1, "succeeded": 1},
    }
    assert reader.failures() == []
    assert exists(broker.url)
    assert (last["faults"], last["runs_lost"], last["failures_left_out"]) == (3, 0, 3)


@pytest.mark.redis
def test_faults_are_counted_when_no_run_can_be_told(
    redis_broker: Broker, start_worker: Start, make_client: Make
) -> None:
    harm = sabotage.env(broken=["_runs:Runs.begin"])
    worker = start_worker(redis_broker.url, signals={}, imports=[sabotage.__name__], env=harm, concurrency=1, **QUIET)
    client = make_client(redis_broker.url, sent_events=False)
    client.wait(*[client.send("noop") for _ in range(3)])
    assert final_snapshot(worker, Reader(redis_broker.url))["faults"] == 3


def test_a_guarded_function_lets_pass_what_is_not_about_us(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_guard, "_logged", set())
    _guard.take_faults()

    def handler(error: BaseException) -> str:
        raise error

    guard = _guard.guarded(handler)
    for error in (ValueError("first"), ValueError("second"), KeyError("another kind")):
        guard(error)
    assert [record.exc_info and str(record.exc_info[1]) for record in caplog.records] == ["first", "'another kind'"]
    assert _guard.take_faults() == 3
    assert _guard.take_faults() == 0
    for passing in (SystemExit(3), KeyboardInterrupt()):
        with pytest.raises(type(passing)):
            guard(passing)
    assert _guard.take_faults() == 0
    assert len(caplog.records) == 2


# -- switched off, or wrongly on


def receivers() -> dict[str, int]:
    """Return how many receivers each of Celery's signals has."""
    return {
        name: len(signal.receivers or ())
        for name, signal in vars(signals).items()
        if isinstance(signal, signals.Signal)
    }


@pytest.fixture
def unconnected() -> Iterator[None]:
    """See to it that nothing gets connected in the process of the tests."""
    before = receivers()
    assert not _hooks._State.connected
    yield
    assert not _hooks._State.connected
    assert receivers() == before


@pytest.mark.parametrize("value", ["0", "false", " OFF ", "no"])
def test_the_switch_keeps_everything_unconnected(
    value: str, unconnected: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(celery_lookout_signals.SWITCH, value)
    celery_lookout_signals.install()
    assert caplog.records == []


@pytest.mark.parametrize("interval", [0, 0.4, -1, 3601, float("nan"), float("inf"), "5", None, [5]])
def test_a_wrong_interval_is_logged_and_nothing_is_connected(
    interval: Any, unconnected: None, caplog: pytest.LogCaptureFixture
) -> None:
    celery_lookout_signals.install(interval=interval)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "not installed" in record.message
    assert record.exc_info


@pytest.mark.redis
def test_a_switched_off_worker_leaves_no_trace(
    broker: Broker, redis_broker: Broker, start_worker: Start, make_client: Make
) -> None:
    conf = {"result_backend": redis_broker.url}
    env = {celery_lookout_signals.SWITCH: "0"}
    worker = start_worker(
        broker.url, signals={"interval": 0.5}, env=env, imports=[canvas_tasks.__name__], conf=conf, **QUIET
    )
    client = make_client(broker.url, sent_events=False, **conf)
    # Retried by the worker, which would stamp them.
    result = client.app.send_task("canvas.retry", (2, []))
    client.wait(result)
    assert result.get() == [[retries, None, {}, []] for retries in range(3)]
    worker.stop()
    assert not exists(broker.url)
    assert "lookout" not in worker.log.read_text()


# -- processes and brokers that go away


def test_a_process_killed_right_after_its_run_has_told_of_it(
    broker: Broker, start_worker: Start, make_client: Make
) -> None:
    """Celery takes the task for lost; its run has said that it succeeded, and that is true."""
    harm = sabotage.env(killed_after=["sample.add"])
    # Without a result Celery has no way to know better.
    conf = {"task_ignore_result": True}
    worker = start_worker(
        broker.url, signals={"interval": 0.5}, imports=[sabotage.__name__], env=harm, conf=conf, concurrency=1, **QUIET
    )
    client = make_client(broker.url, sent_events=False, **conf)
    client.send("add", 1, 1)
    client.send("noop")
    reader = Reader(broker.url)
    reader.wait_for(lambda reader: reader.counts().get(("sample.noop", "celery"), {}).get("succeeded"))
    wait_until(lambda: "Task handler raised error: WorkerLostError" in worker.log.read_text())
    last = final_snapshot(worker, reader)
    assert reader.counts() == {
        ("sample.add", "celery"): {"received": 1, "started": 1, "succeeded": 1},
        ("sample.noop", "celery"): {"received": 1, "started": 1, "succeeded": 1},
    }
    assert last["child_exits"] == {"recycled": 0, "killed": 1, "exited": 0}
    assert (last["faults"], last["runs_lost"]) == (0, 0)


@pytest.fixture(
    params=[pytest.param("own_redis", marks=pytest.mark.redis), pytest.param("own_rabbit", marks=pytest.mark.rabbitmq)]
)
def own_broker(request: pytest.FixtureRequest) -> RedisServer | RabbitServer:
    """A Redis and a RabbitMQ that may be frozen."""
    server: RedisServer | RabbitServer = request.getfixturevalue(request.param)
    return server


def seconds_of(channel: Channel, *, published: bool) -> float:
    """Return how long it took to publish something, or not to."""
    begun = time.monotonic()
    assert channel.publish("{}") is published
    return time.monotonic() - begun


def test_publishing_to_a_broker_that_hangs_takes_seconds_once_and_nothing_then(
    own_broker: RedisServer | RabbitServer,
    make_client: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first connection of all is kombu's, which on Redis tries four times."""
    caplog.set_level(logging.INFO, "celery_lookout_signals")
    app = make_client(own_broker.url()).app
    channels = {"connected": Channel(app), "disconnected": Channel(app), "never connected": Channel(app)}
    for name in ("connected", "disconnected"):
        assert channels[name].publish("{}")
    channels["disconnected"].close()
    own_broker.pause()
    for name, channel in channels.items():
        assert seconds_of(channel, published=False) < (8.0 if name == "never connected" else 4.0), name
        # Then the broker is left alone for a while.
        assert seconds_of(channel, published=False) < 0.1, name
    own_broker.resume()
    for channel in channels.values():
        channel._not_before = 0.0
        assert channel.publish("{}")
        channel.close()
    assert Counter((record.levelname, record.message.partition(" (")[0]) for record in caplog.records) == {
        ("WARNING", "snapshot not published"): 3,
        ("INFO", "snapshots are published again"): 3,
    }


def test_the_last_snapshot_is_tried_whatever_was_before(
    own_broker: RedisServer | RabbitServer, make_client: Make
) -> None:
    """The broker hung a moment ago and answers again; or the connection broke since the snapshot before."""
    channel = Channel(make_client(own_broker.url()).app)
    assert channel.publish("{}")
    own_broker.pause()
    assert not channel.publish("{}")
    own_broker.resume()
    assert not channel.publish("{}")
    assert channel.publish("{}", last=True)
    own_broker.kill()
    own_broker.start()
    assert channel.publish("{}", last=True)
    channel.close()


@pytest.mark.parametrize("celery", [pytest.param("5.3.6", marks=pytest.mark.old_celery), NEWEST])
def test_a_worker_that_stops_tells_what_it_counted_before_it_waits(
    broker: Broker, celery: str, start_worker: Start, make_client: Make
) -> None:
    """As many are killed while they wait for what runs."""
    worker = start_worker(broker.url, celery=celery, signals={"interval": 3600.0}, concurrency=2, **QUIET)
    client = make_client(broker.url, sent_events=False)
    reader = Reader(broker.url)
    reader.wait_for(lambda reader: any(one["slots"] == 2 for one in reader.snapshots))
    client.send("sleep", 60.0)
    client.wait(*[client.send("add", number, 1) for number in range(5)])
    assert worker.process is not None
    worker.process.terminate()
    told = {"received": 5, "started": 5, "succeeded": 5}
    reader.wait_for(lambda reader: reader.counts().get(("sample.add", "celery")) == told)
    assert worker.is_running
    assert not reader.snapshots[-1]["final"]
    worker.kill()


def test_a_worker_lives_through_a_broker_that_hangs(
    own_broker: RedisServer | RabbitServer, tmp_path: Path, start_worker: Start, make_client: Make
) -> None:
    """
    What runs, ends; on RabbitMQ what is prefetched, too. Everything is counted once, if by the last snapshot alone.

    On Redis Celery itself waits for the broker when it acknowledges a message, without us as with us.
    """
    url = own_broker.url()
    harm = sabotage.env(settings={"_channel:FIRST_PAUSE_SECONDS": 600.0, "_channel:LAST_PAUSE_SECONDS": 600.0})
    worker = start_worker(url, signals={"interval": 0.5}, imports=[sabotage.__name__], env=harm, concurrency=1, **QUIET)
    client = make_client(url, sent_events=False)
    running = client.send("sleep", 1.0)
    prefetched = [client.send("add", number, 1) for number in range(3)]
    reader = Reader(url)
    reader.wait_for(lambda reader: reader.snapshots and reader.snapshots[-1]["reserved"] == 3)
    own_broker.pause()
    client.wait(running, *(prefetched if isinstance(own_broker, RabbitServer) else []), seconds=10)
    assert worker.is_running
    own_broker.resume()
    client.wait(*prefetched, client.send("noop"))
    last = final_snapshot(worker, reader)
    assert reader.counts() == {
        ("sample.sleep", "celery"): {"received": 1, "started": 1, "succeeded": 1},
        ("sample.add", "celery"): {"received": 3, "started": 3, "succeeded": 3},
        ("sample.noop", "celery"): {"received": 1, "started": 1, "succeeded": 1},
    }
    assert (last["faults"], last["runs_lost"]) == (0, 0)
