"""The compose example: valid, and in step with the files and programs that it names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_lookout.demo.run import LATENCY_SLOS, WORKERS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return services


def check_schema(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_follows_the_compose_specification() -> None:
    result = check_schema(DEPLOY / "compose.yaml")
    assert result.returncode == 0, result.stdout


def test_the_check_finds_a_misspelt_key(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("ports:", "port:"))
    assert check_schema(wrong).returncode == 1


def test_what_it_mounts_exists(services: dict[str, Any]) -> None:
    """Docker makes a folder of a missing file, and the program then says something else."""
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]
    mounts = [mount.split(":")[0] for service in services.values() for mount in service.get("volumes", ())]
    assert mounts
    for mount in mounts:
        assert (DEPLOY / mount).exists() if mount.startswith(".") else mount in volumes, mount


def test_the_state_is_kept_where_the_image_lets_its_user_write(services: dict[str, Any]) -> None:
    _, folder = services["lookout"]["volumes"][0].split(":")
    assert Path(services["lookout"]["environment"]["LOOKOUT_STATE_FILE"]).parent == Path(folder)
    assert f"RUN install -d -o 65532 -g 65532 {folder}\n" in (ROOT / "Dockerfile").read_text()


def test_what_it_builds_is_a_stage_of_the_dockerfile(services: dict[str, Any]) -> None:
    stages = re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    targets = {service["build"]["target"] for service in services.values() if "target" in service.get("build", {})}
    assert targets == {"demo"}
    assert targets <= set(stages)


def test_the_worker_consumes_every_queue_of_the_shop(services: dict[str, Any]) -> None:
    command = services["worker"]["command"]
    consumed = command[command.index("-Q") + 1].split(",")
    assert set(consumed) == {queue for worker in WORKERS for queue in worker.queues.split(",")}


def test_its_latency_slos_are_those_of_the_demo(services: dict[str, Any]) -> None:
    given = services["lookout"]["environment"]["LOOKOUT_QUEUE_LATENCY_SLO"].split()
    assert given == [f"{queue}={seconds}" for queue, seconds in LATENCY_SLOS.items()]


def test_the_shop_counts_for_itself(services: dict[str, Any]) -> None:
    """Its image has the worker package, so that -E is not needed; the sidecar's image has no use for it."""
    demo = (ROOT / "Dockerfile").read_text().split(" AS demo\n")[1].split("\nFROM ")[0]
    assert "./signals" in demo
    assert "!signals" in (ROOT / ".dockerignore").read_text().splitlines()
    assert {name for name, service in services.items() if service["image"] == "celery-lookout-shop"} == {
        "worker", "beat", "visitors",
    }  # fmt: skip
    assert "-E" not in services["worker"]["command"]


def test_nothing_is_reachable_from_outside(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_scrapes_the_sidecar(services: dict[str, Any]) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert services[host]["image"] == "celery-lookout"
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"]


@pytest.mark.prometheus
def test_prometheus_accepts_its_configuration(promtool: Path) -> None:
    command = [str(promtool), "check", "config", str(DEPLOY / "prometheus.yml")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_prometheus_keeps_what_leads_to_traces(services: dict[str, Any]) -> None:
    command = services["prometheus"]["command"]
    mounts = [mount.split(":")[1] for mount in services["prometheus"]["volumes"]]
    assert command[0].removeprefix("--config.file=") in mounts
    assert "--enable-feature=exemplar-storage" in command


def test_grafana_asks_the_prometheus_beside_it(services: dict[str, Any]) -> None:
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    (source,) = provisioned["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "127.0.0.1:9090:9090" in services["prometheus"]["ports"]
