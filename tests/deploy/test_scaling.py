"""The examples for autoscalers, and what docs/scaling.md promises of the rules that they ask."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
RULES = ROOT / "alerts" / "rules.yml"
PAGE = (ROOT / "docs" / "scaling.md").read_text("utf-8")
FILES = ("hpa", "keda", "prometheus-adapter", "worker")

#: Labels of what is recorded by queue.
LABELS = {"job", "broker", "queue"}

#: Minutes of history that the rules are run on: more than the longest window that the examples need.
MINUTES = 90


def load(name: str) -> Any:
    return yaml.safe_load((KUBERNETES / f"{name}.yaml").read_text("utf-8"))


def recorded() -> set[str]:
    """Return the names that the rules record."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def check_schema(name: str, file: Path) -> subprocess.CompletedProcess[str]:
    schema = Path(__file__).parent / "schemas" / f"{name}.json"
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(schema), str(file)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", FILES)
def test_each_file_follows_its_schema(name: str) -> None:
    result = check_schema(name, KUBERNETES / f"{name}.yaml")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("hpa", "maxReplicas:", "maxReplicaCount:"),
        ("hpa", "averageValue:", "value:"),
        ("hpa", "minReplicas: 1", "minReplicas: 0"),
        ("keda", "cooldownPeriod:", "coolDownPeriod:"),
        ("keda", 'threshold: "1"', "threshold: 1"),
        ("keda", "currentReplicasIfHigher", "currentReplicasIfMore"),
        ("prometheus-adapter", "metricsQuery:", "query:"),
        ("worker", "terminationGracePeriodSeconds:", "gracePeriodSeconds:"),
    ],
)
def test_the_check_finds_what_is_wrong(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    text = (KUBERNETES / f"{name}.yaml").read_text("utf-8")
    assert right in text
    file = tmp_path / "wrong.yaml"
    file.write_text(text.replace(right, wrong))
    assert check_schema(name, file).returncode == 1


def selectors(node: Any) -> Iterator[Any]:
    """Yield every vector selector below *node*."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for child in ("expr", "lhs", "rhs", "param"):
        if (found := getattr(node, child, None)) is not None:
            yield from selectors(found)
    for argument in getattr(node, "args", None) or ():
        yield from selectors(argument)


def queries() -> Iterator[tuple[str, str]]:
    """Yield all PromQL in the examples and on the page, with where it is."""
    for trigger in load("keda")["spec"]["triggers"]:
        yield "keda.yaml", trigger["metadata"]["query"]
    for rule in load("prometheus-adapter")["externalRules"]:
        yield "prometheus-adapter.yaml", rule["seriesQuery"]
        name = rule["seriesQuery"].partition("{")[0]
        filled = rule["metricsQuery"].replace("<<.Series>>", name).replace("<<.LabelMatchers>>", 'queue="images"')
        yield "prometheus-adapter.yaml", filled
    for block in re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL):
        yield "scaling.md", block


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_queries_ask_for_what_is_recorded(where: str, query: str) -> None:
    found = list(selectors(promql_parser.parse(query)))
    assert found
    assert {selector.name for selector in found} <= recorded()
    assert {matcher.name for selector in found for matcher in selector.matchers.matchers} <= LABELS


def test_names_on_the_page_exist() -> None:
    named = set(re.findall(r"`((?:queue|task):celery_\w+:\w+)", PAGE))
    assert "queue:celery_queue_workers_needed:count" in named
    assert named <= recorded()


def test_alerts_on_the_page_are_of_the_severity_it_says() -> None:
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    alerts: dict[str, set[str]] = {}
    for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        alerts.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    assert set(re.findall(r"`(Celery\w+)`", PAGE)) <= alerts.keys()
    rows = re.findall(r"^\| `(Celery\w+)` \| .* \| (page|ticket) \|$", PAGE, re.MULTILINE)
    assert len(rows) > 3
    severity = {"page": "critical", "ticket": "warning"}
    assert [name for name, kind in rows if severity[kind] not in alerts[name]] == []


def test_keda_answers_with_one_number_and_takes_silence_for_a_fault() -> None:
    spec = load("keda")["spec"]
    [trigger] = spec["triggers"]
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"]["threshold"] == "1"
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    aggregate = promql_parser.parse(trigger["metadata"]["query"])
    assert isinstance(aggregate, promql_parser.AggregateExpr)
    assert aggregate.modifier is None
    assert spec["fallback"]["replicas"] > 0


def test_the_hpa_asks_for_what_the_adapter_offers() -> None:
    [metric] = load("hpa")["spec"]["metrics"]
    [rule] = load("prometheus-adapter")["externalRules"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    assert metric["external"]["metric"]["selector"]["matchLabels"].keys() <= LABELS
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}


def test_both_scale_the_same_workers_alike() -> None:
    worker, keda, hpa = load("worker"), load("keda")["spec"], load("hpa")["spec"]
    name = worker["metadata"]["name"]
    assert (keda["scaleTargetRef"]["name"], hpa["scaleTargetRef"]["name"]) == (name, name)
    assert keda["maxReplicaCount"] == hpa["maxReplicas"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    queue = hpa["metrics"][0]["external"]["metric"]["selector"]["matchLabels"]["queue"]
    assert f'queue="{queue}"' in keda["triggers"][0]["metadata"]["query"]
    [container] = worker["spec"]["template"]["spec"]["containers"]
    assert container["command"][container["command"].index("-Q") + 1] == queue


def test_workers_end_what_they_have_before_they_go() -> None:
    worker = load("worker")["spec"]
    assert "replicas" not in worker
    pod = worker["template"]["spec"]
    assert pod["containers"][0]["command"][0] == "celery"
    assert load("keda")["spec"]["cooldownPeriod"] > pod["terminationGracePeriodSeconds"]


class Case(NamedTuple):
    """A queue in a steady state, and what the page says is recorded of it. None is what does not exist."""

    name: str
    waiting: float
    starts: float | None
    recorded: dict[str, float]
    shrinks: float = 0
    slo: float | None = None
    runtime: float | None = None
    slots: float | None = None

    def series(self) -> Iterator[tuple[str, str]]:
        """Yield name and values of the sidecar's series, in promtool's notation, one value a minute."""

        def steady(value: float) -> str:
            return f"{value:g}x{MINUTES}"

        def rising(per_second: float) -> str:
            return f"0+{per_second * 60:.9g}x{MINUTES}"

        first = self.waiting + self.shrinks * 60 * MINUTES
        yield "celery_queue_length", f"{first:.9g}-{self.shrinks * 60:.9g}x{MINUTES}"
        if self.slo is not None:
            yield "celery_queue_latency_slo_seconds", steady(self.slo)
        if self.slots is not None:
            yield "celery_queue_workers", steady(2)
            yield "celery_queue_slots", steady(2 * self.slots)
        if self.starts is not None:
            yield "celery_task_started_total", rising(self.starts)
        if self.starts and self.runtime is not None:
            yield "celery_task_runtime_seconds_count", rising(self.starts)
            yield "celery_task_runtime_seconds_sum", rising(self.starts * self.runtime)


def rows(*columns: str) -> list[list[str]]:
    """Return the rows of the page's table with these columns."""
    head = "| " + " | ".join(columns) + " |\n"
    assert head in PAGE, head
    body = PAGE.split(head)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in body]


def number(cell: str) -> float | None:
    return None if cell == "-" else float(cell.replace(",", ""))


def cases() -> Iterator[Case]:
    for index, cells in enumerate(rows("waiting", "starts per second", "wait estimate")):
        length, starts, wait = (float(cell) for cell in cells)
        yield Case(f"wait{index}", length, starts, {"queue:celery_queue_wait_estimate:seconds": wait})
    table = rows(
        "arrivals per second", "waiting", "SLO", "runtime", "slots of a worker", "slots needed", "workers needed"
    )
    for index, cells in enumerate(table):
        arrivals, waiting, slo, runtime, slots, slots_needed, workers_needed = map(number, cells)
        assert None not in (arrivals, waiting, slots_needed, workers_needed)
        expected = {
            "queue:celery_queue_slots_needed:count": slots_needed or 0,
            "queue:celery_queue_workers_needed:count": workers_needed or 0,
        }
        yield Case(f"workers{index}", waiting or 0, arrivals or None, expected, slo=slo, runtime=runtime, slots=slots)
    said = re.search(r"([\d,]+)\s+waiting,\s+one gone every two seconds: ([\d,]+) s", PAGE)
    assert said is not None
    left, seconds = (float(part.replace(",", "")) for part in said.groups())
    yield Case("drain", left, 1, {"queue:celery_queue_time_to_drain:seconds": seconds}, shrinks=0.5)


@pytest.mark.prometheus
def test_the_rules_say_what_the_page_says(promtool: Path, tmp_path: Path) -> None:
    """Run the rules on every example of the page."""
    series, expectations = [], []
    for case in cases():
        labels = f'job="celery-lookout",queue="{case.name}"'
        for name, values in case.series():
            more = ',task="t"' if name.startswith("celery_task_") else ""
            more += ',outcome="succeeded"' if "_runtime_" in name else ""
            series.append({"series": f"{name}{{{labels}{more}}}", "values": values})
        for name, value in case.recorded.items():
            # The page has three digits, and rates are never quite exact.
            query = f"round(sum({name}{{{labels}}}), 0.001)"
            sample = {"labels": "{}", "value": value}
            expectations.append({"expr": query, "eval_time": f"{MINUTES}m", "exp_samples": [sample]})
    test = {"interval": "1m", "input_series": series, "promql_expr_test": expectations}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    result = subprocess.run([str(promtool), "test", "rules", str(file)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
