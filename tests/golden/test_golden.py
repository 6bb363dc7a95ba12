"""
Recordings of real workers in, exact exposition text out.

The texts were written by the code that they test (``write.py``). So that they cannot be wrong together, the counters
are also added up here from what the scenario meant each message to be, without any of that code.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from celery_lookout.snapshots import BeatSnapshot, Entry, Failure, Row, WorkerSnapshot
from celery_lookout.state.snapshots import EXCEPTIONS, MOVES
from tests.clusters import of, parse, series
from tests.golden.folding import HERE, RECORDINGS, SNAPSHOTS, fold, fold_snapshots, load

_FAILED: tuple[str, dict[str, str]] = ("failed_total", {})

#: What each meaning adds, besides its messages and starts: family, labels after task and queue, how often. Written by
#: hand from the scenario.
OUTCOMES: dict[str, list[tuple[str, dict[str, str], int]]] = {
    "succeeded": [("succeeded_total", {}, 1)],
    "mail": [("succeeded_total", {}, 1)],
    "parent": [("succeeded_total", {}, 1)],
    "eta": [("succeeded_total", {}, 1)],
    "soft time limit handled": [("succeeded_total", {}, 1)],
    "fail": [(*_FAILED, 1), ("exceptions_total", {"exception": "ValueError"}, 1)],
    "multi-line failure": [(*_FAILED, 1), ("exceptions_total", {"exception": "ValueError"}, 1)],
    "fail_as_announced": [(*_FAILED, 1), ("exceptions_total", {"exception": "ExpectedFailure"}, 1)],
    "fail_unpicklable": [(*_FAILED, 1), ("exceptions_total", {"exception": "Unpicklable"}, 1)],
    "fail_in_chain": [(*_FAILED, 1), ("exceptions_total", {"exception": "RuntimeError"}, 1)],
    "unknown task": [(*_FAILED, 1), ("exceptions_total", {"exception": "NotRegistered"}, 1)],
    "retried twice, then succeeded": [
        ("retried_total", {}, 2),
        ("retry_exceptions_total", {"exception": "Temporary"}, 2),
        ("succeeded_total", {}, 1),
    ],
    "retries exhausted": [
        ("retried_total", {}, 2),
        ("retry_exceptions_total", {"exception": "Temporary"}, 2),
        (*_FAILED, 1),
        ("exceptions_total", {"exception": "Temporary"}, 1),
        ("retries_exhausted_total", {}, 1),
    ],
    "hard time limit": [
        (*_FAILED, 1),
        ("exceptions_total", {"exception": "TimeLimitExceeded"}, 1),
        ("terminations_total", {"reason": "hard_time_limit"}, 1),
    ],
    "soft time limit": [
        (*_FAILED, 1),
        ("exceptions_total", {"exception": "SoftTimeLimitExceeded"}, 1),
        ("terminations_total", {"reason": "soft_time_limit"}, 1),
    ],
    "worker lost by SIGKILL": [
        (*_FAILED, 1),
        ("exceptions_total", {"exception": "WorkerLostError"}, 1),
        ("terminations_total", {"reason": "worker_lost"}, 1),
    ],
    "worker lost by SIGKILL, acks_late": [
        (*_FAILED, 1),
        ("exceptions_total", {"exception": "WorkerLostError"}, 1),
        ("terminations_total", {"reason": "worker_lost"}, 1),
    ],
    "ignored": [],
    "rejected": [("rejected_total", {"requeue": "false"}, 1)],
    "rejected with requeue, then succeeded": [
        ("rejected_total", {"requeue": "true"}, 1),
        ("succeeded_total", {}, 1),
    ],
    "expired": [("revoked_total", {"reason": "expired"}, 1)],
    "terminated": [("revoked_total", {"reason": "terminated"}, 1)],
    "revoked while reserved": [("revoked_total", {"reason": "revoked"}, 1)],
    "revoked before its eta": [("revoked_total", {"reason": "revoked"}, 1)],
}

#: Attempts that started, where it is not one. The first three never got that far.
STARTS = {
    "unknown task": 0,
    "expired": 0,
    "revoked while reserved": 0,
    "revoked before its eta": 0,
    "retried twice, then succeeded": 3,
    "retries exhausted": 3,
    "rejected with requeue, then succeeded": 2,
}

#: Messages published, where it is not one: a retry is a message.
MESSAGES = {"retried twice, then succeeded": 3, "retries exhausted": 3}

#: Outcomes that Celery before 5.7 keeps to itself.
SILENT_BEFORE_5_7 = {"worker lost by sys.exit"}

#: The tasks behind a meaning, from the sample application. Those that were spawned by the parent have none.
TASKS = {
    "mail": "sample.send_mail",
    "parent": "sample.spawn",
    "hard time limit": "sample.hard_limit",
    "unknown task": "sample.never_registered",
    "terminated": "sample.sleep",
}

#: Families that the tally speaks for, in full: what it does not expect is 0.
TALLIED = (
    "sent", "started", "succeeded", "failed", "retried", "revoked", "rejected", "exceptions", "retry_exceptions",
    "terminations", "retries_exhausted", "redelivered", "lost",
)  # fmt: skip

each_recording = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)


def _events(bodies: list[tuple[float, Any]]) -> list[dict[str, Any]]:
    return [event for _, body in bodies for event in (body if isinstance(body, list) else [body])]


def _tally(recording: Path) -> dict[str, int]:
    """Return the counters that the recording means, those at 0 left out."""
    meaning, bodies = load(recording)
    version = tuple(map(int, recording.stem.partition("-")[0].split(".")))
    outcomes = OUTCOMES | {"worker lost by sys.exit": OUTCOMES["worker lost by SIGKILL"] if version >= (5, 7) else []}
    places = {
        event["uuid"]: (event["name"], event["queue"]) for event in _events(bodies) if event["type"] == "task-sent"
    }
    tally: Counter[str] = Counter()
    for uuid, (task, queue) in places.items():
        meant = meaning.get(uuid, "succeeded")  # the children that "parent" published add numbers
        tally[of("sent_total", task=task, queue=queue)] += MESSAGES.get(meant, 1)
        tally[of("started_total", task=task, queue=queue)] += STARTS.get(meant, 1)
        for family, labels, count in outcomes[meant]:
            tally[of(family, task=task, queue=queue, **labels)] += count
    return {name: count for name, count in tally.items() if count}


@each_recording
def test_text_is_as_written(recording: Path) -> None:
    expected = (HERE / f"{recording.stem}.txt").read_text("utf-8")
    difference = difflib.unified_diff(expected.splitlines(), fold(recording).splitlines(), "expected", "now", n=0)
    assert list(difference) == [], "if this is meant: python -m tests.golden.write"


@each_recording
def test_counters_are_what_the_scenario_meant(recording: Path) -> None:
    shown = parse((HERE / f"{recording.stem}.txt").read_text("utf-8"))
    tallied = tuple(f"celery_task_{name}_total" for name in TALLIED)
    assert {name: value for name, value in shown.items() if name.startswith(tallied) and value} == _tally(recording)


@each_recording
def test_tasks_and_queues_have_their_names(recording: Path) -> None:
    meaning, bodies = load(recording)
    shown = parse((HERE / f"{recording.stem}.txt").read_text("utf-8"))
    sent = {event["uuid"]: event for event in _events(bodies) if event["type"] == "task-sent"}
    for uuid, meant in meaning.items():
        assert sent[uuid]["name"] == TASKS.get(meant, sent[uuid]["name"])
        assert sent[uuid]["queue"] == ("mail" if meant == "mail" else "celery")
    assert not any('queue="unknown"' in name or 'task="unknown"' in name for name in shown)
    assert shown[series("celery_exporter_queue_resolution_total", source="sent")] == len(sent)


@each_recording
def test_every_wait_and_every_runtime_is_observed(recording: Path) -> None:
    shown = parse((HERE / f"{recording.stem}.txt").read_text("utf-8"))
    for name, value in shown.items():
        family, _, labels = name.partition("{")
        if family == "celery_task_started_total":
            assert shown[f"celery_task_queue_wait_seconds_count{{{labels}"] == value
        if family in ("celery_task_succeeded_total", "celery_task_retried_total") and value:
            outcome = family.removeprefix("celery_task_").removesuffix("_total")
            observed = f'celery_task_runtime_seconds_count{{{labels.removesuffix("}")},outcome="{outcome}"}}'
            assert shown[observed] == value


@each_recording
def test_afterwards_nothing_runs_and_nobody_is_up(recording: Path) -> None:
    shown = parse((HERE / f"{recording.stem}.txt").read_text("utf-8"))
    gauges = ("celery_task_running", "celery_task_oldest", "celery_worker_up", "celery_worker_tasks_reserved")
    assert {name: value for name, value in shown.items() if name.startswith(gauges) and value} == {}
    assert shown[series("celery_worker_shutdown_graceful", worker="worker@host")] == 1
    assert shown[series("celery_worker_shutdown_graceful", worker="mail@host")] == 0
    assert shown["celery_exporter_events_lost_total"] == 0


def test_every_recording_has_its_text() -> None:
    assert {file.stem for file in HERE.glob("*.txt")} == {file.stem for file in (*RECORDINGS, SNAPSHOTS)}


def test_the_text_of_the_snapshots_is_as_written() -> None:
    expected = SNAPSHOTS.with_suffix(".txt").read_text("utf-8")
    difference = difflib.unified_diff(expected.splitlines(), fold_snapshots().splitlines(), "expected", "now", n=0)
    assert list(difference) == [], "if this is meant: python -m tests.golden.write"


def test_the_snapshots_have_every_field_that_there_is() -> None:
    """And so has the page that describes them."""
    page = (HERE.parents[1] / "docs" / "wire.md").read_text("utf-8")
    bodies = json.loads(SNAPSHOTS.read_text("utf-8"))
    written: dict[type[msgspec.Struct], list[Any]] = {
        WorkerSnapshot: [body for body in bodies if body["kind"] == "worker" and body["v"] == 1],
        BeatSnapshot: [body for body in bodies if body["kind"] == "beat"],
        Row: [row for body in bodies for row in body.get("rows", ())],
        Failure: [failure for body in bodies for failure in body.get("failures", ())],
        Entry: [entry for body in bodies for entry in body.get("entries", ())],
    }
    for kind, found in written.items():
        names = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert names <= {name for one in found for name in one}, kind
        assert [name for name in names if f"`{name}`" not in page and f'"{name}"' not in page] == []
    told = {key.partition(":")[0] for row in written[Row] for key in row["totals"]}
    assert told - {"tomorrow"} == {key.partition(":")[0] for key in (*MOVES, *EXCEPTIONS)}


#: What a reader of the snapshots adds up by hand.
TOLD = {
    of("received_total", task="shop.mail", queue="mail"): 14,
    of("started_total", task="shop.mail", queue="mail"): 14 + 3,
    of("succeeded_total", task="shop.mail", queue="mail"): 14 + 3,
    of("started_total", task="shop.mail", queue="unknown"): 1,
    of("started_total", task="shop.resize", queue="celery"): 15,
    of("ignored_total", task="shop.resize", queue="celery"): 1,
    of("rejected_total", task="shop.resize", queue="celery", requeue="true"): 1,
    of("revoked_total", task="shop.resize", queue="celery", reason="expired"): 2,
    of("lost_total", task="shop.resize", queue="celery"): 1,
    of("running", task="shop.resize", queue="celery"): 0,
    of("runtime_seconds_count", task="shop.resize", queue="celery", outcome="failed"): 3,
    of("runtime_seconds_bucket", task="shop.resize", queue="celery", outcome="failed", le="5.0"): 2,
    of("queue_wait_seconds_bucket", task="shop.resize", queue="celery", le="120.0"): 13,
    of("peak_memory_bytes_bucket", task="shop.resize", queue="celery", le="17179869184.0"): 9,
    of("peak_memory_bytes_sum", task="shop.resize", queue="celery"): 20.25e9,
    series("celery_queue_slo_eligible_total", queue="celery"): 15,
    series("celery_queue_slo_violations_total", queue="celery"): 2,
    series("celery_worker_slots", worker="a@host"): 2,
    series("celery_worker_child_exits_total", worker="a@host", reason="recycled"): 4,
    series("celery_worker_shutdown_graceful", worker="b@host"): 1,
    series("celery_worker_cpu_seconds_total", worker="c@host"): 0.25,
    series("celery_exporter_queue_resolution_total", source="snapshot"): 15 + 17,
    series("celery_exporter_snapshots_invalid_total", reason="field"): 1,
    series("celery_exporter_snapshots_invalid_total", reason="version"): 1,
    "celery_exporter_snapshots_total": 10,
}


def test_the_snapshots_are_counted_as_they_were_meant() -> None:
    shown = parse(SNAPSHOTS.with_suffix(".txt").read_text("utf-8"))
    assert {name: shown.get(name) for name in TOLD} == TOLD
