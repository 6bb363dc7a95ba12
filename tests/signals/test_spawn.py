"""Where pool processes are spawned they cannot inherit the pipe: events go on to count, and nothing breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Broker
from tests.servers.process import wait_until
from tests.servers.workers import Worker
from tests.signals.snapshots import Reader


@pytest.mark.redis
def test_a_worker_that_spawns_says_that_it_does_not_count(
    redis_broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Any], tmp_path: Path
) -> None:
    client = make_client(redis_broker.url)
    app = "tests.signals.spawning_app"
    worker = start_worker(redis_broker.url, name="w@host", signals={"interval": 1.0}, app=app)
    client.wait(client.send("add", 1, 1), client.send("fail"), client.send("kill_self"), seconds=60)
    reader = Reader(redis_broker.url)
    last = wait_until(lambda: next((one for one in reader.read()[-1:] if one["processed"] == 3), None))
    assert last is not None
    assert last["counts"] is False
    assert last["pool"] == "prefork"
    assert last["slots"] == 2
    assert last["faults"] == last["runs_lost"] == 0
    assert "fault in" not in worker.log.read_text()
