"""The class behind a failure, as Celery 5.3 to 5.7 write it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lookout.state.exceptions import UNKNOWN, exception_class

FRAMES = 'Traceback (most recent call last):\n  File "/app/a.py", line 5, in run\n    return f()\n           ^^^\n'
WRAPPED = "ExceptionWithTraceback()"


@pytest.mark.parametrize(
    ("exception", "traceback", "expected"),
    [
        ("ValueError('x')", None, "ValueError"),
        ("ValueError()", FRAMES + "KeyError: other\n", "ValueError"),
        ("shop.errors.OutOfStock(3)", None, "OutOfStock"),
        ("NotRegistered('nope')", None, "NotRegistered"),
        (WRAPPED, FRAMES + "billiard.exceptions.TimeLimitExceeded: TimeLimitExceeded(1,)\n", "TimeLimitExceeded"),
        (
            WRAPPED,
            FRAMES + "WorkerLostError: Worker exited prematurely: signal 9 (SIGKILL) Job: 5.\n",
            "WorkerLostError",
        ),
        (WRAPPED, FRAMES + "ValueError: first line\nsecond: line\n\tthird\n", "ValueError"),
        (WRAPPED, FRAMES + "ValueError\n", "ValueError"),
        ("shop.Unpicklable('x')", FRAMES + "celery.exceptions.UnpickleableExceptionWrapper: x\n", "Unpicklable"),
        ("UnpickleableExceptionWrapper('a')", FRAMES + "shop.Unpicklable: x\n", "Unpicklable"),
        ("reject requeue=False: not mine", FRAMES + "celery.exceptions.Reject: ('not mine', False)\n", "Reject"),
        ("<Oops object at 0x7f>", FRAMES + "shop.Oops: x\n", "Oops"),
        (WRAPPED, None, UNKNOWN),
        (WRAPPED, FRAMES + "billiard.ExceptionWithTraceback: x\n", UNKNOWN),
        (WRAPPED, "no traceback at all", UNKNOWN),
        (None, None, UNKNOWN),
        ("", "", UNKNOWN),
        ("something odd", None, UNKNOWN),
        ("Ünïcödé('x')", None, "Ünïcödé"),
        (WRAPPED, FRAMES + "läden.Überlauf: x\n", "Überlauf"),
        ("3.Oops('x')", None, UNKNOWN),
        ("E" * 300 + "()", None, "E" * 100),
    ],
)
def test_class_of(exception: str | None, traceback: str | None, expected: str) -> None:
    assert exception_class(exception, traceback) == expected


@given(
    st.none() | st.text(max_size=80), st.none() | st.text(max_size=200) | st.text(alphabet='\n "FileT:.a(', max_size=60)
)
def test_any_text_gives_a_name_fit_for_a_label(exception: str | None, traceback: str | None) -> None:
    name = exception_class(exception, traceback)
    assert re.fullmatch(r"\w{1,100}", name)


def test_long_texts_are_searched_in_no_time() -> None:
    """A mebibyte without a class in it, the worst of it for the two expressions."""
    assert exception_class("a." * 2**19, '\n  File "' * 2**16) == UNKNOWN
