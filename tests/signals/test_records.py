"""The form of runs and failures on the pipe."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout_signals import _records
from celery_lookout_signals._records import (
    NAME_LIMIT,
    OUTCOMES,
    Decoder,
    Failure,
    Run,
    encode_failure,
    encode_run,
    whole,
)

finite = st.floats(allow_nan=False)
sizes = st.integers(0, 2**64 - 1)
#: Text that UTF-8 has, without NUL, of a length that fits.
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=NAME_LIMIT)
#: Whatever a name, a message or an id may be.
anything = st.text() | st.text(min_size=1, max_size=20).map(lambda text: text * 300)

runs = st.builds(
    Run,
    task=names,
    queue=names,
    outcome=st.sampled_from(OUTCOMES),
    exception=names,
    attempt=st.integers(-(2**63), 2**63 - 1),
    retries=st.integers(0, 2**32 - 1),
    started=st.booleans(),
    ended_at=finite,
    runtime=finite,
    wait=finite,
    cpu=finite,
    growth=sizes,
    peak=sizes,
    lost_before=st.integers(0, 0xFFFF),
    faults=st.integers(0, 0xFFFF),
    trace_id=st.just(""),
    task_id=st.just(""),
)
#: With names that leave room for the ids.
exemplars = st.builds(
    lambda run, trace_id, task_id: run._replace(queue="queue", exception="", trace_id=trace_id, task_id=task_id),
    runs,
    st.text("0123456789abcdef", min_size=32, max_size=32),
    names,
)
failures = st.builds(
    Failure,
    task_id=anything,
    task=anything,
    queue=anything,
    retries=st.integers(),
    at=finite,
    kind=anything,
    exception=anything,
    traceback=anything | st.just("x" * 16_384),
    fingerprint=anything,
    runtime=st.none() | finite,
    trace_id=st.none() | anything,
    sentry_event_id=st.none() | anything,
    expected=st.booleans(),
)


def encode(records: Sequence[Run | Failure]) -> list[bytes]:
    """Return what is written to the pipe for *records*, one item for each write."""
    return [
        write
        for record in records
        for write in (encode_failure(record) if isinstance(record, Failure) else [encode_run(record)])
    ]


def feed(decoder: Decoder, pieces: Sequence[bytes]) -> list[Run | Failure]:
    return [record for piece in pieces for record in decoder.feed(piece)]


@settings(deadline=None)
@given(records=st.lists(runs | exemplars | failures, max_size=6), data=st.data())
def test_what_is_encoded_is_decoded_wherever_the_bytes_are_cut(
    records: list[Run | Failure], data: st.DataObject
) -> None:
    written = b"".join(encode(records))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    pieces = [written[start:end] for start, end in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    decoder = Decoder()
    assert feed(decoder, pieces) == records
    # And nothing stays behind.
    assert (decoder._pending, decoder._parts) == (b"", {})


def test_single_bytes_are_enough() -> None:
    record = Run("task", "queue", "failed", "Boom", attempt=-1, runtime=1.5)
    assert feed(Decoder(), [bytes([byte]) for byte in encode_run(record)]) == [record]


@settings(deadline=None)
@given(task=anything, queue=anything, exception=anything, lost=st.integers(0, 2**40), faults=st.integers(0, 2**40))
def test_a_run_is_one_write_that_the_kernel_does_not_split(
    task: str, queue: str, exception: str, lost: int, faults: int
) -> None:
    record = encode_run(Run(task, queue, "failed", exception, retries=2**32 - 1, lost_before=lost, faults=faults))
    assert len(record) <= select.PIPE_BUF
    [decoded] = feed(Decoder(), [record])
    assert isinstance(decoded, Run)
    assert decoded.outcome == "failed"
    assert decoded.lost_before == lost
    assert decoded.faults == faults


@settings(deadline=None)
@given(names=st.tuples(anything, anything, anything), task_id=anything)
def test_an_exemplar_that_does_not_fit_is_a_run_like_any_other(names: tuple[str, str, str], task_id: str) -> None:
    task, queue, exception = names
    run = Run(task, queue, "failed", exception, runtime=1.5)
    record = encode_run(run._replace(trace_id="4bf92f3577b34da6a3ce929d0e0e4736", task_id=task_id))
    assert len(record) <= select.PIPE_BUF
    [decoded] = feed(Decoder(), [record])
    [plain] = feed(Decoder(), [encode_run(run)])
    assert isinstance(decoded, Run)
    assert decoded._replace(trace_id="", task_id="") == plain
    if len(record) == len(encode_run(run)):
        assert (decoded.trace_id, decoded.task_id) == ("", "")
    else:
        assert decoded.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
        shown = task_id[:NAME_LIMIT].replace("\0", " ")
        assert decoded.task_id == shown.encode("utf-8", "replace").decode()


@settings(deadline=None)
@given(failures)
def test_no_part_of_a_failure_is_split_by_the_kernel(failure: Failure) -> None:
    assert all(len(part) <= select.PIPE_BUF for part in encode_failure(failure))


def test_names_are_cut_at_the_limit_in_characters_not_bytes() -> None:
    # Four bytes each: all three still fit, but no ids beside them.
    name = "\N{SNAKE}" * (NAME_LIMIT + 50)
    [decoded] = feed(Decoder(), [encode_run(Run(name, name, "failed", name))])
    assert decoded == Run(name[:NAME_LIMIT], name[:NAME_LIMIT], "failed", name[:NAME_LIMIT])


def test_a_smaller_pipe_buf_takes_from_the_end_of_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX promises 512 bytes."""
    fixed = select.PIPE_BUF - _records._NAMES_LIMIT
    monkeypatch.setattr(_records, "_NAMES_LIMIT", 512 - fixed)
    record = encode_run(Run("t" * 255, "q" * 255, "failed", "e" * 255))
    assert len(record) == 512
    [decoded] = feed(Decoder(), [record])
    assert isinstance(decoded, Run)
    assert (decoded.task, decoded.exception) == ("t" * 255, "")
    assert decoded.queue == "q" * (512 - fixed - 256)


def test_a_lone_surrogate_in_a_name_becomes_a_question_mark() -> None:
    [decoded] = feed(Decoder(), [encode_run(Run("a\ud800b", "q", "succeeded"))])
    assert decoded == Run("a?b", "q", "succeeded")


def test_a_name_with_nul_does_not_move_the_others() -> None:
    [decoded] = feed(Decoder(), [encode_run(Run("a\0b", "queue", "failed", "Boom"))])
    assert isinstance(decoded, Run)
    assert (decoded.queue, decoded.exception) == ("queue", "Boom")


@pytest.mark.parametrize(
    ("number", "found"),
    [
        (0, 0), (1, 1), (2.9, 2), (2**32 - 1, 2**32 - 1), (2**32, 0), (-1, 0), (float("nan"), 0), (float("inf"), 0),
        ("3", 0), (None, 0), ([], 0),
    ],
)  # fmt: skip
def test_counts_of_messages_are_whole_numbers_that_fit(number: Any, found: int) -> None:
    assert whole(number) == found


def failure(text: str) -> Failure:
    return Failure("id", "task", "queue", 0, 1.5, "exception", "Boom", text, "print")


def parts_of(pid: int, text: str, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the writes with which the process *pid* tells of a failure."""
    monkeypatch.setattr(os, "getpid", lambda: pid)
    parts = encode_failure(failure(text))
    assert len(parts) > 2
    return parts


def test_failures_of_two_processes_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    ones, others = (parts_of(pid, str(pid) * 9000, monkeypatch) for pid in (1, 2))
    mixed = [part for both in zip(ones, others, strict=True) for part in both]
    run = encode_run(Run("task", "queue", "succeeded"))
    assert feed(Decoder(), [mixed[0], run, *mixed[1:]]) == [
        Run("task", "queue", "succeeded"),
        failure("1" * 9000),
        failure("2" * 9000),
    ]


def test_half_of_a_failure_is_forgotten_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives process ids again: the next of this id would complete what the first began."""
    decoder = Decoder()
    first, *_ = parts_of(7, "a" * 9000, monkeypatch)
    assert feed(decoder, [first]) == []
    decoder.forget(7)
    decoder.forget(7)
    assert feed(decoder, parts_of(7, "b" * 9000, monkeypatch)) == [failure("b" * 9000)]
    assert decoder._parts == {}


def test_a_failure_with_a_hole_is_dropped_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part did not fit into a full pipe; the process gave up on this failure, and began another one later."""
    decoder = Decoder()
    first, *_ = parts_of(7, "a" * 9000, monkeypatch)
    run = encode_run(Run("task", "queue", "succeeded"))
    whole = parts_of(7, "b" * 9000, monkeypatch)
    assert feed(decoder, [first, run, *whole]) == [Run("task", "queue", "succeeded")]
    assert feed(decoder, whole) == [failure("b" * 9000)]
