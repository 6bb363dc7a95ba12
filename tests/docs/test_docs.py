"""What is written for people is true of the code: names, links, commands, and the pages made from declarations."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import msgspec
import pytest
import yaml

from celery_lookout.cli import command
from celery_lookout.events import EVENT_TYPES, Event
from celery_lookout.intake.decode import REASONS
from celery_lookout.intake.snapshots import REASONS as SNAPSHOT_REASONS
from celery_lookout.intake.snapshots import SnapshotDecoder
from celery_lookout.metrics.tasks import PEAK_MEMORY_BUCKETS, RUNTIME_BUCKETS, WAIT_BUCKETS
from celery_lookout.settings import OPTIONS, Settings, read_file
from celery_lookout.snapshots import WorkerSnapshot
from celery_lookout.state.snapshots import EXCEPTIONS, MOVES
from tests.docs.metric_sources import SOURCES
from tests.docs.write import DOCS, PAGES, SECTIONS, families

ROOT = DOCS.parent
FILES = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "signals" / "README.md",
    *DOCS.glob("*.md"),
]
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_fresh(name: str) -> None:
    written = (DOCS / name).read_text("utf-8")
    assert written == PAGES[name](), "run: python -m tests.docs.write"


def test_every_metric_has_a_source_and_a_section() -> None:
    assert SOURCES.keys() == families().keys()
    prefixes = tuple(section.prefix for section in SECTIONS)
    assert [name for name in families() if not name.startswith(prefixes)] == []


@every_file
def test_links_lead_somewhere(file: Path) -> None:
    text = file.read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    missing = [
        target
        for target in targets
        if not re.match(r"https://|#", target) and not (file.parent / target.partition("#")[0]).exists()
    ]
    assert missing == []


@every_file
def test_metrics_named_exist(file: Path) -> None:
    named = set(
        re.findall(r"`(celery_(?:task|queue|broker|worker|beat|exporter)_\w+?)(?:\{[^`]*\})?`", file.read_text("utf-8"))
    )
    histograms = (f"{name}_{part}" for name in families() for part in ("bucket", "count", "sum"))
    assert named - {*families(), *histograms} == set()


@every_file
def test_options_named_exist(file: Path) -> None:
    named = set(re.findall(r"`--([a-z]+(?:[.-][a-z]+)*)", file.read_text("utf-8")))
    assert named - {name for option in OPTIONS for name in option.names} - {"config", "without-heartbeat"} == set()


def commands() -> list[str]:
    """Return every ``celery-lookout …`` command that is shown, in a block or in a sentence."""
    found: set[str] = set()
    for file in FILES:
        text = file.read_text("utf-8")
        found.update(re.findall(r"^(?: {4}|\$ )?(celery-lookout [a-z].*)$", text, re.MULTILINE))
        found.update(re.findall(r"`(celery-lookout [a-z][^`]*)`", text))
        found.update(line.replace("celery -A proj lookout", "celery-lookout")
                     for line in re.findall(r"`(celery -A proj lookout [a-z][^`]*)`", text))  # fmt: skip
    return sorted(found)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 3


@pytest.mark.parametrize("line", commands())
def test_commands_shown_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lookout.yaml").write_text("broker: redis://localhost:6379/0\n")
    _, name, *arguments = shlex.split(line)
    subcommand = command.commands[name]
    context = subcommand.make_context(name, arguments)
    if any(argument.startswith("--broker") for argument in arguments):
        Settings.read(context.params)


def test_unknown_options_are_not_understood() -> None:
    with pytest.raises(click.UsageError):
        command.commands["serve"].make_context("serve", ["--no-such-option"])


def test_the_configuration_file_shown_is_read(tmp_path: Path) -> None:
    text = (DOCS / "configuration.md").read_text("utf-8")
    example = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert example is not None
    secrets = tmp_path / "brokers"
    secrets.write_text("shop=redis://:secret@redis:6379/0\nmail=amqp://user:secret@rabbit//\n")
    file = tmp_path / "lookout.yaml"
    file.write_text(example[1].replace("/run/secrets/brokers", str(secrets)))
    context = command.commands["serve"].make_context("serve", ["--config", str(file), "--log.format", "logfmt"])
    settings = Settings.read(context.params)
    assert [broker.name for broker in settings.brokers] == ["shop", "mail"]
    assert settings.brokers[0].transport_options == {"visibility_timeout": 7200, "global_keyprefix": "shop:"}
    assert settings.cluster.latency_slos == {"mail": 60}
    assert settings.cluster.queues == ("celery", "mail")
    assert context.params["log_format"] == "logfmt"  # the command line wins
    assert read_file(str(file))["log_format"] == "json"


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lookout.yaml"
    file.write_text("log.level: debug\nlog.format: json\n")
    monkeypatch.setenv("LOOKOUT_CONFIG", str(file))
    monkeypatch.setenv("LOOKOUT_LOG_LEVEL", "error")
    monkeypatch.setenv("LOOKOUT_BROKER", "a=redis://one/0 b=redis://two/0")
    params = command.commands["serve"].make_context("serve", []).params
    assert (params["log_level"], params["log_format"]) == ("error", "json")
    assert params["broker"] == ("a=redis://one/0", "b=redis://two/0")


def test_the_scrape_configuration_shown_is_yaml() -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert block is not None
    [job] = yaml.safe_load(block[1])["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["localhost:9808"]}]


def test_the_event_contract_is_complete() -> None:
    page = (DOCS / "events.md").read_text("utf-8")
    names = [*EVENT_TYPES, *(field.name for field in msgspec.structs.fields(Event))]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_reason_of_refusal_is_explained() -> None:
    page = (DOCS / "reliability.md").read_text("utf-8")
    assert [reason for reason in (*REASONS, *SNAPSHOT_REASONS) if f"`{reason}`" not in page] == []


def test_the_example_of_a_snapshot_is_one() -> None:
    block = re.search(r"```json\n(.*?)```", (DOCS / "wire.md").read_text("utf-8"), re.DOTALL)
    assert block is not None
    refused: list[str] = []
    found = SnapshotDecoder(lambda reason, _: refused.append(reason)).body(
        block[1].encode(), json.loads(block[1])["at"]
    )
    assert isinstance(found, WorkerSnapshot)
    assert refused == []
    assert [
        key for row in found.rows for key in row.totals if not (key in MOVES or key.partition(":")[0] in EXCEPTIONS)
    ] == []


@pytest.mark.parametrize(
    ("histogram", "bounds"), [("runtime", RUNTIME_BUCKETS), ("wait", WAIT_BUCKETS), ("peak", PEAK_MEMORY_BUCKETS)]
)
def test_buckets_of_the_wire_are_those_of_the_metrics(histogram: str, bounds: tuple[float, ...]) -> None:
    row = re.search(rf"^\| `{histogram}` \| (.*) \|$", (DOCS / "wire.md").read_text("utf-8"), re.MULTILINE)
    assert row is not None
    if histogram == "peak":
        assert row[1] == "16 MiB, doubled ten times, up to 16 GiB"
        assert bounds == tuple(16 * 2**20 * 2.0**n for n in range(11))
        assert bounds[-1] == 16 * 2**30
    else:
        assert tuple(map(float, row[1].split(", "))) == bounds


def test_acceptance_tests_named_exist() -> None:
    for file in DOCS.glob("*.md"):
        for name in re.findall(r"`(test_\w+)`", file.read_text("utf-8")):
            assert (ROOT / "tests" / "acceptance" / f"{name}.py").exists(), f"{file.name}: {name}"
