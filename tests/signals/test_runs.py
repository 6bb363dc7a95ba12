"""One run, from its beginning to what is told of it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry

from celery_lookout_signals import _guard
from celery_lookout_signals._measure import Meter
from celery_lookout_signals._messages import Messages
from celery_lookout_signals._queues import QueueNames
from celery_lookout_signals._records import ABORTED, UNMEASURED, Failure, Run
from celery_lookout_signals._runs import Runs
from celery_lookout_signals._stamp import PUBLISHED_HEADER


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Run | Failure] = []

    def send(self, run: Run) -> None:
        self.told.append(run)

    def send_failure(self, failure: Failure) -> None:
        self.told.append(failure)


class SameMeter(Meter):
    """Measures the same of every run."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self.begun = 0
        super().__init__(memory=False, peak=False, cpu_clock=self._clock)

    def _clock(self) -> float:
        self._seconds += 0.25
        return self._seconds

    def begin(self) -> float:
        self.begun += 1
        return self._clock()

    def end(self, task: str) -> tuple[float, int, int]:
        # The high-water mark must have been set back for this run.
        self.begun -= 1
        assert self.begun == 0
        return self._clock(), 4096, 8192


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def runs(sink: Sink) -> Runs:
    _guard.take_faults()
    return Runs(sink, SameMeter(), Messages(QueueNames(app=None)))


def task(**fields: Any) -> Any:
    """Return what we use of a task that runs; *fields* are those of its message."""
    defaults = {
        "id": "one", "retries": 0, "eta": None, "is_eager": False, "called_directly": False,
        "delivery_info": {"exchange": "", "routing_key": "q"},
    }  # fmt: skip
    return SimpleNamespace(name="task", request=Context({**defaults, **fields}), throws=())


def ended(sink: Sink, stamp: float | None = None, **unlike: Any) -> Run:
    """Return the only thing that was told, after a look at what is the same in all tests."""
    [run] = sink.told
    assert isinstance(run, Run)
    assert 0 <= run.runtime < 1
    assert run.ended_at == pytest.approx(time.time(), abs=5)
    attempt = hash(("one", stamp, run.retries, False))
    expected = Run("task", "q", "succeeded", attempt=attempt, wait=UNMEASURED, cpu=0.25, growth=4096, peak=8192)
    assert run._replace(runtime=UNMEASURED, ended_at=0.0) == expected._replace(**unlike)
    return run


def boom() -> Exception:
    return ZeroDivisionError("boom")


@pytest.mark.parametrize(
    ("state", "result", "outcome", "exception"),
    [
        ("SUCCESS", 1, "succeeded", ""),
        ("SUCCESS", boom(), "succeeded", ""),
        ("FAILURE", boom(), "failed", "ZeroDivisionError"),
        ("RETRY", Retry("again", boom(), 1), "retried", "ZeroDivisionError"),
        ("RETRY", Retry("again", None, 1), "retried", "Retry"),
        ("IGNORED", Ignore(), "ignored", ""),
        ("REJECTED", Reject("no"), "rejected", ""),
        ("REJECTED", Reject("no", requeue=True), "requeued", ""),
        # Left by SystemExit, or by a state that the task made up itself.
        (None, None, ABORTED, ""),
        ("STARTED", None, ABORTED, ""),
    ],
    ids=str,
)
def test_each_state_of_celery_is_an_outcome(
    runs: Runs, sink: Sink, state: str | None, result: Any, outcome: str, exception: str
) -> None:
    one = task()
    runs.begin(one, "one")
    assert runs.has("one")
    runs.end(one, "one", state, result)
    assert not runs.has("one")
    ended(sink, outcome=outcome, exception=exception)
    # Told once, whatever comes after.
    runs.end(one, "one", state, result)
    assert len(sink.told) == 1


@pytest.mark.parametrize("fields", [{"is_eager": True}, {"called_directly": True}])
def test_what_is_applied_in_place_is_no_run(runs: Runs, sink: Sink, fields: dict[str, bool]) -> None:
    """It is a part of the run around it, which goes on."""
    outer, inner = task(), task(id="inner", **fields)
    runs.begin(outer, "one")
    runs.begin(inner, "inner")
    runs.fail(inner, "inner", boom(), "Traceback …")
    runs.end(inner, "inner", "FAILURE", boom())
    assert sink.told == []
    runs.end(outer, "one", "SUCCESS", 1)
    ended(sink)


def test_a_wait_is_from_the_stamp_to_the_start(runs: Runs, sink: Sink) -> None:
    stamp = time.time() - 30
    one = task(**{PUBLISHED_HEADER: stamp, "retries": 2})
    runs.begin(one, "one")
    runs.end(one, "one", "SUCCESS", 1)
    [run] = sink.told
    assert isinstance(run, Run)
    assert run.wait == pytest.approx(30, abs=1)
    ended(sink, stamp, wait=run.wait, retries=2)


def test_a_stamp_of_the_future_is_no_wait(runs: Runs, sink: Sink) -> None:
    """Clocks of two machines differ."""
    stamp = time.time() + 30
    one = task(**{PUBLISHED_HEADER: stamp})
    runs.begin(one, "one")
    runs.end(one, "one", "SUCCESS", 1)
    ended(sink, stamp, wait=0.0)


def test_faults_travel_with_the_run_and_are_told_once(runs: Runs, sink: Sink) -> None:
    one = task()
    for _ in range(2):
        runs.begin(one, "one")
        _guard.note(__name__, boom())
        runs.end(one, "one", "SUCCESS", 1)
    assert [run.faults for run in sink.told if isinstance(run, Run)] == [1, 1]
    assert _guard.take_faults() == 0


def test_faults_are_told_even_if_there_is_no_run(runs: Runs, sink: Sink) -> None:
    """The fault may be that its beginning was not noted."""
    _guard.note(__name__, boom())
    for _ in range(2):
        runs.end(task(), "one", "SUCCESS", 1)
    assert sink.told == [Run("", "", ABORTED, started=False, faults=1)]


def test_a_failure_is_told_in_full_before_its_run(runs: Runs, sink: Sink) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    one = task(retries=1, traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    runs.begin(one, "one")
    runs.fail(one, "one", boom(), "Traceback …")
    runs.end(one, "one", "FAILURE", boom())
    failure = sink.told.pop(0)
    assert isinstance(failure, Failure)
    assert failure.runtime is not None
    assert 0 <= failure.runtime < 1
    assert failure.at == pytest.approx(time.time(), abs=5)
    assert failure._replace(at=0.0, fingerprint="", runtime=None) == Failure(
        "one", "task", "q", 1, 0.0, "exception", "ZeroDivisionError", "Traceback …", "", trace_id=trace
    )
    ended(sink, outcome="failed", exception="ZeroDivisionError", retries=1, trace_id=trace, task_id="one")


@pytest.mark.parametrize(
    ("throws", "expected"), [((ZeroDivisionError,), True), (ArithmeticError, True), (KeyError, False), (None, False)]
)
def test_a_failure_tells_whether_its_task_announces_it(runs: Runs, sink: Sink, throws: Any, expected: bool) -> None:
    one = task()
    one.throws = throws
    runs.begin(one, "one")
    runs.fail(one, "one", boom(), "Traceback …")
    [failure] = sink.told
    assert isinstance(failure, Failure)
    assert failure.expected == expected


def test_a_failure_of_a_run_that_is_not_under_way_is_not_told(runs: Runs, sink: Sink) -> None:
    runs.fail(task(), "one", boom(), "Traceback …")
    assert sink.told == []


def test_a_storm_of_failures_is_counted_and_some_of_it_told(runs: Runs, sink: Sink) -> None:
    one = task()
    for _ in range(1000):
        runs.begin(one, "one")
        runs.fail(one, "one", boom(), "Traceback …")
        runs.end(one, "one", "FAILURE", boom())
    told = [record for record in sink.told if isinstance(record, Failure)]
    assert 1 <= len(told) <= 5
    assert len(sink.told) == 1000 + len(told)


@pytest.mark.parametrize("retries", [-1, "one", None, float("nan"), 2**64])
def test_odd_retries_from_a_header_do_not_lose_the_run(runs: Runs, sink: Sink, retries: Any) -> None:
    one = task(retries=retries)
    runs.begin(one, "one")
    runs.end(one, "one", "SUCCESS", 1)
    ended(sink, retries=0)


def test_without_a_clock_there_is_no_cpu_time(sink: Sink) -> None:
    runs = Runs(sink, Meter(memory=False, peak=False, cpu_clock=None), Messages(QueueNames(app=None)))
    one = task()
    runs.begin(one, "one")
    runs.end(one, "one", "SUCCESS", 1)
    ended(sink, cpu=UNMEASURED, growth=0, peak=0)
