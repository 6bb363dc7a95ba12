"""Beat tells of itself and of its schedule, whichever scheduler it has, and sends what it would have sent."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import Broker
from tests.servers.celery_versions import NEWEST
from tests.servers.process import wait_until
from tests.servers.workers import Beat, CeleryProcess

SCHEDULE: dict[str, dict[str, object]] = {
    "often": {"task": "sample.noop", "schedule": 2.0},
    "rare": {"task": "sample.add", "schedule": 3600.0, "args": [1, 1]},
}

StartBeat = Callable[..., CeleryProcess]


@pytest.fixture
def start_beat(tmp_path: Path) -> Iterator[StartBeat]:
    """Return a function that starts a beat of some class with the package installed, telling of itself every second."""
    beats: list[CeleryProcess] = []

    def start(kind: Callable[..., CeleryProcess], url: str, *arguments: Any, **options: Any) -> CeleryProcess:
        beats.append(kind(url, tmp_path, *arguments, **options))
        return beats[-1].start()

    yield start
    for beat in beats:
        print(beat.log_tail())  # pytest shows it when the test failed
        beat.kill()


def told(broker: Broker) -> list[dict[str, Any]]:
    """Return what beat has told so far."""
    client = redis.Redis.from_url(broker.url)
    entries: Any = client.xrange("celery-lookout.signals.v1")
    return [json.loads(fields[b"body"]) for _, fields in entries]


def wait_for_sent(broker: Broker, times: int) -> list[dict[str, Any]]:
    """Wait until ``often`` was seen sent at so many different times, and return everything told."""
    wait_until(lambda: len({entries(one)["often"]["last_sent_at"] for one in told(broker)} - {None}) >= times, 30)
    return told(broker)


def entries(snapshot: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["entry"]: entry for entry in snapshot["entries"]}


def assert_told_in_time(snapshots: list[dict[str, Any]]) -> None:
    """One boot, no number left out, no gap longer than an interval and a slow machine's moment."""
    assert len({one["boot"] for one in snapshots}) == 1
    assert [one["seq"] for one in snapshots] == list(range(1, len(snapshots) + 1))
    gaps = [after["at"] - before["at"] for before, after in itertools.pairwise(snapshots)]
    assert max(gaps) < 2 * snapshots[0]["interval"]


@pytest.mark.redis
@pytest.mark.parametrize(
    ("celery", "options"),
    [
        pytest.param("5.3.6", (), marks=pytest.mark.old_celery, id="5.3.6"),
        pytest.param(NEWEST, (), id=NEWEST),
        pytest.param(NEWEST, ("-S", "redbeat.RedBeatScheduler"), id="redbeat"),
    ],
)
def test_beat_tells_when_entries_were_sent_and_are_due(
    redis_broker: Broker, start_beat: StartBeat, celery: str, options: tuple[str, ...]
) -> None:
    conf = {"redbeat_redis_url": redis_broker.url}
    start_beat(Beat, redis_broker.url, SCHEDULE, celery=celery, signals={"interval": 1.0}, conf=conf, options=options)
    snapshots = wait_for_sent(redis_broker, 3)
    assert_told_in_time(snapshots)
    last = snapshots[-1]
    assert last["kind"] == "beat"
    assert last["node"].startswith("beat@")
    assert last["entries_left_out"] == 0
    shown = entries(last)
    assert {name: entry["task"] for name, entry in shown.items()} == {
        "often": "sample.noop",
        "rare": "sample.add",
        "celery.backend_cleanup": "celery.backend_cleanup",
    }
    often, rare = shown["often"], shown["rare"]
    assert 0 < often["next_due_at"] - often["last_sent_at"] < 4.5
    assert rare["last_sent_at"] is None
    assert 3500 < rare["next_due_at"] - last["at"] < 3601
    # The truth is in the queue: as many messages as times told, or one more that is not told yet.
    times = {entries(one)["often"]["last_sent_at"] for one in snapshots} - {None}
    assert len(times) <= redis.Redis.from_url(redis_broker.url).llen("celery") <= len(times) + 1


@pytest.mark.redis
def test_a_schedule_in_a_django_database_is_told_without_a_call_of_install(
    redis_broker: Broker, start_beat: StartBeat, tmp_path: Path
) -> None:
    class DjangoBeat(CeleryProcess):
        def __init__(self, url: str, folder: Path) -> None:
            env = {"DJANGO_DATABASE": str(folder / "schedule.sqlite3")}
            arguments = ["beat", "-l", "INFO", "--pidfile=", "--max-interval", "1"]
            super().__init__(url, folder, arguments, name="beat", env=env, app="tests.signals.django_beat")

        def ready(self) -> bool:
            return b"beat: Starting..." in self.log.read_bytes()

    start_beat(DjangoBeat, redis_broker.url)
    snapshots = wait_for_sent(redis_broker, 2)
    shown = entries(snapshots[-1])
    assert {name: shown[name]["task"] for name in ("often", "rare")} == {"often": "sample.noop", "rare": "sample.add"}
    assert shown["rare"]["last_sent_at"] is None
    assert 3500 < shown["rare"]["next_due_at"] - time.time() < 3601


@pytest.mark.redis
def test_beat_inside_a_worker_tells_too(redis_broker: Broker, start_worker: Callable[..., Any], tmp_path: Path) -> None:
    conf = {"beat_schedule": SCHEDULE, "beat_schedule_filename": str(tmp_path / "schedule")}
    start_worker(redis_broker.url, name="w@host", signals={"interval": 1.0}, conf=conf, options=("-B",))
    found = wait_until(lambda: [one for one in told(redis_broker) if one["kind"] == "beat"])
    assert "often" in entries(found[0])
    assert {one["node"] for one in told(redis_broker) if one["kind"] == "worker"} == {"w@host"}
