"""The arithmetic of totals: whatever comes twice, late or never, the sum is what the totals span."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lookout.state.boots import Counted, rise

pairs = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: (min(pair), max(pair)))


def test_an_unknown_total_rises_by_what_was_added_since_it_was_last_sent() -> None:
    counted: Counted = {}
    assert rise(counted, "started", 40, 42) == 2
    assert rise(counted, "failed", 0, 1) == 1


@pytest.mark.parametrize(
    ("pair", "amount"),
    [
        pytest.param((42, 45), 3, id="the next"),
        pytest.param((44, 45), 3, id="the next but one: what was lost is made good"),
        pytest.param((40, 42), 0, id="the same again"),
        pytest.param((41, 42), 0, id="within what is known"),
        pytest.param((38, 40), 2, id="the one before, late"),
        pytest.param((30, 31), 10, id="one from before, and what was lost in between"),
        pytest.param((30, 50), 18, id="all of it at once"),
    ],
)
def test_a_known_total_rises_by_what_lies_outside_of_it(pair: tuple[int, int], amount: int) -> None:
    counted: Counted = {"started": (40, 42)}
    assert rise(counted, "started", *pair) == amount


@given(st.lists(pairs, min_size=1), st.randoms(use_true_random=False))
def test_in_any_order_and_number_they_add_up_to_what_they_span(
    told: list[tuple[int, int]], chance: random.Random
) -> None:
    again = [*told, *chance.sample(told, len(told) // 2)]
    chance.shuffle(again)
    counted: Counted = {}
    rises = [rise(counted, "started", before, now) for before, now in again]
    assert all(amount >= 0 for amount in rises)
    assert sum(rises) == max(now for _, now in told) - min(before for before, _ in told)


@given(st.lists(pairs, min_size=2), st.integers(min_value=1))
def test_two_that_read_one_after_the_other_count_nothing_twice(told: list[tuple[int, int]], cut: int) -> None:
    """The second begins where the first stopped, and knows nothing of it."""
    history = [(before, before + now) for before, now in zip([0, *_sums(told)], (n for _, n in told), strict=False)]
    cut %= len(history)
    first: Counted = {}
    second: Counted = {}
    counted = sum(rise(first, "started", *pair) for pair in history[:cut])
    counted += sum(rise(second, "started", *pair) for pair in history[cut:])
    assert counted == history[-1][1]


def _sums(told: list[tuple[int, int]]) -> list[int]:
    total = 0
    return [total := total + number for _, number in told]
