"""Which failures are told, and when two are the same."""

from __future__ import annotations

import itertools
import re
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout_signals import _failures
from celery_lookout_signals._failures import (
    BURST,
    PER_SECOND,
    SAME_KIND_BURST,
    TRACEBACK_LIMIT,
    Limiter,
    class_name,
    fingerprint,
    shortened,
)

# -- fingerprints


def traceback_of(source: str, path: str = "/app/shop/tasks.py") -> str:
    """Return the traceback of running *source* as the module *path*."""
    try:
        exec(compile(source, path, "exec"), {})  # tracebacks of modules that are not there
    except Exception:  # noqa: BLE001  # any
        return traceback.format_exc()
    pytest.fail("nothing was raised")


def resize(message: str, *, name: str = "resize", above: int = 0, kind: str = "ValueError") -> str:
    return "\n" * above + f"def {name}(x):\n    raise {kind}({message!r})\n{name}(1)\n"


ONE = fingerprint("shop.resize", "ValueError", traceback_of(resize("no pixels")))


@pytest.mark.parametrize(
    "same",
    [
        pytest.param(traceback_of(resize("other pixels")), id="another message"),
        pytest.param(traceback_of(resize("no pixels", above=40)), id="another line"),
        pytest.param(traceback_of(resize("no pixels"), "/srv/release-42/shop/tasks.py"), id="another folder"),
    ],
)
def test_failures_at_the_same_place_have_one_fingerprint(same: str) -> None:
    assert fingerprint("shop.resize", "ValueError", same) == ONE


def test_failures_of_other_kinds_or_places_have_others() -> None:
    same = traceback_of(resize("no pixels"))
    found = [
        ONE,
        fingerprint("shop.shrink", "ValueError", same),
        fingerprint("shop.resize", "KeyError", same),
        fingerprint("shop.resize", "ValueError", traceback_of(resize("no pixels", name="shrink"))),
        fingerprint("shop.resize", "ValueError", traceback_of(resize("no pixels"), "/app/shop/models.py")),
        fingerprint("shop.resize", "ValueError", ""),
    ]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch("[0-9a-f]{16}", text) for text in found)


def test_only_the_innermost_frames_count() -> None:
    """A recursion of any depth is one kind of failure."""

    def recursion(depth: int) -> str:
        return traceback_of(f"def down(n):\n    if not n: raise ValueError\n    down(n - 1)\ndown({depth})\n")

    assert fingerprint("t", "ValueError", recursion(10)) == fingerprint("t", "ValueError", recursion(50))


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_a_fingerprint_is_made_of_any_text(task: str, exception: str, text: str) -> None:
    assert fingerprint(task, exception, text) == fingerprint(task, exception, text)


class Outer:
    class Boom(Exception):
        pass


def test_a_class_is_named_as_python_prints_it() -> None:
    for error in (ValueError("x"), Outer.Boom("x"), KeyboardInterrupt()):
        last = traceback.format_exception_only(error)[-1]
        assert class_name(error) == last.strip().partition(":")[0]


# -- shortened tracebacks


@pytest.mark.parametrize("character", ["x", "é", "\N{SNAKE}"])
@pytest.mark.parametrize("excess", [-1, 0, 1, 2, 64, 10**6])
def test_of_a_long_traceback_the_middle_goes(character: str, excess: int) -> None:
    """No character is cut in two, and nothing is said of one that fits."""
    text = "a" * ((TRACEBACK_LIMIT + excess) % len(character.encode()))
    text += character * ((TRACEBACK_LIMIT + excess) // len(character.encode()))
    assert len(text.encode()) == TRACEBACK_LIMIT + excess
    short = shortened(text)
    if excess <= 0:
        assert short == text
        return
    assert TRACEBACK_LIMIT - 64 <= len(short.encode()) <= TRACEBACK_LIMIT
    beginning, end = re.split(r"\n  \[… \d+ characters left out …\]\n", short)
    assert text.startswith(beginning)
    assert text.endswith(end)
    assert abs(len(beginning) - len(end)) <= 4


def test_the_note_says_how_much_is_left_out() -> None:
    text = "x" * 20_000
    short = shortened(text)
    found = re.search(r"… (\d+) characters", short)
    assert found is not None
    assert int(found[1]) == len(text) - short.count("x")


@pytest.mark.parametrize("arguments", ["('hunter2',) kwargs:{}", "(<Card\nhunter2\n\n>,) kwargs:{'pin': <\n1234>}"])
@pytest.mark.parametrize(
    "after",
    [
        "",
        "\n\nThe above exception was the direct cause of the following exception:\n\nTraceback (most …",
        "\n\nDuring handling of the above exception, another exception occurred:\n\nTraceback (most …",
    ],
)
def test_arguments_are_left_away_however_many_lines_they_have(arguments: str, after: str) -> None:
    before = "celery.exceptions.MaxRetriesExceededError: Can't retry shop.mail[1c2d]"
    assert shortened(f"{before} args:{arguments}{after}") == before + after


def test_a_traceback_has_at_most_16_kib() -> None:
    assert len(shortened("é" * 20_000).encode()) <= 16 * 1024


# -- the limiter


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_failures, "time", clock)
    return clock


def test_of_one_kind_some_are_told_and_then_one_a_second(clock: Clock) -> None:
    limiter = Limiter()
    assert [limiter.admits("task", "ValueError") for _ in range(9)] == [True] * SAME_KIND_BURST + [False] * 4
    began, told = clock.now, []
    for step in range(450):
        clock.now = began + step / 100
        if limiter.admits("task", "ValueError"):
            told.append(clock.now)
    assert len(told) == 4
    assert all(later - earlier == pytest.approx(1.0, abs=0.02) for earlier, later in itertools.pairwise(told))
    clock.now += 3600
    assert sum(limiter.admits("task", "ValueError") for _ in range(9)) == SAME_KIND_BURST


def test_kinds_are_told_apart(clock: Clock) -> None:
    limiter = Limiter()
    kinds = [("task", "ValueError"), ("task", "KeyError"), ("other", "ValueError")]
    assert [limiter.admits(*kind) for kind in kinds * 6] == [True] * 3 * SAME_KIND_BURST + [False] * 3


def test_of_many_kinds_few_are_told(clock: Clock) -> None:
    limiter = Limiter()
    for count in (BURST, 2 * PER_SECOND, 2 * PER_SECOND):
        admitted = [limiter.admits(f"task{number}", "ValueError") for number in range(100)]
        assert admitted == [True] * count + [False] * (100 - count)
        clock.now += 2


def test_what_the_limiter_remembers_is_bounded(clock: Clock) -> None:
    limiter = Limiter()
    for number in range(10_000):
        clock.now += 0.01
        limiter.admits(f"task{number}", "ValueError")
        assert len(limiter._kinds) <= 2 * BURST
