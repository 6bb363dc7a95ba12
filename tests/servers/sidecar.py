"""The program under test as its users have it: a process of its own, seen through its HTTP endpoints."""

from __future__ import annotations

import base64
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.servers.celery_versions import ROOT
from tests.servers.process import Server, free_port, wait_until


class Answer(NamedTuple):
    """An HTTP answer and how long it took."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    seconds: float


class Metrics:
    """One scrape, parsed by prometheus-client."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def get(self, name: str, **labels: str) -> float | None:
        """Return the sum of the samples called *name* that have *labels* among theirs; None when there is none."""
        values = [
            sample.value for sample in self._samples if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(values) if values else None

    def by(self, name: str, *keys: str) -> dict[tuple[str, ...], float]:
        """Return all samples called *name* that are not 0, by the values of the labels *keys*."""
        found: dict[tuple[str, ...], float] = {}
        for sample in self._samples:
            if sample.name == name and sample.value:
                key = tuple(sample.labels[label] for label in keys)
                found[key] = found.get(key, 0) + sample.value
        return found

    def counters(self) -> dict[str, float]:
        """Return all series that may only rise while the sidecar keeps its state."""
        return {
            f"{sample.name}{sample.labels}": sample.value
            for sample in self._samples
            if sample.name.startswith("celery_task_") and sample.name.endswith(("_total", "_count", "_bucket"))
        }

    def has(self, name: str, **labels: str) -> bool:
        """Say whether such a sample is there."""
        return self.get(name, **labels) is not None


class Sidecar(Server):
    """
    ``celery-lookout serve`` on a free port; call start(), or use it as a context manager.

    With a web configuration file, *context* is what it is asked with over TLS, *user* is NAME:PASSWORD.
    """

    start_seconds = 30.0
    stop_seconds = 10.0

    def __init__(
        self,
        broker_url: str,
        folder: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        user: str = "",
    ) -> None:
        self.port = free_port()
        self.context = context
        self.user = user
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}"
        argv = [sys.executable, "-m", "celery_lookout", "serve", "--web.listen-address", f"127.0.0.1:{self.port}"]
        if broker_url:
            argv += ["--broker", broker_url]
        paths = {"PYTHONPATH": f"{ROOT / 'exporter'}"}
        super().__init__([*argv, *options], folder, env={**paths, **(env or {})}, name="sidecar")

    def ready(self) -> bool:
        return self.get("/-/ready").status == 200

    def get(self, path: str, **headers: str) -> Answer:
        """Fetch *path*; an HTTP error is an answer too. Raises OSError when nobody answers."""
        request = urllib.request.Request(self.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        if self.user:
            request.add_header("Authorization", f"Basic {base64.b64encode(self.user.encode()).decode()}")
        started = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.context) as response:
                body = response.read()
                return Answer(response.status, body, dict(response.headers), time.monotonic() - started)
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read(), dict(error.headers), time.monotonic() - started)

    def metrics(self) -> Metrics:
        """Scrape."""
        answer = self.get("/metrics")
        assert answer.status == 200
        return Metrics(answer.body.decode())

    def value(self, name: str, **labels: str) -> float | None:
        """Scrape, and return one value as Metrics.get does."""
        return self.metrics().get(name, **labels)

    def wait_for(self, name: str, value: float, seconds: float = 30.0, **labels: str) -> Metrics:
        """Wait until ``name{labels}`` is *value*, and return that scrape."""
        last: list[float | None] = [None]

        def reached() -> Metrics | None:
            metrics = self.metrics()
            last[0] = metrics.get(name, **labels)
            return metrics if last[0] == value else None

        found = wait_until(reached, seconds, f"{name}{labels or ''} did not become {value:g}, it is {last}")
        assert found is not None
        return found
