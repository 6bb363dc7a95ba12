"""Whoever is woken finds a page for the alert, and what it says to type exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import promql_parser
import pytest
import yaml
from celery.bin.celery import celery
from celery.worker.control import Panel

from celery_lookout.assets.rules import rule_file
from celery_lookout.assets.thresholds import Thresholds
from celery_lookout.cli import command
from celery_lookout.errors import SettingsError
from celery_lookout.settings import OPTIONS, Settings
from tests.docs.write import families

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "alerts" / "runbooks"
INDEX = RUNBOOKS / "README.md"
PAGES = sorted(set(RUNBOOKS.glob("*.md")) - {INDEX})
FILES = [ROOT / "alerts" / "README.md", INDEX, *PAGES]

SECTIONS = ["What it means", "Look first", "Mend", "Tune"]
#: A page is read at night, on a telephone perhaps.
MOST_LINES = 50

DASHBOARDS = {"celery-overview", "celery-queue", "celery-task", "celery-worker", "celery-exporter", "celery-slo"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "alerts")))


def alerts() -> Iterator[dict[str, str]]:
    """Yield the name and severity of every alerting rule."""
    for group in rule_file()["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                yield {"name": rule["alert"], "severity": rule["labels"]["severity"]}


def code(text: str) -> list[str]:
    """Return every code span and every line of code blocks."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()] + indented + spans


def queries(text: str) -> list[str]:
    """Return the queries of PromQL blocks, one a line."""
    blocks = re.findall(r"^ *```promql\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()]


def known_series() -> set[str]:
    """Return every name that a query may ask for."""
    recorded = {rule["record"] for group in rule_file()["groups"] for rule in group["rules"] if "record" in rule}
    histograms = {f"{name}_{part}" for name in families() for part in ("bucket", "count", "sum")}
    process = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds", "up"}
    return recorded | histograms | process | set(families())


def selectors(query: str) -> set[str]:
    """Return the names of the series that a query reads. Raises ValueError if it is none."""
    # The parser shows its tree, where each selector stands by itself on a line.
    tree = promql_parser.parse(query).prettify()
    names = re.findall(r"[a-zA-Z_:][\w:]*", re.sub(r'\{[^}]*\}|"[^"]*"|\[[^\]]*\]', "", tree))
    return {name for name in names if name == "up" or "celery_" in name or name.startswith("process_")}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {page.stem for page in PAGES} == {alert["name"] for alert in alerts()}


@every_page
def test_sections_are_the_four_in_order(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.startswith(f"# {page.stem}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert len(text.splitlines()) <= MOST_LINES


@every_page
def test_three_things_are_looked_at_first(page: Path) -> None:
    section = page.read_text("utf-8").partition("## Look first\n")[2].partition("\n## ")[0]
    assert re.findall(r"^(\d)\. ", section, re.MULTILINE) == ["1", "2", "3"]
    assert re.search(r"^   ```(?:console|promql)$", section, re.MULTILINE)


@every_page
def test_the_severity_told_is_the_rules(page: Path) -> None:
    told = page.read_text("utf-8").splitlines()[2].lower()
    severities = {alert["severity"] for alert in alerts() if alert["name"] == page.stem}
    assert {one for one in ("critical", "warning", "info") if re.search(rf"\b{one}\b", told)} == severities


@every_file
def test_queries_parse_and_ask_for_what_exists(file: Path) -> None:
    for query in queries(file.read_text("utf-8")):
        names = selectors(query)
        assert names, query
        assert names - known_series() == set(), query


@every_file
def test_metrics_named_exist(file: Path) -> None:
    metric = re.compile(r"(?<![\w-])(?:(?:queue|task):)?celery_(?:task|queue|broker|worker|beat|exporter)_\w+(?::\w+)?")
    named = {name for one in code(file.read_text("utf-8")) for name in metric.findall(one)}
    assert named - known_series() == set()


@every_file
def test_thresholds_set_are_understood(file: Path) -> None:
    settings = re.findall(r"--threshold (\w+)=([\d.]+)", file.read_text("utf-8"))
    Thresholds().changed({name: float(value) for name, value in settings})


@every_page
def test_thresholds_named_exist(page: Path) -> None:
    section = page.read_text("utf-8").partition("## Tune\n")[2]
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)*)`", section))
    labels = {"queue", "task", "worker", "job", "broker", "for", "failed"}
    others = {name for name in named if name in families() or name in labels}
    assert named - others - {one.name for one in fields(Thresholds)} == set()


def test_every_threshold_is_explained_somewhere() -> None:
    text = "".join(page.read_text("utf-8").partition("## Tune\n")[2] for page in PAGES)
    assert {one.name for one in fields(Thresholds)} - set(re.findall(r"`(\w+)`", text)) == set()


def test_a_threshold_that_is_none_is_not_understood() -> None:
    with pytest.raises(SettingsError):
        Thresholds().changed({"no_such_threshold": 1})


@every_file
def test_options_named_exist(file: Path) -> None:
    ours = {name for option in OPTIONS for name in option.names}
    ours |= {text.lstrip("-") for one in command.commands.values() for param in one.params for text in param.opts}
    celerys = {text.lstrip("-") for one in celery.commands.values() for param in one.params for text in param.opts}
    # Of a span or line that begins with it, or of our own commands. Others belong to other programs.
    lines = [one for one in code(file.read_text("utf-8")) if re.match(r"--|celery-lookout ", one)]
    named = {name for line in lines for name in re.findall(r"(?<!\S)--([a-z]+(?:[.-][a-z]+)*)", line)}
    assert named - ours - celerys - {"web.enable-lifecycle"} == set()


@every_file
def test_our_commands_are_understood(file: Path) -> None:
    for line in code(file.read_text("utf-8")):
        if not line.startswith("celery-lookout "):
            continue
        _, name, *arguments = shlex.split(line)
        subcommand = command.commands[name]
        if "--thresholds" in arguments:
            with pytest.raises(click.exceptions.Exit):
                subcommand.make_context(name, arguments)
            continue
        context = subcommand.make_context(name, arguments)
        if "--broker" in arguments:
            Settings.read(context.params)


@every_file
def test_celerys_commands_are_understood(file: Path) -> None:
    for line in code(file.read_text("utf-8")):
        if not line.startswith("celery -A proj "):
            continue
        _, _, _, name, *arguments = shlex.split(line.partition(" | ")[0])
        known = {text for param in celery.commands[name].params for text in param.opts}
        assert {one for one in arguments if one.startswith("-")} <= known, line
        if name in {"inspect", "control"}:
            assert Panel.meta[arguments[0]].type == name, line


@every_file
def test_dashboards_named_exist(file: Path) -> None:
    named = set(re.findall(r"`(celery-(?!lookout)[a-z-]+)`", file.read_text("utf-8"))) - {"celery-lookout-signals"}
    assert named - DASHBOARDS - {"celerybeat-schedule"} == set()


@every_page
def test_a_dashboard_is_named(page: Path) -> None:
    assert set(re.findall(r"`(celery-\w+)`", page.read_text("utf-8"))) & DASHBOARDS


@every_file
def test_links_lead_somewhere(file: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", file.read_text("utf-8"))
    assert [target for target in targets if not (file.parent / target).exists()] == []


def test_alerts_named_in_pages_exist() -> None:
    names = {alert["name"] for alert in alerts()}
    for file in [*FILES, *(ROOT / "docs").glob("*.md")]:
        named = set(re.findall(r"`(Celery[A-Z]\w+)`", file.read_text("utf-8")))
        assert named - names == set(), file.name


def test_the_index_is_complete() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| ([a-z, ]+) \| \S.* \|$", INDEX.read_text("utf-8"), re.MULTILINE)
    assert all(name == target for name, target, _ in rows)
    severities: dict[str, set[str]] = {}
    for alert in alerts():
        severities.setdefault(alert["name"], set()).add(alert["severity"])
    assert {name: set(told.split(", ")) for name, _, told in rows} == severities
    assert len(rows) == len(severities)


def test_what_deletes_work_says_so() -> None:
    for page in PAGES:
        # Wherever a line ends, the warning stands close by.
        text = " ".join(page.read_text("utf-8").split())
        for found in re.finditer(r"celery -A proj purge", text):
            nearby = text[max(found.start() - 200, 0) : found.end() + 200]
            assert re.search(r"deletes?|undone|no way back", nearby), page.stem


def test_the_configuration_shown_is_yaml() -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "alerts" / "README.md").read_text("utf-8"), re.DOTALL)
    assert block is not None
    assert yaml.safe_load(block[1]).keys() == {"rule_files", "scrape_configs", "alerting"}
