"""
What the alerts say, read by Prometheus's own templates.

promtool compares annotations only where a test asks for them. Here each is rendered, with and without the name of a
broker: a template that fails, or has no value for what it names, tells nobody anything.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_lookout.assets.rules import QUEUE, RuleOptions, rule_file
from celery_lookout.assets.text import to_yaml

pytestmark = pytest.mark.prometheus

#: What an alert may be about. Alerts name only labels that are here.
LABELS = {
    "job": "celery",
    "broker": "shop",
    "queue": "mail & more",
    "task": "shop.tasks.send",
    "worker": "celery@host",
    "reason": "worker_lost",
}
#: What Prometheus puts in the place of what is not there or went wrong, and what a doubled or forgotten blank leaves.
FAULTS = re.compile(r"<no value>|<error expanding|%!|\{\{|\}\}|  | [.,:;]")
#: Recorded series that templates ask Prometheus for.
ASKED = ("queue:celery_queue_latency_slo:seconds",)
OPTIONS = RuleOptions(sentry_url="https://sentry.example/organizations/shop")


def alerts() -> Iterator[dict[str, Any]]:
    """Yield the alerts of the rule file."""
    for group in rule_file(OPTIONS)["groups"]:
        yield from (rule for rule in group["rules"] if "alert" in rule)


def rendered(promtool: Path, folder: Path, labels: dict[str, str]) -> dict[str, dict[str, str]]:
    """
    Return the annotations of every alert that fires with *labels*, by its name and severity.

    In place of its expression each alert has a series that is always there; promtool shows what it renders because
    nothing is expected.
    """
    rules = [
        {
            **{key: value for key, value in rule.items() if key not in {"for", "keep_firing_for"}},
            "expr": "always * 0.25",
        }
        for rule in alerts()
    ]
    (folder / "rules.yml").write_text(to_yaml({"groups": [{"name": "all", "rules": rules}]}))
    queue = {name: value for name, value in labels.items() if name in QUEUE}
    series = [_selector("always", labels), *(_selector(name, queue) for name in ASKED)]
    (folder / "test.yml").write_text(
        to_yaml(
            {
                "rule_files": ["rules.yml"],
                "tests": [
                    {
                        "interval": "1m",
                        "input_series": [{"series": one, "values": "1x2"} for one in series],
                        "alert_rule_test": [
                            {"eval_time": "1m", "alertname": name}
                            for name in dict.fromkeys(rule["alert"] for rule in alerts())
                        ],
                    }
                ],
            }
        )
    )
    result = subprocess.run([str(promtool), "test", "rules", str(folder / "test.yml")], capture_output=True, text=True)
    shown = re.findall(r"Labels:\{(.*)\}\n\s*Annotations:\{(.*)\}", result.stdout + result.stderr)
    pairs = [tuple(dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', text)) for text in one) for one in shown]
    return {f"{found['alertname']} {found['severity']}": annotations for found, annotations in pairs}


def _selector(metric: str, labels: dict[str, str]) -> str:
    return metric + "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


@pytest.mark.parametrize("fewest", [True, False], ids=["fewest-labels", "all-labels"])
def test_every_annotation_reads_well(fewest: bool, promtool: Path, tmp_path: Path) -> None:
    """A broker has a name only where there are several."""
    labels = {name: value for name, value in LABELS.items() if not (fewest and name == "broker")}
    texts = rendered(promtool, tmp_path, labels)
    assert sorted(texts) == sorted(f"{rule['alert']} {rule['labels']['severity']}" for rule in alerts())
    bad = {f"{name} {key}": text for name, one in texts.items() for key, text in one.items() if FAULTS.search(text)}
    assert bad == {}


def test_templates_name_only_labels_that_are_rendered_here() -> None:
    for rule in alerts():
        text = str(rule["annotations"])
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= set(LABELS), rule["alert"]
