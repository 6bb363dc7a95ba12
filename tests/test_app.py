"""The sidecar as a whole, in this process: how it begins with a saved state, and how it ends by a fault of ours."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from celery_lookout.app import Watch, _go_on, serve
from celery_lookout.broker import Broker
from celery_lookout.checkpoint import Section, StateFile
from celery_lookout.settings import ListenAddress, Settings
from celery_lookout.state.cluster import ClusterOptions, Limits
from celery_lookout.web.server import WebServer
from tests.clusters import EPOCH, heartbeat, of, parse, received, sent, started
from tests.servers.process import free_port

#: Nobody listens there.
NOWHERE = Broker("redis://127.0.0.1:1/0")


def settings_of(path: Path, *brokers: Broker, workers: int = 10) -> Settings:
    return Settings(
        brokers or (NOWHERE,),
        listen=ListenAddress("127.0.0.1", free_port()),
        cluster=ClusterOptions(limits=Limits(workers=workers)),
        state_file=path,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the state of a sidecar is that had heard of two workers and a task."""
    path = tmp_path / "state"
    with ThreadPoolExecutor(1) as executor:
        watch = Watch(settings_of(path), executor)
        watch.monitors[0].cluster.fold([heartbeat(0, worker="a@h"), heartbeat(0, worker="b@h"), sent(0)], EPOCH)
        StateFile(path).write(watch.sections, EPOCH + 1)
    return path


def shown(settings: Settings, path: Path) -> dict[str, float]:
    with ThreadPoolExecutor(1) as executor:
        return parse(_go_on(settings, executor, StateFile(path)).registry.render())


def state(series: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in series.items() if name.startswith("celery_exporter_state_")}


def test_what_became_of_the_state_is_shown(path: Path) -> None:
    series = shown(settings_of(path, workers=1), path)
    assert series[of("sent_total")] == 1
    assert state(series) == {
        "celery_exporter_state_success": 1,
        "celery_exporter_state_saved_timestamp_seconds": EPOCH + 1,
        "celery_exporter_state_left_out": 1,
    }
    nothing = {"celery_exporter_state_success": 1, "celery_exporter_state_left_out": 0}
    assert state(shown(settings_of(path), path)) == nothing


def test_of_a_state_that_cannot_be_put_together_nothing_is_shown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it was taken in when the other half turned out to be of no use."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("celery_lookout.state.restoring.ClusterReader.finish", fail)
    series = shown(settings_of(path), path)
    assert of("sent_total") not in series
    assert state(series) == {"celery_exporter_state_success": 0, "celery_exporter_state_left_out": 0}


def test_the_state_of_one_broker_is_never_that_of_another(path: Path) -> None:
    series = shown(settings_of(path, Broker("redis://127.0.0.1:1/7")), path)
    assert of("sent_total") not in series
    assert series["celery_exporter_state_success"] == 0


def test_a_broker_that_got_a_user_and_a_password_is_the_same(path: Path) -> None:
    series = shown(settings_of(path, Broker("redis://user:secret@127.0.0.1:1/0")), path)
    assert series[of("sent_total")] == 1


@pytest.mark.parametrize(("url", "lost"), [("redis://127.0.0.1:1/0", 0), ("amqp://127.0.0.1:1//", 1)])
def test_who_is_not_heard_again_has_lost_what_it_ran_where_its_goodbye_would_wait(
    url: str, lost: int, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    settings = settings_of(path, Broker(url))
    with ThreadPoolExecutor(1) as executor:
        watch = Watch(settings, executor)
        watch.monitors[0].cluster.fold([heartbeat(0), sent(0), received(0.1), started(0.2)], EPOCH + 1)
        StateFile(path).write(watch.sections, EPOCH + 1)
        watch = _go_on(settings, executor, StateFile(path))
    cluster, now = watch.monitors[0].cluster, time.time()
    cluster.broker_found(now, gap=True)
    for seconds in range(0, 200, 10):
        cluster.tick(now + seconds)
    assert parse(watch.registry.render())[of("lost_total")] == lost


async def test_a_fault_of_ours_that_ends_the_program_is_raised_and_saves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known may be the very cause."""

    async def fail(_: WebServer) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(WebServer, "run", fail)
    with pytest.raises(ZeroDivisionError):
        await serve(settings_of(path))
    assert [one.name for one in path.parent.iterdir()] == ["state.lock"]
    another = StateFile(path)
    another.claim()
    another.release()


@pytest.fixture
def _signals() -> Iterator[None]:
    """Bring back how this process takes the signals that end the program."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
async def test_no_scrape_is_answered_any_more_when_the_state_is_saved(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could show more than what the next process begins with: to Prometheus that one would have begun at 0."""
    settings = settings_of(path)
    write = StateFile.write
    is_open = []

    def write_looking(self: StateFile, sections: Iterable[Section], now: float) -> int:
        is_open.append(is_reached(settings.listen))
        return write(self, sections, now)

    monkeypatch.setattr(StateFile, "write", write_looking)
    serving = asyncio.create_task(serve(settings))
    while not is_reached(settings.listen):  # noqa: ASYNC110  # nothing tells
        await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    assert is_open == [False]


def is_reached(address: ListenAddress) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address.host, address.port)) == 0
