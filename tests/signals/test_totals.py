"""What runs add up to, and what of it is sent."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import prometheus_client
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_lookout_signals import _snapshot
from celery_lookout_signals._records import Run
from celery_lookout_signals._snapshot import Envelope, parts
from celery_lookout_signals._totals import (
    EXCEPTIONS_LIMIT,
    OTHER,
    PEAK_BUCKETS,
    ROWS_LIMIT,
    RUNTIME_BUCKETS,
    WAIT_BUCKETS,
    Row,
    Totals,
    changes,
)
from tests.servers.celery_versions import ROOT
from tests.signals.snapshots import Snapshot, fold

EDGES = sorted({*RUNTIME_BUCKETS, *WAIT_BUCKETS, *PEAK_BUCKETS})


def test_the_bounds_are_those_of_the_page() -> None:
    """Another bound means another version of the wire format."""
    page = (ROOT / "docs" / "wire.md").read_text("utf-8")
    table = page.partition("| histogram | upper bounds |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(runtime|wait|peak)` \| (.*) \|$", table, re.MULTILINE))
    assert [float(bound) for bound in rows["runtime"].split(", ")] == list(RUNTIME_BUCKETS)
    assert [float(bound) for bound in rows["wait"].split(", ")] == list(WAIT_BUCKETS)
    assert rows["peak"] == "16 MiB, doubled ten times, up to 16 GiB"
    assert (PEAK_BUCKETS[0], len(PEAK_BUCKETS), PEAK_BUCKETS[-1]) == (16 * 2**20, 11, 16 * 2**30)


def bucket_of(bounds: Sequence[float], value: float) -> int:
    """Return the bucket that prometheus-client chooses for *value*."""
    histogram = prometheus_client.Histogram("name", "help", buckets=bounds, registry=None)
    histogram.observe(value)
    [number] = [number for number, bucket in enumerate(histogram._buckets) if bucket.get()]
    return number


near_edges = st.sampled_from(EDGES).flatmap(
    lambda edge: st.sampled_from([edge, math.nextafter(edge, 0), math.nextafter(edge, math.inf)])
)


@settings(deadline=None)
@given(value=near_edges | st.floats(0, 1e12))
@example(value=0.0)
def test_a_value_falls_into_the_bucket_that_prometheus_chooses(value: float) -> None:
    row = Row("task", "queue")
    row.count_start(value)
    row.count_end(Run("task", "queue", "succeeded", runtime=value))
    row.count_end(Run("task", "queue", "ignored", peak=int(value)))
    expected: dict[str, float] = {
        "started": 1,
        "succeeded": 1,
        "ignored": 1,
        f"wait:{bucket_of(WAIT_BUCKETS, value)}": 1,
        "wait:sum": value,
        f"runtime:succeeded:{bucket_of(RUNTIME_BUCKETS, value)}": 1,
        "runtime:succeeded:sum": value,
    }
    if int(value):
        expected |= {f"peak:{bucket_of(PEAK_BUCKETS, int(value))}": 1, "peak:sum": int(value)}
    assert row.totals == expected


@pytest.mark.parametrize(
    ("run", "totals"),
    [
        (Run("t", "q", "succeeded"), {"succeeded": 1}),
        (Run("t", "q", "succeeded", retries=2), {"succeeded": 1}),
        (Run("t", "q", "failed", "Boom"), {"failed": 1, "exception:Boom": 1}),
        (Run("t", "q", "failed", "Boom", retries=1), {"failed": 1, "exception:Boom": 1, "retries_exhausted": 1}),
        (
            Run("t", "q", "failed", "SoftTimeLimitExceeded"),
            {"failed": 1, "exception:SoftTimeLimitExceeded": 1, "soft_time_limit": 1},
        ),
        (
            Run("t", "q", "failed", "TimeLimitExceeded"),
            {"failed": 1, "exception:TimeLimitExceeded": 1, "hard_time_limit": 1},
        ),
        (Run("t", "q", "failed", "WorkerLostError"), {"failed": 1, "exception:WorkerLostError": 1, "worker_lost": 1}),
        (Run("t", "q", "retried", "Boom", retries=3), {"retried": 1, "retry_exception:Boom": 1}),
        (Run("t", "q", "retried", "WorkerLostError"), {"retried": 1, "retry_exception:WorkerLostError": 1}),
        *((Run("t", "q", outcome), {outcome: 1}) for outcome in ("ignored", "rejected", "requeued", "revoked")),
        (Run("t", "q", "expired", started=False), {"expired": 1}),
        (Run("t", "q", "terminated"), {"terminated": 1}),
        # Only the runtime of bodies that came to an end says something of the task.
        (Run("t", "q", "terminated", runtime=5.0, cpu=1.0), {"terminated": 1, "cpu_seconds": 1.0}),
        (
            Run("t", "q", "retried", "Boom", runtime=0.5, cpu=0.25, growth=4096, peak=16 * 2**20),
            {
                "retried": 1,
                "retry_exception:Boom": 1,
                "runtime:retried:4": 1,
                "runtime:retried:sum": 0.5,
                "cpu_seconds": 0.25,
                "memory_growth_bytes": 4096,
                "peak:0": 1,
                "peak:sum": 16 * 2**20,
            },
        ),
    ],
    ids=str,
)
def test_an_end_counts_these_and_no_others(run: Run, totals: dict[str, float]) -> None:
    row = Row("t", "q")
    row.count_end(run)
    assert row.totals == totals


def test_the_last_success_and_failure_never_go_back() -> None:
    row = Row("t", "q")
    for at in (5.0, 3.0):
        row.count_end(Run("t", "q", "succeeded", ended_at=at))
    assert (row.last_success_at, row.last_failure_at) == (5.0, None)
    for at in (7.0, 6.0):
        row.count_end(Run("t", "q", "failed", ended_at=at))
    row.count_end(Run("t", "q", "retried", ended_at=9.0))
    assert (row.last_success_at, row.last_failure_at) == (5.0, 7.0)


def test_received_and_redelivered_are_counted_apart() -> None:
    totals = Totals()
    totals.count_received("t", "q", redelivered=False)
    totals.count_received("t", "q", redelivered=True)
    assert [(row.task, row.queue, row.totals) for row in totals] == [("t", "q", {"received": 2, "redelivered": 1})]


def test_rows_past_the_limit_share_one_and_no_count_is_lost() -> None:
    totals = Totals()
    for number in range(ROWS_LIMIT + 50):
        totals.count_received(f"task{number}", "q", redelivered=False)
    # Those that have a row keep it.
    totals.count_received("task0", "q", redelivered=False)
    rows = {(row.task, row.queue): row.totals for row in totals}
    assert len(rows) == ROWS_LIMIT + 1
    assert rows.pop((OTHER, OTHER)) == {"received": 50}
    assert rows.pop(("task0", "q")) == {"received": 2}
    assert rows == {(f"task{number}", "q"): {"received": 1} for number in range(1, ROWS_LIMIT)}


def test_classes_of_exception_past_the_limit_share_one() -> None:
    row = Row("t", "q")
    for number in range(EXCEPTIONS_LIMIT + 5):
        row.count_end(Run("t", "q", "failed", f"Boom{number}"))
    row.count_end(Run("t", "q", "failed", "Boom0"))
    # Of retries, too: a class that is known keeps its name.
    row.count_end(Run("t", "q", "retried", "Boom1"))
    row.count_end(Run("t", "q", "retried", "New"))
    names = {f"exception:Boom{number}": 1 for number in range(EXCEPTIONS_LIMIT)}
    assert row.totals == {
        "failed": EXCEPTIONS_LIMIT + 6,
        "retried": 2,
        **names,
        "exception:Boom0": 2,
        f"exception:{OTHER}": 5,
        "retry_exception:Boom1": 1,
        f"retry_exception:{OTHER}": 1,
    }


def test_changes_are_told_from_what_was_sent_to_what_is() -> None:
    totals = Totals()
    row = totals.row("t", "q")
    assert [part.wire() for part in parts(totals, everything=False)] == [[]]
    row.totals["received"] += 2
    assert changes(row, everything=False) == {"received": [0, 2]}
    # A message that the broker did not take changes nothing.
    assert changes(row, everything=False) == {"received": [0, 2]}
    [part] = parts(totals, everything=False)
    part.was_taken()
    assert changes(row, everything=False) == {}
    assert changes(row, everything=True) == {"received": [2, 2]}
    row.totals["received"] += 1
    row.totals["started"] += 1
    assert changes(row, everything=False) == {"received": [2, 3], "started": [0, 1]}
    assert changes(row, everything=True) == {"received": [2, 3], "started": [0, 1]}


def test_seconds_are_told_to_the_microsecond_and_nothing_is_lost_by_that() -> None:
    totals = Totals()
    row = totals.row("t", "q")
    sent = []
    for _ in range(1000):
        row.totals["cpu_seconds"] += 0.0000004
        [part] = parts(totals, everything=False)
        [wire] = part.wire()
        sent.append(wire["totals"]["cpu_seconds"])
        part.was_taken()
    assert sent[0] == [0, 0.0]
    assert sent[-1][1] == 0.0004
    assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(sent))


#: What a worker does: counts for one of some tasks, or publishes, which the broker takes or does not.
steps = st.lists(
    st.tuples(st.just("count"), st.integers(0, 6), st.sampled_from(["received", "started"]), st.integers(1, 9))
    | st.tuples(st.just("publish"), st.booleans(), st.integers(0, 3)),
    max_size=40,
)


@settings(deadline=None)
@given(steps=steps, late=st.integers(0, 10), data=st.data())
def test_whoever_reads_from_any_moment_on_counts_what_came_after_it(
    steps: list[tuple[Any, ...]], late: int, data: st.DataObject
) -> None:
    """
    Three rows to a message; the broker takes some, and of several of one moment perhaps only the first.

    A reader from the beginning has all that was counted; one that comes late has what the earlier messages had not
    told. Neither minds messages that come twice.
    """
    totals, envelope = Totals(), Envelope("worker", "w@host")
    taken: list[Snapshot] = []

    def publish(*, everything: bool, limit: int) -> None:
        for number, part in enumerate(parts(totals, everything=everything)):
            body = envelope.wrap({"rows": part.wire()}, interval=1.0, final=False)
            if number >= limit:
                break
            taken.append(json.loads(body))
            part.was_taken()

    with patch.object(_snapshot, "ROWS_PER_MESSAGE", 3):
        for step in steps:
            if step[0] == "count":
                totals.row(f"task{step[1]}", "q").totals[step[2]] += step[3]
            else:
                publish(everything=step[1], limit=step[2])
        publish(everything=False, limit=99)
    all_of_it = {(row.task, "q"): row.totals for row in totals}
    assert fold(taken) == all_of_it

    early, rest = taken[:late], taken[late:]
    told = fold(early)
    expected = {
        row: {key: total - told.get(row, {}).get(key, 0) for key, total in found.items()}
        for row, found in all_of_it.items()
    }
    repeated = [snapshot for snapshot in rest for _ in range(data.draw(st.integers(1, 2)))]
    found = fold(repeated)
    # A row or key that says nothing new need not be told.
    assert {(row, key): n for row, totals in found.items() for key, n in totals.items() if n} == {
        (row, key): n for row, totals in expected.items() for key, n in totals.items() if n
    }
