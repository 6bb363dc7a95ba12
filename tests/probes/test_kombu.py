from __future__ import annotations

from pathlib import Path

import kombu
import pytest

from celery_lookout.broker import Broker
from celery_lookout.errors import ProbeFailed
from celery_lookout.probes.kombu import KombuProbe
from celery_lookout.readings import QueueReading


def test_queues_in_a_folder_are_counted(tmp_path: Path) -> None:
    options = {"data_folder_in": str(tmp_path), "data_folder_out": str(tmp_path), "control_folder": str(tmp_path / "c")}
    with kombu.Connection("filesystem://", transport_options=options) as connection:
        for _ in range(2):
            connection.SimpleQueue("busy").put({})
    probe = KombuProbe(Broker("filesystem://", transport_options=options))
    assert probe.collect(["busy", "idle"]).queues == (QueueReading("busy", ready=2), QueueReading("idle", ready=0))
    assert probe.discover() == frozenset()
    probe.close()


def test_a_transport_on_which_asking_creates_queues_is_not_asked() -> None:
    with pytest.raises(ProbeFailed, match="gcpubsub://"):
        KombuProbe(Broker("gcpubsub://projects/name")).collect(["celery"])
