"""The programs that are measured: each a process of its own, seen from outside."""

from __future__ import annotations

import http.client
import re
import time
from pathlib import Path

import psutil

from tests.servers import environments
from tests.servers.process import Server, free_port
from tests.servers.sidecar import Sidecar


class Measured:
    """A running exporter: what it uses, and what it shows."""

    #: Name of the counters whose sum is the task events it has counted.
    counters = re.compile(rb'^celery_exporter_events_total\{event="task-[a-z]+".*\} (\S+)$', re.MULTILINE)
    label = "lookout"

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self._port = port

    def cpu_seconds(self) -> float:
        """User and system time so far, of all its threads and processes: the kernel's own clock, in nanoseconds."""
        processes = [self._process, *self._process.children(recursive=True)]
        return sum(time.clock_gettime((~process.pid << 3) | 2) for process in processes)

    @property
    def _process(self) -> psutil.Process:
        return psutil.Process(self.server.pid)

    def rss_mib(self) -> float:
        """Resident size of the whole process tree."""
        processes = [self._process, *self._process.children(recursive=True)]
        return sum(process.memory_info().rss for process in processes) / 2**20

    def scrape(self, *, gzip: bool = False) -> tuple[float, bytes]:
        """Return the seconds a scrape took, and its body."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            started = time.perf_counter()
            connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"} if gzip else {})
            body = connection.getresponse().read()
            return time.perf_counter() - started, body
        finally:
            connection.close()

    def counted(self) -> int:
        """Return how many task events it shows to have counted."""
        return int(sum(float(value) for value in self.counters.findall(self.scrape()[1])))

    def wait_quiet(self, longest: float = 60.0) -> float:
        """Wait until it has nothing left to do; return when that was, in seconds of the monotonic clock."""
        deadline = time.monotonic() + longest
        at = quiet_since = time.monotonic()
        used = self.cpu_seconds()
        while at < deadline and at - quiet_since < 0.5:
            time.sleep(0.05)
            now, now_used = time.monotonic(), self.cpu_seconds()
            if now_used - used > 0.2 * (now - at):
                quiet_since = now
            at, used = now, now_used
        return quiet_since


def lookout(broker_url: str, folder: Path, *options: str) -> Measured:
    """Return this project's sidecar, started."""
    sidecar = Sidecar(broker_url, folder, *options)
    return Measured(sidecar.start(), sidecar.port)


class _Exporter(Measured):
    counters = re.compile(
        rb"^celery_task_(?:sent|received|started|succeeded|failed|retried|revoked|rejected)_total\{.*\} (\S+)$",
        re.MULTILINE,
    )
    label = "prometheus-exporter-celery"


class _Flower(Measured):
    counters = re.compile(rb'^flower_events_total\{.*type="task-[a-z]+".*\} (\S+)$', re.MULTILINE)
    label = "flower"


class _PeerServer(Server):
    """Another program that serves ``/metrics``, from the environment of ``requirements/peers.txt``."""

    def __init__(self, name: str, folder: Path, port: int, *arguments: str) -> None:
        python = environments.python_with("peers", environments.ROOT / "requirements" / "peers.txt")
        self._measured = Measured(self, port)
        super().__init__([python, *arguments], folder, name=name)

    def ready(self) -> bool:
        return self._measured.scrape()[1] != b""


def prometheus_exporter_celery(broker_url: str, folder: Path) -> Measured:
    """Return the best-known exporter, started."""
    port = free_port()
    options = ["--broker-url", broker_url, "--host", "127.0.0.1", "--port", str(port), "--log-level", "WARNING"]
    server = _PeerServer(_Exporter.label, folder, port, "-c", "from src.cli import cli; cli()", *options)
    return _Exporter(server.start(), port)


def flower(broker_url: str, folder: Path) -> Measured:
    """Return Flower, started."""
    port = free_port()
    options = ["--broker", broker_url, "flower", "--address=127.0.0.1", f"--port={port}", "--logging=warning"]
    server = _PeerServer(_Flower.label, folder, port, "-m", "celery", *options)
    return _Flower(server.start(), port)
