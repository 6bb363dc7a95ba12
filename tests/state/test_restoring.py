"""What was saved and has no place any more: left out, and counted."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import settings

from celery_lookout.metrics.kept import KeptFamily, KeptHistogram, KeptNumber
from celery_lookout.metrics.registry import OTHER
from celery_lookout.state import saving, snapshots
from celery_lookout.state.cluster import ClusterOptions, Limits
from celery_lookout.state.saved import (
    SavedRecord,
    SavedTotals,
)
from celery_lookout.state.saving import saved
from tests.clusters import (
    EPOCH,
    Watched,
    failed,
    kept,
    of,
    received,
    row,
    sent,
    series,
    snapshot,
    started,
    succeeded,
)

quickly = settings(max_examples=40, deadline=None)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_limits_hold_for_what_was_saved(watched: Watched) -> None:
    for number in range(6):
        uuid, name = f"id{number}", f"task{number}"
        watched.hear(sent(number, uuid=uuid, name=name, queue=f"queue{number}"), started(number, uuid=uuid))
    options = ClusterOptions(limits=Limits(tasks_in_flight=4, task_names=2, queues=3))
    after = watched.restarted(options=options)
    shown = after.series()
    assert shown["celery_exporter_tasks_tracked"] == 4
    assert shown["celery_exporter_tasks_evicted_total"] == 2
    names = {name for name in shown if name.startswith("celery_task_sent_total")}
    assert names == {
        of("sent_total", task="task0", queue="queue0"),
        of("sent_total", task="task1", queue="queue1"),
        of("sent_total", task=OTHER, queue="queue2"),
        of("sent_total", task=OTHER, queue=OTHER),
    }
    assert shown[of("sent_total", task=OTHER, queue=OTHER)] == 3
    after.hear(sent(9, uuid="new", name="new"))
    assert of("sent_total", task="new") not in after.series()


def test_limits_hold_for_queues_and_exceptions_by_themselves() -> None:
    names = ("a", "b", "c")
    watched = Watched(ClusterOptions(latency_slos=dict.fromkeys(names, 1.0)))
    for name in names:
        watched.hear(sent(0, uuid=name, queue=name), received(0.1, uuid=name), started(5, uuid=name))
        watched.hear(failed(6, uuid=name, exception=f"{name}()"))
    shown = watched.restarted(options=ClusterOptions(limits=Limits(queues=1, exceptions=1))).series()
    violations = "celery_queue_slo_violations_total"
    assert {name: value for name, value in shown.items() if name.startswith(violations)} == {
        series(violations, queue="a"): 1,
        series(violations, queue=OTHER): 2,
    }
    exceptions = "celery_task_exceptions_total"
    assert {name: value for name, value in shown.items() if name.startswith(exceptions)} == {
        of("exceptions_total", queue="a", exception="a"): 1,
        of("exceptions_total", queue=OTHER, exception=OTHER): 2,
    }


def test_a_row_of_many_totals_is_saved_in_pieces(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "TOTALS_AT_A_TIME", 2)
    told = snapshot(0, row(started=3, succeeded=2, failed=1))
    watched.poll(told)
    pieces = [record for record in saved(watched.cluster, watched.now) if isinstance(record, SavedTotals)]
    assert [len(record.counted) for record in pieces] == [2, 1]
    after = watched.restarted()
    after.poll(told)
    assert kept(after.series("celery_task_")) == kept(watched.series("celery_task_"))


def test_totals_that_were_saved_count_towards_their_limit(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.poll(snapshot(0, row(started=1, succeeded=1)))
    monkeypatch.setattr(snapshots, "TOTALS_LIMIT", 2)
    after = watched.restarted()
    after.poll(snapshot(5, row(started=2, succeeded=2, failed=1)))
    assert after.series()[series("celery_exporter_snapshots_invalid_total", reason="too_many")] == 1
    assert (after.series()[of("started_total")], after.series()[of("failed_total")]) == (2, 0)


def test_series_past_their_limit_are_counted_and_not_shown(watched: Watched) -> None:
    for number in range(5):
        watched.hear(sent(number, uuid=f"id{number}", name=f"task{number}"))
    after = watched.restarted(series=300)
    shown = after.series()
    dropped = {name: value for name, value in shown.items() if name.startswith("celery_exporter_series_dropped")}
    assert len(shown) - len(dropped) <= 300
    assert sum(dropped.values()) > 0


def test_metrics_that_changed_are_left_out_and_counted(watched: Watched) -> None:
    watched.hear(sent(0), received(0.1), started(0.2), succeeded(0.7))
    records: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(list(saved(watched.cluster, watched.now))))
    changes = {
        "celery_task_sent_total": lambda family: [*family[:3], ["task", "queue", "priority"], family[4]],
        "celery_task_received_total": lambda family: ["family", "celery_task_taken_total", *family[2:]],
        "celery_task_queue_wait_seconds": lambda family: [*family[:4], [1.0, *family[4][1:]]],
        "celery_task_started_total": lambda family: [*family[:2], "gauge", *family[3:]],
        "celery_task_last_success_timestamp_seconds": lambda family: ["family", "celery_task_running", *family[2:]],
    }
    changed = [
        changes[record[1]](record) if record[0] == "family" and record[1] in changes else record for record in records
    ]
    after = Watched.of(msgspec.convert(changed, list[SavedRecord]))
    assert after.left_out == 5
    assert after.series()[of("sent_total")] == 0


def test_series_that_are_none_of_their_family_are_left_out_and_counted(watched: Watched) -> None:
    watched.hear(sent(0))
    told = {record.name: record for record in saved(watched.cluster, EPOCH) if isinstance(record, KeptFamily)}
    after = Watched.of(
        [
            KeptNumber(("add", "celery"), 1),
            told["celery_task_sent_total"],
            KeptNumber(("add",), 1),
            KeptHistogram(("add", "celery"), (1,), 1.0),
            told["celery_task_queue_wait_seconds"],
            KeptNumber(("add", "celery"), 1),
            KeptHistogram(("add", "celery"), (1,), 1.0),
        ]
    )
    assert after.left_out == 5
    assert after.series("celery_task_") == {}


def test_the_last_time_of_what_falls_together_is_the_latest(watched: Watched) -> None:
    for at, uuid in ((9, "a"), (5, "b")):
        watched.hear(*(event(at, uuid=uuid) for event in (partial(sent, name=uuid), received, started, succeeded)))
    after = watched.restarted(options=ClusterOptions(limits=Limits(task_names=0)))
    assert after.series()[of("last_success_timestamp_seconds", task=OTHER)] == EPOCH + 9
