"""The rules for sidecars that share the work, which are not the file in ``alerts/``: held to tests of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from celery_lookout.assets.rules import RuleOptions, rule_file
from celery_lookout.assets.text import to_yaml

pytestmark = pytest.mark.prometheus

TESTS = sorted((Path(__file__).parents[2] / "alerts" / "tests" / "sharded").glob("*.yml"))


def run(promtool: Path, test: Path, options: RuleOptions, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run *test* in *folder*, beside the rules that *options* make: its ``rule_files`` are relative to it."""
    (folder / "rules.yml").write_text(to_yaml(rule_file(options)))
    copy = folder / test.name
    copy.write_text(test.read_text())
    return subprocess.run([str(promtool), "test", "rules", str(copy)], capture_output=True, text=True)


def test_there_are_some() -> None:
    assert TESTS


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.stem)
def test_rules_of_shards(test: Path, promtool: Path, tmp_path: Path) -> None:
    result = run(promtool, test, RuleOptions(sharded=True), tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["CeleryExporterDown", "CeleryExporterBrokerDown", "CeleryTaskFailureSpike"])
def test_rules_of_replicas_are_others(name: str, promtool: Path, tmp_path: Path) -> None:
    """The tests above would notice if ``sharded`` had no effect."""
    (test,) = [test for test in TESTS if test.stem == name]
    assert run(promtool, test, RuleOptions(), tmp_path).returncode != 0
