"""Runs on their way: nothing waits, and what does not fit is counted."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import cast

import pytest

from celery_lookout_signals import _pipe
from celery_lookout_signals._pipe import Memory, Pipe
from celery_lookout_signals._records import Failure, Run, encode_failure

RUN = Run("task", "queue", "succeeded", attempt=1, runtime=0.5)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe._read_end)
    os.close(pipe._write_end)


def fill(pipe: Pipe) -> int:
    """Send runs until one is lost; return how many were taken."""
    taken = 0
    while not pipe._lost:
        pipe.send(RUN)
        taken += 1
    return taken - 1


def test_what_was_sent_comes_out_in_order_and_once(pipe: Pipe) -> None:
    sent = [RUN._replace(attempt=attempt) for attempt in range(3000)]
    for run in sent:
        pipe.send(run)
    assert list(pipe.drain()) == sent
    assert list(pipe.drain()) == []


def test_a_full_pipe_counts_what_is_lost_and_says_so_with_the_next(pipe: Pipe) -> None:
    taken = fill(pipe)
    assert taken > 1000
    for _ in range(9):
        pipe.send(RUN)
    assert list(pipe.drain()) == [RUN] * taken
    for _ in range(2):
        pipe.send(RUN)
    # One in fill(), nine after it; told once.
    assert list(pipe.drain()) == [RUN._replace(lost_before=10), RUN]


def test_any_number_of_lost_runs_is_told(pipe: Pipe) -> None:
    fill(pipe)
    pipe._lost = 70_000
    list(pipe.drain())
    for _ in range(2):
        pipe.send(RUN)
    assert sum(run.lost_before for run in cast("list[Run]", list(pipe.drain()))) == 70_000


def test_a_failure_that_does_not_fit_spoils_nothing(pipe: Pipe) -> None:
    failure = Failure("id", "task", "queue", 0, 1.5, "exception", "Boom", "x" * 16_384, "print")
    taken = fill(pipe)
    pipe.send_failure(failure)
    drained = list(pipe.drain())
    assert drained == [RUN] * taken
    pipe.send_failure(failure)
    pipe.send(RUN)
    assert list(pipe.drain()) == [failure, RUN._replace(lost_before=1)]


def test_what_a_process_had_only_begun_to_tell_is_forgotten_with_it(pipe: Pipe) -> None:
    failure = Failure("id", "task", "queue", 0, 1.5, "exception", "Boom", "x" * 16_384, "print")
    first, *_ = encode_failure(failure)
    os.write(pipe._write_end, first)
    assert list(pipe.drain()) == []
    pipe.forget(os.getpid())
    pipe.send_failure(failure)
    assert list(pipe.drain()) == [failure]


#: Since Python 3.12, where the process that runs the tests has threads.
may_fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@may_fork
def test_what_a_killed_process_wrote_is_there(pipe: Pipe) -> None:
    pid = os.fork()
    if not pid:
        pipe.send(RUN)
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert list(pipe.drain()) == [RUN]


@may_fork
def test_several_processes_write_into_one_pipe_more_than_it_holds(pipe: Pipe) -> None:
    """What arrives is whole, and with what is told as lost it is all."""
    running = set()
    gate, opener = os.pipe()
    for number in range(4):
        pid = os.fork()
        if not pid:
            os.close(opener)
            for count in range(5000):
                pipe.send(RUN._replace(task=f"task{number}" * 30))
                if not count:
                    os.read(gate, 1)  # until each has told something: in a full pipe one may be out of luck for long
            # Nobody tells of what was lost last but another run; it says how many runs were sent for that.
            further = 0
            while pipe._lost:
                further += 1
                pipe.send(Run("further", "", "succeeded", attempt=further))
            os._exit(0)
        running.add(pid)
    arrived: list[Run] = []
    while len(arrived) < 4:
        arrived += cast("list[Run]", list(pipe.drain()))
    os.close(gate)
    os.close(opener)
    while running:
        running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]}
        arrived += cast("list[Run]", list(pipe.drain()))
    further = sum(run.attempt for run in arrived if run.task == "further")
    assert {run.task for run in arrived} - {"further"} == {f"task{number}" * 30 for number in range(4)}
    assert len(arrived) + sum(run.lost_before for run in arrived) == 4 * 5000 + further


def test_memory_is_bounded_and_counts_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pipe, "QUEUE_LIMIT", 3)
    failure = Failure("id", "task", "queue", 0, 1.5, "exception", "Boom", "text", "print")
    memory = Memory()
    memory.send_failure(failure)
    for _ in range(4):
        memory.send(RUN)
    memory.send_failure(failure)
    memory.forget(7)
    assert list(memory.drain()) == [failure, RUN, RUN]
    memory.send(RUN)
    memory.send(RUN)
    assert list(memory.drain()) == [RUN._replace(lost_before=2), RUN]
    assert list(memory.drain()) == []
