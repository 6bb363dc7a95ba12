"""Events in, spans out: what hangs below what, and what becomes of events that are late, twice, or missing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from celery_lookout.events import Event
from celery_lookout.traces import table as module
from celery_lookout.traces.spans import Span
from celery_lookout.traces.table import ENDED_SECONDS, SETTLE_SECONDS, SpanTable
from tests.clusters import EPOCH, failed, received, rejected, retried, revoked, sent, started, succeeded, task_event

A, B, C = (f"{letter * 8}-0000-4000-8000-{letter * 12}" for letter in "abc")


class Traced:
    """A table, its clock, and the spans it gave so far."""

    def __init__(self, **options: Any) -> None:
        self.lost = 0
        self.table = SpanTable(system="redis", queue_of=lambda event: event.queue, dropped=self._drop, **options)
        self.spans: list[Span] = []
        self.seconds = 0.0

    def _drop(self, number: int) -> None:
        self.lost += number

    def hear(self, *events: Event) -> None:
        """Fold events, each in a batch of its own, when the latest until then happened."""
        for event in events:
            self.seconds = max(self.seconds, event.timestamp - EPOCH)
            self.table.fold([event], EPOCH + self.seconds)

    def wait(self, seconds: float = SETTLE_SECONDS + 1) -> None:
        self.seconds += seconds
        self.table.tick(EPOCH + self.seconds)
        self.spans += self.table.take(10_000)

    def tree(self) -> list[str]:
        """Return the spans as lines, in the order of time; each is indented below its parent."""
        self.wait()
        below: dict[int, list[Span]] = {}
        ids = {span.span_id for span in self.spans}
        assert len(ids) == len(self.spans)
        for span in sorted(self.spans, key=lambda span: span.started_at):
            below.setdefault(span.parent_id if span.parent_id in ids else 0, []).append(span)

        def lines(parent: int, depth: int) -> Iterable[str]:
            for span in below.get(parent, []):
                yield "  " * depth + shown(span)
                yield from lines(span.span_id, depth + 1)

        found = list(lines(0, 0))
        assert len(found) == len(self.spans), "a span is its own ancestor"
        return found


def shown(span: Span) -> str:
    """Return name, seconds after the epoch, and how it ended."""
    began, ended = round(span.started_at - EPOCH, 3), round(span.ended_at - EPOCH, 3)
    if span.kind == "publish":
        return f"{span.name} {began:g}"
    return f"{span.name} {began:g}-{ended:g} {span.attributes['celery.state']}"


def task(uuid: str, at: float, name: str, parent: str | None = None, root: str = A, **fields: Any) -> list[Event]:
    """Return the events of a task that waits, starts, and ends, a second each."""
    ids = {"uuid": uuid, "root_id": root, "parent_id": parent, **fields}
    return [
        sent(at, name=name, **ids),
        received(at + 0.5, name=name, **ids),
        started(at + 1, uuid=uuid),
        succeeded(at + 2, uuid=uuid, runtime=1.0),
    ]


@pytest.fixture
def traced() -> Traced:
    return Traced()


def test_a_task_is_a_publishing_and_a_run(traced: Traced) -> None:
    traced.hear(*task(A, 1, "add"))
    assert traced.tree() == ["apply_async/add 1", "  run/add 2-3 SUCCESS"]
    common = {
        "messaging.system": "redis",
        "messaging.destination.name": "celery",
        "messaging.message.id": A,
        "celery.task_name": "add",
        "celery.retries": 0,
    }
    publish, run = traced.spans
    assert publish.attributes == common | {
        "messaging.operation.name": "apply_async",
        "messaging.operation.type": "send",
        "celery.action": "apply_async",
        "celery.hostname": "gen1@h",
    }
    assert run.attributes == common | {
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "celery.action": "run",
        "celery.hostname": "w@h",
        "celery.state": "SUCCESS",
    }


def test_without_task_sent_the_run_is_all_there_is(traced: Traced) -> None:
    traced.hear(*task(A, 1, "add")[1:], *task(B, 2.5, "mul", A)[1:])
    assert traced.tree() == ["run/add 2-3 SUCCESS", "  run/mul 3.5-4.5 SUCCESS"]


def test_a_chain_is_one_trace_and_each_hangs_below_the_one_before(traced: Traced) -> None:
    traced.hear(*task(A, 1, "a"), *task(B, 2.9, "b", A), *task(C, 4.8, "c", B))
    assert traced.tree() == [
        "apply_async/a 1",
        "  run/a 2-3 SUCCESS",
        "    apply_async/b 2.9",
        "      run/b 3.9-4.9 SUCCESS",
        "        apply_async/c 4.8",
        "          run/c 5.8-6.8 SUCCESS",
    ]
    assert {span.trace_id for span in traced.spans} == {int(A.replace("-", ""), 16)}


def test_the_publishing_is_told_before_the_task_runs(traced: Traced) -> None:
    traced.hear(*task(A, 1, "a")[:1])
    traced.wait()
    assert [span.name for span in traced.spans] == ["apply_async/a"]


RETRIED = [
    sent(1, uuid=A, root_id=A, parent_id=None),
    received(1.1, uuid=A, root_id=A, parent_id=None),
    started(1.2, uuid=A),
    sent(1.3, uuid=A, retries=1, root_id=A, parent_id=A),
    received(1.4, uuid=A, retries=1, root_id=A, parent_id=A),
    retried(1.5, uuid=A),
    started(1.6, uuid=A),
    succeeded(1.7, uuid=A),
]
RETRIED_TREE = [
    "apply_async/add 1",
    "  run/add 1.2-1.5 RETRY",
    "    apply_async/add 1.3",
    "      run/add 1.6-1.7 SUCCESS",
]


def test_a_retry_hangs_below_the_attempt_that_retries(traced: Traced) -> None:
    traced.hear(*RETRIED)
    assert traced.tree() == RETRIED_TREE
    assert [span.attributes["celery.retries"] for span in traced.spans] == [0, 1, 0, 1]
    assert traced.spans[2].attributes["celery.retry.reason"] == "OSError"
    assert traced.spans[2].error == ""


@pytest.mark.parametrize("order", [[0, 1, 3, 4, 2, 5, 6, 7], [1, 2, 4, 5, 6, 7, 0, 3], [1, 0, 2, 4, 5, 3, 6, 7]])
def test_a_retry_is_drawn_the_same_in_any_order_that_was_seen(order: list[int], traced: Traced) -> None:
    """The pool process publishes the retry before the worker says what it did; publishers are late on RabbitMQ."""
    traced.hear(*(RETRIED[index] for index in order))
    assert traced.tree() == RETRIED_TREE


def test_every_event_told_twice_changes_nothing(traced: Traced) -> None:
    traced.hear(*itertools.chain.from_iterable((event, event) for event in RETRIED), *RETRIED)
    assert traced.tree() == RETRIED_TREE
    traced.hear(*RETRIED)
    assert traced.tree() == RETRIED_TREE


def test_a_task_hangs_below_the_attempt_that_published_it(traced: Traced) -> None:
    traced.hear(*RETRIED[:3], *task(B, 1.25, "first", A), *RETRIED[3:])
    traced.hear(*task(C, 1.65, "second", A))
    assert traced.tree() == [
        "apply_async/add 1",
        "  run/add 1.2-1.5 RETRY",
        "    apply_async/first 1.25",
        "      run/first 2.25-3.25 SUCCESS",
        "    apply_async/add 1.3",
        "      run/add 1.6-1.7 SUCCESS",
        "        apply_async/second 1.65",
        "          run/second 2.65-3.65 SUCCESS",
    ]


def test_a_child_heard_of_before_its_parent_hangs_below_it(traced: Traced) -> None:
    traced.hear(*task(B, 2.5, "child", A)[:3], *task(A, 1, "parent"), *task(B, 2.5, "child", A)[3:])
    assert [line.strip() for line in traced.tree()] == [
        "apply_async/parent 1",
        "run/parent 2-3 SUCCESS",
        "apply_async/child 2.5",
        "run/child 3.5-4.5 SUCCESS",
    ]


def test_a_child_of_a_parent_long_gone_hangs_below_its_first_attempt(traced: Traced) -> None:
    traced.hear(*task(A, 1, "parent"))
    traced.wait(ENDED_SECONDS + 10)
    traced.hear(*task(B, 100, "child", A))
    assert traced.tree()[2:] == ["    apply_async/child 100", "      run/child 101-102 SUCCESS"]


def test_a_task_that_is_replaced_goes_on_below_what_replaced_it(traced: Traced) -> None:
    """By a chain, whose last link takes over the id: its parent is the first link, whose parent is the task itself."""
    traced.hear(
        *task(A, 1, "replaced")[:3],  # and no end
        *task(B, 2.5, "first", A),
        *task(A, 4.4, "last", B),
    )
    assert traced.tree() == [
        "apply_async/replaced 1",
        "  run/replaced 2-4.4 IGNORED",
        "    apply_async/first 2.5",
        "      run/first 3.5-4.5 SUCCESS",
        "        apply_async/last 4.4",
        "          run/last 5.4-6.4 SUCCESS",
    ]


def test_a_task_that_replaces_itself_again_and_again_is_a_staircase(traced: Traced) -> None:
    for at, parent in ((1, None), (3, A), (5, A)):
        traced.hear(*task(A, at, "again", parent)[: 4 if at == 5 else 3])
    assert traced.tree() == [
        "apply_async/again 1",
        "  run/again 2-3 IGNORED",
        "    apply_async/again 3",
        "      run/again 4-5 IGNORED",
        "        apply_async/again 5",
        "          run/again 6-7 SUCCESS",
    ]


BEGUN = task(A, 1, "add")[:3]
HARD_LIMIT = 'Traceback (most recent call last):\n  File "pool.py", line 1\n    x\nbilliard.TimeLimitExceeded: (1,)\n'


@pytest.mark.parametrize(
    ("ending", "run", "error", "more"),
    [
        ([failed(3, uuid=A)], "2-3 FAILURE", "ValueError", {"error.type": "ValueError"}),
        (
            [failed(at, uuid=A, exception="ExceptionWithTraceback()", traceback=HARD_LIMIT) for at in (3, 3.1)],
            "2-3 FAILURE",
            "TimeLimitExceeded",
            {"error.type": "TimeLimitExceeded"},
        ),
        ([revoked(3, uuid=A, terminated=True)], "2-3 REVOKED", "", {"celery.revoked.reason": "terminated"}),
        ([rejected(3, uuid=A, requeue=False)], "2-3 REJECTED", "", {}),
        (
            [failed(3, uuid=A, exception="Reject('x')"), rejected(3.1, uuid=A, requeue=False)],
            "2-3.1 REJECTED",
            "",
            {},
        ),
        (
            [rejected(3, uuid=A, requeue=True), received(3.1, uuid=A, root_id=A), *task(A, 3, "add")[2:]],
            "4-5 SUCCESS",
            "",
            {},
        ),
        (
            [task_event("cancelled", 3, uuid=A), started(4, uuid=A, worker="x@h"), succeeded(5, uuid=A, worker="x@h")],
            "4-5 SUCCESS",
            "",
            {},
        ),
        # The worker was killed, and the message delivered again.
        ([started(8, uuid=A, worker="x@h"), succeeded(9, uuid=A, worker="x@h")], "8-9 SUCCESS", "", {}),
        # Two workers ran it at the same time, and the first finished.
        ([started(8, uuid=A, worker="x@h"), succeeded(9, uuid=A, runtime=7.0)], "2-9 SUCCESS", "", {}),
        ([succeeded(1.5, uuid=A)], "2-2 SUCCESS", "", {}),
    ],
    ids=[
        "failed", "hard time limit", "terminated", "rejected", "rejected in 5.7", "put back", "cancelled",
        "delivered again", "ran twice", "ended before it began",
    ],
)  # fmt: skip
def test_endings(ending: list[Event], run: str, error: str, more: dict[str, str], traced: Traced) -> None:
    traced.hear(*BEGUN, *ending)
    assert traced.tree() == ["apply_async/add 1", f"  run/add {run}"]
    span = traced.spans[-1]
    assert span.error == error
    known = {"error.type", "celery.revoked.reason", "celery.retry.reason"}
    assert {key: value for key, value in span.attributes.items() if key in known} == more
    assert traced.lost == 0


@pytest.mark.parametrize(
    ("ending", "run"),
    [
        (succeeded(3, uuid=A, runtime=0.5), "2.5-3 SUCCESS"),
        (succeeded(3, uuid=A, runtime=None), "3-3 SUCCESS"),
        (succeeded(3, uuid=A, runtime=1e300), "3-3 SUCCESS"),
        (succeeded(3, uuid=A, runtime=float("nan")), "3-3 SUCCESS"),
        (failed(3, uuid=A, exception="NotRegistered('add')"), "3-3 FAILURE"),
        (revoked(3, uuid=A, expired=True), "3-3 REVOKED"),
    ],
)
@pytest.mark.parametrize("begun", [BEGUN[:1], BEGUN[1:2], BEGUN[:2]], ids=["sent", "received", "both"])
def test_a_start_that_was_not_heard(begun: list[Event], ending: Event, run: str, traced: Traced) -> None:
    traced.hear(*begun, ending)
    assert traced.tree()[-1].strip() == f"run/add {run}"
    assert len(traced.spans) == 1 + (begun[0].type == "task-sent")


def test_task_sent_after_the_end_is_in_time(traced: Traced) -> None:
    begin, *rest = task(A, 1, "add")
    traced.hear(*rest, begin)
    assert traced.tree() == ["apply_async/add 1", "  run/add 2-3 SUCCESS"]


def test_task_sent_alone_after_the_end_gives_the_task_its_name(traced: Traced) -> None:
    """A task that the worker does not know fails without being received, and on RabbitMQ publishers are late."""
    traced.hear(failed(2, uuid=A, exception="NotRegistered('add')"), sent(1, uuid=A, root_id=A))
    assert traced.tree() == ["apply_async/add 1", "  run/add 2-2 FAILURE"]


def test_task_sent_much_too_late_is_left_out(traced: Traced) -> None:
    begin, *rest = task(A, 1, "add")
    traced.hear(*rest)
    traced.wait()
    traced.hear(begin)
    assert traced.tree() == ["run/add 2-3 SUCCESS"]


def test_a_task_of_which_only_the_end_was_heard_is_counted_as_dropped(traced: Traced) -> None:
    traced.hear(started(1, uuid=A), succeeded(2, uuid=A))
    assert traced.tree() == []
    assert traced.lost == 1


def test_a_retry_after_a_first_attempt_of_which_only_the_end_was_heard(traced: Traced) -> None:
    traced.hear(*RETRIED[2:3], *RETRIED[5:6], *RETRIED[3:5], *RETRIED[6:])
    assert traced.tree() == ["run/add 1.2-1.5 RETRY", *(line[2:] for line in RETRIED_TREE[2:])]


def test_an_attempt_whose_end_was_lost_ends_when_the_next_is_sent(traced: Traced) -> None:
    traced.hear(*(event for event in RETRIED if event.type != "task-retried"))
    assert traced.tree() == [RETRIED_TREE[0], "  run/add 1.2-1.3 RETRY", *RETRIED_TREE[2:]]


def test_a_message_that_is_delivered_again_after_its_end_is_one_run(traced: Traced) -> None:
    events = task(A, 1, "add")
    traced.hear(*events)
    traced.wait()
    traced.hear(*task(A, 1, "add")[:1], received(9, uuid=A, root_id=A), started(10, uuid=A), succeeded(11, uuid=A))
    assert traced.tree() == ["apply_async/add 1", "  run/add 2-3 SUCCESS"]


def test_a_parent_in_another_trace_is_no_parent(traced: Traced) -> None:
    """Somebody set ids by hand."""
    traced.hear(*task(A, 1, "a"), *task(B, 2.5, "b", A, root=B), *task(C, 2.6, "c", A, root=""))
    traced.wait()
    assert [span.parent_id for span in traced.spans if span.name in {"apply_async/b", "apply_async/c"}] == [0, 0]
    assert traced.table.trace_id_of(C) == C.replace("-", "")


@pytest.mark.parametrize("parents", [{A: A}, {A: B, B: A}], ids=["its own parent", "each other's parent"])
def test_circles_end(parents: dict[str, str], traced: Traced) -> None:
    for uuid, parent in parents.items():
        traced.hear(*task(uuid, 1, "add", parent))
    traced.wait()
    assert len(traced.spans) == 2 * len(parents)
    assert all(span.parent_id != span.span_id for span in traced.spans)


def test_the_trace_of_a_task_is_known_from_its_first_event_until_a_minute_after_its_end(traced: Traced) -> None:
    events = task(B, 1, "add", A)
    traced.hear(*events[1:2])
    assert traced.table.trace_id_of(B) == A.replace("-", "")
    traced.hear(*events[2:])
    traced.wait(ENDED_SECONDS - 1)
    assert traced.table.trace_id_of(B) == A.replace("-", "")
    traced.wait(3)
    assert traced.table.trace_id_of(B) is None
    assert traced.table._tasks == {}


def test_a_clock_that_is_set_back_puts_nothing_off_for_as_long(traced: Traced) -> None:
    traced.hear(*task(A, 1, "add"))
    traced.wait(-3600)
    traced.wait()
    assert [shown(span) for span in traced.spans] == ["apply_async/add 1", "run/add 2-3 SUCCESS"]
    traced.wait(ENDED_SECONDS)
    assert traced.table._tasks == {}


def test_the_trace_of_a_task_nobody_named_is_not_known(traced: Traced) -> None:
    traced.hear(started(1, uuid=B))
    assert traced.table.trace_id_of(B) is None
    assert traced.table.trace_id_of("never heard of") is None


def test_neither_messages_nor_values_are_in_a_span(traced: Traced) -> None:
    secret = {
        "exception": "ValueError('secret')",
        "traceback": 'Traceback\n  File "x"\n    f(secret)\nValueError: secret',
    }
    traced.hear(*BEGUN, failed(3, uuid=A, **secret))
    traced.wait()
    assert "ValueError" in repr(traced.spans)
    assert "secret" not in repr(traced.spans)


def test_at_the_end_nothing_waits_to_settle(traced: Traced) -> None:
    traced.hear(*task(A, 1, "add"))
    traced.table.flush()
    assert [span.name for span in traced.table.take(10)] == ["apply_async/add", "run/add"]


def ids(number: int) -> list[str]:
    return [f"00000000-0000-4000-8000-{index:012x}" for index in range(number)]


def test_a_full_table_drops_the_oldest_and_nothing_is_lost_of_what_waits() -> None:
    traced = Traced(limit=3)
    for at, uuid in enumerate(ids(5)):
        traced.hear(*task(uuid, at, "add", root=uuid)[:1])
    assert list(traced.table._tasks) == ids(5)[2:]
    traced.hear(*task(ids(1)[0], 5, "add", root=ids(1)[0])[1:])
    assert traced.tree()[-1] == "run/add 6-7 SUCCESS"
    assert traced.lost == 0


def test_a_full_table_spares_what_runs_once() -> None:
    traced = Traced(limit=3)
    first, second, *others = ids(9)
    traced.hear(*task(first, 1, "add", root=first)[:3])
    for uuid in others:
        traced.hear(*task(uuid, 2, "add", root=uuid)[:1])
    assert first not in traced.table._tasks
    assert traced.lost == 1
    traced.hear(*task(second, 3, "add", root=second)[:3], *task(others[0], 3, "add", root=others[0])[:1])
    assert second in traced.table._tasks
    assert traced.lost == 1


def test_a_table_of_nothing_but_what_runs_is_bounded_and_counts() -> None:
    traced = Traced(limit=3)
    for uuid in ids(10):
        traced.hear(*task(uuid, 1, "add", root=uuid)[:3])
    assert len(traced.table._tasks) == 3
    assert traced.lost == 7


@pytest.mark.parametrize("limit", ["QUEUE_LIMIT", "SETTLING_LIMIT"])
def test_limits_hold(limit: str, traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, limit, 10)
    for uuid in ids(20):
        traced.table.fold(task(uuid, 1, "add", root=uuid), EPOCH + 1)
        traced.table.tick(EPOCH + 1)
        assert len(traced.table._settling) <= (10 if limit == "SETTLING_LIMIT" else 40)
    traced.wait()
    assert (len(traced.spans), traced.lost) == ((10, 30) if limit == "QUEUE_LIMIT" else (40, 0))


def test_a_task_that_retries_for_ever_is_bounded(traced: Traced) -> None:
    for number in range(50):
        at = 10.0 * number
        traced.hear(received(at, uuid=A, retries=number, root_id=A), started(at + 1, uuid=A), retried(at + 2, uuid=A))
    assert len(traced.table._tasks[A].attempts) == module.ATTEMPTS_LIMIT
    lines = traced.tree()
    assert len(lines) == 50
    assert lines[-1] == "  " * 49 + "run/add 491-492 RETRY"
    assert traced.lost == 0


def test_a_fault_of_ours_costs_a_span_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> str:
        raise KeyError(event.uuid)

    lost: list[int] = []
    table = SpanTable(system="redis", queue_of=broken, dropped=lost.append)
    table.fold([*task(A, 1, "add"), *task(B, 1, "add")], EPOCH + 3)
    table.tick(EPOCH + 9)
    assert [span.name for span in table.take(9)] == ["run/add", "run/add"]
    assert sum(lost) == 2
    assert [record.message for record in caplog.records] == ["fault while making a span"]


@pytest.mark.parametrize(
    "events", [RETRIED, task(A, 1, "add"), [*BEGUN, failed(3, uuid=A)]], ids=["retried", "succeeded", "failed"]
)
def test_any_order_gives_each_run_at_most_once(
    events: list[Event], shuffled: Callable[[list[Event]], list[Event]]
) -> None:
    for _ in range(200):
        traced = Traced()
        traced.hear(*shuffled(events + events[:2]))
        traced.wait()
        runs = [span.span_id for span in traced.spans]
        assert len(runs) == len(set(runs))
        assert all(span.ended_at >= span.started_at and span.trace_id for span in traced.spans)


@pytest.fixture
def shuffled() -> Callable[[list[Event]], list[Event]]:
    source = random.Random(7)
    return lambda events: source.sample(events, len(events))
