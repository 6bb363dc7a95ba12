"""Clean stops, kills, storms of both, and what becomes of the counters: from outside, on real brokers and workers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_snapshots_away import Watch
from tests.conftest import Broker
from tests.servers.process import wait_until
from tests.servers.redis import RedisServer
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client

SUCCEEDED = "celery_task_succeeded_total"
STARTED = "celery_task_started_total"
SAVED_AT = "celery_exporter_state_saved_timestamp_seconds"

Start = Callable[..., Any]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder / "lookout"


def files(state: Path) -> set[str]:
    """Return what lies beside the lock."""
    return {path.name for path in state.parent.iterdir()} - {"lookout.lock"}


def stop(sidecar: Sidecar) -> None:
    """Stop it cleanly, and see that it was clean."""
    assert sidecar.process is not None
    sidecar.process.terminate()
    assert sidecar.process.wait(20) == 0
    sidecar.stop()


class Load:
    """Publishes without a pause from a thread of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._done = threading.Event()
        self.results: list[Any] = []

    def run(self) -> None:
        while not self._done.wait(0.01):
            self.results.append(self._client.send("noop"))

    def more(self, count: int) -> None:
        """Wait until so many more were published."""
        target = len(self.results) + count
        wait_until(lambda: len(self.results) >= target)

    def end(self) -> int:
        """Stop publishing, wait until all that was published has run, and return how many that were."""
        self._done.set()
        self._thread.join()
        self._client.wait(*self.results, seconds=60)
        return len(self.results)

    @classmethod
    @contextmanager
    def on(cls, client: Client) -> Iterator[Load]:
        load = cls(client)
        load._thread = threading.Thread(target=load.run)
        load._thread.start()
        try:
            yield load
        finally:
            load._done.set()
            load._thread.join()

    _thread: threading.Thread


def test_counters_go_on_over_stops_under_load(
    broker: Broker, state: Path, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    """On RabbitMQ to the last task; on Redis what nobody heard is counted as lost."""
    start_worker(broker.url)
    sidecar = start_sidecar(broker.url, "--state.file", str(state))
    assert sidecar.value(SAVED_AT) is None
    with Watch(SUCCEEDED) as watch, Load.on(make_client(broker.url)) as load:
        watch.sidecar = sidecar
        load.more(100)
        for _ in range(2):
            wait_for_a_heartbeat(sidecar)
            stop(sidecar)
            assert files(state) == {"lookout"}
            load.more(50)
            sidecar.start()
            assert files(state) == set()
            assert time.time() - (sidecar.value(SAVED_AT) or 0) < 60
            load.more(50)
        truth = load.end()
        if broker.kind == "amqp":
            metrics = sidecar.wait_for(SUCCEEDED, truth)
            for name in ("sent", "received", "started"):
                assert metrics.by(f"celery_task_{name}_total", "task", "queue") == {("sample.noop", "celery"): truth}
            assert metrics.get("celery_task_queue_wait_seconds_count") == truth
            assert metrics.get("celery_exporter_events_lost_total") == 0
        else:
            wait_until(lambda: starts_and_losses(sidecar) == truth, message=f"not {truth}")
            assert (sidecar.value("celery_exporter_events_lost_total") or 0) > 0
        assert sidecar.value("celery_exporter_state_success") == 1
        assert sidecar.value("celery_exporter_state_left_out") == 0
    assert watch.falls() == []
    assert watch.increase() <= truth


def wait_for_a_heartbeat(sidecar: Sidecar) -> None:
    """At its heartbeats the worker's count of starts is compared with what was heard."""
    heard = sidecar.value("celery_worker_tasks_processed_total") or 0
    wait_until(lambda: (sidecar.value("celery_worker_tasks_processed_total") or 0) > heard)


def starts_and_losses(sidecar: Sidecar) -> float:
    metrics = sidecar.metrics()
    return (metrics.get(STARTED) or 0) + (metrics.get("celery_exporter_events_lost_total") or 0)


@pytest.mark.usefixtures("stamped")
def test_what_snapshots_tell_is_exact_over_stops_under_load(
    broker: Broker, state: Path, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    """On Redis, too: snapshots wait there."""
    start_worker(broker.url, events=False, signals={"interval": 0.5})
    sidecar = start_sidecar(broker.url, "--state.file", str(state))
    with Watch(SUCCEEDED) as watch, Load.on(make_client(broker.url)) as load:
        watch.sidecar = sidecar
        load.more(50)
        for _ in range(3):
            stop(sidecar)
            load.more(20)
            sidecar.start()
            load.more(20)
        truth = load.end()
        metrics = sidecar.wait_for(SUCCEEDED, truth)
        for name in ("received_total", "started_total", "queue_wait_seconds_count"):
            assert metrics.get(f"celery_task_{name}") == truth
    assert watch.falls() == []


def test_a_task_and_a_worker_that_a_stop_came_between(
    broker: Broker, state: Path, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    """A task that runs over the stop has its name, queue and wait; a worker that died meanwhile is seen to be dead."""
    start_worker(broker.url, name="lives@host")
    doomed = start_worker(broker.url, name="dies@host", queues=["other"])
    sidecar = start_sidecar(broker.url, "--state.file", str(state))
    client = make_client(broker.url)
    task = client.send("sleep", 6.0)
    sidecar.wait_for("celery_task_running", 1)
    sidecar.wait_for("celery_worker_up", 2)
    stop(sidecar)
    doomed.kill()
    sidecar.start()
    assert sidecar.value("celery_worker_up", worker="dies@host") is not None
    client.wait(task)
    metrics = sidecar.wait_for(SUCCEEDED, 1, task="sample.sleep", queue="celery")
    assert metrics.get("celery_task_running") == 0
    assert metrics.get("celery_task_queue_wait_seconds_count", task="sample.sleep") == 1
    assert metrics.get("celery_exporter_queue_resolution_total", source="sent") == 1
    assert metrics.by("celery_exporter_queue_resolution_total", "source") == {("sent",): 1}
    sidecar.wait_for("celery_worker_up", 0, worker="dies@host")
    assert sidecar.value("celery_worker_up", worker="lives@host") == 1
    assert sidecar.value("celery_worker_shutdown_graceful", worker="dies@host") == 0


@pytest.mark.rabbitmq
def test_after_a_kill_counters_begin_at_zero_whatever_was_saved_before(
    rabbit_broker: Broker, state: Path, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    start_worker(rabbit_broker.url)
    client = make_client(rabbit_broker.url)
    sidecar = start_sidecar(rabbit_broker.url, "--state.file", str(state))
    run(client, sidecar, 10, 10)
    stop(sidecar)
    sidecar.start()
    run(client, sidecar, 5, 15)
    for _ in range(2):
        sidecar.kill()
        assert files(state) == set()
        sidecar.start()
        metrics = sidecar.metrics()
        assert (metrics.get(SUCCEEDED) or 0) == 0
        assert metrics.get(SAVED_AT) is None
        run(client, sidecar, 7, 7)
        stop(sidecar)
        sidecar.start()
        run(client, sidecar, 1, 8)


def run(client: Client, sidecar: Sidecar, count: int, total: float) -> None:
    """Run *count* tasks, and see that *total* were counted and acknowledged."""
    client.wait(*[client.send("noop") for _ in range(count)])
    sidecar.wait_for(SUCCEEDED, total)


@pytest.mark.rabbitmq
def test_a_storm_of_stops_loses_and_doubles_nothing(
    rabbit_broker: Broker, state: Path, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    """Eight clean stops under load, wherever the program is: before it reads its options, restores, connects, reads."""
    start_worker(rabbit_broker.url)
    sidecar: Sidecar = start_sidecar(rabbit_broker.url, "--state.file", str(state))
    with Load.on(make_client(rabbit_broker.url)) as load:
        load.more(50)
        for number in range(8):
            end_at(sidecar, signal.SIGTERM, *(() if number % 2 else (0.07 * number,)))
            sidecar.launch()
        sidecar.wait_ready()
        truth = load.end()
        metrics = sidecar.wait_for(SUCCEEDED, truth)
    for name in ("sent", "received", "started"):
        assert metrics.by(f"celery_task_{name}_total", "task", "queue") == {("sample.noop", "celery"): truth}


@pytest.mark.rabbitmq
def test_a_storm_of_stops_and_kills_counts_at_most_what_happened_since_the_last_kill(
    rabbit_broker: Broker, state: Path, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    """What is saved before a kill does not come back after it."""
    start_worker(rabbit_broker.url)
    client = make_client(rabbit_broker.url)
    sidecar: Sidecar = start_sidecar(rabbit_broker.url, "--state.file", str(state))
    run(client, sidecar, 200, 200)
    stop(sidecar)
    sidecar.start()  # which takes what was saved, and begins to acknowledge what is left
    for number in range(6):
        end_at(sidecar, signal.SIGTERM if number % 2 else signal.SIGKILL, *((0.3 * number,) if number % 3 else ()))
        sidecar.launch()
    sidecar.wait_ready()
    # Of the 200 nothing is left but what had not been acknowledged at the first kill.
    assert (sidecar.value(SUCCEEDED) or 0) < 200
    before = sidecar.value(SUCCEEDED) or 0
    run(client, sidecar, 20, before + 20)
    assert files(state) == set()


def end_at(sidecar: Sidecar, number: int, seconds: float | None = None) -> None:
    """Send a signal once it is ready, or *seconds* after its launch, and wait for the end."""
    if seconds is None:
        sidecar.wait_ready()
    else:
        time.sleep(seconds)
    assert sidecar.process is not None
    sidecar.process.send_signal(number)
    code = sidecar.process.wait(20)
    # Before Python is up, nobody is there to handle a signal, nor has anybody touched the state.
    assert code in ((0, -number) if number == signal.SIGTERM and seconds is not None else (0, -signal.SIGKILL))
    sidecar.stop()


@pytest.mark.redis
def test_a_broker_that_hangs_holds_up_the_end_for_some_seconds_and_a_second_signal_ends_it_at_once(
    own_redis: RedisServer, state: Path, start_sidecar: Start
) -> None:
    """Of two sidecars one is stopped and saves what it knows; the other is told twice and saves nothing."""
    sidecars: list[Sidecar] = [
        start_sidecar(own_redis.url(), "--state.file", str(path)) for path in (state, state.with_name("other"))
    ]
    for sidecar in sidecars:
        sidecar.wait_for("celery_exporter_collector_success", 1, collector="queues")
    own_redis.pause()
    for sidecar in sidecars:
        sidecar.wait_for("celery_exporter_broker_up", 0)
    patient, hurried = (sidecar.process for sidecar in sidecars)
    assert patient is not None
    assert hurried is not None
    # A poll is under way, or will be.
    hurried.terminate()
    wait_until(lambda: "stopping" in sidecars[1].log.read_text())
    patient.terminate()
    hurried.terminate()
    assert hurried.wait(5) == 128 + signal.SIGTERM
    assert patient.wait(10) == 0
    own_redis.resume()
    assert files(state) == {"lookout", "other.lock"}


@pytest.mark.redis
def test_a_full_disk_costs_the_counters_and_nothing_else(
    redis_broker: Broker, state: Path, start_sidecar: Start, make_client: Start
) -> None:
    """The disk is full after 64 KiB of any file; a thousand tasks need more."""
    sidecar: Sidecar = start_sidecar(redis_broker.url, "--state.file", str(state))
    sidecar.stop()
    state.unlink()
    sidecar.argv = ["/bin/sh", "-c", 'ulimit -f "$1" && shift && exec "$@"', "sh", "128", *sidecar.argv]
    sidecar.start()
    client = make_client(redis_broker.url)
    for _ in range(1000):
        client.send("noop")
    sidecar.wait_for("celery_task_sent_total", 1000)
    stop(sidecar)
    assert files(state) == set()
    assert "state not saved, counters will begin at 0" in sidecar.log.read_text()
    sidecar.start()
    assert sidecar.value(SAVED_AT) is None
    assert sidecar.value("celery_exporter_state_success") == 1


@pytest.mark.redis
def test_a_file_of_no_use_is_said_and_kept(redis_broker: Broker, state: Path, start_sidecar: Start) -> None:
    sidecar: Sidecar = start_sidecar(redis_broker.url, "--state.file", str(state))
    stop(sidecar)
    good = state.read_bytes()
    cases = {
        "its checksum is wrong": good[:-1] + bytes([good[-1] ^ 1]),
        "a newer version wrote it, in format 99": good.replace(b"\0\0\0\1", b"\0\0\0c", 1),
    }
    for reason, content in cases.items():
        state.write_bytes(content)
        sidecar.start()
        assert sidecar.value("celery_exporter_state_success") == 0
        assert reason in sidecar.log.read_text()
        assert (state.parent / "lookout.unreadable").read_bytes() == content
        stop(sidecar)
    sidecar.start()
    assert sidecar.value("celery_exporter_state_success") == 1


@pytest.mark.redis
def test_two_do_not_share_one_file_and_a_wrong_folder_is_said_at_once(
    redis_broker: Broker, state: Path, tmp_path: Path, start_sidecar: Start
) -> None:
    first = start_sidecar(redis_broker.url, "--state.file", str(state))
    for path, reason in ((state, "used by another sidecar"), (tmp_path / "nowhere" / "state", "there is no folder")):
        second = Sidecar(redis_broker.url, tmp_path / "second", "--state.file", str(path))
        second.launch()
        assert second.process is not None
        assert second.process.wait(20) == 2
        assert reason in second.log.read_text()
        second.kill()
    assert first.is_running


@pytest.mark.redis
def test_an_address_that_is_taken_does_not_cost_the_state(
    redis_broker: Broker, state: Path, tmp_path: Path, start_sidecar: Start
) -> None:
    """It was restored and removed by then."""
    sidecar = start_sidecar(redis_broker.url, "--state.file", str(state))
    stop(sidecar)
    other = start_sidecar(redis_broker.url)
    unlucky = Sidecar(redis_broker.url, tmp_path / "unlucky", "--state.file", str(state))
    unlucky.argv[unlucky.argv.index("--web.listen-address") + 1] = f"127.0.0.1:{other.port}"
    unlucky.launch()
    assert unlucky.process is not None
    assert unlucky.process.wait(20) == 2
    unlucky.kill()
    assert files(state) == {"lookout"}
