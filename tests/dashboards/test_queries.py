"""
Every query is sound before anything runs it.

The checks are those of Grafana's dashboard-linter that matter here, and a few that only this project can make: each
metric and label is one that the sidecar has, and two sidecars that tell the same double no number.
"""

from __future__ import annotations

import re
from typing import Any

import promql_parser
import pytest

from dashboards.promql import IDENTITY, PLAIN, declared, labels_of
from tests.dashboards.boards import LOADED, VALUES, children, filled, grouping, queries, selectors, variables, walk

#: Made by Prometheus: alerts as series.
ALERTS = {"ALERTS": {"alertname", "alertstate", "component", "severity", "job", "queue", "task", "worker"}}

#: What a scrape configuration adds.
SCRAPED = {"job", "instance", "cluster", "namespace"}

every_board = pytest.mark.parametrize("file", LOADED)


def marked() -> list[str]:
    """Return the queries of annotations."""
    marks = [mark for board in LOADED.values() for mark in board["annotations"]["list"]]
    return sorted({mark["expr"] for mark in marks if "expr" in mark})


def offered() -> list[str]:
    """Return the selectors of ``label_values(…)`` in all variables."""
    texts = {one["query"] for board in LOADED.values() for one in variables(board) if one["type"] == "query"}
    found = [re.fullmatch(r"label_values\((.*), (\w+)\)", text) for text in sorted(texts)]
    assert all(found)
    return [match[1] for match in found if match]


def labels(metric: str) -> set[str]:
    """Return every label that series of *metric* can have in Prometheus. Raises LookupError when there is none."""
    return ALERTS.get(metric) or {*labels_of(metric), *SCRAPED}


def is_counter(metric: str) -> bool:
    family = declared().get(metric)
    if family is not None:
        return bool(family.kind == "counter")
    return metric.endswith(("_bucket", "_count", "_sum", "_total"))


def test_there_are_queries() -> None:
    assert sum(len(queries(file)) for file in LOADED) > 150
    assert len(marked()) == 3
    assert len(offered()) > 4


@pytest.mark.parametrize("expr", [*marked(), *offered()])
def test_annotations_and_variables_ask_for_what_exists(expr: str) -> None:
    for selected in selectors(expr):
        assert selected.matchers.keys() <= labels(selected.metric)


@every_board
def test_queries_ask_for_what_exists(file: str) -> None:
    for query in queries(file):
        for selected in selectors(query.expr):
            known = labels(selected.metric)
            assert selected.matchers.keys() <= known, query
            for aggregate in selected.aggregates:
                assert set(grouping(aggregate)) <= known, (query, "grouped by a label that is not there")


def test_what_does_not_exist_is_found() -> None:
    with pytest.raises(LookupError):
        labels("celery_task_succeded_total")
    assert "worker" not in labels("celery_task_succeeded_total")
    assert "le" not in labels("celery_task_runtime_seconds_sum")


@every_board
def test_variables_used_exist(file: str) -> None:
    there = {variable["name"] for variable in variables(LOADED[file])}
    for query in queries(file):
        used = set(re.findall(r"\$\{?(\w+)", query.expr))
        assert used <= there | {"__rate_interval", "__range"}, query
        assert used <= VALUES.keys(), "no test puts a value in"


@every_board
def test_queries_follow_the_variables(file: str) -> None:
    """Every selector filters by the job, and by whatever else can be chosen and its series have."""
    chosen = {variable["name"] for variable in variables(LOADED[file]) if variable["type"] == "query"}
    for query in queries(file):
        for name, text in re.findall(r"(\w+)\{([^}]*)\}", query.expr):
            if name in ALERTS:
                assert 'job=~"$job|"' in text, "alerts on what is absent have no job"
                continue
            for label in chosen & labels(name):
                assert f'{label}{"=" if label == "task" else "=~"}"${label}"' in text, (query, label)
        assert all(selected.matchers for selected in selectors(query.expr)), query


@every_board
def test_windows_fit_what_they_are_for(file: str) -> None:
    """What is drawn over time looks back as far as Grafana says; a fixed window is told to whoever reads it."""
    for query in queries(file):
        told = f"{query.panel['title']} {query.panel['description']} {query.target['legendFormat']}"
        for window in re.findall(r"\[([^\]]+)\]", query.expr):
            if window == "$__range":
                assert query.target.get("instant"), (query, "over time each point would have the same window")
            elif window != "$__rate_interval":
                assert re.search(rf"\b{window}\b", told), (query, window)


@every_board
def test_functions_fit_the_kind_of_metric(file: str) -> None:
    rising = {"rate", "increase", "resets"}
    for query in queries(file):
        for selected in selectors(query.expr):
            functions = {node.func.name for node in selected.above if isinstance(node, promql_parser.Call)}
            assert "irate" not in functions, (query, "misses what happens between two points")
            if selected.metric not in ALERTS:
                rises = is_counter(selected.metric)
                assert bool(functions & rising) == rises, (query, "rates are of counters, and counters are rates")


@every_board
def test_denominators_are_never_zero(file: str) -> None:
    for query in queries(file):
        for node, _ in walk(promql_parser.parse(filled(query.expr))):
            if isinstance(node, promql_parser.BinaryExpr) and str(node.op) == "/":
                has_series = any(isinstance(one, promql_parser.VectorSelector) for one, _ in walk(node.rhs))
                assert not has_series or is_above_zero(node.rhs), query


def is_above_zero(node: Any) -> bool:
    """Say whether the expression has no value that is 0: it ends in ``> 0``."""
    while isinstance(node, promql_parser.ParenExpr):
        node = node.expr
    return isinstance(node, promql_parser.BinaryExpr) and str(node.op) == ">" and node.rhs.prettify() == "0"


@every_board
def test_two_sidecars_double_no_number(file: str) -> None:
    """
    What several sidecars tell of one thing is taken once, by ``max``, before anything is added up.

    Only the sidecar's own dashboard tells them apart.
    """
    for query in queries(file):
        for selected in selectors(query.expr):
            *outer, inner = selected.aggregates
            if file == "exporter.json":
                assert "instance" in grouping(inner), query
                continue
            assert not any("instance" in grouping(aggregate) for aggregate in (*outer, inner)), query
            if selected.metric in ALERTS or {str(aggregate.op) for aggregate in (*outer, inner)} == {"max"}:
                continue
            assert str(inner.op) == "max", query
            assert set(grouping(inner)) >= {*IDENTITY, *labels_of(selected.metric)}, (query, "max of what differs")


@every_board
def test_histograms_are_shown_with_their_bounds_and_exemplars(file: str) -> None:
    for query in queries(file):
        if query.panel["type"] == "heatmap":
            assert query.target["exemplar"], query
            assert query.target["format"] == "heatmap", query
            assert query.panel["options"]["yAxis"]["unit"], query
        for node, _ in walk(promql_parser.parse(filled(query.expr))):
            if isinstance(node, promql_parser.Call) and node.func.name == "histogram_quantile":
                [aggregate] = [one for one in children(node) if isinstance(one, promql_parser.AggregateExpr)]
                assert "le" in grouping(aggregate), query


def test_every_metric_is_shown_or_known_to_be_left_out() -> None:
    """A metric that no dashboard shows is one that nobody looks at."""
    shown = {selected.metric for file in LOADED for query in queries(file) for selected in selectors(query.expr)}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown} - PLAIN - ALERTS.keys()
    assert shown <= declared().keys()
    assert declared().keys() - shown == {
        "celery_broker_delayed",  # RabbitMQ with native delayed delivery only
        "celery_queue_priority_length",  # part of celery_queue_length
        "celery_task_ignored_total",  # no outcome
        "celery_task_last_failure_timestamp_seconds",  # failures are seen in their counter
        "celery_task_received_total",  # starts are nearer to the work
        "celery_task_sent_total",  # arrivals are known without it
        "celery_worker_nodes",  # only where workers are renamed
        "celery_worker_main_cpu_seconds_total",  # of the main process alone
    }
