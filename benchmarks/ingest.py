"""What counting events costs: CPU, loss, lag, memory, and what a scrape takes meanwhile."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from .exporters import Measured
from .stream import Load

Start = Callable[[], Measured]

#: Task events sent before the measurement, so that all series are there.
WARM_UP: Final = Load(4000)


class Publisher:
    """A :mod:`benchmarks.publish` process with everything made and nothing sent."""

    def __init__(self, url: str, load: Load) -> None:
        argv = [sys.executable, "-m", "benchmarks.publish", url, json.dumps(asdict(load))]
        folder = Path(__file__).parents[1]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def run(self) -> dict[str, Any]:
        """Publish, and return what was published: ``events`` and ``seconds``."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._read())
        self._process.communicate()
        return result


@dataclass(frozen=True)
class Ingest:
    """One measurement."""

    exporter: str
    rate: int
    events: int
    cpu_us_per_event: float
    events_per_second: float
    #: CPU used of one core, in percent.
    core_percent: float
    lost: int
    #: Seconds from the last publish until it had nothing left to do.
    lag_seconds: float
    rss_mib: float


def measure(start: Start, url: str, load: Load) -> Ingest:
    """Start an exporter, let *load* loose on the broker, and look at what it does."""
    measured = start()
    try:
        Publisher(url, WARM_UP).run()
        publisher = Publisher(url, load)
        measured.wait_quiet()
        counted = measured.counted()
        cpu, started = measured.cpu_seconds(), time.monotonic()
        published = publisher.run()
        ended = time.monotonic()
        quiet = measured.wait_quiet()
        busy = measured.cpu_seconds() - cpu
        events = published["events"]
        lag = max(0.0, quiet - ended)
        # A scrape is rendered after everything that came has been counted.
        lost = events - (measured.counted() - counted)
        return Ingest(
            exporter=measured.label,
            rate=load.rate,
            events=events,
            cpu_us_per_event=busy / events * 1e6,
            events_per_second=events / (published["seconds"] + lag),
            core_percent=busy / (time.monotonic() - started) * 100,
            lost=lost,
            lag_seconds=lag,
            rss_mib=measured.rss_mib(),
        )
    finally:
        measured.server.discard()


@dataclass(frozen=True)
class Idle:
    """A sidecar with 10 workers and nothing to do."""

    start_seconds: float
    rss_mib: float
    core_percent: float
    series: int
    scrape_p50_ms: float
    scrape_p99_ms: float
    #: The same under load: 10,000 events a second, unless told otherwise.
    loaded_p50_ms: float
    loaded_p99_ms: float


def measure_idle(
    start: Start, url: str, *, seconds: float = 10.0, names: int = 50, rate: int = 10_000, scrapes: int = 100
) -> Idle:
    """See what it takes when little happens, and what a scrape takes with and without load; 61 series per name."""
    began = time.monotonic()
    measured = start()
    start_seconds = time.monotonic() - began
    try:
        Publisher(url, Load(max(4000, 8 * names), names=names)).run()
        measured.wait_quiet()
        rss = measured.rss_mib()
        heartbeats = Publisher(url, Load(int(4 * seconds), rate=4, names=names))
        cpu, began = measured.cpu_seconds(), time.monotonic()
        heartbeats.run()
        share = (measured.cpu_seconds() - cpu) / (time.monotonic() - began) * 100
        idle = [measured.scrape()[0] * 1000 for _ in range(scrapes)]
        publisher = Publisher(url, Load(int(rate * seconds), rate=rate, names=names))
        with _scraping(measured) as loaded:
            publisher.run()
        series = sum(1 for line in measured.scrape()[1].splitlines() if line and not line.startswith(b"#"))
        return Idle(start_seconds, rss, share, series, *_percentiles(idle), *_percentiles(loaded))
    finally:
        measured.server.discard()


@contextmanager
def _scraping(measured: Measured) -> Iterator[list[float]]:
    """Scrape five times a second meanwhile; the list fills with milliseconds."""
    found: list[float] = []
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(0.2):
            found.append(measured.scrape()[0] * 1000)

    thread = threading.Thread(target=scrape)
    thread.start()
    yield found
    done.set()
    thread.join()


def _percentiles(values: list[float]) -> tuple[float, float]:
    return statistics.median(values), statistics.quantiles(values, n=100, method="inclusive")[98]
