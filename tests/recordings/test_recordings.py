"""The recordings hold what golden tests count on, and nothing of the machine that made them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FILES = sorted(Path(__file__).parent.glob("*.jsonl"))

#: Events of the scenario that are the same in every version and on both brokers. The others differ.
EXPECTED = {
    "task-sent": 36,
    "task-started": 33,
    "task-succeeded": 14,
    "task-retried": 4,
    "task-revoked": 4,
    "task-rejected": 2,
    "worker-online": 3,
    "worker-offline": 2,
}


def _load(file: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    first, *lines = map(json.loads, file.read_text().splitlines())
    bodies = [line["body"] for line in lines]
    return first["meaning"], [event for body in bodies for event in (body if isinstance(body, list) else [body])]


def test_every_supported_version_is_recorded_on_both_brokers() -> None:
    assert {file.stem for file in FILES} == {
        f"{version}-{broker}" for version in ("5.3.6", "5.5.3", "5.7.0") for broker in ("redis", "amqp")
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recording_is_whole(file: Path) -> None:
    meaning, events = _load(file)
    counts = Counter(event["type"] for event in events)
    assert {name: counts[name] for name in EXPECTED} == EXPECTED
    assert meaning.keys() <= {event["uuid"] for event in events if "uuid" in event}
    versions = {event["sw_ver"] for event in events if "sw_ver" in event}
    assert versions == {file.stem.partition("-")[0]}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recording_tells_nothing_of_its_machine(file: Path) -> None:
    _, events = _load(file)
    assert {event["hostname"].partition("@")[2] for event in events} == {"host"}
    folders = re.findall(r"[\"'](/\w+)/", json.dumps(events).replace('\\"', '"'))
    assert set(folders) <= {"/app", "/tmp", "/usr", "/venv"}


@pytest.mark.parametrize("broker", ["redis", "amqp"])
def test_newest_celery_reports_a_hard_time_limit_twice(broker: str) -> None:
    """Why terminal outcomes are counted once per task id and retry."""
    meaning, events = _load(Path(__file__).parent / f"5.7.0-{broker}.jsonl")
    (uuid,) = [uuid for uuid, outcome in meaning.items() if outcome == "hard time limit"]
    assert [event["type"] for event in events if event.get("uuid") == uuid].count("task-failed") == 2
