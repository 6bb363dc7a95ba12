"""Exemplars in OpenMetrics text, read with prometheus-client's parser, which checks them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lookout.metrics.exemplars import LABELS_LIMIT, Exemplar, exemplar
from celery_lookout.metrics.registry import Registry, Scope
from tests.clusters import families

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TASK = "aceed971-f94d-464c-8f2a-a34b0b0025c0"
BOUNDS = (0.1, 1.0, 2.5)

#: Characters of a task id that still fit beside a trace id.
ROOM = 81


@pytest.fixture
def registry() -> Registry:
    return Registry()


def make(trace_id: str = TRACE, task_id: str = TASK, value: float = 0.42, at: float = 1795533555.41) -> Exemplar:
    made = exemplar(trace_id, task_id, value, at)
    assert made is not None
    return made


def shown(registry: Registry) -> dict[str, tuple[dict[str, str], float, float]]:
    """Return the exemplars of a scrape, by series: their labels, value and time."""
    text = registry.render(openmetrics=True) + "# EOF\n"
    samples: list[Any] = [sample for family in families(text, openmetrics=True) for sample in family.samples]
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): (
            sample.exemplar.labels, sample.exemplar.value, float(sample.exemplar.timestamp)
        )
        for sample in samples
        if sample.exemplar is not None
    }  # fmt: skip


def test_a_counter_shows_its_exemplar_in_openmetrics_only(registry: Registry) -> None:
    counter = Scope(registry).counter("failed_total", "Failures.", ("task",)).child("mail")
    counter.inc(3)
    plain = registry.render()
    counter.exemplify(make(value=1))
    assert registry.render() == plain
    assert registry.render(openmetrics=True).splitlines()[-1] == (
        f'failed_total{{task="mail"}} 3 # {{trace_id="{TRACE}",task_id="{TASK}"}} 1.0 1795533555.410'
    )
    assert shown(registry) == {"failed_total mail": ({"trace_id": TRACE, "task_id": TASK}, 1.0, 1795533555.41)}


def test_a_histogram_shows_them_with_the_buckets_of_their_values(registry: Registry) -> None:
    histogram = Scope(registry).histogram("took_seconds", "x", ("task",), BOUNDS).child("mail")
    for value in (0.1, 0.5, 99.0):
        histogram.observe(value)
    plain = registry.render()
    assert shown(registry) == {}
    for value in (0.1, 0.5, 99.0):
        histogram.exemplify(make(value=value))
    assert registry.render() == plain
    labels = {"trace_id": TRACE, "task_id": TASK}
    assert shown(registry) == {
        "took_seconds_bucket mail 0.1": (labels, 0.1, 1795533555.41),
        "took_seconds_bucket mail 1.0": (labels, 0.5, 1795533555.41),
        "took_seconds_bucket mail +Inf": (labels, 99.0, 1795533555.41),
    }
    # They stay while the numbers move on.
    histogram.observe(0.2)
    assert len(shown(registry)) == 3


def test_the_newest_of_a_series_is_kept(registry: Registry) -> None:
    """Prometheus refuses those that are older than what it has, or just as old."""
    counter = Scope(registry).counter("failed_total", "x").child()
    histogram = Scope(registry).histogram("took_seconds", "x", (), BOUNDS).child()
    for at, value in ((20.0, 0.2), (10.0, 0.3), (20.0, 0.4), (20.0004, 0.5), (30.0, 5.0)):
        counter.exemplify(make(at=at, value=value))
        histogram.exemplify(make(at=at, value=value))
    assert {series: (value, at) for series, (_, value, at) in shown(registry).items()} == {
        "failed_total": (5.0, 30.0),
        "took_seconds_bucket 1.0": (0.2, 20.0),
        "took_seconds_bucket +Inf": (5.0, 30.0),
    }


def test_series_without_exemplars_keep_their_text(registry: Registry) -> None:
    scope = Scope(registry)
    for child in (scope.counter("made_total", "x").child(), scope.histogram("took_seconds", "x", (), BOUNDS).child()):
        assert child.exemplar is None
        assert child.openmetrics() is child.text()


def test_a_gauge_shows_none_in_any_format(registry: Registry) -> None:
    gauge = Scope(registry).gauge("level", "x").child()
    gauge.exemplify(make())
    assert "#" not in registry.render(openmetrics=True).splitlines()[-1]


@pytest.mark.parametrize(
    "trace_id",
    [
        "",
        "0" * 32,
        TRACE.upper(),
        TRACE[:-1],
        TRACE + "0",
        TRACE + "\n",
        " " + TRACE,
        "g" * 32,
        "\uff14" * 32,
        '"' * 32,
    ],
)
def test_what_is_no_trace_id_makes_none(trace_id: str) -> None:
    assert exemplar(trace_id, TASK, 1.0, 1.0) is None


@pytest.mark.parametrize(("length", "fits"), [(0, False), (1, True), (ROOM, True), (ROOM + 1, False), (10_000, False)])
def test_a_task_id_that_does_not_fit_is_left_out(length: int, fits: bool, registry: Registry) -> None:
    Scope(registry).counter("failed_total", "x").child().exemplify(make(task_id="ü" * length))
    [(labels, _, _)] = shown(registry).values()
    assert labels == ({"trace_id": TRACE, "task_id": "ü" * length} if fits else {"trace_id": TRACE})


@pytest.mark.parametrize(
    ("task_id", "seen"),
    [("a\\b", "a\\b"), ("a\nb", "a\nb"), ("a\tb", "a\ufffdb"), ("a # {b}", "a # {b}"), ('a"b', None)],
)
def test_a_task_id_is_escaped_or_left_out(task_id: str, seen: str | None, registry: Registry) -> None:
    Scope(registry).counter("failed_total", "x").child().exemplify(make(task_id=task_id))
    [(labels, _, _)] = shown(registry).values()
    assert labels.get("task_id") == seen


@given(
    st.text(st.characters() | st.sampled_from('\\"\n\r\t\0\x7f\ud800{},=# '), max_size=ROOM + 2),
    st.floats(0, 1e12),
    st.floats(0, 1e11),
)
def test_any_task_id_is_readable_and_within_the_limit(task_id: str, value: float, at: float) -> None:
    registry = Registry()
    Scope(registry).counter("failed_total", "x", ("task",)).child('odd"} # {').exemplify(
        make(task_id=task_id, value=value, at=at)
    )
    [(labels, seen_value, seen_at)] = shown(registry).values()
    assert labels["trace_id"] == TRACE
    assert len(labels.get("task_id", "")) == (len(task_id) if len(task_id) <= ROOM and '"' not in task_id else 0)
    assert sum(len(name) + len(label) for name, label in labels.items()) <= LABELS_LIMIT
    assert (seen_value, seen_at) == (value, round(at, 3))


def test_a_series_is_found_without_being_made(registry: Registry) -> None:
    family = Scope(registry, "shop").counter("failed_total", "x", ("task",))
    assert family.find("mail") is None
    child = family.child("mail")
    assert family.find("mail") is child
    assert registry.series == 1
