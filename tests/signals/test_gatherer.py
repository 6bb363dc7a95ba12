"""What the main process hears of tasks, in whatever order, counted once."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout_signals import _gatherer, _guard
from celery_lookout_signals._gatherer import FAILURES_LIMIT, FAILURES_OF_A_KIND, Gatherer
from celery_lookout_signals._messages import Messages
from celery_lookout_signals._pipe import Memory
from celery_lookout_signals._queues import QueueNames
from celery_lookout_signals._records import ABORTED, Failure, Run
from celery_lookout_signals._stamp import PUBLISHED_HEADER
from tests.signals.snapshots import Totals, counts


class Request:
    """What we use of Celery's."""

    def __init__(self, task_id: str = "one", *, retries: int = 0, **fields: Any) -> None:
        self.id = task_id
        #: What Celery's logs call it, which may be anything.
        self.name = "shadow"
        delivery_info = {"exchange": "", "routing_key": "q", "redelivered": fields.pop("redelivered", False)}
        if "published" in fields:
            fields[PUBLISHED_HEADER] = fields.pop("published")
        message = {"id": task_id, "task": "task", "retries": retries, "delivery_info": delivery_info}
        self.request_dict = {**message, **fields}
        self.time_start: float | None = None
        self.acknowledged = True


class TimeLimitExceeded(Exception):
    """Celery's has this name."""


class WorkerLostError(Exception):
    """Celery's has this name."""


def attempt_of(request: Request) -> int:
    return Messages(QueueNames(app=None)).read(request.request_dict).attempt


class Worker:
    """A gatherer, and the part of Celery that it looks at."""

    def __init__(self) -> None:
        queues = QueueNames(app=None)
        self.gatherer = Gatherer(queues, Messages(queues))
        #: Requests that Celery takes for running.
        self.active: list[Request] = []

    def receive(self, request: Request) -> Request:
        self.gatherer.received(request)
        return request

    def start(self, request: Request) -> Request:
        request.time_start = time.time()
        self.active.append(request)
        return request

    def tell(self, request: Request, outcome: str = "succeeded", **fields: Any) -> None:
        """The run tells its end, of which Celery hears only later, if at all."""
        retries = request.request_dict["retries"]
        self.gatherer.pipe.send(Run("task", "q", outcome, attempt=attempt_of(request), retries=retries, **fields))

    def forget(self, request: Request) -> None:
        """Celery has heard of the end."""
        if request in self.active:
            self.active.remove(request)

    def die(self, request: Request, error: BaseException, traceback: str = "") -> None:
        """Celery takes the run for lost; it forgets the request before it tells anybody."""
        self.forget(request)
        self.gatherer.died(request.id, error, traceback)

    def gather(self) -> Totals:
        self.gatherer.gather()
        return counts({(row.task, row.queue): row.totals for row in self.gatherer.totals})

    def close(self) -> None:
        os.close(self.gatherer.pipe._read_end)
        os.close(self.gatherer.pipe._write_end)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    worker = Worker()
    _guard.take_faults()
    monkeypatch.setattr(_gatherer, "active", lambda: worker.active)
    yield worker
    worker.close()


ONE = {("task", "q"): {"received": 1, "started": 1, "succeeded": 1}}


def test_a_run_is_counted_once_whether_or_not_it_was_seen_running(worker: Worker) -> None:
    request = worker.start(worker.receive(Request()))
    assert worker.gather() == {("task", "q"): {"received": 1, "started": 1}}
    assert worker.gather() == {("task", "q"): {"received": 1, "started": 1}}
    worker.tell(request)
    assert worker.gather() == ONE
    # Celery takes it for running for a moment longer.
    assert worker.gather() == ONE
    worker.forget(request)
    assert worker.gather() == ONE
    quick = worker.start(worker.receive(Request("quick")))
    worker.tell(quick)
    worker.forget(quick)
    assert worker.gather() == {("task", "q"): {"received": 2, "started": 2, "succeeded": 2}}


def test_each_attempt_is_counted(worker: Worker) -> None:
    """A retry has the id of the attempt before it."""
    for retries in range(3):
        request = worker.start(worker.receive(Request(retries=retries)))
        worker.gather()
        worker.tell(request, "retried" if retries < 2 else "failed", exception="Boom")
        worker.forget(request)
    assert worker.gather() == {
        ("task", "q"): {
            "received": 3, "started": 3, "retried": 2, "retry_exception:Boom": 2, "failed": 1, "exception:Boom": 1,
            "retries_exhausted": 1,
        }
    }  # fmt: skip


HARD_LIMIT = {
    ("task", "q"): {"received": 1, "started": 1, "failed": 1, "exception:TimeLimitExceeded": 1, "hard_time_limit": 1}
}


@pytest.mark.parametrize("ticks", [0, 1, 2])
def test_a_hard_limit_that_celery_tells_twice_is_counted_once(worker: Worker, ticks: int) -> None:
    request = worker.start(worker.receive(Request()))
    for tick in range(2):
        if ticks > tick:
            worker.gather()
        worker.die(request, TimeLimitExceeded(1))
    assert worker.gather() == HARD_LIMIT
    assert worker.gather() == HARD_LIMIT
    assert worker.gatherer.failed == 1


@pytest.mark.parametrize("tick", [False, True])
def test_a_death_after_the_run_told_its_end_does_not_count(worker: Worker, tick: bool) -> None:
    request = worker.start(worker.receive(Request()))
    worker.tell(request)
    if tick:
        worker.gather()
    worker.die(request, WorkerLostError("signal 9"))
    assert worker.gather() == ONE


def test_a_run_without_an_outcome_leaves_it_to_the_death(worker: Worker) -> None:
    """The task called ``sys.exit``."""
    request = worker.start(worker.receive(Request()))
    worker.tell(request, ABORTED)
    assert worker.gather() == {("task", "q"): {"received": 1, "started": 1}}
    worker.die(request, WorkerLostError("exited"))
    assert worker.gather() == {
        ("task", "q"): {"received": 1, "started": 1, "failed": 1, "exception:WorkerLostError": 1, "worker_lost": 1}
    }


@pytest.mark.parametrize(
    ("revocation", "outcome"),
    [
        ({"terminated": False, "expired": False}, "revoked"),
        ({"terminated": False, "expired": True}, "expired"),
        ({"terminated": True, "expired": False}, "terminated"),
    ],
)
def test_a_revocation_is_counted_by_its_kind_and_once(
    worker: Worker, revocation: dict[str, bool], outcome: str
) -> None:
    request = worker.receive(Request())
    if outcome == "terminated":
        worker.start(request)
    fields = request.request_dict
    worker.active.clear()
    for _ in range(2):
        worker.gatherer.revoked(fields, task="task", **revocation)
    started = {"started": 1} if outcome == "terminated" else {}
    assert worker.gather() == {("task", "q"): {"received": 1, outcome: 1, **started}}


def test_a_revocation_before_the_task_was_received_is_counted(worker: Worker) -> None:
    fields = {"id": "nobody", "delivery_info": {"exchange": "", "routing_key": "q"}}
    worker.gatherer.revoked(fields, task="task", terminated=False, expired=False)
    assert worker.gather() == {("task", "q"): {"revoked": 1}}


def test_the_death_of_a_task_that_nobody_knows_is_none(worker: Worker) -> None:
    worker.gatherer.died("nobody", WorkerLostError("signal 9"), "")
    assert worker.gather() == {}
    assert worker.gatherer.pick_failures() == []


def test_a_redelivered_message_is_another_run(worker: Worker) -> None:
    """Its process was lost, and it is told to come back; Celery says nothing of the first run."""
    first = worker.start(worker.receive(Request()))
    worker.gather()
    worker.forget(first)
    second = worker.receive(Request(redelivered=True))
    worker.gather()
    worker.start(second)
    worker.gather()
    worker.tell(second)
    worker.forget(second)
    assert worker.gather() == {("task", "q"): {"received": 2, "redelivered": 1, "started": 2, "succeeded": 1}}


def test_a_message_that_comes_back_at_once_is_another_run(worker: Worker) -> None:
    first = worker.start(worker.receive(Request()))
    worker.gather()
    worker.forget(first)
    second = worker.start(worker.receive(Request(redelivered=True)))
    worker.gather()
    worker.tell(second)
    worker.forget(second)
    assert worker.gather() == {("task", "q"): {"received": 2, "redelivered": 1, "started": 2, "succeeded": 1}}


def test_a_message_that_comes_back_again_and_again_is_a_run_each_time(worker: Worker) -> None:
    """What kills its process each time, with ``reject_on_worker_lost``."""
    for delivery in range(4):
        request = worker.start(worker.receive(Request(redelivered=delivery > 0)))
        worker.gather()
        worker.forget(request)
    assert worker.gather() == {("task", "q"): {"received": 4, "redelivered": 3, "started": 4}}


def test_the_death_of_a_requeued_task_counts(worker: Worker) -> None:
    """It ended in ``Reject(requeue=True)``, came back at once, and ran into its hard limit."""
    first = worker.start(worker.receive(Request()))
    worker.tell(first, "requeued")
    worker.forget(first)
    second = worker.start(worker.receive(Request(redelivered=True)))
    worker.gather()
    worker.gather()
    worker.die(second, TimeLimitExceeded(1))
    assert worker.gather()["task", "q"] == {
        "received": 2, "redelivered": 1, "started": 2, "requeued": 1, "failed": 1, "exception:TimeLimitExceeded": 1,
        "hard_time_limit": 1,
    }  # fmt: skip


def test_a_task_that_replaces_itself_is_two_runs_with_one_id(worker: Worker) -> None:
    """Its replacement may come before Celery has heard of the end of the first, and may itself be killed."""
    first = worker.start(worker.receive(Request(published=1.5)))
    worker.tell(first, "ignored")
    worker.gather()
    second = worker.start(worker.receive(Request(published=2.5)))
    worker.gather()
    worker.forget(first)
    worker.gather()
    worker.die(second, TimeLimitExceeded(1))
    assert {name: total for name, total in worker.gather()["task", "q"].items() if ":" not in name} == {
        "received": 2, "started": 2, "ignored": 1, "failed": 1, "hard_time_limit": 1,
    }  # fmt: skip


#: What may happen to an attempt after its start, in this order; the run tells its end or its process dies, or both.
ENDS = st.sampled_from([("tell",), ("die",), ("tell", "die"), ("die", "die"), ("abort", "die")])


@settings(deadline=None)
@given(attempts=st.lists(ENDS, max_size=5), data=st.data())
def test_any_interleaving_counts_each_attempt_once(attempts: list[tuple[str, ...]], data: st.DataObject) -> None:
    """Attempts of one task follow each other; those of several tasks, and the ticks, come in any order."""
    worker = Worker()
    patched = pytest.MonkeyPatch()
    patched.setattr(_gatherer, "active", lambda: worker.active)
    request: Request | None = None
    requests = [Request(f"task{number % 2}", retries=number) for number in range(len(attempts))]
    pending = [["receive", "start", *end, "forget"] for end in attempts]
    try:
        while any(pending):
            number = data.draw(st.sampled_from([number for number, steps in enumerate(pending) if steps]))
            step, request = pending[number].pop(0), requests[number]
            if step == "receive":
                worker.receive(request)
            elif step == "start":
                worker.start(request)
            elif step == "tell":
                worker.tell(request)
            elif step == "abort":
                worker.tell(request, ABORTED)
            elif step == "die":
                # Celery tells this of the request that it knows under the id.
                with patched.context() as known:
                    known.setattr(worker.gatherer, "_request", {request.id: request}.get)
                    worker.die(request, WorkerLostError("signal 9"))
            else:
                worker.forget(request)
            if data.draw(st.booleans()):
                worker.gather()
        found = worker.gather().get(("task", "q"), {})
        told = sum("tell" in end for end in attempts)
        died = len(attempts) - told
        expected = {
            "received": len(attempts), "started": len(attempts), "succeeded": told, "failed": died,
            "worker_lost": died, "exception:WorkerLostError": died,
            "retries_exhausted": sum("tell" not in end and number > 0 for number, end in enumerate(attempts)),
        }  # fmt: skip
        assert found == {key: n for key, n in expected.items() if n}
        # And nothing is remembered of what is over.
        assert not worker.gatherer._started
        assert not worker.gatherer._ended
        assert not worker.gatherer._received
        assert not worker.gatherer._ends
        request = None
        requests.clear()
        assert not worker.gatherer._requests
        assert not worker.gatherer._dead
    finally:
        patched.undo()
        worker.close()


def test_losses_and_faults_of_processes_are_added_up(worker: Worker) -> None:
    for _ in range(2):
        request = worker.receive(Request())
        worker.gatherer.pipe.send(Run("task", "q", "succeeded", attempt=attempt_of(request), lost_before=0, faults=2))
        worker.gatherer.memory._lost = 3
        worker.gatherer.memory.send(Run("task", "q", "succeeded"))
    _guard.note(__name__, ValueError("of this process"))
    for _ in range(2):
        worker.gather()
        assert (worker.gatherer.runs_lost, worker.gatherer.faults) == (6, 5)


# -- failures


def failure(fingerprint: str) -> Failure:
    return Failure("id", "task", "q", 0, 1.5, "exception", "Boom", "text", fingerprint)


def send_failures(memory: Memory, *kinds: str) -> None:
    for kind in kinds:
        memory.send_failure(failure(kind))


def test_few_failures_of_a_kind_and_few_of_all_are_told(worker: Worker) -> None:
    send_failures(worker.gatherer.memory, *["storm"] * 100, *(f"kind{number}" for number in range(100)))
    worker.gather()
    told = [found.fingerprint for found in worker.gatherer.pick_failures()]
    assert len(told) == FAILURES_LIMIT
    assert told.count("storm") == FAILURES_OF_A_KIND
    assert told[FAILURES_OF_A_KIND:] == [f"kind{number}" for number in range(FAILURES_LIMIT - FAILURES_OF_A_KIND)]
    # What was not told then is not told later.
    assert worker.gatherer.pick_failures() == []


def test_a_death_is_told_with_what_the_request_knows(worker: Worker) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    request = worker.start(worker.receive(Request(retries=2, traceparent=f"00-{trace}-00f067aa0ba902b7-01")))
    request.time_start = time.time() - 3
    worker.die(request, TimeLimitExceeded(3), "Traceback …")
    [found] = worker.gatherer.pick_failures()
    assert found._replace(at=0.0, fingerprint="", runtime=None) == Failure(
        "one", "task", "q", 2, 0.0, "hard_time_limit", f"{__name__}.TimeLimitExceeded", "Traceback …", "",
        trace_id=trace,
    )  # fmt: skip
    assert found.runtime == pytest.approx(3, abs=0.5)
    assert found.at == pytest.approx(time.time(), abs=5)
    # Celery 5.7 tells a hard limit twice.
    worker.die(request, TimeLimitExceeded(3))
    assert worker.gatherer.pick_failures() == []
    # When a process was lost is known only later.
    other = worker.start(worker.receive(Request("two")))
    worker.die(other, WorkerLostError("signal 9"))
    [lost] = worker.gatherer.pick_failures()
    assert (lost.kind, lost.runtime) == ("worker_lost", None)
    assert lost.traceback == f"{__name__}.WorkerLostError: signal 9"
    assert lost.fingerprint != found.fingerprint


#: What we use of kombu's.
MESSAGE = SimpleNamespace(
    delivery_info={"exchange": "", "routing_key": "q"},
    headers={"sentry-trace": "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"},
)


def test_an_unknown_task_is_a_failure_that_never_started(worker: Worker) -> None:
    worker.gatherer.unknown(MESSAGE, "nope", "one")
    assert worker.gather() == {("nope", "q"): {"failed": 1, "exception:NotRegistered": 1}}
    [found] = worker.gatherer.pick_failures()
    assert found._replace(at=0.0, fingerprint="") == Failure(
        "one", "nope", "q", 0, 0.0, "unknown_task", "celery.exceptions.NotRegistered",
        "celery.exceptions.NotRegistered: 'nope'", "", trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    )  # fmt: skip
    [row] = worker.gatherer.totals
    assert row.last_failure_at == pytest.approx(time.time(), abs=5)


def test_names_have_one_length_however_they_are_heard_of(worker: Worker) -> None:
    """A name of a million characters, which any publisher may make up, would be in a thousand rows."""
    name = "x" * 1000
    request = Request(task=name)
    worker.tell(worker.start(worker.receive(request)))
    worker.gatherer.unknown(MESSAGE, name, "two")
    worker.gather()
    assert {len(row.task) for row in worker.gatherer.totals} <= {255, 4}


def test_permutations_of_a_gathering_are_one(worker: Worker) -> None:
    """Whatever order signals come in between two ticks, the totals are the same."""
    for order in itertools.permutations(range(3)):
        request = worker.start(Request(str(order)))
        steps = (
            lambda request=request: worker.receive(request),
            lambda request=request: worker.tell(request),
            lambda request=request: worker.die(request, WorkerLostError("signal 9")),
        )
        for number in order:
            steps[number]()
        worker.forget(request)
        worker.gather()
    assert worker.gather() == {("task", "q"): {"received": 6, "started": 6, "succeeded": 6}}
