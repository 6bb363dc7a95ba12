"""Events through kombu alone: a broker that is gone and comes back, and one that is faster than we are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import kombu
import pytest

from celery_lookout.broker import Broker
from celery_lookout.errors import BrokerUnavailable
from celery_lookout.intake import kombu as module
from celery_lookout.intake.decode import EventDecoder
from celery_lookout.intake.kombu import KombuEvents
from tests.clusters import Watched
from tests.intake.reading import read
from tests.servers.process import wait_until


def open_events(broker: Broker) -> Iterator[KombuEvents]:
    events = KombuEvents(broker, EventDecoder(Watched().cluster.refused))
    events.open()
    yield events
    events.close()
    wait_until(lambda: "kombu-events" not in [thread.name for thread in threading.enumerate()])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is a broker to kombu's file system transport."""
    folder = tmp_path / "broker"
    folder.mkdir()
    return folder


@pytest.fixture
def files(folder: Path) -> Broker:
    folders = ("data_folder_in", "data_folder_out", "control_folder")
    return Broker("filesystem://", transport_options=dict.fromkeys(folders, str(folder)))


@pytest.fixture
def from_files(files: Broker) -> Iterator[KombuEvents]:
    yield from open_events(files)


@pytest.fixture
def memory() -> Broker:
    return Broker(f"memory://{uuid4()}")


@pytest.fixture
def from_memory(memory: Broker) -> Iterator[KombuEvents]:
    yield from open_events(memory)


def publish(broker: Broker, *uuids: str) -> None:
    with broker.connection() as connection:
        producer = kombu.Producer(connection.default_channel, kombu.Exchange("celeryev", "topic"))
        for uuid in uuids:
            event = {"type": "task-started", "timestamp": time.time(), "hostname": "w@h", "uuid": uuid}
            producer.publish(json.dumps(event), routing_key="task.started", content_type="application/json")


def connect_and_read(events: KombuEvents, count: int) -> list[str]:
    events.open()
    return read(events, count)


def test_a_broker_that_is_gone_is_unavailable_until_it_is_back(
    from_files: KombuEvents, files: Broker, folder: Path
) -> None:
    publish(files, "a")
    assert read(from_files, 1) == ["a"]
    away = folder.rename(folder.with_name("away"))
    with pytest.raises(BrokerUnavailable, match="No such file"):
        read(from_files, 1)
    from_files.close()
    with pytest.raises(BrokerUnavailable):
        connect_and_read(from_files, 1)
    from_files.farewell()  # its thread does not look into the folder any more
    from_files.close()
    away.rename(folder)
    from_files.open()
    publish(files, "b")
    assert read(from_files, 1) == ["b"]


def test_what_we_have_no_room_for_stays_on_the_broker(
    from_memory: KombuEvents, memory: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING_LIMIT", 10)
    from_memory._room.set()
    publish(memory, *[str(number) for number in range(50)])
    wait_until(lambda: not from_memory._room.is_set(), message="it goes on for ever")
    assert len(from_memory._waiting) == 10
    assert read(from_memory, 50) == [str(number) for number in range(50)]


def test_its_queue_does_not_outlive_it(files: Broker, folder: Path) -> None:
    """Every event would be written there, to the end of the disk. The program ends right after this."""
    events = KombuEvents(files, EventDecoder(Watched().cluster.refused))
    events.open()
    publish(files, "a")
    read(events, 1)
    events.farewell()
    events.close()
    publish(files, "b")
    assert list(folder.glob("*.msg")) == []
