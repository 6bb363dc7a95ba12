"""What ``celery-lookout assets`` writes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from click.testing import CliRunner, Result

from celery_lookout.assets.rules import RuleOptions, rule_file
from celery_lookout.assets.thresholds import Thresholds
from celery_lookout.cli import command
from celery_lookout.errors import LookoutError
from tests.servers.celery_versions import ROOT
from tests.servers.prometheus import find_promtool

DASHBOARDS = {"exporter", "overview", "queue", "slo", "task", "worker"}

Write = Callable[..., Path]


def run(*options: object) -> Result:
    return CliRunner().invoke(command, ["assets", *map(str, options)], catch_exceptions=True)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*options: object) -> Path:
        result = run("--out", tmp_path / "out", *options)
        assert result.exit_code == 0, result.output
        return tmp_path / "out"

    return write


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def expressions(rules: dict[str, Any]) -> Iterator[str]:
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def lint(path: Path) -> None:
    checked = subprocess.run(
        [find_promtool(), "check", "rules", "--lint=all", "--lint-fatal", path], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_plain_files(write: Write) -> None:
    out = write()
    assert loaded(out / "rules.yml") == rule_file()
    assert {path.stem for path in (out / "dashboards").iterdir()} == DASHBOARDS
    names = {rule["alert"] for group in rule_file()["groups"] for rule in group["rules"] if "alert" in rule}
    assert {path.stem for path in (out / "runbooks").iterdir()} == {*names, "README"}
    assert loaded(out / "alertmanager.example.yml")["route"]
    # Again, over what is there.
    assert write() == out


def test_an_operator_gets_one_object_for_the_rules_and_one_for_each_dashboard(write: Write) -> None:
    out = write("--format", "operator", "--namespace", "jobs", "--label", "release=prometheus")
    rules = loaded(out / "prometheus-rule.yaml")
    assert (rules["apiVersion"], rules["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rules["metadata"] == {
        "name": "celery-lookout",
        "namespace": "jobs",
        "labels": {"app.kubernetes.io/name": "celery-lookout", "release": "prometheus"},
    }
    assert rules["spec"] == rule_file()
    maps = [loaded(path) for path in (out / "dashboards").iterdir()]
    assert len({one["metadata"]["name"] for one in maps}) == len(DASHBOARDS)
    for one in maps:
        assert one["kind"] == "ConfigMap"
        assert one["metadata"]["namespace"] == "jobs"
        # The label by which Grafana's own sidecar finds it.
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        [(name, text)] = one["data"].items()
        assert json.loads(text) == json.loads((ROOT / "dashboards" / name).read_text())
        # Kubernetes takes no more.
        assert len(text) < 2**20


@pytest.mark.parametrize(("form", "suffix"), [("plain", "*.json"), ("configmap", "*.yaml")])
def test_dashboards_of_sharded_sidecars_add_up_what_these_tell(write: Write, form: str, suffix: str) -> None:
    """Only where the largest of several would be taken before a sum, and never in what a panel shows line by line."""
    before = [path.read_text() for path in sorted((write("--format", form) / "dashboards").glob(suffix))]
    after = [path.read_text() for path in sorted((write("--format", form, "--sharded") / "dashboards").glob(suffix))]
    assert len(after) == len(DASHBOARDS)
    assert [text.replace("broker, instance", "broker") for text in after] == [
        text.replace("broker, instance", "broker") for text in before
    ]
    merged = [by for text in after for by in re.findall(r"max by \((cluster, [^)]*)\)", text)]
    assert len(merged) > 100
    assert all(by.startswith("cluster, namespace, job, broker, instance") for by in merged)


def test_config_maps_without_an_operator(write: Write) -> None:
    out = write("--format", "configmap")
    rules = loaded(out / "rules-configmap.yaml")
    assert "namespace" not in rules["metadata"]
    assert yaml.safe_load(rules["data"]["rules.yml"]) == rule_file()
    assert len(list((out / "dashboards").iterdir())) == len(DASHBOARDS)


@pytest.mark.prometheus
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--sharded"],
        ["--selector", 'job="a{b", env!~"dev|test"', "--latency-slo", 30],
        ["--selector", r'job =~ "a\\.\\d+\"" , env != "\\1\t"', "--label", "example.org/team=", "--label", "a=B.c_d"],
        ["--sentry-url", "https://sentry.example/organizations/shop", "--grafana-url", "https://grafana.example/"],
        ["--grafana-url", "https://grafana.{{ $externalLabels.region }}.example"],
        [option for one in fields(Thresholds) for option in ("--threshold", f"{one.name}=0.5")],
    ],
    ids=["defaults", "sharded", "selector", "quotes", "links", "templates", "thresholds"],
)
def test_promtool_finds_nothing_wrong_with_the_rules(write: Write, options: list[object]) -> None:
    lint(write(*options) / "rules.yml")


@pytest.mark.prometheus
@pytest.mark.parametrize("scale", [1 / 60, 1 / 600, 2])
def test_rules_in_quick_motion_are_rules(tmp_path: Path, scale: float) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(rule_file(RuleOptions(scale=scale))))
    lint(path)


def test_all_lengths_of_time_are_scaled() -> None:
    def times(rules: dict[str, Any]) -> list[float]:
        seconds = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
        found = []
        for group in rules["groups"]:
            for rule in group["rules"]:
                for key in ("for", "keep_firing_for"):
                    if key in rule:
                        unit = rule[key].lstrip("0123456789")
                        found.append(int(rule[key].removesuffix(unit)) * seconds[unit])
        return found

    assert times(rule_file(RuleOptions(scale=1 / 60))) == pytest.approx([one / 60 for one in times(rule_file())])
    quick = list(expressions(rule_file(RuleOptions(scale=1 / 60))))
    assert not [one for one in quick for length in ("[5m]", "[1h]", "[1d]", "offset 15m", ":1m]") if length in one]
    assert any(", 60)" in one for one in quick)  # the horizon of an hour


def test_the_selector_stands_at_each_metric(write: Write) -> None:
    rules = loaded(write("--selector", 'job="one", env="x"') / "rules.yml")
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    selectors = [
        {(matcher.name, matcher.value) for matcher in one.matchers.matchers}
        for expr in expressions(rules)
        for one in _selectors(promql_parser.parse(expr))
        if one.name not in recorded
    ]
    assert selectors
    assert all({("job", "one"), ("env", "x")} <= one for one in selectors)


@pytest.mark.parametrize("selector", ['job="one", env="x"', r'env=~"a\\.b|ä\""'])
def test_the_selector_stands_at_each_metric_of_the_dashboards(write: Write, selector: str) -> None:
    for path in (write("--selector", selector) / "dashboards").iterdir():
        board = json.loads(path.read_text())
        exprs = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
        exprs += [mark["expr"] for mark in board["annotations"]["list"] if "expr" in mark]
        exprs += [one["query"] for one in board["templating"]["list"] if "{" in str(one.get("query"))]
        found = [one for expr in exprs for one in re.findall(r"\{[a-z](?:\"(?:[^\"\\]|\\.)*\"|[^\"}])*\}", expr)]
        assert len(found) > 30
        assert not [one for one in found if not one.startswith((f"{{{selector}, cluster=", "{alertstate="))]


def test_dashboards_are_as_they_ship_unless_a_selector_is_given(write: Write) -> None:
    for path in (write() / "dashboards").iterdir():
        assert path.read_text() == (ROOT / "dashboards" / path.name).read_text()


def _selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if child is not None:
            yield from _selectors(child)
    for argument in getattr(node, "args", []):
        yield from _selectors(argument)


def test_an_slo_for_queues_without_one(write: Write) -> None:
    text = (write("--latency-slo", 45) / "rules.yml").read_text()
    assert "or queue:celery_queue_backlog:sum * 0 + 45\n" in text


def test_links(write: Write) -> None:
    options = ("--runbook-url", "https://wiki/books/", "--grafana-url", "https://g/", "--sentry-url", "https://s/org/")
    alerts = {
        rule["alert"]: rule["annotations"]
        for group in loaded(write(*options) / "rules.yml")["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    spike = alerts["CeleryTaskFailureSpike"]
    assert spike["runbook_url"] == "https://wiki/books/CeleryTaskFailureSpike.md"
    assert spike["dashboard_url"].startswith("https://g/d/celery-task?")
    assert spike["sentry_url"] == "https://s/org/issues/?query=transaction%3A{{ $labels.task | urlquery }}"
    assert "sentry_url" not in alerts["CeleryQueueNotDraining"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threshold", "speed=1"], "--threshold 'speed': there is no such threshold; --thresholds lists them"),
        (["--threshold", "failure_ratio"], "'failure_ratio' is not NAME=VALUE: write for example failure_ratio=0.1"),
        (["--threshold", "failure_ratio=much"], "'failure_ratio=much' is no number"),
        (["--threshold", "failure_ratio=nan"], "failure_ratio=nan: give a number from 0 up"),
        (["--threshold", "failure_ratio=-1"], "failure_ratio=-1: give a number from 0 up"),
        (["--threshold", "error_objective=1"], "error_objective=1: no budget is left"),
        (["--selector", "job"], "--selector 'job' is no list of label matchers"),
        (["--selector", ""], "--selector '' is no list of label matchers"),
        (["--selector", 'job="a",'], "is no list of label matchers"),
        (["--selector", 'job="a"} or {b="c"'], "is no list of label matchers"),
        (["--latency-slo", "0"], "--latency-slo 0 is no length of time"),
        (["--label", "release"], "--label 'release' is not NAME=VALUE"),
        (["--selector", 'job="a\n"'], "is no list of label matchers"),
        (["--selector", 'jöb="a"'], "is no list of label matchers"),
        (["--selector", '__name__="up"'], "leave out __name__"),
        (
            ["--selector", 'env="x", job=~"a\\.b"'],
            "\\. means nothing within Prometheus's quotes; double the backslash: \\\\.",
        ),
        (["--selector", 'job=~"a["'], "mend the regular expression a[: unterminated character set"),
        (["--selector", 'job!~"a(?=b)"'], "leave out (?=: Prometheus's regular expressions have no such thing"),
        (["--selector", 'job=~"(a)\\\\1"'], "leave out \\1: Prometheus's"),
        (["--label", "a b=c"], "--label 'a b=c': 'a b' is no name for Kubernetes"),
        (["--label", "example..org/=c"], "is no name for Kubernetes"),
        (["--label", "release=all of them"], "'all of them' is no value for Kubernetes"),
        (["--namespace", "Jobs"], "--namespace 'Jobs' is no name for Kubernetes"),
        (["--namespace", "a.b"], "--namespace 'a.b' is no name for Kubernetes"),
        (
            ["--grafana-url", "grafana.example"],
            "--grafana-url 'grafana.example' is no address: write for example https://",
        ),
        (["--grafana-url", ""], "--grafana-url '' is no address"),
        (["--sentry-url", "ftp://s"], "--sentry-url 'ftp://s' is no address"),
        (["--grafana-url", "https://{{g"], "--grafana-url 'https://{{g': give an address; {{ begins a template"),
        (["--runbook-url", ""], "--runbook-url '': give an address"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, options: list[str], said: str) -> None:
    result = run("--out", tmp_path, *options)
    assert isinstance(result.exception, LookoutError)
    assert said in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("--out", tmp_path / "file")
    assert isinstance(result.exception, LookoutError)
    assert str(result.exception).startswith(f"--out {tmp_path / 'file'}: cannot write ")


def test_the_thresholds_can_be_listed() -> None:
    lines = run("--thresholds").output.splitlines()
    assert [line.split()[0] for line in lines] == [one.name for one in fields(Thresholds)]
    assert all(len(line.split()) > 3 for line in lines)
