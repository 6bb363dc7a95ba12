"""A private Prometheus server, and promtool."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.servers.process import Server, free_port, need

HOW = "apt-get install prometheus, or brew install prometheus"

#: The rule file's name beside the configuration.
RULES = "rules.yml"


def find_promtool() -> Path:
    """Return promtool, else skip."""
    return need(shutil.which("promtool"), "promtool", HOW)


def quick_config(job: str, target: str, *, alertmanager: str = "") -> str:
    """
    Return the configuration of a Prometheus that looks every second; it has no rules until ``load_rules``.

    *target* and *alertmanager* are hosts with ports.
    """
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [RULES],
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [target]}]}],
    }
    if alertmanager:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    return yaml.safe_dump(config)


class PrometheusServer(Server):
    """
    Prometheus with the configuration text *config* (YAML).

    Paths in it are relative to *folder*. *options* are further command line options. A fresh server shows its first
    targets only seconds after its start, even with a short scrape interval: poll with a deadline.
    """

    start_seconds = 30.0

    def __init__(self, folder: Path, config: str, *, options: Sequence[str] = ()) -> None:
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
            *options,
        ]
        super().__init__(argv, folder, name="prometheus")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as response:
            return bool(response.status == 200)

    def load_rules(self, rules: Mapping[str, Any]) -> None:
        """
        Evaluate *rules* from now on; the configuration names the file ``RULES``.

        Before a fresh server has its first scrapes, rules in quick motion take that for an outage.
        """
        (self.folder / RULES).write_text(yaml.safe_dump(dict(rules)))
        with urllib.request.urlopen(f"{self.url}/-/reload", data=b"", timeout=10):
            pass

    def api(self, path: str, **parameters: str) -> Any:
        """Return the ``data`` of an API call, such as ``api("query", query="up")``."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the instant vector of a PromQL expression as pairs of labels and value."""
        result = self.api("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]
