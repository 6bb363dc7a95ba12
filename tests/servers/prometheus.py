"""A private Prometheus server, and promtool."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.servers.process import Server, free_port, need

HOW = "apt-get install prometheus, or brew install prometheus"


def find_promtool() -> Path:
    """Return promtool, else skip."""
    return need(shutil.which("promtool"), "promtool", HOW)


class PrometheusServer(Server):
    """
    Prometheus with the configuration text *config* (YAML).

    Paths in it are relative to *folder*. A fresh server shows its first targets only seconds after its start, even with
    a short scrape interval: poll with a deadline.
    """

    start_seconds = 30.0

    def __init__(self, folder: Path, config: str) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "prometheus.yml"
        configuration.write_text(config)
        argv: list[str | Path] = [
            need(shutil.which("prometheus"), "Prometheus", HOW),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-lifecycle",
        ]
        super().__init__(argv, folder, name="prometheus")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as response:
            return bool(response.status == 200)

    def api(self, path: str, **parameters: str) -> Any:
        """Return the ``data`` of an API call, such as ``api("query", query="up")``."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the instant vector of a PromQL expression as pairs of labels and value."""
        result = self.api("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]
