"""The rules and their tests: each alert fires, is quiet and ends, what it counts exists, and no number is in vain."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import promql_parser
import pytest
import yaml
from alerts.generate import RULES, rules_text

from celery_lookout.assets.rules import RuleOptions, rule_file
from celery_lookout.assets.thresholds import Thresholds
from tests.docs.write import _runtime_names, families
from tests.servers.prometheus import find_promtool

pytestmark = pytest.mark.prometheus

FOLDER: Final = RULES.parent / "tests"
FILES: Final = sorted(FOLDER.glob("*.yml"))
DASHBOARDS: Final = RULES.parents[1] / "dashboards"

Rules = dict[str, Any]

#: Labels that Prometheus adds, and the name of the broker, which all have if brokers are named.
COMMON_LABELS: Final = {"job", "instance", "broker"}
#: Of recorded series, by the first part of their names.
RECORDED_LABELS: Final = {"queue": {"job", "broker", "queue"}, "task": {"job", "broker", "queue", "task"}}


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run promtool and return how it ended."""
    return subprocess.run([find_promtool(), *map(str, arguments)], capture_output=True, text=True)


def rules_of(rules: Rules, kind: str) -> list[dict[str, Any]]:
    """Return all rules that are an ``alert``, or a ``record``."""
    return [rule for group in rules["groups"] for rule in group["rules"] if kind in rule]


OURS: Final = rule_file()
ALERTS: Final = rules_of(OURS, "alert")
NAMES: Final = sorted({rule["alert"] for rule in ALERTS})


# The file.


def test_the_file_is_what_the_generator_writes() -> None:
    assert RULES.read_text("utf-8") == rules_text()


def test_promtool_has_nothing_to_say() -> None:
    result = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_rules_pass(file: Path, tmp_path: Path) -> None:
    """With all rules that can say anything about the series in the file; the rest only takes time."""
    text = file.read_text("utf-8")
    (tmp_path / "rules.yml").write_text(json.dumps(possible(OURS, set(re.findall(r"series: [\"']?(\w+)", text)))))
    (tmp_path / "test.yml").write_text(text.replace("../rules.yml", "rules.yml"))
    result = promtool("test", "rules", tmp_path / "test.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_rules_pass_as_they_are() -> None:
    result = promtool("test", "rules", FOLDER / "scenario_stuck_queue.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def possible(rules: Rules, metrics: set[str]) -> Rules:
    """Return the rules that are not empty for want of series, where only *metrics* have any."""
    known = set(metrics)
    groups = []
    for group in rules["groups"]:
        kept = []
        for rule in group["rules"]:
            used = {selector.name for selector in selectors(promql_parser.parse(rule["expr"]))}
            if used & known or "absent(" in rule["expr"]:
                kept.append(rule)
                known.add(rule.get("record", ""))
        groups.append({**group, "rules": kept})
    return {"groups": groups}


def test_what_a_rule_looks_at_is_above_it_in_its_group() -> None:
    recorded = {rule["record"] for rule in rules_of(OURS, "record")}
    for group in OURS["groups"]:
        above: set[str] = set()
        for rule in group["rules"]:
            used = {selector.name for selector in selectors(promql_parser.parse(rule["expr"]))}
            assert used & recorded <= above, rule
            above.add(rule.get("record", ""))


# What each alert needs.


def load(file: Path) -> list[dict[str, Any]]:
    """Return the tests of a file for promtool."""
    found: list[dict[str, Any]] = yaml.safe_load(file.read_text("utf-8"))["tests"]
    return found


def checks(test: dict[str, Any], name: str) -> list[set[str]]:
    """Return the labels of what fires of alert *name* at each moment that a test looks at, in their order."""
    ordered = sorted(test["promql_expr_test"], key=lambda check: duration(check["eval_time"]))
    return [
        {sample["labels"] for sample in check.get("exp_samples") or () if f'alertname="{name}"' in sample["labels"]}
        for check in ordered
    ]


def duration(text: str) -> float:
    """Return the seconds of a duration such as ``1h30m``."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)([smhd])", str(text)))


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_fires_is_quiet_and_ends(name: str) -> None:
    tests = [checks(test, name) for test in load(FOLDER / f"{name}.yml")]
    assert any(any(test) for test in tests), "fires in no test"
    assert any(not test[0] and any(test) for test in tests), "is quiet before it fires in no test"
    assert any(before - after for test in tests for before, after in itertools.pairwise(test)), "ends in no test"
    assert any(test and not any(test) for test in tests), "is quiet all the time in no test"


@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_each_alert_is_checked(name: str) -> None:
    texts = [
        alert
        for test in load(FOLDER / f"{name}.yml")
        for check in test.get("alert_rule_test") or ()
        for alert in (check.get("exp_alerts") or ())
        if check["alertname"] == name and "description" in alert.get("exp_annotations", {})
    ]
    severities = {rule["labels"]["severity"] for rule in ALERTS if rule["alert"] == name}
    assert {alert["exp_labels"]["severity"] for alert in texts} == severities


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_are_of_an_alert_or_of_a_scenario(file: Path) -> None:
    assert file.stem in NAMES or file.stem.startswith("scenario_") or file.stem == "scaling"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_each_alert_leads_somewhere(rule: dict[str, Any]) -> None:
    annotations = rule["annotations"]
    assert annotations["summary"]
    assert annotations["description"].endswith(".") or "{{ end }}" in annotations["description"]
    labels = rule["labels"]
    assert labels["severity"] in {"critical", "warning", "info"}
    assert labels["component"] == "celery"
    assert labels["alert_type"] in {"symptom", "cause"}
    # The sidecar's death must not end a page before the one that says so has begun.
    if labels["severity"] == "critical":
        assert duration(rule["keep_firing_for"]) > duration(
            next(one["for"] for one in ALERTS if one["alert"] == "CeleryExporterDown")
        )
    assert (RULES.parent / annotations["runbook_url"]).is_file()
    found = re.fullmatch(r".*/d/([\w-]+)\?(.*)", annotations["dashboard_url"])
    assert found
    dashboards = {board["uid"]: board for board in map(json.loads, map(Path.read_text, DASHBOARDS.glob("*.json")))}
    variables = {one["name"] for one in dashboards[found[1]]["templating"]["list"]}
    assert set(re.findall(r"var-(\w+)=", found[2])) <= variables


# What is counted.


def nodes(node: Any) -> Iterator[Any]:
    """Yield *node* of a parsed query and all below it."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (child := getattr(node, name, None)) is not None:
            yield from nodes(child)
    for argument in getattr(node, "args", None) or ():
        yield from nodes(argument)


def selectors(node: Any) -> Iterator[Any]:
    """Yield the selectors in a parsed query."""
    return (one for one in nodes(node) if isinstance(one, promql_parser.VectorSelector))


def labels_of(metric: str) -> set[str]:
    """Return the labels that *metric* can have. Raises KeyError when there is no such metric."""
    if metric in {rule["record"] for rule in rules_of(OURS, "record")}:
        return RECORDED_LABELS[metric.partition(":")[0]]
    if metric == "up" or metric in set(_runtime_names()):
        return COMMON_LABELS
    family, part, _ = re.fullmatch(r"(\w+?)((_bucket|_sum|_count)?)", metric).groups()  # type: ignore[union-attr]
    declared = families()
    if part and declared[family].kind == "histogram":
        return COMMON_LABELS | set(declared[family].labels) | ({"le"} if part == "_bucket" else set())
    return COMMON_LABELS | set(declared[metric].labels)


@pytest.mark.parametrize(
    "rule",
    [*rules_of(OURS, "record"), *ALERTS],
    ids=lambda rule: rule.get("record") or f"{rule['alert']}-{rule['labels']['severity']}",
)
def test_metrics_and_labels_in_the_rules_exist(rule: dict[str, Any]) -> None:
    tree = promql_parser.parse(rule["expr"])
    for selector in selectors(tree):
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels_of(selector.name)
    for node in nodes(tree):
        if isinstance(node, promql_parser.AggregateExpr):
            inside = set().union(*(labels_of(selector.name) for selector in selectors(node.expr)))
            assert set(node.modifier.labels if node.modifier else ()) <= inside, str(node)


# Mutants: a rule with another number must fail a test, else the number is not tested or does not matter.


def variant(field: str, factor: float) -> Thresholds:
    """Return the thresholds with *field* moved by *factor*: of an objective, what it leaves; of a share, up to 1."""
    value = getattr(Thresholds(), field)
    moved = 1 - (1 - value) * factor if field.endswith("_objective") else value * factor
    if field in {"workers_ratio", "saturated_ratio", "memory_ratio", "leak_ratio", "series_ratio"}:
        moved = min(moved, 1)
    return dataclasses.replace(Thresholds(), **{field: moved})


def touched(mutant: Rules) -> set[str]:
    """Return the alerts that differ in *mutant*."""
    pairs = zip(ALERTS, rules_of(mutant, "alert"), strict=True)
    return {ours["alert"] for ours, theirs in pairs if ours != theirs}


def needed(rules: Rules, names: Iterable[str]) -> Rules:
    """Return only the alerts called *names* and what they look at: promtool is slow, and the others do not matter."""
    wanted = set(names)
    groups = []
    for group in reversed(rules["groups"]):
        kept = []
        for rule in reversed(group["rules"]):
            if rule.get("alert", rule.get("record")) in wanted:
                kept.append(rule)
                # Descriptions ask for series too.
                wanted |= set(re.findall(r"\w+:\w+:\w+", json.dumps(rule)))
        groups.append({"name": group["name"], "rules": kept[::-1]})
    return {"groups": groups[::-1]}


def passes(mutant: Rules, names: set[str], file: Path, tests: list[dict[str, Any]], folder: Path) -> bool:
    """Whether *tests* of *file* pass with *mutant*; only *names* and what the tests themselves name is kept of it."""
    named = set(re.findall(r"Celery[A-Z]\w+", json.dumps(tests)))
    (folder / "rules.yml").write_text(json.dumps(needed(mutant, names | named)))
    whole = yaml.safe_load(file.read_text("utf-8"))
    (folder / "test.yml").write_text(json.dumps({**whole, "rule_files": ["rules.yml"], "tests": tests}))
    return promtool("test", "rules", folder / "test.yml").returncode == 0


def assert_noticed(mutant: Rules, folder: Path, hint: str = "") -> None:
    """Assert that a test of the alerts that *mutant* changes fails; those that have *hint* in their names go first."""
    names = touched(mutant)
    assert names, "no rule differs"
    tests = [(FOLDER / f"{name}.yml", test) for name in sorted(names) for test in load(FOLDER / f"{name}.yml")]
    tests.sort(key=lambda one: hint not in one[1].get("name", ""))
    assert not all(passes(mutant, names, file, [test], folder) for file, test in tests), sorted(names)


@pytest.mark.parametrize("name", NAMES)
def test_the_others_do_not_matter(name: str, tmp_path: Path) -> None:
    """What the mutants rely on: the tests of an alert pass without the alerts that they do not name."""
    file = FOLDER / f"{name}.yml"
    assert passes(OURS, {name}, file, load(file), tmp_path)


@pytest.mark.parametrize("factor", [2, 0.5], ids=["doubled", "halved"])
@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Thresholds)])
def test_each_threshold_matters(field: str, factor: float, tmp_path: Path) -> None:
    assert_noticed(rule_file(RuleOptions(thresholds=variant(field, factor))), tmp_path, field)


@pytest.mark.parametrize("factor", [0, 3], ids=["at once", "late"])
@pytest.mark.parametrize(
    "number",
    [number for number, rule in enumerate(ALERTS) if "for" in rule],
    ids=lambda number: f"{ALERTS[number]['alert']}-{ALERTS[number]['labels']['severity']}",
)
def test_each_wait_matters(number: int, factor: int, tmp_path: Path) -> None:
    mutant = rule_file()
    rule = rules_of(mutant, "alert")[number]
    rule["for"] = f"{round(duration(rule['for'])) * factor}s"
    assert_noticed(mutant, tmp_path)
