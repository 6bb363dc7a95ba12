"""Allow, deny and rename: what a value of a label is shown as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lookout.errors import SettingsError
from celery_lookout.metrics.labels import LONGEST_RENAMED, LabelRules, Rename
from celery_lookout.metrics.limits import REMEMBERED, UNKNOWN, LabelBudget
from celery_lookout.metrics.registry import OTHER


def rules(*renames: str, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> LabelRules:
    return LabelRules(allow, deny, tuple(Rename.parse(text, "label.task-rename") for text in renames))


@pytest.mark.parametrize(
    ("rename", "value", "shown"),
    [
        (r"celery@(.+)-[a-z0-9]+-[a-z0-9]{5}=$1", "celery@web-7d9f8b6c5d-x2x9k", "web"),
        (r"celery@(.+)-[a-z0-9]+-[a-z0-9]{5}=$1", "celery@web", "celery@web"),
        ("b=x", "abc", "abc"),  # the whole value must match
        ("report_\\d+=report", "report_20260101", "report"),
        ("(?P<app>\\w+)\\.v\\d+\\.(\\w+)=${app}.$2", "shop.v2.pay", "shop.pay"),
        ("(a)b=${1}0", "ab", "a0"),
        ("a=\\g<0>\\1", "a", "\\g<0>\\1"),  # a backslash means nothing in a replacement
        ("a=$$1", "a", "$1"),
        ("(?:a=b)=c", "a=b", "c"),  # the last = divides
        ("(a)|b=$1", "b", "b"),  # nothing would be left
        ("(.*)=x", "a" * (LONGEST_RENAMED + 1), "a" * (LONGEST_RENAMED + 1)),
    ],
)
def test_renaming(rename: str, value: str, shown: str) -> None:
    assert rules(rename).shown(value) == shown


def test_renames_follow_each_other_and_the_lists_see_the_new_name() -> None:
    both = rules("job-(.*)=$1", "(.*)-[0-9]+=$1", allow=("mail", "job-*"), deny=("job-*",))
    assert both.shown("job-mail-17") == "mail"
    assert both.shown("mail-3") == "mail"
    assert both.shown("job-job-1") is None  # shown as "job", which no list allows
    assert both.shown("other") is None


def test_deny_wins_over_allow_and_without_allow_everything_is_allowed() -> None:
    assert rules(allow=("shop.*",), deny=("shop.secret.*",)).shown("shop.secret.a") is None
    assert rules(allow=("shop.*",), deny=("shop.secret.*",)).shown("shop.a") == "shop.a"
    assert rules(deny=("noise",)).shown("shop.a") == "shop.a"
    assert rules(allow=("Shop.*",)).shown("shop.a") is None  # case matters


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pods", "write for example"),
        ("=x", "write for example"),
        ("(a=b", "missing \\)"),
        ("(a)=$2", "no group 2"),
        ("(a)=${name}", "no group name"),
        ("(a)=${7}", "no group 7"),
        ("(a)=$x", "a \\$ stands for a group"),
        ("(a)=cost$", "a \\$ stands for a group"),
        ("(a+)+b=x", "must not hold a repetition"),
        ("(a|a)*b=x", "must not hold a repetition"),
        ("(?:(a+)b)*=x", "must not hold a repetition"),
        ("((?:a|b)c){2,}=x", "must not hold a repetition"),
        ("(?P<x>\\w*)+=x", "must not hold a repetition"),
        ("a{99999999999}=x", "is not PATTERN=REPLACEMENT"),
        ("(" * 5000 + ")" * 5000 + "=x", "is not PATTERN=REPLACEMENT"),
    ],
)
def test_what_is_no_renaming_is_refused_by_the_options_name(text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"^--label.worker-rename .*{why}"):
        Rename.parse(text, "label.worker-rename")


@pytest.mark.parametrize(
    "pattern", [r"[(+*]+a", r"\(a+\)+", "(a|b)-(c|d)", "(a+)(b+)?", "(?:abc)+", "((a)b)*", "[]+]*"]
)
def test_harmless_patterns_are_taken(pattern: str) -> None:
    Rename.parse(f"{pattern}=x", "label.task-rename")


def test_a_pattern_that_another_python_may_read_otherwise_is_refused() -> None:
    with pytest.raises(SettingsError, match="nested set"):
        Rename.parse("[[a]=x", "label.task-rename")


@given(st.text(st.sampled_from("ab()[]{}*+?|\\=$1.,^:"), max_size=12))
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        rename = Rename.parse(text, "label.task-rename")
    except SettingsError:
        return
    for value in ("", "a", "abab", "a" * 30 + "!"):
        assert isinstance(rename.apply(value), str)


def test_a_denied_value_needs_no_place_and_is_counted_each_time() -> None:
    dropped: list[str] = []
    budget = LabelBudget(1, rules(deny=("noise*",)), dropped.append)
    assert [budget.admit(value) for value in ("noise1", "noise1", "a", "noise2", "b")] == [
        OTHER,
        OTHER,
        "a",
        OTHER,
        OTHER,
    ]
    assert dropped == ["denied", "denied", "denied", "limit"]


def test_values_that_share_a_name_need_one_place() -> None:
    budget = LabelBudget(1, rules("job-\\d+=job"))
    assert {budget.admit(f"job-{number}") for number in range(100)} == {"job"}
    assert budget.admit("mail") == OTHER


def test_what_is_not_known_is_no_name_and_always_shown_as_that() -> None:
    dropped: list[str] = []
    budget = LabelBudget(0, rules("(.*)=x$1", allow=("shop.*",)), dropped.append)
    assert [budget.admit(UNKNOWN), budget.admit(OTHER)] == [UNKNOWN, OTHER]
    assert dropped == []


def test_any_number_of_values_is_remembered_within_a_bound() -> None:
    budget = LabelBudget(1, rules("job-\\d+=job"))
    for number in range(3 * REMEMBERED):
        assert budget.admit(f"job-{number}") == "job"
    assert len(budget._known) <= REMEMBERED + 1
