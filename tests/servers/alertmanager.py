"""A private Alertmanager, amtool, and the example configuration in a form that a test can wait for."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.servers.celery_versions import ROOT
from tests.servers.process import Server, free_port, need

HOW = "apt-get install prometheus-alertmanager, or brew install alertmanager"

#: What users copy.
EXAMPLE = ROOT / "alerts" / "alertmanager.example.yml"


def find_amtool() -> Path:
    """Return amtool, else skip."""
    return need(shutil.which("amtool"), "amtool", HOW)


def example(receivers_url: str, *, wait: str = "1s") -> dict[str, Any]:
    """
    Return the example's configuration with every receiver at *receivers_url* and every wait of a group as *wait*.

    A receiver that tells nobody stays so. Routes and inhibition are the example's own.
    """
    config: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    for route in routes(config["route"]):
        route |= {key: wait for key in ("group_wait", "group_interval") if key in route}
    config["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": receivers_url, "send_resolved": True}]}
        if len(receiver) > 1
        else receiver
        for receiver in config["receivers"]
    ]
    return config


def routes(route: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return a route and all below it."""
    yield route
    for child in route.get("routes", ()):
        yield from routes(child)


class Alertmanager(Server):
    """
    Alertmanager with *config*, as loaded from YAML; it has no peers.

    A notification comes at least ``group_wait`` after its first alert, so shorten that for a test.
    """

    start_seconds = 30.0

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "alertmanager.yml"
        configuration.write_text(yaml.safe_dump(dict(config)))
        # Debian has put its vendor's name before the program's.
        binary = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
        argv: list[str | Path] = [
            need(binary, "Alertmanager", HOW),
            f"--config.file={configuration}",
            f"--storage.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            # Else it looks for peers, listens for them everywhere, and waits for them before the first notification.
            "--cluster.listen-address=",
        ]
        super().__init__(argv, folder, name="alertmanager")

    @property
    def address(self) -> str:
        """Host and port, as Prometheus's configuration has it."""
        return f"127.0.0.1:{self.port}"

    def ready(self) -> bool:
        with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=2) as response:
            return bool(response.status == 200)

    def post(self, alerts: Sequence[Mapping[str, str]]) -> None:
        """Send alerts that fire from now on, each given by its labels; they end by themselves after five minutes."""
        body = json.dumps([{"labels": dict(labels)} for labels in alerts]).encode()
        request = urllib.request.Request(
            f"http://{self.address}/api/v2/alerts", data=body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200

    def alerts(self, *matchers: str) -> list[dict[str, Any]]:
        """
        Return the alerts that fire and match, muted ones too; ``status.inhibitedBy`` says by whom.

        What was sent a moment ago may not mute others yet.
        """
        query = urllib.parse.urlencode([("filter", matcher) for matcher in matchers])
        with urllib.request.urlopen(f"http://{self.address}/api/v2/alerts?{query}", timeout=10) as response:
            found: list[dict[str, Any]] = json.load(response)
        return found
