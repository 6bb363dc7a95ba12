"""Beat: whether it lives, and what its schedule did and will do."""

from __future__ import annotations

from typing import Any

import pytest

from celery_lookout.state.beat import BEATS_LIMIT
from celery_lookout.state.cluster import ClusterOptions, Limits
from celery_lookout.state.workers import KEEP_SECONDS
from tests.clusters import EPOCH, Watched, beat_snapshot, series

HEARTBEAT = series("celery_beat_last_heartbeat_timestamp_seconds", beat="beat@h")


def entry(name: str, *, task: str = "add", last: float | None = None, due: float | None = 60.0) -> dict[str, Any]:
    return {
        "entry": name,
        "task": task,
        "last_sent_at": None if last is None else EPOCH + last,
        "next_due_at": None if due is None else EPOCH + due,
    }


def of_entry(name: str, entry: str, task: str = "add") -> str:
    return series(f"celery_beat_entry_{name}_timestamp_seconds", entry=entry, task=task)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_snapshot_shows_beat_and_its_schedule(watched: Watched) -> None:
    watched.wait_until(9)
    watched.poll(beat_snapshot(8, entry("hourly", last=1, due=3601), entry("never", task="mail", due=None)))
    assert watched.series("celery_beat_") == {
        HEARTBEAT: EPOCH + 8,
        of_entry("last_sent", "hourly"): EPOCH + 1,
        of_entry("next_due", "hourly"): EPOCH + 3601,
    }
    watched.poll(beat_snapshot(9, entry("hourly", last=None, due=3601)))
    assert of_entry("last_sent", "hourly") not in watched.series()


def test_a_clock_that_is_ahead_makes_beat_no_younger(watched: Watched) -> None:
    watched.poll(beat_snapshot(100))
    assert watched.series()[HEARTBEAT] == EPOCH


def test_older_snapshots_change_nothing(watched: Watched) -> None:
    watched.wait_until(20)
    watched.poll(beat_snapshot(20, entry("a")), beat_snapshot(10, entry("b")))
    watched.poll(beat_snapshot(15, entry("c"), boot="older", started_at=EPOCH - 5, seq=99))
    assert watched.series()[HEARTBEAT] == EPOCH + 20
    assert of_entry("next_due", "a") in watched.series()
    assert len(watched.series("celery_beat_entry_")) == 1


def test_entries_that_are_gone_from_the_schedule_lose_their_series(watched: Watched) -> None:
    watched.poll(beat_snapshot(1, entry("a", last=1), entry("b", last=1)))
    watched.poll(beat_snapshot(2, entry("b", task="mail", last=1)))
    assert set(watched.series("celery_beat_entry_")) == {
        of_entry("last_sent", "b", "mail"),
        of_entry("next_due", "b", "mail"),
    }
    watched.poll(beat_snapshot(3))
    assert watched.series("celery_beat_entry_") == {}


def test_an_entry_of_two_beats_stays_until_both_have_dropped_it(watched: Watched) -> None:
    watched.poll(beat_snapshot(1, entry("a")), beat_snapshot(1, entry("a"), beat="second@h"))
    watched.poll(beat_snapshot(2))
    assert of_entry("next_due", "a") in watched.series()
    watched.poll(beat_snapshot(2, beat="second@h"))
    assert watched.series("celery_beat_entry_") == {}


def test_a_beat_that_fell_silent_is_shown_for_two_hours(watched: Watched) -> None:
    watched.poll(beat_snapshot(0, entry("a")))
    watched.wait_until(KEEP_SECONDS - 1)
    assert watched.series()[HEARTBEAT] == EPOCH
    watched.wait(2)
    assert watched.series("celery_beat_") == {}


def test_beats_and_names_past_their_limits_are_left_out() -> None:
    watched = Watched(ClusterOptions(limits=Limits(task_names=1)))
    for number in range(BEATS_LIMIT + 2):
        watched.poll(beat_snapshot(1, entry(f"e{number}", task=f"t{number}"), beat=f"b{number}@h"))
    assert len(watched.series("celery_beat_last_heartbeat")) == BEATS_LIMIT
    assert of_entry("next_due", "e0", "t0") in watched.series()
    assert of_entry("next_due", "e1", "_other") in watched.series()
    metric = "celery_beat_last_heartbeat_timestamp_seconds"
    assert watched.series()[series("celery_exporter_series_dropped_total", metric=metric)] == 2
