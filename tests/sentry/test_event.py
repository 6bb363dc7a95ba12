"""What a failure becomes on its way to Sentry."""

from __future__ import annotations

import json
import math
import re
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import sentry_sdk
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from celery_lookout.failures import Failure, FailureKind
from celery_lookout.sentry.event import LARGEST, event_id, sentry_event

RECORDED = json.loads((Path(__file__).parent / "tracebacks.json").read_text())
TASKS = "tests.sentry.failing_tasks"
KINDS: dict[str, FailureKind] = {"time_limit": "hard_time_limit", "worker_lost": "worker_lost"}

FRAMES = """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/celery/app/trace.py", line 564, in trace_task
    R = retval = fun(*args, **kwargs)
  File "/srv/shop/tasks.py", line 12, in resize
    pack(item)
"""

FAILURE = Failure(
    kind="exception",
    task_id="b2f7a6e0-3c0e-4d3c-9a54-0a8f2f6a1c11",
    task="shop.tasks.resize",
    queue="images",
    worker="images@web-1",
    retries=2,
    at=1_795_514_400.25,
    exception="OutOfStock('item 17')",
    traceback=f"{FRAMES}shop.errors.OutOfStock: item 17\n",
    runtime=1.5,
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
)


def values(failure: Failure, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sentry_event(failure, **options)["exception"]["values"]
    return found


def raised(failure: Failure, **options: Any) -> dict[str, Any]:
    return values(failure, **options)[-1]


def fingerprint(**changes: Any) -> list[str]:
    found: list[str] = sentry_event(replace(FAILURE, **changes))["fingerprint"]
    return found


def recorded(task: str) -> Failure:
    found = next(failure for failure in RECORDED if failure["task"] == task)
    return replace(
        FAILURE,
        kind=KINDS.get(task, "exception"),
        task=f"{TASKS}.{task}",
        exception=found["exception"],
        traceback=found["traceback"],
    )


def test_all_of_a_sentry_event() -> None:
    found = sentry_event(FAILURE)
    span_id = found["contexts"]["trace"].pop("span_id")
    assert re.fullmatch("[0-9a-f]{16}", span_id)
    assert found == {
        "event_id": event_id(FAILURE),
        "timestamp": "2026-11-24T10:00:00.250000Z",
        "level": "error",
        "platform": "python",
        "logger": "celery-lookout",
        "transaction": "shop.tasks.resize",
        "server_name": "web-1",
        "fingerprint": ["OutOfStock", "shop.tasks.resize", "tasks.py:resize"],
        "tags": {
            "task": "shop.tasks.resize",
            "queue": "images",
            "worker": "images@web-1",
            "retries": "2",
            "celery_task_id": "b2f7a6e0-3c0e-4d3c-9a54-0a8f2f6a1c11",
            "kind": "exception",
        },
        "contexts": {
            "celery": {
                "task_id": "b2f7a6e0-3c0e-4d3c-9a54-0a8f2f6a1c11",
                "retries": 2,
                "queue": "images",
                "worker": "images@web-1",
                "kind": "exception",
                "runtime": 1.5,
            },
            "trace": {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "op": "queue.task.celery"},
        },
        "exception": {
            "values": [
                {
                    "type": "OutOfStock",
                    "value": "item 17",
                    "module": "shop.errors",
                    "mechanism": {"type": "celery", "handled": False, "exception_id": 0},
                    "stacktrace": {
                        "frames": [
                            {
                                "filename": "celery/app/trace.py",
                                "abs_path": "/venv/lib/python3.11/site-packages/celery/app/trace.py",
                                "function": "trace_task",
                                "lineno": 564,
                                "context_line": "R = retval = fun(*args, **kwargs)",
                                "in_app": False,
                            },
                            {
                                "filename": "shop/tasks.py",
                                "abs_path": "/srv/shop/tasks.py",
                                "function": "resize",
                                "module": "shop.tasks",
                                "lineno": 12,
                                "context_line": "pack(item)",
                                "in_app": True,
                            },
                        ]
                    },
                }
            ]
        },
    }


# One Sentry event for one attempt.


def test_whoever_tells_of_an_attempt_gives_it_the_same_id() -> None:
    """An event and a snapshot differ in everything but the attempt."""
    other = replace(
        FAILURE, at=5.0, exception="shop.errors.OutOfStock", traceback="", runtime=None, worker="", queue=""
    )
    assert event_id(other) == event_id(FAILURE) == sentry_event(other)["event_id"]
    assert uuid.UUID(hex=event_id(FAILURE)).version == 5


@pytest.mark.parametrize("change", [{"retries": 3}, {"task_id": "other"}, {"kind": "lost"}])
def test_other_attempt_has_another_id(change: dict[str, Any]) -> None:
    assert event_id(replace(FAILURE, **change)) != event_id(FAILURE)


def test_failures_without_a_task_id_are_told_apart() -> None:
    nameless = replace(FAILURE, task_id="")
    assert event_id(nameless) == event_id(nameless)
    assert event_id(nameless) != event_id(replace(nameless, at=6.0))


def test_ids_do_not_change_from_release_to_release() -> None:
    assert event_id(FAILURE) == "c2a338f4f3435e3094f7ad0584017971"


# Fields that may be missing.


def test_what_is_not_known_is_left_out() -> None:
    found = sentry_event(Failure("exception", "", "", "", "", 0, math.nan))
    assert found["tags"] == {"retries": "0", "kind": "exception"}
    assert found["contexts"].keys() == {"celery"}
    assert "runtime" not in found["contexts"]["celery"]
    assert "timestamp" not in found
    # Else the SDK would put this machine's.
    assert found["server_name"] == "unknown"
    assert found["exception"]["values"][0]["type"] == "unknown"


@pytest.mark.parametrize("trace_id", [None, "", "0" * 32, "4BF92F3577B34DA6A3CE929D0E0E4736", "a" * 31, "a" * 33])
def test_invalid_trace_is_left_out(trace_id: str | None) -> None:
    assert sentry_event(replace(FAILURE, trace_id=trace_id))["contexts"].keys() == {"celery"}


def test_tags_are_as_sentry_takes_them() -> None:
    found = sentry_event(replace(FAILURE, queue="a\nb\r\n c", worker="w" * 300))["tags"]
    assert found["queue"] == "a b c"
    assert len(found["worker"]) == 200


@pytest.mark.parametrize(
    ("worker", "host"), [("images@web-1", "web-1"), ("a@b@c", "c"), ("web-1", "web-1"), ("a@", "unknown")]
)
def test_server_is_the_host_of_the_worker(worker: str, host: str) -> None:
    assert sentry_event(replace(FAILURE, worker=worker))["server_name"] == host


def test_neither_halves_of_characters_nor_nul_are_sent() -> None:
    """PostgreSQL refuses both."""
    odd = "\ud800\0"
    failure = replace(FAILURE, task_id=odd, task=odd, queue=odd, worker=odd, exception=odd, traceback=f"E: {odd}")
    text = json.dumps(sentry_event(failure), ensure_ascii=False)
    text.encode()
    assert "\\u0000" not in text


# Exceptions.


@pytest.mark.parametrize(
    ("task", "types"),
    [
        ("simple", ["OutOfStock"]),
        ("multi_line", ["ValueError"]),
        ("explicit_cause", ["KeyError", "OutOfStock"]),
        ("implicit_context", ["KeyError", "OutOfStock"]),
        ("recursion", ["RecursionError"]),
        (
            "group",
            [*["ValueError"] * 15, *("ExceptionGroup", "KeyError", "OutOfStock", "OutOfStock", "ExceptionGroup")],
        ),
        ("notes", ["OutOfStock"]),
        ("syntax_error", ["SyntaxError"]),
        ("unpicklable", ["Unpicklable"]),
        ("retry_exhausted", ["OutOfStock"]),
        ("other_process", ["KeyError", "OutOfStock", "OutOfStock"]),
        ("soft_time_limit", ["SoftTimeLimitExceeded"]),
        ("time_limit", ["TimeLimitExceeded"]),
        ("worker_lost", ["WorkerLostError"]),
    ],
)
def test_recorded_failures(task: str, types: list[str]) -> None:
    """The oldest first, the one that got out last; the task's code alone is the application's."""
    found = values(recorded(task))
    assert [value["type"] for value in found] == types
    ids = [value["mechanism"]["exception_id"] for value in found]
    assert ids == [*reversed(range(len(found)))]
    frames = [frame for value in found for frame in value.get("stacktrace", {}).get("frames", [])]
    own = {frame["filename"] for frame in frames if frame["in_app"]}
    assert own <= {"tests/sentry/failing_tasks.py", "shop/prices.py"}
    assert bool(own) == (task not in KINDS)
    assert {frame.get("module") for frame in frames if "failing_tasks" in frame["filename"]} <= {TASKS}


@pytest.mark.parametrize(("task", "source"), [("explicit_cause", "__cause__"), ("implicit_context", "__context__")])
def test_what_led_to_the_exception(task: str, source: str) -> None:
    cause, effect = values(recorded(task))
    assert effect["mechanism"] == {"type": "celery", "handled": False, "exception_id": 0}
    assert cause["mechanism"] == {
        "type": "chained",
        "handled": False,
        "exception_id": 1,
        "parent_id": 0,
        "source": source,
    }


@pytest.mark.parametrize("told", ["OutOfStock('…')", "shop.errors.OutOfStock"])
def test_traceback_in_a_message_is_a_part_of_it(told: str) -> None:
    """By the text alone the KeyError led to the OutOfStock, and that to the ValueError."""
    cause = f"{FRAMES}KeyError: 17\n\nThe above exception was the direct cause of the following exception:\n\n"
    quoted = (
        'Traceback (most recent call last):\n  File "/srv/child.py", line 1, in child\nZeroDivisionError: by zero\n\n'
        "During handling of the above exception, another exception occurred:\n\n"
        'Traceback (most recent call last):\n  File "/srv/child.py", line 3, in child\nValueError: no\nsaid the child'
    )
    text = f"{cause}{FRAMES}shop.errors.OutOfStock: the child said:\n{quoted}\n"
    failure = replace(FAILURE, exception=told, traceback=text)
    context, found = values(failure)
    assert (found["type"], found["value"]) == ("OutOfStock", f"the child said:\n{quoted}")
    assert [frame["function"] for frame in found["stacktrace"]["frames"]] == ["trace_task", "resize"]
    assert found["mechanism"] == {"type": "celery", "handled": False, "exception_id": 0}
    assert (context["type"], context["value"]) == ("KeyError", "17")
    assert context["mechanism"]["parent_id"] == 0
    assert context["mechanism"]["source"] == "__cause__"
    # Without it there is nothing to go by.
    assert raised(replace(failure, exception="<it failed>"))["type"] == "ValueError"
    # One that speaks for its cause does quote nothing.
    spoken = f"{cause}{FRAMES}shop.errors.OutOfStock: no\n"
    assert raised(replace(failure, exception="KeyError(17)", traceback=spoken))["type"] == "OutOfStock"


def test_groups_and_their_members() -> None:
    found = values(recorded("group"))
    mechanisms = [value["mechanism"] for value in reversed(found)]
    assert [(how.get("source"), how.get("parent_id")) for how in mechanisms[:6]] == [
        (None, None),
        ("exceptions[0]", 0),
        ("exceptions[1]", 0),
        ("__cause__", 2),
        ("exceptions[2]", 0),
        ("exceptions[0]", 4),
    ]
    groups = [value for value in found if value["mechanism"].get("is_exception_group")]
    assert [group["value"] for group in reversed(groups)] == [
        "three at once (3 sub-exceptions)",
        "never raised themselves (20 sub-exceptions)\n… and 5 more exceptions",
    ]


@pytest.mark.parametrize(
    ("exception", "text", "module", "kind"),
    [
        # As events tell it.
        (
            "ExceptionWithTraceback()",
            "billiard.exceptions.WorkerLostError: 9",
            "billiard.exceptions",
            "WorkerLostError",
        ),
        ("Odd('x')", "celery.utils.serialization.UnpickleableExceptionWrapper: Odd('x')", None, "Odd"),
        ("Odd('x')", "celery.utils.serialization.UnpickleableExceptionWrapper: <Odd>", None, "Odd"),
        ("Odd('x')", "", None, "Odd"),
        ("Odd('x')", "NoneType: None\n", None, "Odd"),
        ("UnpickleableExceptionWrapper('a')", "shop.Odd: x", "shop", "Odd"),
        ("<Odd object at 0x7f>", "no class here", None, "unknown"),
        # As snapshots do.
        ("shop.errors.Odd", "celery.utils.serialization.UnpickleableExceptionWrapper: <x>", "shop.errors", "Odd"),
        ("shop.errors.Odd", FRAMES, "shop.errors", "Odd"),
        ("", "shop.tasks.run.<locals>.Odd: x", "shop.tasks", "Odd"),
    ],
)
def test_class_and_module(exception: str, text: str, module: str | None, kind: str) -> None:
    found = raised(replace(FAILURE, exception=exception, traceback=text))
    assert (found.get("module"), found["type"]) == (module, kind)


def test_repr_is_the_message_where_there_is_no_traceback() -> None:
    assert raised(replace(FAILURE, traceback=""))["value"] == "OutOfStock('item 17')"
    assert raised(replace(FAILURE, traceback="", exception="shop.OutOfStock"))["value"] == ""


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("hard_time_limit", "TimeLimitExceeded"),
        ("soft_time_limit", "SoftTimeLimitExceeded"),
        ("worker_lost", "WorkerLostError"),
        ("exception", "unknown"),
    ],
)
def test_kind_tells_the_class_where_nothing_else_does(kind: FailureKind, type_: str) -> None:
    assert raised(replace(FAILURE, kind=kind, exception="", traceback=""))["type"] == type_


def test_long_message_loses_its_end() -> None:
    found = raised(replace(FAILURE, traceback=f"{FRAMES}E: {'x' * 5000}"))["value"]
    assert len(found) == 4096
    assert found.endswith("x…")


def calls(count: int) -> str:
    lines = [f'  File "/srv/shop/tasks.py", line {number}, in f{number}\n' for number in range(count)]
    return f"Traceback (most recent call last):\n{''.join(lines)}ValueError: x\n"


def test_many_frames_lose_the_middle() -> None:
    found = raised(replace(FAILURE, traceback=calls(300)))["stacktrace"]["frames"]
    functions = [frame["function"] for frame in found]
    assert len(found) <= 100
    assert functions[:49] == [f"f{number}" for number in range(49)]
    assert functions[-49:] == [f"f{number}" for number in range(251, 300)]
    assert found[49] == {
        "filename": "[left out]",
        "function": "[left out]",
        "in_app": False,
        "vars": {"[left out]": "202 frames"},
    }
    assert len(raised(replace(FAILURE, traceback=calls(100)))["stacktrace"]["frames"]) == 100


def test_gap_that_the_worker_left_is_shown() -> None:
    text = f'{FRAMES}  [… 700 characters left out …]\nrest of a line\n  File "/srv/a.py", line 3, in end\nE: x\n'
    found = raised(replace(FAILURE, traceback=text))["stacktrace"]["frames"]
    assert [frame["function"] for frame in found] == ["trace_task", "resize", "[left out]", "end"]
    assert found[2]["vars"] == {"[left out]": "700 characters of the traceback"}


def test_repeated_lines_are_told_with_their_frame() -> None:
    found = raised(recorded("recursion"))["stacktrace"]["frames"]
    assert [frame.get("vars") for frame in found][:-1] == [None] * (len(found) - 1)
    assert re.fullmatch(r"9\d\d more times", found[-1]["vars"]["[Previous line repeated]"])


def test_prefixes_are_stripped() -> None:
    found = raised(replace(FAILURE, task="resize"), strip_prefixes=["/srv"])["stacktrace"]["frames"]
    assert [frame["filename"] for frame in found] == ["celery/app/trace.py", "shop/tasks.py"]


def test_run_that_was_lost() -> None:
    found = sentry_event(Failure("lost", "id", "shop.resize", "images", "images@web-1", 0, 5.0))
    (value,) = found["exception"]["values"]
    assert value["type"] == "TaskLost"
    assert value["value"] == "shop.resize was running on images@web-1, which vanished, and did not reappear"
    assert found["fingerprint"] == ["TaskLost", "shop.resize"]


def test_task_that_is_not_known() -> None:
    found = sentry_event(
        replace(
            FAILURE,
            kind="unknown_task",
            exception="celery.exceptions.NotRegistered",
            traceback="celery.exceptions.NotRegistered: 'shop.tasks.resize'",
        )
    )
    (value,) = found["exception"]["values"]
    assert (value["module"], value["type"]) == ("celery.exceptions", "NotRegistered")
    assert value["value"] == "images@web-1 got a message for shop.tasks.resize, a task that it does not have"
    assert found["fingerprint"] == ["NotRegistered", "shop.tasks.resize"]


# One fault, one issue.


def test_kills_are_one_issue_per_task_whoever_tells_them() -> None:
    """Celery 5.7 tells a hard limit twice, from two places."""
    texts = {failure["traceback"] for failure in RECORDED if failure["task"] == "time_limit"}
    assert len(texts) == 2
    found = {tuple(fingerprint(kind="hard_time_limit", traceback=text)) for text in texts}
    assert found == {("TimeLimitExceeded", "shop.tasks.resize")}


def test_what_led_here_tells_faults_apart() -> None:
    assert sentry_event(recorded("explicit_cause"))["fingerprint"] == [
        "OutOfStock",
        "tests.sentry.failing_tasks.explicit_cause",
        "failing_tasks.py:explicit_cause",
        "KeyError",
        "failing_tasks.py:explicit_cause",
    ]


def test_neither_message_nor_release_nor_line_makes_an_issue() -> None:
    frame = 'Traceback (most recent call last):\n  File "/srv/{}/shop/tasks.py", line {}, in resize\n    run()\n'
    assert fingerprint(traceback=frame.format("releases/17", 4) + "shop.OutOfStock: no item 17") == fingerprint(
        traceback=frame.format("releases/18", 5) + "shop.OutOfStock: no item 18 for Ada"
    )


@pytest.mark.parametrize("message", ["no item 17", "no item 18 for Ada"])
def test_message_makes_no_issue_where_there_are_no_frames(message: str) -> None:
    assert fingerprint(traceback=f"shop.OutOfStock: {message}") == ["OutOfStock", "shop.tasks.resize"]


def test_members_of_a_group_make_no_issue() -> None:
    one, three = "ValueError: a", "ValueError: a\n    +---------------- 2 ----------------\n    | KeyError: 'b'"
    group = "  + Exception Group Traceback (most recent call last):\n  | ExceptionGroup: some (1 sub-exception)\n"
    texts = [
        f"{group}  +-+---------------- 1 ----------------\n    | {members}\n    +---\n" for members in (one, three)
    ]
    assert [len(sentry_event(replace(FAILURE, traceback=text))["exception"]["values"]) for text in texts] == [2, 3]
    assert fingerprint(traceback=texts[0]) == fingerprint(traceback=texts[1]) == ["ExceptionGroup", "shop.tasks.resize"]


def in_functions(*functions: str) -> str:
    return "".join(f'  File "/srv/shop/tree.py", line 7, in {function}\n    pass\n' for function in functions)


def test_where_a_recursion_ran_out_of_room_makes_no_issue() -> None:
    cycle = ["visit", "children"] * 300
    texts = [
        f"{FRAMES}{in_functions(*cycle, *rest)}RecursionError: maximum recursion depth exceeded\n"
        for rest in ([], ["visit"], ["visit", "log"], ["log"])
    ]
    places = ["tasks.py:resize", "tree.py:visit", "tree.py:children"]
    for text in texts:
        assert fingerprint(traceback=text) == ["RecursionError", "shop.tasks.resize", *places]
    effect = f"\nDuring handling of the above exception, another exception occurred:\n\n{FRAMES}shop.OutOfStock: no\n"
    assert len({tuple(fingerprint(traceback=text + effect)) for text in texts}) == 1


def test_depth_of_a_recursion_makes_no_issue() -> None:
    texts = [
        f"{FRAMES}{in_functions(*['visit', 'children'] * depth, 'price')}shop.OutOfStock: no\n" for depth in (1, 2, 9)
    ]
    places = ["tasks.py:resize", "tree.py:visit", "tree.py:children", "tree.py:price"]
    for text in texts:
        assert fingerprint(traceback=text) == ["OutOfStock", "shop.tasks.resize", *places]


def test_task_without_a_name_has_a_fingerprint() -> None:
    assert fingerprint(task="", traceback="", exception="") == ["unknown", "unknown"]


# Any failure at all.

texts = st.text(max_size=300) | st.text(alphabet="\ud800\0\n😀ä.a: ", max_size=60)
tracebacks = texts | st.sampled_from([failure["traceback"] for failure in RECORDED]).flatmap(
    lambda text: st.integers(0, len(text)).map(lambda end: text[:end])
)
failures = st.builds(
    Failure,
    kind=st.sampled_from(get_args(FailureKind)),
    task_id=texts,
    task=texts,
    queue=texts,
    worker=texts,
    retries=st.integers(),
    at=st.floats(),
    exception=texts,
    traceback=tracebacks,
    runtime=st.none() | st.floats(),
    trace_id=st.none() | texts | st.just("a" * 32),
)


class Recorder(Transport):
    """Keeps what the SDK would send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        # As it goes over the wire.
        for item in Envelope.deserialize(envelope.serialize()).items:
            found = item.get_event()
            assert found is not None
            self.sent.append(dict(found))


@pytest.fixture(scope="module")
def send() -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Send a Sentry event through a client of ours and return what would arrive."""
    transport = Recorder()
    client = sentry_sdk.Client(
        "http://key@127.0.0.1:1/1", transport=transport, default_integrations=False, auto_enabling_integrations=False
    )

    def capture(found: dict[str, Any]) -> dict[str, Any]:
        assert client.capture_event(found) == found["event_id"]  # type: ignore[arg-type]
        return transport.sent.pop()

    yield capture
    client.close()


def check(found: dict[str, Any]) -> None:
    text = json.dumps(found, allow_nan=False)
    assert len(text) <= LARGEST
    for value in found["exception"]["values"]:
        assert value["type"]
        assert len(value.get("stacktrace", {}).get("frames", [])) <= 100
    assert found["exception"]["values"][-1]["mechanism"]["exception_id"] == 0
    assert all(len(value) <= 200 and "\n" not in value for value in found["tags"].values())
    assert all(found["fingerprint"])


@given(failures)
@settings(deadline=None)
def test_any_failure_arrives(send: Callable[[dict[str, Any]], dict[str, Any]], failure: Failure) -> None:
    found = sentry_event(failure)
    check(found)
    arrived = send(json.loads(json.dumps(found)))
    assert arrived["event_id"] == event_id(failure)
    for key in ("fingerprint", "tags", "transaction", "server_name", "logger", "exception", "contexts"):
        assert arrived[key] == found[key], key


@pytest.mark.parametrize(
    "text",
    [
        calls(1).replace("tasks", "😀" * 60_000),
        calls(1).replace("ValueError: x", "\n".join(["ValueError: " + "😀" * 200] * 500)),
        "".join(f'  File "/{"😀" * 500}.py", line 3, in {"😀" * 500}\n    {"😀" * 500}\n' for _ in range(200)) + "E: x",
        "\n\nThe above exception was the direct cause of the following exception:\n\n".join(
            [f'  File "/{"😀" * 500}.py", line 3, in {"😀" * 500}\n    {"😀" * 500}\n' * 9 + f"E: {'😀' * 5000}"] * 60
        ),
        "  +-+---------------- 1 ----------------\n" + "    +---------------- 2 ----------------\n    | E: x\n" * 2000,
    ],
    ids=["path", "message", "frames", "chain", "group"],
)
def test_largest_failures_are_bounded(text: str) -> None:
    long = "😀" * 5000
    failure = replace(FAILURE, task_id=long, task=long, queue=long, worker=long, exception=long, traceback=text)
    check(sentry_event(failure))


def test_exceptions_that_are_left_out_are_counted() -> None:
    link = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
    found = sentry_event(replace(FAILURE, traceback=link.join(f"E{number}: x" for number in range(80))))
    assert [value["type"] for value in found["exception"]["values"]] == [f"E{number}" for number in range(30, 80)]
    assert found["contexts"]["celery"]["exceptions_left_out"] == 30


def test_live_exception_of_this_process() -> None:
    """Whatever Python this is: one call is this file's, and the standard library's are not."""
    try:
        json.loads("{")
    except ValueError:
        failure = replace(FAILURE, task=f"{__name__}.run", traceback=traceback.format_exc())
    else:
        pytest.fail("nothing was raised")
    found = raised(failure)["stacktrace"]["frames"]
    own = [frame for frame in found if frame["in_app"]]
    assert [(frame["filename"], frame["function"], frame["context_line"]) for frame in own] == [
        ("tests/sentry/test_event.py", "test_live_exception_of_this_process", 'json.loads("{")')
    ]
    assert found[-1]["filename"] == "json/decoder.py"


@pytest.mark.parametrize(
    "message",
    [
        "celery.exceptions.MaxRetriesExceededError: Can't retry shop.mail[1c2d] args:('hunter2',) kwargs:{}",
        "celery.exceptions.MaxRetriesExceededError: Can't retry shop.mail[1c2d] args:(<\nhunter2\n>,) kwargs:{}",
        "billiard.pool.MaybeEncodingError: Error sending result: ''{1: 'hunter2'}''. Reason: ''Odd('hunter2')''.",
    ],
)
def test_celery_quotes_arguments_and_results_and_we_do_not(message: str) -> None:
    failure = replace(FAILURE, exception="Odd()", traceback=f"Traceback (most recent call last):\n{message}\n")
    event = sentry_event(failure)
    assert "hunter2" not in json.dumps(event)
    assert event["exception"]["values"][0]["value"].startswith(("Can't retry shop.mail[1c2d]", "Error sending result"))


@pytest.mark.parametrize(
    "message", ["Error sending result to the bank: no answer", "Can't retry the payment: declined"]
)
def test_what_an_application_writes_is_passed_on(message: str) -> None:
    assert raised(replace(FAILURE, traceback=f"{FRAMES}shop.errors.OutOfStock: {message}\n"))["value"] == message
