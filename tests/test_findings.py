"""What the findings make of workers that send snapshots; ``tests/acceptance/test_doctor.py`` has the rest."""

from __future__ import annotations

import pytest

from celery_lookout.findings import _about_workers
from tests.clusters import Watched, heartbeat, row, snapshot


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    watched.expect_snapshots()
    return watched


def said(watched: Watched) -> dict[str, str]:
    """Return what is wrong, by topic, and under "fine" all that is not."""
    found: dict[str, str] = {}
    for finding in _about_workers(watched.cluster):
        found[finding.topic] = found.get(finding.topic, "") + finding.what
    return found


def test_workers_with_snapshots_need_no_events_and_no_heartbeats(watched: Watched) -> None:
    watched.poll(snapshot(0, row(started=5, wait__0=5)))
    found = said(watched)
    assert found.keys() == {"fine"}
    assert "1 workers send snapshots" in found["fine"]
    assert "task events" not in found["fine"].replace("need no task events", "")


def test_tasks_that_nobody_stamped_are_named(watched: Watched) -> None:
    watched.poll(snapshot(0, row(started=5, wait__3=2)))
    assert "of 5 tasks that ran, 3 were not stamped" in said(watched)["stamp"]


def test_some_waits_are_enough(watched: Watched) -> None:
    watched.poll(snapshot(0, row(started=5, wait__3=3)))
    assert "stamp" not in said(watched)


def test_a_worker_without_snapshots_or_events_is_still_named(watched: Watched) -> None:
    watched.poll(snapshot(0, row(started=1, wait__0=1)))
    for second in range(0, 10, 2):
        watched.hear(heartbeat(second, processed=second, worker="plain@h"))
        watched.poll(snapshot(second))
    assert said(watched)["task-events"].endswith("plain@h")


def test_snapshots_that_somebody_else_reads_are_named(watched: Watched) -> None:
    for number in range(1, 30, 2):
        watched.poll(snapshot(number, row(started=1, wait__0=1), seq=number))
    assert watched.series("celery_exporter_snapshots_missed_total") == {"celery_exporter_snapshots_missed_total": 14}
    assert "14 snapshots did not reach us, and 15 did" in said(watched)["missed"]


def test_snapshots_lost_in_an_outage_are_no_reason_to_worry(watched: Watched) -> None:
    for number in [*range(1, 20), *range(24, 40)]:
        watched.poll(snapshot(number, row(started=1, wait__0=1), seq=number))
    assert watched.series("celery_exporter_snapshots_missed_total") == {"celery_exporter_snapshots_missed_total": 4}
    assert "missed" not in said(watched)
