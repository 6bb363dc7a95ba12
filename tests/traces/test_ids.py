"""Ids of spans come from task ids alone, whatever these look like."""

from __future__ import annotations

from uuid import UUID

import pytest

from celery_lookout.traces.ids import publish_span_id, run_span_id, trace_id

TASK = "5f1e8f9a-1c0b-4c53-9d4e-2b7a6f0c1d2e"


def test_a_trace_has_the_id_of_its_root() -> None:
    assert trace_id(TASK) == UUID(TASK).int
    assert trace_id(TASK.upper()) == UUID(TASK).int


def test_the_first_run_has_the_end_of_the_tasks_id() -> None:
    assert format(run_span_id(TASK, 0), "016x") == "9d4e2b7a6f0c1d2e"


def test_each_attempt_has_spans_of_its_own() -> None:
    numbers = [*range(100), 2**53, 2**54, 2**54 + 1]
    spans = {make(TASK, number) for make in (run_span_id, publish_span_id) for number in numbers}
    assert len(spans) == 2 * len(numbers)


def test_ids_made_from_the_time_differ_although_they_end_the_same() -> None:
    first, second = "6fa459ea-ee8a-11eb-9a03-0242ac130003", "6fa459eb-ee8a-11eb-9a03-0242ac130003"
    assert run_span_id(first, 0) != run_span_id(second, 0)


@pytest.mark.parametrize(
    "task_id",
    [
        "order-17",
        "x",
        "u" * 255,
        "\x00\n\u2028",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "00000000-0000-4000-0000-000000000000",
        f" {TASK}",
        TASK.replace("-", ""),
        "+f1e8f9a-1c0b-4c53-9d4e-2b7a6f0c1d2e",
        "5f1e8f9a-1c0b-4c53-9d4e-2b7a6f0c_d2e",
    ],
)
def test_any_text_makes_valid_ids(task_id: str) -> None:
    """OpenTelemetry wants 128 and 64 bits, and not 0."""
    assert 0 < trace_id(task_id) < 2**128
    assert trace_id(task_id) == trace_id(task_id)
    for number in (0, 1, 2**53, 2**54):
        assert 0 < run_span_id(task_id, number) < 2**64
        assert 0 < publish_span_id(task_id, number) < 2**64


def test_ids_that_are_no_uuids_have_traces_of_their_own() -> None:
    assert len({trace_id(f"order-{number}") for number in range(100)}) == 100
