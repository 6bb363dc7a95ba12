"""``celery-lookout doctor`` names what is wrong with real set-ups, and ``celery -A proj lookout`` finds its broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.conftest import Broker
from tests.servers.celery_versions import ROOT
from tests.servers.process import free_port, wait_until
from tests.servers.redis import RedisServer
from tests.servers.sidecar import Sidecar
from tests.servers.workers import Client, Worker


def run_doctor(broker_url: str, *options: str, seconds: float = 5.0) -> tuple[int, str]:
    """Run the doctor and return its exit code and what it said."""
    argv = [sys.executable, "-m", "celery_lookout", "doctor", "--seconds", str(seconds), *options]
    done = subprocess.run(
        argv, env={**os.environ, "LOOKOUT_BROKER": broker_url}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_broker_that_is_not_there_is_an_error(own_redis: RedisServer) -> None:
    own_redis.kill()
    code, said = run_doctor(f"redis://:s3cret@127.0.0.1:{own_redis.port}/0", seconds=2)
    assert code == 2
    assert "cannot be reached" in said
    assert "Connection refused" in said
    assert "s3cret" not in said


def test_the_wrong_database_is_guessed(redis_broker: Broker, start_worker: Callable[..., Worker]) -> None:
    start_worker(redis_broker.url)
    code, said = run_doctor(redis_broker.url.rpartition("/")[0] + "/4095")
    assert code == 1
    assert "no worker was heard" in said
    assert "database number" in said


def test_workers_without_task_events_are_named(
    redis_broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    start_worker(redis_broker.url, name="quiet@host", events=False, concurrency=1)
    client = make_client(redis_broker.url, sent_events=False)
    for _ in range(60):
        client.send("sleep", 0.4)
    code, said = run_doctor(redis_broker.url, seconds=12)
    assert code == 1
    assert "send no task events: quiet@host" in said
    assert "--control.enable-events" in said


def test_missing_task_sent_is_named(
    redis_broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    start_worker(redis_broker.url, concurrency=1)
    client = make_client(redis_broker.url, sent_events=False)
    for _ in range(30):
        client.send("sleep", 0.4)
    code, said = run_doctor(redis_broker.url)
    assert code == 1
    assert "task_send_sent_event = True" in said


def test_a_healthy_cluster_gets_exit_code_0(
    redis_broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    start_worker(redis_broker.url, concurrency=1)
    client = make_client(redis_broker.url)
    for _ in range(30):
        client.send("sleep", 0.4)
    for _ in range(2):
        client.send("sleep", 60.0, countdown=3600)
    sent_later = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, redis_broker.url], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        code, said = run_doctor(redis_broker.url)
    finally:
        sent_later.kill()
        sent_later.wait()
    assert "task events and task-sent are on" in said
    assert code == 0, said


#: Goes on publishing while the doctor watches.
PUBLISHER = """
import sys, time
from tests.servers.sample_app import make_app
app = make_app(sys.argv[1])
while True:
    app.tasks["sample.noop"].apply_async(ignore_result=True)
    time.sleep(0.2)
"""


def test_celerys_own_command_line_knows_the_broker(
    redis_broker: Broker,
    tmp_path: Path,
    start_worker: Callable[..., Worker],
    make_client: Callable[..., Client],
) -> None:
    """``celery -A proj lookout`` becomes the sidecar of the application's broker, and drops the application."""
    port = free_port()
    watcher = Sidecar("", tmp_path / "sidecar", env=_application(redis_broker.url))
    watcher.port, watcher.url = port, f"http://127.0.0.1:{port}"
    celery = [sys.executable, "-m", "celery", "-A", "tests.servers.sample_app"]
    watcher.argv = [*celery, "lookout", "serve", "--web.listen-address", f"127.0.0.1:{port}"]
    try:
        watcher.start()
        start_worker(redis_broker.url, conf={"broker_transport_options": {"global_keyprefix": "shop:"}})
        client = make_client(redis_broker.url, broker_transport_options={"global_keyprefix": "shop:"})
        client.wait(*[client.send("noop") for _ in range(5)])
        metrics = watcher.wait_for("celery_task_succeeded_total", 5)
        assert metrics.has("celery_queue_length", queue="celery")
        mapped = Path(f"/proc/{watcher.pid}/cmdline").read_bytes().decode()
        assert "celery_lookout" in mapped
        assert redis_broker.url not in mapped
        assert watcher.process is not None
        watcher.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not watcher.is_running)
        assert watcher.process.returncode == 0
    finally:
        watcher.kill()


def _application(broker_url: str) -> Mapping[str, str]:
    conf = {"broker_transport_options": {"global_keyprefix": "shop:"}}
    path = f"{ROOT}:{ROOT / 'exporter'}"
    return {"SAMPLE_BROKER": broker_url, "SAMPLE_CONF": json.dumps(conf), "PYTHONPATH": path}
