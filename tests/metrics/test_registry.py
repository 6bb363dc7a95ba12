"""The text of our own registry, held against prometheus-client's."""

from __future__ import annotations

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest

from celery_lookout.metrics.limits import LabelBudget
from celery_lookout.metrics.registry import OTHER, Registry, Scope
from tests.clusters import families

BOUNDS = (0.1, 1.0, 2.5, 10.0)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_text_of_a_counter_and_a_gauge(registry: Registry) -> None:
    scope = Scope(registry)
    scope.counter("made_total", "Things made.", ("kind", "size")).child("toy", "big").inc(3)
    scope.gauge("level", "How high.").child().set(0.5)
    assert registry.render() == (
        "# HELP made_total Things made.\n"
        "# TYPE made_total counter\n"
        'made_total{kind="toy",size="big"} 3\n'
        "# HELP level How high.\n"
        "# TYPE level gauge\n"
        "level 0.5\n"
    )


def test_openmetrics_names_counters_without_total(registry: Registry) -> None:
    Scope(registry).counter("made_total", "Things made.").child().inc()
    assert registry.render(openmetrics=True) == "# HELP made Things made.\n# TYPE made counter\nmade_total 1\n"


def test_families_without_series_are_not_shown(registry: Registry) -> None:
    Scope(registry).counter("made_total", "Things made.", ("kind",))
    assert registry.render() == ""


def test_help_is_escaped(registry: Registry) -> None:
    Scope(registry).gauge("level", "One\\two\nthree").child()
    assert registry.render().startswith("# HELP level One\\\\two\\nthree\n")
    (family,) = families(registry.render())
    assert family.documentation == "One\\two\nthree"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ('say "hi"', 'say \\"hi\\"'),
        ("back\\slash", "back\\\\slash"),
        ("two\nlines", "two\\nlines"),
        ("\\n is no newline", "\\\\n is no newline"),
        (
            "bell\a, escape\x1b[31m, tab\t, nul\0, del\x7f",
            "bell\ufffd, escape\ufffd[31m, tab\ufffd, nul\ufffd, del\ufffd",
        ),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("50% of %s and %d", "50% of %s and %d"),
        ("{braces}", "{braces}"),
        ("Grüße ✓", "Grüße ✓"),
        ("", ""),
    ],
)
def test_label_values_are_escaped(value: str, shown: str, registry: Registry) -> None:
    scope = Scope(registry)
    scope.counter("made_total", "x", ("kind",)).child(value).inc()
    scope.histogram("took_seconds", "x", ("kind",), (1.0,)).child(value).observe(0.5)
    text = registry.render()
    assert f'made_total{{kind="{shown}"}} 1\n' in text
    assert f'took_seconds_bucket{{kind="{shown}",le="1.0"}} 1\n' in text
    assert f'took_seconds_sum{{kind="{shown}"}} 0.5\n' in text
    text.encode()


#: What the parsers give back of a label: control characters and surrogates are replaced on the way.
def _readable(value: str) -> str:
    torn = {*map(chr, range(32)), *map(chr, range(127, 160)), "\u2028", "\u2029"} - {"\n"}
    kept = "".join("\ufffd" if letter in torn else letter for letter in value)
    return kept.encode("utf-8", "replace").decode()


@given(st.text(st.characters() | st.sampled_from('\\"\n\r\t\0\x7f\x85\u2028\ud800{},= '), max_size=30))
def test_both_parsers_give_any_label_value_back(value: str) -> None:
    registry = Registry()
    scope = Scope(registry)
    scope.counter("made_total", "x", ("kind",)).child(value).inc()
    scope.histogram("took_seconds", "x", ("kind",), BOUNDS).child(value).observe(1)
    for openmetrics in (False, True):
        text = registry.render(openmetrics=openmetrics) + "# EOF\n" * openmetrics
        samples = [sample for family in families(text, openmetrics=openmetrics) for sample in family.samples]
        assert {sample.labels["kind"] for sample in samples} == {_readable(value)}
        assert len(samples) == 1 + len(BOUNDS) + 3


def test_a_label_value_of_a_megabyte_is_shown_whole(registry: Registry) -> None:
    Scope(registry).gauge("level", "x", ("kind",)).child('"' * 2**20)
    assert len(registry.render()) > 2**21


@given(st.lists(st.floats(0, 100) | st.sampled_from(BOUNDS), max_size=30), st.booleans())
def test_histogram_text_is_what_prometheus_client_writes(observations: list[float], openmetrics: bool) -> None:
    theirs = prometheus_client.CollectorRegistry()
    reference = prometheus_client.Histogram("took_seconds", "How long.", ["kind"], buckets=BOUNDS, registry=theirs)
    registry = Registry()
    ours = Scope(registry).histogram("took_seconds", "How long.", ("kind",), BOUNDS)
    child, other = ours.child("toy"), reference.labels("toy")
    for observation in observations:
        child.observe(observation)
        other.observe(observation)
    expected = [
        (sample.name, sample.labels, sample.value)
        for family in families(generate_latest(theirs).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    text = registry.render(openmetrics=openmetrics) + "# EOF\n" * openmetrics
    (family,) = families(text, openmetrics=openmetrics)
    assert [(sample.name, sample.labels, sample.value) for sample in family.samples] == expected


def test_text_is_kept_until_the_value_changes(registry: Registry) -> None:
    scope = Scope(registry)
    counter = scope.counter("made_total", "x").child()
    gauge = scope.gauge("level", "x").child()
    histogram = scope.histogram("took_seconds", "x", (), BOUNDS).child()
    for child in (counter, gauge, histogram):
        assert child.text() is child.text()
    kept = gauge.text()
    gauge.set(0)
    assert gauge.text() is kept
    counter.inc(2)
    gauge.set(-3)
    histogram.observe(1)
    assert counter.text() == "made_total 2\n"
    assert gauge.text() == "level -3\n"
    assert "took_seconds_count 1\n" in histogram.text()


def test_a_removed_series_is_shown_no_more_and_born_again_at_zero(registry: Registry) -> None:
    family = Scope(registry).histogram("took_seconds", "x", ("kind",), BOUNDS)
    family.child("toy").observe(1)
    family.child("tool")
    size = registry.series
    family.remove("toy")
    family.remove("never there")
    assert "toy" not in registry.render()
    assert registry.series == size // 2
    assert family.child("toy").count == 0


def test_series_are_counted_as_prometheus_counts_them(registry: Registry) -> None:
    scope = Scope(registry)
    scope.counter("made_total", "x", ("kind",)).child("toy")
    scope.histogram("took_seconds", "x", (), BOUNDS).child()
    assert registry.series == sum(not line.startswith("#") for line in registry.render().splitlines())


def test_past_the_limit_series_are_dropped_and_counted() -> None:
    registry = Registry(series_limit=3)
    scope = Scope(registry)
    gauge = scope.gauge("level", "x", ("kind",))
    for number in range(5):
        gauge.child(str(number)).set(number + 1)
    scope.histogram("took_seconds", "x", (), BOUNDS).child().observe(1)
    shown = registry.render()
    assert [line for line in shown.splitlines() if line.startswith("level")] == [
        'level{kind="0"} 1',
        'level{kind="1"} 2',
        'level{kind="2"} 3',
    ]
    assert "took_seconds" not in shown.replace('metric="took_seconds"', "")
    assert 'celery_exporter_series_dropped_total{metric="level"} 2\n' in shown
    assert f'celery_exporter_series_dropped_total{{metric="took_seconds"}} {len(BOUNDS) + 3}\n' in shown


def test_room_is_given_back_when_a_series_goes() -> None:
    registry = Registry(series_limit=1)
    gauge = Scope(registry).gauge("level", "x", ("kind",))
    gauge.child("first")
    gauge.remove("first")
    gauge.child("second").set(5)
    assert 'level{kind="second"} 5\n' in registry.render()


def test_a_dropped_series_can_be_used_like_any_other() -> None:
    registry = Registry(series_limit=0)
    counter = Scope(registry).counter("made_total", "x").child()
    counter.inc(2)
    assert counter.value == 2
    assert "made_total 2" not in registry.render()


def test_each_broker_has_its_own_series_in_one_family(registry: Registry) -> None:
    for broker, count in (("shop", 1), ("mail", 2)):
        Scope(registry, broker).counter("made_total", "x", ("kind",)).child("toy").inc(count)
    assert registry.render() == (
        "# HELP made_total x\n# TYPE made_total counter\n"
        'made_total{kind="toy",broker="shop"} 1\nmade_total{kind="toy",broker="mail"} 2\n'
    )


def test_one_name_has_one_declaration(registry: Registry) -> None:
    scope = Scope(registry)
    scope.gauge("level", "x", ("kind",))
    with pytest.raises(ValueError, match="level is declared twice"):
        scope.gauge("level", "x", ("size",))
    with pytest.raises(ValueError, match="level is declared twice"):
        scope.counter("level", "x", ("kind",))


def test_a_child_needs_every_label(registry: Registry) -> None:
    with pytest.raises(ValueError, match="level"):
        Scope(registry).gauge("level", "x", ("kind",)).child()


def test_rise_to_shows_a_count_that_somebody_else_keeps(registry: Registry) -> None:
    counter = Scope(registry).counter("made_total", "x").child()
    counter.rise_to(7)
    assert counter.text() == "made_total 7\n"
    counter.rise_to(2)
    assert counter.text() == "made_total 2\n"


def test_budget_admits_the_first_values_and_counts_the_others() -> None:
    dropped: list[str] = []
    budget = LabelBudget(2, dropped=dropped.append)
    assert [budget.admit(value) for value in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]
    assert dropped == ["limit", "limit"]


def test_budget_keeps_one_copy_of_each_string() -> None:
    budget = LabelBudget(2)
    first = budget.admit(str(b"long name", "ascii"))
    assert budget.admit(str(b"long name", "ascii")) is first


def test_values_that_would_look_the_same_are_one_series(registry: Registry) -> None:
    """Of two lines with the same labels Prometheus drops one, and promtool refuses the page."""
    made = Scope(registry).counter("made_total", "x", ("kind",))
    made.child("a\x01").inc()
    made.child("a\x02").inc()
    assert registry.render().splitlines()[2:] == ['made_total{kind="a\ufffd"} 2']
    assert made.find("a\x02") is made.child("a\x01")
    made.remove("a\x03")
    assert registry.render() == ""


def test_a_budget_admits_what_can_be_shown() -> None:
    budget = LabelBudget(2)
    assert {budget.admit(name) for name in ("a\x01", "a\x02", "a\ufffd")} == {"a\ufffd"}
    assert budget.admit("b") == "b"
    assert budget.admit("c") == OTHER
