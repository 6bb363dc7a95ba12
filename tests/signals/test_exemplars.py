"""Which runs are exemplars, and what is told of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import signals
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from celery_lookout_signals import _gatherer, _guard, _hooks, _runs
from celery_lookout_signals._gatherer import Gatherer
from celery_lookout_signals._measure import Meter
from celery_lookout_signals._messages import Messages
from celery_lookout_signals._queues import QueueNames
from celery_lookout_signals._records import Failure, Run
from celery_lookout_signals._runs import KINDS_LIMIT, Runs
from celery_lookout_signals._snapshot import EXEMPLARS_PER_MESSAGE, parts
from celery_lookout_signals._totals import EXEMPLARS_LIMIT, WAIT_BUCKETS, Row, Totals
from celery_lookout_signals._traces import Trace, current_trace, recorded_id, trace_of
from tests.signals.test_gatherer import Request, TimeLimitExceeded, Worker, WorkerLostError
from tests.signals.test_runs import task

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "0af7651916cd43dd8448eb211c80319c"
RECORDED: dict[str, Any] = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
DROPPED: dict[str, Any] = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-00"}


class Clock:
    """Time as runs see it; a run takes as long as it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now


class Process:
    """Runs of one pool process, by *clock*."""

    def __init__(self, clock: Clock) -> None:
        self.told: list[Run] = []
        self.clock = clock
        self.runs = Runs(self, Meter(memory=False, peak=False, cpu_clock=None), Messages(QueueNames(app=None)))

    def send(self, run: Run) -> None:
        self.told.append(run)

    def send_failure(self, failure: Failure) -> None: ...

    def run(self, seconds: float, state: str = "SUCCESS", result: Any = None, name: str = "task", **fields: Any) -> str:
        """Run a task, and return the trace id that is told of it."""
        one = task(**fields)
        one.name = name
        self.runs.begin(one, "one")
        self.clock.now += seconds
        self.runs.end(one, "one", state, result)
        assert self.told[-1].task_id == ("one" if self.told[-1].trace_id else "")
        return self.told[-1].trace_id


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_runs, "time", clock)
    return clock


@pytest.fixture
def process(clock: Clock) -> Process:
    _guard.take_faults()
    return Process(clock)


# -- traces


@pytest.mark.parametrize(
    ("fields", "recorded"),
    [
        (RECORDED, True),
        (DROPPED, False),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-03"}, True),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-02"}, False),
        ({"traceparent": f"00-{TRACE}-"}, True),  # it does not say
        ({"sentry-trace": f"{TRACE}-00f067aa0ba902b7-1"}, True),
        ({"sentry-trace": f"{TRACE}-00f067aa0ba902b7-0"}, False),
        ({"sentry-trace": f"{TRACE}-00f067aa0ba902b7"}, True),  # to be decided
    ],
)
def test_headers_tell_whether_a_trace_is_recorded(fields: dict[str, str], recorded: bool) -> None:
    assert trace_of(fields) == Trace(TRACE, recorded)
    assert recorded_id(trace_of(fields)) == (TRACE if recorded else "")


def test_without_a_trace_there_is_no_id() -> None:
    assert recorded_id(trace_of({})) == ""


def test_the_current_span_tells_whether_its_trace_is_recorded() -> None:
    with TracerProvider().get_tracer("tests").start_as_current_span("run") as span:
        expected = format(span.get_span_context().trace_id, "032x")
        assert current_trace() == Trace(expected, recorded=True)
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("tests").start_as_current_span("run"):
        found = current_trace()
    assert found is not None
    assert not found.recorded


# -- runs


def test_of_many_runs_one_in_a_second_is_an_exemplar(process: Process) -> None:
    told = [process.run(0.001, **RECORDED) for _ in range(3000)]
    assert told.count(TRACE) == 3
    assert told[0] == TRACE


def test_every_kind_of_run_has_its_own(process: Process) -> None:
    error = ValueError("x")
    for _ in range(2):
        expected = ["" if process.told else TRACE] * 5
        assert expected == [
            process.run(0.001, **RECORDED),
            process.run(0.001, name="other", **RECORDED),
            process.run(0.001, "FAILURE", error, **RECORDED),
            process.run(0.001, "FAILURE", KeyError("x"), **RECORDED),
            process.run(0.001, "RETRY", SimpleNamespace(exc=error), **RECORDED),
        ]


def test_a_run_that_takes_twice_as_long_as_the_last_one_is_one_before_its_time(process: Process) -> None:
    seconds = (0.001, 0.0049, 0.0051, 0.009, 0.011, 0.02, 0.1, 0.15, 0.001)
    told = [process.run(one, **RECORDED) for one in seconds]
    assert [one for one, trace_id in zip(seconds, told, strict=True) if trace_id] == [0.001, 0.0051, 0.011, 0.1]


def test_every_long_run_is_one(process: Process) -> None:
    assert {process.run(1.0, **RECORDED) for _ in range(20)} == {TRACE}
    # Ends that come at the same time: another one took as long, but ran beside it.
    one, other = task(**RECORDED), task(id="two", **RECORDED)
    process.runs.begin(one, "one")
    process.runs.begin(other, "two")
    process.clock.now += 5
    process.runs.end(one, "one", "SUCCESS", None)
    process.runs.end(other, "two", "SUCCESS", None)
    assert [run.task_id for run in process.told[-2:]] == ["one", "two"]


def test_long_runs_do_not_keep_short_ones_from_being_one(process: Process) -> None:
    told: list[str] = []
    for _ in range(200):
        long = task(id="two", **RECORDED)
        process.runs.begin(long, "two")
        process.runs._begun["two"] = (*process.runs._begun["two"][:2], process.clock.now - 2, 0.0)
        process.runs.end(long, "two", "SUCCESS", None)
        told.append(process.run(0.05, **RECORDED))
    assert 9 <= told.count(TRACE) <= 11


@pytest.mark.parametrize("fields", [{}, DROPPED, {"traceparent": "junk"}, {"traceparent": 17}])
def test_a_run_without_a_recorded_trace_is_none(process: Process, fields: dict[str, Any]) -> None:
    assert {process.run(seconds, **fields) for seconds in (0.001, 0.1, 2.0)} == {""}


def test_of_few_recorded_traces_some_are_found(process: Process) -> None:
    """Where one in twenty-one is recorded, a look once a second would find one in twenty-one seconds."""
    told = [process.run(0.01, **(RECORDED if number % 21 == 4 else DROPPED)) for number in range(3000)]
    assert told.count(TRACE) >= 10
    assert _guard.take_faults() == 0


def test_the_current_span_comes_before_the_header(process: Process) -> None:
    with TracerProvider().get_tracer("tests").start_as_current_span("run") as span:
        assert process.run(0.1, **RECORDED) == format(span.get_span_context().trace_id, "032x")
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("tests").start_as_current_span("run"):
        assert process.run(1.0, **RECORDED) == ""


def test_kinds_of_runs_are_bounded(process: Process) -> None:
    for number in range(KINDS_LIMIT + 10):
        process.run(0.0, name=f"task{number}", **RECORDED)
    assert len(process.runs._exemplars) == 10


def test_our_handler_is_the_first_when_a_run_ends(monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    """OpenTelemetry's ends the span."""
    monkeypatch.setattr(signals.task_postrun, "receivers", [])
    monkeypatch.setattr(signals.task_prerun, "receivers", [])
    monkeypatch.setattr(_hooks._State, "runs", None)
    order: list[str] = []

    def before(**_: Any) -> None:
        order.append("before")

    def after(**_: Any) -> None:
        order.append("after")

    def end(*_: Any) -> None:
        order.append("ours")

    monkeypatch.setattr(process.runs, "end", end)
    signals.task_postrun.connect(before)
    for _ in range(2):  # in a pool process, what the parent connected is there already
        _hooks._connect_runs(process.runs)
    signals.task_postrun.connect(after)
    signals.task_postrun.send(sender=None)
    assert order == ["ours", "before", "after"]


# -- totals


def ended(outcome: str = "succeeded", exception: str = "", *, at: float = 5.0, **fields: Any) -> Run:
    return Run("t", "q", outcome, exception, ended_at=at, trace_id=TRACE, task_id="id", **fields)


def told(run: Run) -> dict[str, Any]:
    """Return the exemplars of a row in which *run* was counted; all of keys that it counted under."""
    row = Row("t", "q")
    row.count_start(run.wait)
    row.count_end(run)
    row.exemplify_start(run.wait, run.trace_id, run.task_id, run.ended_at)
    row.exemplify_end(run)
    assert row.exemplars.keys() <= row.totals.keys()
    assert {exemplar[:2] for exemplar in row.exemplars.values()} <= {(TRACE, "id")}
    return {key: exemplar[2:] for key, exemplar in row.exemplars.items()}


@pytest.mark.parametrize(
    ("run", "exemplars"),
    [
        (ended(runtime=0.3, wait=0.07), {"runtime:succeeded:4": (0.3, 5.0), "wait:1": (0.07, 5.0)}),
        (ended(runtime=0.12345678, at=5.00049), {"runtime:succeeded:3": (0.123457, 5.0)}),
        (
            ended("failed", "Boom", runtime=0.3),
            {"runtime:failed:4": (0.3, 5.0), "failed": (1, 5.0), "exception:Boom": (1, 5.0)},
        ),
        (
            ended("failed", "WorkerLostError", wait=1e9),
            {
                "wait:15": (1e9, 5.0),
                "failed": (1, 5.0),
                "exception:WorkerLostError": (1, 5.0),
                "worker_lost": (1, 5.0),
            },
        ),
        (ended("retried", "Boom", runtime=0.001), {"runtime:retried:0": (0.001, 5.0)}),
        (ended("ignored", runtime=1.0), {}),
        (ended("revoked"), {}),
        (ended("terminated", wait=0.0), {"wait:0": (0.0, 5.0)}),
    ],
    ids=str,
)
def test_an_exemplar_is_of_what_the_run_counted(run: Run, exemplars: dict[str, Any]) -> None:
    assert told(run) == exemplars


def test_the_newest_of_a_total_is_kept() -> None:
    row = Row("t", "q")
    for at, runtime in ((5.0, 0.3), (7.0, 0.4), (6.0, 0.45)):
        row.exemplify_end(ended(runtime=runtime, at=at))
    assert row.exemplars == {"runtime:succeeded:4": (TRACE, "id", 0.4, 7.0)}


def test_exemplars_of_a_row_are_bounded() -> None:
    row = Row("t", "q")
    for at, wait in enumerate(WAIT_BUCKETS):
        row.exemplify_start(wait, TRACE, "id", at)
    for at in range(60):
        row.exemplify_end(ended("failed", f"Boom{at}", at=at))
    assert len(row.exemplars) == EXEMPLARS_LIMIT
    # Those that are there move on.
    assert row.exemplars["failed"][-1] == 59


def test_exemplars_are_told_once_and_again_if_the_broker_did_not_take_them() -> None:
    totals = Totals()
    row = totals.row("t", "q")
    row.count_end(ended(runtime=0.3))
    row.exemplify_end(ended(runtime=0.3))
    expected = {"runtime:succeeded:4": (TRACE, "id", 0.3, 5.0)}
    [refused] = parts(totals, everything=False)
    assert refused.wire()[0]["exemplars"] == expected
    [part] = parts(totals, everything=False)
    assert part.wire()[0]["exemplars"] == expected
    part.was_taken()
    row.count_end(ended(runtime=0.3))
    for everything in (False, True):
        [part] = parts(totals, everything=everything)
        assert part.wire()[0]["exemplars"] == {}


def test_exemplars_of_a_message_are_bounded_and_the_newest_are_told() -> None:
    totals = Totals()
    for number in range(100):
        for at, runtime in enumerate((0.001, 0.02, 0.05, 0.2, 0.4, 0.9, 2.0, 4.0, 9.0)):
            run = ended(runtime=runtime, at=100 - at)
            totals.row(f"task{number}", "q").count_end(run)
            totals.row(f"task{number}", "q").exemplify_end(run)
    [part] = parts(totals, everything=True)
    found = [row["exemplars"] for row in part.wire()]
    assert sum(map(len, found)) == EXEMPLARS_PER_MESSAGE
    assert {min(exemplar[-1] for exemplar in row.values()) for row in found} == {95}
    part.was_taken()
    assert not any(row.exemplars for row in totals)


# -- the main process


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    worker = Worker()
    _guard.take_faults()
    monkeypatch.setattr(_gatherer, "active", lambda: worker.active)
    yield worker
    worker.close()


def gathered(worker: Worker) -> dict[str, Any]:
    worker.gather()
    return {
        key: exemplar[:2] for row in worker.gatherer.totals for key, exemplar in row.exemplars.items()
    }  # fmt: skip


def published() -> float:
    return time.time() - 0.07


@pytest.mark.parametrize(
    ("error", "reason"), [(TimeLimitExceeded(1), "hard_time_limit"), (WorkerLostError(), "worker_lost")]
)
def test_a_killed_run_is_an_exemplar_by_its_header(worker: Worker, error: Exception, reason: str) -> None:
    request = worker.start(worker.receive(Request(**RECORDED, published=published())))
    worker.die(request, error)
    found = gathered(worker)
    expected = {"wait:1", "failed", f"exception:{type(error).__name__}", reason}
    if reason == "hard_time_limit":
        expected.add("runtime:failed:0")
    assert found == dict.fromkeys(expected, (TRACE, "one"))


def test_a_long_run_is_an_exemplar_of_its_wait_when_it_is_seen_running(worker: Worker) -> None:
    request = worker.start(worker.receive(Request(**RECORDED, published=published())))
    assert gathered(worker) == {"wait:1": (TRACE, "one")}
    [row] = worker.gatherer.totals
    assert row.exemplars["wait:1"][-1] == round(request.time_start or 0, 3)
    # Its end is told of by itself, and brings no second start.
    row.exemplars.clear()
    worker.tell(request, runtime=3.0, wait=0.07, trace_id=OTHER, task_id="one")
    assert gathered(worker) == {"runtime:succeeded:7": (OTHER, "one")}


def test_a_killed_run_of_an_unrecorded_trace_is_none(worker: Worker) -> None:
    request = worker.start(worker.receive(Request(**DROPPED, published=published())))
    assert gathered(worker) == {}
    worker.die(request, WorkerLostError())
    assert gathered(worker) == {}


def test_a_run_tells_through_the_pipe_what_it_is_an_exemplar_of(worker: Worker) -> None:
    request = worker.receive(Request())
    worker.tell(request, "failed", exception="Boom", runtime=0.3, wait=0.07, trace_id=OTHER, task_id="one")
    found = gathered(worker)
    assert found == dict.fromkeys(("wait:1", "runtime:failed:4", "failed", "exception:Boom"), (OTHER, "one"))


def test_an_unknown_task_is_one_by_its_header() -> None:
    queues = QueueNames(app=None)
    gatherer = Gatherer(queues, Messages(queues))
    message = SimpleNamespace(delivery_info={"exchange": "", "routing_key": "q"}, headers=RECORDED)
    gatherer.unknown(message, "no.such", "one")
    gatherer.gather()
    [row] = gatherer.totals
    assert {key: exemplar[:3] for key, exemplar in row.exemplars.items()} == dict.fromkeys(
        ("failed", "exception:NotRegistered"), (TRACE, "one", 1)
    )
    os.close(gatherer.pipe._read_end)
    os.close(gatherer.pipe._write_end)
