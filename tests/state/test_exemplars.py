"""Exemplars: whose they are, and which series show them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clusters import (
    EPOCH,
    Watched,
    failed,
    of,
    received,
    retried,
    row,
    sent,
    snapshot,
    started,
    succeeded,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "0af7651916cd43dd8448eb211c80319c"
IDS = {"trace_id": TRACE, "task_id": "one"}


def told(at: float, exemplars: dict[str, Any], **fields: Any) -> Any:
    """Return a snapshot with a row that has these *exemplars*, whose times are as in the tests."""
    ours = {key: [*one[:3], EPOCH + one[3], *one[4:]] for key, one in exemplars.items()}
    counted = row(failed=int(at), exception__Boom=int(at), worker_lost=int(at), runtime__failed__7=int(at), wait__0=1)
    return snapshot(at, {**counted, "exemplars": ours}, **fields)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_each_is_shown_where_its_total_is(watched: Watched) -> None:
    watched.wait_until(5.0)
    watched.poll(
        told(
            5.0,
            {
                "failed": (TRACE, "one", 1, 3.0),
                "exception:Boom": (TRACE, "one", 1, 3.0),
                "worker_lost": (TRACE, "one", 1, 3.0),
                "runtime:failed:7": (TRACE, "one", 3.25, 3.0),
                "wait:0": (TRACE, "one", 0.01, 2.0),
            },
        )
    )
    assert watched.exemplars() == {
        of("failed_total"): (IDS, 1.0, 3.0),
        of("exceptions_total", exception="Boom"): (IDS, 1.0, 3.0),
        of("terminations_total", reason="worker_lost"): (IDS, 1.0, 3.0),
        of("runtime_seconds_bucket", outcome="failed", le="5.0"): (IDS, 3.25, 3.0),
        of("queue_wait_seconds_bucket", le="0.05"): (IDS, 0.01, 2.0),
    }
    assert watched.series()["celery_exporter_snapshots_invalid_total" + '{reason="field"}'] == 0


def test_they_count_nothing(watched: Watched) -> None:
    watched.poll(snapshot(1.0, {**row(started=1), "exemplars": {"failed": [TRACE, "one", 1, EPOCH + 1]}}))
    assert watched.series()[of("failed_total")] == 0


def test_the_newest_is_shown_whichever_snapshot_comes_last(watched: Watched) -> None:
    watched.wait_until(10.0)
    watched.poll(told(9.0, {"failed": (OTHER, "two", 1, 8.0)}), told(5.0, {"failed": (TRACE, "one", 1, 3.0)}))
    assert watched.exemplars() == {of("failed_total"): ({"trace_id": OTHER, "task_id": "two"}, 1.0, 8.0)}


def test_of_snapshots_that_were_counted_before_there_are_none(watched: Watched) -> None:
    watched.wait_until(10.0)
    watched.poll(old=[told(5.0, {"failed": (TRACE, "one", 1, 3.0)})])
    assert watched.exemplars() == {}
    watched.poll(told(9.0, {"failed": (TRACE, "one", 1, 8.0)}))
    assert watched.exemplars().keys() == {of("failed_total")}


def test_a_clock_that_is_ahead_keeps_nobody_away(watched: Watched) -> None:
    watched.wait_until(10.0)
    watched.poll(told(3000.0, {"failed": (TRACE, "one", 1, 2999.0)}, worker="ahead@h"))
    assert watched.exemplars()[of("failed_total")][2] == 10.0
    watched.wait_until(20.0)
    watched.poll(told(19.0, {"failed": (OTHER, "two", 1, 18.0)}))
    assert watched.exemplars()[of("failed_total")] == ({"trace_id": OTHER, "task_id": "two"}, 1.0, 18.0)


@pytest.mark.parametrize(
    ("key", "one"),
    [
        ("failed", ("", "one", 1, 3.0)),
        ("failed", ("0" * 32, "one", 1, 3.0)),
        ("failed", (TRACE.upper(), "one", 1, 3.0)),
        ("failed", ('"} 1\n# EOF\n', "one", 1, 3.0)),
        ("succeeded", (TRACE, "one", 1, 3.0)),
        ("runtime:failed:17", (TRACE, "one", 1, 3.0)),
        ("runtime:failed:sum", (TRACE, "one", 1, 3.0)),
        ("retry_exception:Boom", (TRACE, "one", 1, 3.0)),
        ("tomorrow", (TRACE, "one", 1, 3.0)),
        ("", (TRACE, "one", 1, 3.0)),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_counted_and_costs_nothing_else(key: str, one: Any, watched: Watched) -> None:
    watched.wait_until(5.0)
    watched.poll(told(5.0, {key: one, "wait:0": (TRACE, "one", 0.01, 2.0)}))
    assert watched.exemplars().keys() == {of("queue_wait_seconds_bucket", le="0.05")}
    assert watched.series()["celery_exporter_snapshots_invalid_total" + '{reason="field"}'] == 1
    assert watched.series()[of("failed_total")] == 5


def test_a_class_of_exception_that_has_no_series_gets_none(watched: Watched) -> None:
    watched.wait_until(5.0)
    watched.poll(told(5.0, {"exception:Never": (TRACE, "one", 1, 3.0)}))
    assert watched.exemplars() == {}
    assert not any("Never" in name for name in watched.series())


def test_odd_task_ids_are_shown_or_left_out(watched: Watched) -> None:
    watched.wait_until(5.0)
    watched.poll(
        told(
            5.0,
            {
                "failed": (TRACE, "x" * 255, 1, 3.0),
                "worker_lost": (TRACE, '"} 1', 1, 3.0),
                "wait:0": (TRACE, "a\\b\n# EOF", 0.01, 2.0),
            },
        )
    )
    assert {labels.get("task_id") for labels, _, _ in watched.exemplars().values()} == {None, "a\\b\n# EOF"}


# -- from events


TRACES = {"id": TRACE, "odd": "no trace id"}


def run_each_way(watched: Watched, uuid: str) -> None:
    """A retry, and then a failure by a hard limit."""
    watched.hear_each(
        [
            sent(1.0, uuid=uuid),
            received(2.0, uuid=uuid),
            started(3.0, uuid=uuid),
            retried(4.5, uuid=uuid),
            sent(4.6, retries=1, uuid=uuid),
            received(5.0, retries=1, uuid=uuid),
            started(5.5, uuid=uuid),
            failed(6.5, exception="TimeLimitExceeded(1,)", uuid=uuid),
        ]
    )


def test_events_have_exemplars_where_somebody_makes_traces_of_them() -> None:
    watched = Watched(trace_id_of=TRACES.get)
    run_each_way(watched, "id")
    ids = {"trace_id": TRACE, "task_id": "id"}
    assert watched.exemplars() == {
        of("queue_wait_seconds_bucket", le="2.5"): (ids, 2.0, 3.0),
        of("queue_wait_seconds_bucket", le="1.0"): (ids, 0.9, 5.5),
        of("runtime_seconds_bucket", outcome="retried", le="2.5"): (ids, 1.5, 4.5),
        of("runtime_seconds_bucket", outcome="failed", le="1.0"): (ids, 1.0, 6.5),
        of("failed_total"): (ids, 1.0, 6.5),
        of("exceptions_total", exception="TimeLimitExceeded"): (ids, 1.0, 6.5),
        of("terminations_total", reason="hard_time_limit"): (ids, 1.0, 6.5),
    }


def test_a_success_is_an_exemplar_too() -> None:
    watched = Watched(trace_id_of=TRACES.get)
    watched.hear(sent(1.0), received(1.0), started(1.0), succeeded(1.5, runtime=0.5))
    assert of("runtime_seconds_bucket", outcome="succeeded", le="0.5") in watched.exemplars()


@pytest.mark.parametrize("uuid", ["unknown", "odd"])
def test_an_event_without_a_trace_is_none(uuid: str) -> None:
    watched = Watched(trace_id_of=TRACES.get)
    run_each_way(watched, uuid)
    assert watched.exemplars() == {}
    assert watched.series()[of("failed_total")] == 1


def test_without_anybody_who_makes_traces_events_have_none(watched: Watched) -> None:
    run_each_way(watched, "id")
    assert watched.exemplars() == {}
