"""What the parser reads from tracebacks: recorded, made here by Python itself, and mutilated."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from billiard.einfo import ExceptionWithTraceback
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout.sentry.tracebacks import LONGEST, UNNAMED, Frame, LeftOut, Raised, parse
from celery_lookout_signals._failures import TRACEBACK_LIMIT, shortened

RECORDED = json.loads((Path(__file__).parent / "tracebacks.json").read_text())

#: Name, source and how often a frame of the application is there, of each exception; the one that got out first.
TASKS = "tests.sentry.failing_tasks"
OUT_OF_STOCK = f"{TASKS}.OutOfStock"
LIMIT = "billiard.exceptions.TimeLimitExceeded"
EXPECTED = {
    "simple": [(OUT_OF_STOCK, "item 17", ["simple"])],
    "multi_line": [("ValueError", "first line\nsecond: line\n\tthird", ["multi_line"])],
    "explicit_cause": [
        (OUT_OF_STOCK, "no such item", ["explicit_cause"]),
        ("KeyError", "'absent'", ["explicit_cause"]),
    ],
    "implicit_context": [
        (OUT_OF_STOCK, "no such item", ["implicit_context"]),
        ("KeyError", "'absent'", ["implicit_context"]),
    ],
    "recursion": [("RecursionError", "maximum recursion depth exceeded", ["recursion"] * 3)],
    "group": [
        ("ExceptionGroup", "three at once (3 sub-exceptions)", ["group"]),
        (OUT_OF_STOCK, "item 17", ["group", "simple"]),
        (OUT_OF_STOCK, "no such item", ["group", "explicit_cause"]),
        ("KeyError", "'absent'", ["explicit_cause"]),
        ("ExceptionGroup", "never raised themselves (20 sub-exceptions)", ["group", "_inner_group"]),
        *(("ValueError", str(number), list[str]()) for number in range(15)),
    ],
    "notes": [(OUT_OF_STOCK, "item 17\nwhile packing order 4\non a Tuesday,\nin the rain", ["notes"])],
    "syntax_error": [("SyntaxError", "invalid syntax", ["syntax_error", ""])],
    "unpicklable": [("Unpicklable", "Unpicklable('cannot travel')", ["unpicklable"])],
    "retry_exhausted": [(OUT_OF_STOCK, "item 17", ["retry_exhausted", "retry_exhausted", "simple"])],
    "other_process": [
        (OUT_OF_STOCK, "no such item", ["other_process"]),
        (OUT_OF_STOCK, "no such item", ["explicit_cause"]),
        ("KeyError", "'absent'", ["explicit_cause"]),
    ],
    "soft_time_limit": [("billiard.exceptions.SoftTimeLimitExceeded", "SoftTimeLimitExceeded()", ["soft_time_limit"])],
    "time_limit": [(LIMIT, "TimeLimitExceeded(1,)", [])],
    "worker_lost": [
        ("billiard.exceptions.WorkerLostError", "Worker exited prematurely: signal 9 (SIGKILL) Job: 14.", [])
    ],
}

SOURCES = {
    "explicit_cause": ["", "__cause__"],
    "implicit_context": ["", "__context__"],
    "group": [
        "",
        "exceptions[0]",
        "exceptions[1]",
        "__cause__",
        "exceptions[2]",
        *(f"exceptions[{number}]" for number in range(15)),
    ],
    "other_process": ["", "__cause__", "__cause__"],
}


def frames_of(raised: Raised) -> list[Frame]:
    assert all(isinstance(frame, Frame) for frame in raised.frames)
    return [frame for frame in raised.frames if isinstance(frame, Frame)]


@pytest.mark.parametrize("failure", RECORDED, ids=lambda failure: failure["task"])
def test_recorded(failure: dict[str, str]) -> None:
    """Python 3.11 and Celery 5.7 as they are."""
    task = failure["task"]
    chain = parse(failure["traceback"])
    calls = [[frame.function for frame in frames_of(raised) if frame.file.startswith("/app/")] for raised in chain]
    found = [(raised.name, raised.value, functions) for raised, functions in zip(chain, calls, strict=True)]
    assert found == EXPECTED[task]
    assert [raised.source for raised in chain] == SOURCES.get(task, [""])


def recorded(task: str) -> str:
    return str(next(failure["traceback"] for failure in RECORDED if failure["task"] == task))


def test_every_shape_is_recorded() -> None:
    assert {failure["task"] for failure in RECORDED} == EXPECTED.keys()


def test_source_lines_are_kept_and_the_markers_below_them_are_not() -> None:
    frames = frames_of(parse(recorded("explicit_cause"))[1])
    assert frames == [Frame("/app/tests/sentry/failing_tasks.py", frames[0].line, "explicit_cause", 'STOCK["absent"]')]


def test_repeated_lines_are_counted() -> None:
    frames = frames_of(parse(recorded("recursion"))[0])
    assert [frame.repeated for frame in frames][:-1] == [0] * (len(frames) - 1)
    assert frames[-1].repeated > 900


def test_place_of_a_syntax_error_is_a_frame_without_function() -> None:
    assert frames_of(parse(recorded("syntax_error"))[0])[-1] == Frame("/app/shop/prices.py", 1, "", "total = = 3")


def test_members_that_python_does_not_print_are_counted() -> None:
    chain = parse(recorded("group"))
    assert [(raised.parent, raised.more) for raised in chain if raised.is_group] == [(None, 0), (0, 5)]
    assert {raised.parent for raised in chain[5:]} == {4}


# Against Python's own reading of an exception.

Told = tuple[str, str, list[tuple[str, int | None, str, str]], str]


def told_by_us(text: str) -> list[Told]:
    return [
        (
            raised.name,
            raised.value,
            [
                (frame.file, frame.line, frame.function, frame.source)
                for frame in frames_of(raised)
                for _ in range(1 + frame.repeated)
            ],
            raised.source,
        )
        for raised in parse(text)
    ]


def told_by_python(error: BaseException) -> list[Told]:
    return list(_told(traceback.TracebackException.from_exception(error)))


def _told(outermost: traceback.TracebackException) -> Iterator[Told]:
    waiting = [(outermost, "")]
    while waiting:
        told, source = waiting.pop()
        frames = [(frame.filename, frame.lineno, frame.name, (frame.line or "").strip()) for frame in told.stack]
        final = "".join(told.format_exception_only())
        if final.startswith('  File "'):
            assert told.text is not None
            frames.append((str(told.filename), int(told.lineno or 0), "", told.text.strip()))
            assert told.exc_type is not None
            final = final[final.index(f"{told.exc_type.__name__}: ") :]
        name, _, message = final.rstrip("\n").partition(": ")
        yield name.rstrip(": "), message.strip("\n"), frames, source
        waiting += reversed([(member, f"exceptions[{number}]") for number, member in enumerate(told.exceptions or ())])
        if told.__cause__ is not None:
            waiting.append((told.__cause__, "__cause__"))
        elif told.__context__ is not None and not told.__suppress_context__:
            waiting.append((told.__context__, "__context__"))


class Outer:
    class Inner(Exception):
        """Its name says nothing of where the module ends."""


def plain(error: BaseException | None = None) -> NoReturn:
    raise error or ValueError("broken")


def caused(error: BaseException | None = None, cause: BaseException | None = None) -> None:
    try:
        plain(cause)
    except BaseException as caught:
        raise error or RuntimeError("effect") from caught


def in_context(error: BaseException | None = None, context: BaseException | None = None) -> None:
    try:
        plain(context)
    except BaseException:  # noqa: BLE001  # groups of anything
        raise error or RuntimeError("while handling")  # noqa: B904  # the point


def suppressed() -> None:
    try:
        plain()
    except ValueError:
        raise RuntimeError("alone") from None


def three() -> None:
    in_context(None, catch(caused))


def cause_that_was_never_raised() -> None:
    raise RuntimeError("effect") from KeyError("absent")


def group_that_was_never_raised() -> None:
    raise RuntimeError("effect") from ExceptionGroup("odd", [catch(caused), KeyError("absent")])


def around(number: int = 30) -> None:
    if number:
        around(number - 1)
    plain()


def there_and_back(number: int = 30) -> None:
    if number:
        and_back(number)
    plain()


def and_back(number: int) -> None:
    there_and_back(number - 1)


def groups() -> None:
    inner = catch(lambda: plain(ExceptionGroup("inner", [catch(caused), OSError(2, "No such file"), KeyError()])))
    raise BaseExceptionGroup("outer", [catch(plain), inner, catch(in_context), KeyboardInterrupt()])


def group_as_cause() -> None:
    caused(None, catch(groups))


def group_in_context_of_group() -> None:
    in_context(ExceptionGroup("second", [catch(in_context)]), ExceptionGroup("first", [catch(caused)]))


def some_of_a_group() -> None:
    try:
        plain(ExceptionGroup("mixed", [catch(caused), catch(lambda: plain(OSError(5)))]))
    except* OSError:
        plain(TypeError("while handling some"))


def with_notes() -> None:
    error = Outer.Inner("first\n\nthird")
    error.add_note("a note\nof two lines")
    error.add_note("")
    plain(error)


def without_message() -> None:
    plain(AssertionError())


def blank_lines_around_the_message() -> None:
    plain(ValueError("\n\nin the middle\n\n"))


def message_that_looks_like_more() -> None:
    plain(ValueError('failed:\n  File "/x.py", line 1, in run\n    x()\nTypeError: none\n  | + bar\n"""\n[...]'))


def message_with_a_traceback() -> None:
    try:
        plain()
    except ValueError:
        text = traceback.format_exc()
    plain(Outer.Inner(f"the child said:\n{text}"))


def local_class() -> None:
    class Odd(Exception):
        pass

    raise Odd("x")


def in_a_lambda_and_a_generator() -> None:
    list(map(lambda _: plain(), (letter for letter in "a")))  # noqa: C417  # the point


def in_generated_code() -> None:
    exec(compile("def run(plain):\n    plain()", "<generated by nobody>", "exec"), names := {})  # type: ignore[var-annotated]
    names["run"](plain)


def syntax() -> None:
    compile("total = (1,\n  = 3", "/app/shop/prices.py", "exec")


def indentation() -> None:
    compile("if x:\npass", "<string>", "exec")


def syntax_as_cause() -> None:
    caused(None, catch(syntax))


def over_several_lines() -> None:
    plain(
        ValueError(
            "broken",
        ),
    )


def deep_in_the_standard_library() -> None:
    json.loads('{"a": [1, }')


def catch(call: Callable[[], object]) -> Any:
    try:
        call()
    except BaseException as error:  # noqa: BLE001  # whatever it is
        return error
    raise AssertionError("nothing was raised")


LIVE = [
    plain,
    caused,
    in_context,
    suppressed,
    three,
    cause_that_was_never_raised,
    group_that_was_never_raised,
    around,
    there_and_back,
    groups,
    group_as_cause,
    group_in_context_of_group,
    some_of_a_group,
    with_notes,
    without_message,
    blank_lines_around_the_message,
    message_that_looks_like_more,
    message_with_a_traceback,
    local_class,
    in_a_lambda_and_a_generator,
    in_generated_code,
    syntax,
    indentation,
    syntax_as_cause,
    over_several_lines,
    deep_in_the_standard_library,
]


@pytest.mark.parametrize("call", LIVE)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_agrees_with_python(call: Callable[[], object], newline: str) -> None:
    error = catch(call)
    text = "".join(traceback.format_exception(error))
    assert told_by_us(text.replace("\n", newline)) == told_by_python(error)


messages = st.text(alphabet='aB:. |+-~^"\n', max_size=20)
leaves = st.builds(ValueError, messages) | st.builds(KeyError) | st.builds(Outer.Inner, messages)


def _more(errors: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    effects = st.tuples(st.sampled_from([caused, in_context]), leaves, errors)
    members = st.lists(errors, min_size=1, max_size=3)
    return (
        effects.map(lambda pick: catch(lambda: pick[0](pick[1], pick[2])))
        | st.builds(ExceptionGroup, messages, members)
        | st.builds(ExceptionGroup, messages, members).map(lambda group: catch(lambda: plain(group)))
    )


@given(st.recursive(leaves, _more, max_leaves=12))
@settings(max_examples=100, deadline=None)
def test_agrees_with_python_on_any_tree(error: BaseException) -> None:
    raised = catch(lambda: plain(error))
    assert told_by_us("".join(traceback.format_exception(raised))) == told_by_python(raised)


# What Python does not write like this, or not this Python.


def test_traceback_of_another_process_takes_the_place_of_its_wrapper() -> None:
    """As billiard passes an exception between processes."""
    remote = catch(in_context)
    function, arguments = ExceptionWithTraceback(remote, "".join(traceback.format_exception(remote))).__reduce__()
    error = catch(lambda: plain(function(*arguments).with_traceback(None)))
    chain = parse("".join(traceback.format_exception(error)))
    assert [(raised.name, raised.source) for raised in chain] == [
        ("RuntimeError", ""),
        ("RuntimeError", "__cause__"),
        ("ValueError", "__context__"),
    ]
    assert [frames_of(raised)[-1].function for raised in chain] == ["plain", "in_context", "plain"]


def test_quotes_around_something_else_stay_a_message() -> None:
    chain = parse('multiprocessing.pool.RemoteTraceback: \n"""\n"""\n\nThe above')
    assert [(raised.name, raised.value) for raised in chain] == [
        ("multiprocessing.pool.RemoteTraceback", "\n\nThe above".strip("\n"))
    ]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("", UNNAMED, ""),
        ("\n\n", UNNAMED, ""),
        ("celery.exceptions.NotRegistered: 'shop.resize'", "celery.exceptions.NotRegistered", "'shop.resize'"),
        ("NotRegistered", "NotRegistered", ""),
        ("no traceback at all", UNNAMED, "no traceback at all"),
        ("see http://example.com: there", UNNAMED, "see http://example.com: there"),
        ("Ünïcödé.Fehler: ß", "Ünïcödé.Fehler", "ß"),
        ("Traceback (most recent call last):\n", UNNAMED, ""),
        ('Traceback (most recent call last):\n  File "/a.py", line 5, in run\n    f()', UNNAMED, ""),
        ('what the log says\nTraceback (most recent call last):\n  File "/a.py", line 5, in run\nE: x\n', "E", "x"),
        ('  File "/a.py", line 5, in run\n    f()\nshop.E: x\n', "shop.E", "x"),
        ("Traceback (most recent call last):\nTwo Words: x", UNNAMED, "Two Words: x"),
        ("celery.utils.serialization.UnpickleableExceptionWrapper: Odd(1, 'x')", "Odd", "Odd(1, 'x')"),
        (
            "celery.utils.serialization.UnpickleableExceptionWrapper: <Odd>",
            "celery.utils.serialization.UnpickleableExceptionWrapper",
            "<Odd>",
        ),
        ("... (max_group_depth is 10)", "ExceptionGroup", "... (max_group_depth is 10)"),
        ("E: x\n\nThe above exception was the direct cause of the following exception:\n\n", "E", "x"),
    ],
)
def test_exception_that_got_out(text: str, name: str, value: str) -> None:
    raised = parse(text)[0]
    assert (raised.name, raised.value, raised.parent) == (name, value, None)


def test_newer_python_shows_a_call_over_several_lines() -> None:
    text = """\
Traceback (most recent call last):
  File "/app/shop/tasks.py", line 5, in run
    pack(
    ~~~~^
        item,
        ^^^^^
    ...<2 lines>...
    )
    ^
  File "/app/shop/tasks.py", line 9, in pack
    raise ValueError
ValueError
"""
    assert parse(text) == (
        Raised(
            "ValueError",
            frames=(
                Frame("/app/shop/tasks.py", 5, "run", "pack("),
                Frame("/app/shop/tasks.py", 9, "pack", "raise ValueError"),
            ),
        ),
    )


def test_frame_without_a_number() -> None:
    """The first is billiard's, after a recursion, the second Python's own for what has no line."""
    text = '  File "...", line -1, in [rest of traceback truncated]\n  File "/a.py", line None, in run\nE: x\n'
    assert frames_of(parse(text)[0]) == [
        Frame("...", None, "[rest of traceback truncated]"),
        Frame("/a.py", None, "run"),
    ]


# Texts whose middle a worker left out.


def cut(text: str) -> tuple[Raised, ...]:
    assert len(text) > TRACEBACK_LIMIT
    return parse(shortened(text))


def test_frames_are_left_out() -> None:
    text = "".join(traceback.format_exception(catch(lambda: there_and_back(200))))
    (raised,) = cut(text)
    gaps = [frame for frame in raised.frames if isinstance(frame, LeftOut)]
    assert (raised.name, raised.value) == ("ValueError", "broken")
    assert [gap.characters > 10_000 for gap in gaps] == [True]
    assert isinstance(raised.frames[0], Frame)
    assert raised.frames[0].function == "catch"
    assert isinstance(raised.frames[-1], Frame)
    assert raised.frames[-1].function == "plain"


def test_part_of_a_message_is_left_out() -> None:
    error = catch(lambda: plain(ValueError("a" * 10_000 + "b" * 10_000)))
    (raised,) = cut("".join(traceback.format_exception(error)))
    first, note, last = raised.value.split("\n")
    assert (raised.name, set(first), set(last)) == ("ValueError", {"a"}, {"b"})
    assert "characters left out" in note


def test_exceptions_are_left_out() -> None:
    """What is the last of the first half led to something; what, is lost."""
    error = catch(lambda: caused(None, ValueError("a\n" * 10_000)))
    text = "".join(traceback.format_exception(error)).replace("\n\nThe above", f"\n{'x' * 20_000}\n\nThe above")
    chain = cut(text)
    assert [(raised.name, raised.source) for raised in chain] == [("RuntimeError", ""), ("ValueError", "__cause__")]


def test_head_of_an_exception_is_left_out() -> None:
    error = catch(lambda: plain(ValueError("a\n" * 5000)))
    other = catch(lambda: there_and_back(200))
    text = "".join(traceback.format_exception(error)) + "".join(traceback.format_exception(other))
    chain = cut(text)
    assert [(raised.name, raised.source) for raised in chain] == [("ValueError", ""), ("ValueError", "")]
    assert chain[0].value == "broken"
    assert frames_of(chain[0])[-1].function == "plain"


def test_members_are_left_out() -> None:
    """The members before and after the gap stay members."""
    errors = [catch(lambda: there_and_back(4)) for _ in range(15)]
    chain = cut("".join(traceback.format_exception(catch(lambda: plain(ExceptionGroup("many", errors))))))
    assert [raised.name for raised in chain] == ["ExceptionGroup"] + ["ValueError"] * (len(chain) - 1)
    assert {raised.parent for raised in chain[1:]} == {0}
    assert [raised.source for raised in (*chain[1:3], chain[-1])] == [
        *("exceptions[0]", "exceptions[1]"),
        "exceptions[14]",
    ]
    assert 5 < len(chain) < 16


def test_much_too_long_text_loses_its_middle() -> None:
    text = "".join(traceback.format_exception(catch(lambda: plain(ValueError("a\n" * LONGEST)))))
    (raised,) = parse(text)
    assert raised.name == "ValueError"
    assert len(raised.value) < LONGEST + 100


# Any text at all.


def check(text: str) -> None:
    """The promises of ``parse``."""
    chain = parse(text)
    assert chain
    assert chain[0].parent is None
    assert all(raised.parent is not None and raised.parent < number for number, raised in enumerate(chain) if number)


pieces = st.sampled_from(
    [
        *("Traceback (most recent call last):", "  + Exception Group Traceback (most recent call last):"),
        *('  File "/a.py", line 3, in run', "    run()", "    ^^^^^", "  [Previous line repeated 3 more times]"),
        *("ValueError: x", "a.RemoteTraceback: ", '"""', "", "  | ", "  |   x", "    | ExceptionGroup: y", "  |"),
        *("  +-+---------------- 1 ----------------", "    +---------------- 2 ----------------"),
        *("    +-+---------------- 1 ----------------", "      +---------------- ... ----------------"),
        *("      | and 3 more exceptions", "    +------------------------------------", "                + x"),
        *("The above exception was the direct cause of the following exception:", "  [… 5 characters left out …]"),
        "During handling of the above exception, another exception occurred:",
        *("    | Traceback (most recent call last):", '    |   File "/b.py", line 3, in run', "            |  x"),
    ]
)


@given(st.text(max_size=300) | st.lists(pieces, max_size=40).map("\n".join))
def test_any_text_has_an_exception(text: str) -> None:
    check(text)


@given(st.data())
def test_mutilated_tracebacks_have_an_exception(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from(RECORDED))["traceback"].split("\n")
    picks = data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=60))
    kept = {
        "some": [line for number, line in enumerate(lines) if number not in picks],
        "shuffled": [lines[number] for number in picks],
        "repeated": [line for number, line in enumerate(lines) for _ in range(1 + picks.count(number))],
    }
    text = "\n".join(kept[data.draw(st.sampled_from([*kept]))])
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    check(data.draw(st.sampled_from([text, text[first:last], text[:first] + text[last:]])))


SIZE = 64 * 1024
HOSTILE = [
    " " * SIZE,
    "  " * (SIZE // 2) + "|",
    "\n" * SIZE,
    "|" * SIZE,
    "a." * (SIZE // 2),
    "a: " * (SIZE // 3),
    '  File "' * (SIZE // 8),
    '  File "' + '", line 1' * (SIZE // 10),
    '  File "' + '", line 1, in ' * (SIZE // 14),
    '  File "", line ' + "1" * SIZE,
    '  File "", line 1, in x\n' * (SIZE // 24),
    '  File "", line 1, in x\n' + "  [Previous line repeated 3 more times]\n" * (SIZE // 40),
    "Traceback (most recent call last):\n" * (SIZE // 35),
    "  [… 5 characters left out …]\n" * (SIZE // 30),
    "  [… 5 characters left out …]\n\n  | \n" * (SIZE // 36),
    'RemoteTraceback: \n"""\n' * (SIZE // 21),
    '"""\n' * (SIZE // 4),
    "E: \n\nThe above exception was the direct cause of the following exception:\n\n" * (SIZE // 75),
    "  +-+---------------- 1 ----------------\n" * (SIZE // 40),
    "".join(f"{'  ' * depth}+-+---------------- 1 ----------------\n" for depth in range(1, 230)),
    "  +-+---------------- 1 ----------------\n" + "    +---------------- 2 ----------------\n    | E\n" * (SIZE // 50),
    "  +-" + "-" * SIZE,
    "    " + "~^" * (SIZE // 2),
    "UnpickleableExceptionWrapper: " + "a." * (SIZE // 2),
    "\r\n" * (SIZE // 2),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_takes_milliseconds(text: str) -> None:
    """Less than 50 on a laptop; the limit leaves room for a busy machine and none for the square of the length."""
    begun = time.process_time()
    check(text)
    assert time.process_time() - begun < 0.5
