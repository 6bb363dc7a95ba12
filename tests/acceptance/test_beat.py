"""Beat's metrics, from a beat with the worker package."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Broker
from tests.servers.process import wait_until
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Beat

HEARTBEAT = "celery_beat_last_heartbeat_timestamp_seconds"


def test_a_beat_that_stopped_shows_within_two_intervals(
    broker: Broker, start_sidecar: Callable[..., Sidecar], tmp_path: Path
) -> None:
    interval = 2.0
    schedule = {"often": {"task": "sample.noop", "schedule": 1.0}, "rare": {"task": "sample.add", "schedule": 3600.0}}
    sidecar = start_sidecar(broker.url)
    with Beat(broker.url, tmp_path, schedule, signals={"interval": interval}) as beat:
        wait_until(lambda: len(sidecar.metrics().by("celery_beat_entry_last_sent_timestamp_seconds", "entry")) > 0)
        first = sidecar.value(HEARTBEAT)
        assert first is not None
        wait_until(lambda: (sidecar.value(HEARTBEAT) or 0) > first)
        metrics = sidecar.metrics()
        due = metrics.by("celery_beat_entry_next_due_timestamp_seconds", "entry", "task")
        assert due.keys() == {
            ("often", "sample.noop"), ("rare", "sample.add"), ("celery.backend_cleanup", "celery.backend_cleanup"),
        }  # fmt: skip
        assert 3500 < due["rare", "sample.add"] - time.time() < 3601
        sent = metrics.by("celery_beat_entry_last_sent_timestamp_seconds", "entry", "task")
        assert sent.keys() == {("often", "sample.noop")}
        assert -interval - 1 < sent["often", "sample.noop"] - time.time() < 1
        beat.kill()
        killed_at = time.time()
    # No longer than two intervals without a sign while it lived, and none after.
    wait_until(lambda: time.time() - (sidecar.value(HEARTBEAT) or 0) > 2 * interval)
    assert time.time() - killed_at < 2 * interval + 1
    last = sidecar.value(HEARTBEAT)
    assert last is not None
    assert killed_at - interval - 1 < last <= killed_at + 1
