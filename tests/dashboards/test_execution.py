"""
Every query of every panel, asked of a real Prometheus that scrapes a real demo.

Prometheus scrapes the one sidecar under two names, as it would two replicas of it.
"""

from __future__ import annotations

import math
import re
import time
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_lookout.demo.run import WORKERS
from tests.dashboards.boards import LOADED, VALUES, Query, filled, queries, selectors, variables
from tests.demo.test_demo import Demo
from tests.servers.process import wait_until
from tests.servers.prometheus import PrometheusServer

pytestmark = pytest.mark.prometheus

CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: celery-lookout
    static_configs:
      - {{targets: ["{address}"], labels: {{instance: "a:9808"}}}}
      - {{targets: ["{address}"], labels: {{instance: "b:9808"}}}}
"""

#: Some 15 s on an idle machine: tasks have to fail, to retry, to be killed and to leak, and chance has a part in it.
EVERYTHING_SECONDS = 100.0

#: What a healthy demo may be without: only a cgroup has them, and not every machine gives it one with a limit.
MACHINE = {"celery_worker_memory_limit_bytes", "celery_worker_oom_kills_total"}

#: How far one looks back, as the time picker would say.
RANGE_SECONDS = 30


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """A Prometheus that scrapes a demo which just began."""
    with (
        Demo(tmp_path_factory.mktemp("demo")) as demo,
        PrometheusServer(tmp_path_factory.mktemp("prometheus"), CONFIG.format(address=demo.address)) as server,
    ):
        yield server


def ask(prometheus: PrometheusServer, path: str, **parameters: str) -> Any:
    """Return the answer; what Prometheus says against the query fails the test."""
    try:
        return prometheus.api(path, **parameters)
    except urllib.error.HTTPError as error:
        pytest.fail(f"{parameters}: {error.read().decode()}")


def has_data(prometheus: PrometheusServer, query: Query) -> bool:
    """Say whether the panel would show something: for a single task, of any of them."""
    # The history is as short as the test: a week or a day ago was a moment ago.
    expr = re.sub(r"offset 1[wd]", "offset 5s", query.expr)
    tasks = ask(prometheus, "label/task/values") if "$task" in expr else ["any"]
    return any(any(map(math.isfinite, values(prometheus, query, expr, task))) for task in tasks)


def values(prometheus: PrometheusServer, query: Query, expr: str, task: str) -> Iterator[float]:
    text = filled(expr, {**VALUES, "task": task})
    if query.target.get("instant"):
        for series in ask(prometheus, "query", query=text)["result"]:
            yield float(series["value"][1])
        return
    now = time.time()
    span = {"start": str(now - RANGE_SECONDS), "end": str(now), "step": "1"}
    for series in ask(prometheus, "query_range", query=text, **span)["result"]:
        yield from (float(value) for _, value in series["values"])


def is_excused(prometheus: PrometheusServer, query: Query) -> bool:
    """Say whether the query asks for what this machine cannot tell."""
    asked = {selected.metric for selected in selectors(query.expr)} & MACHINE
    return any(not prometheus.query(metric) for metric in asked)


def scrapes(prometheus: PrometheusServer) -> Callable[[], bool]:
    """Return a function that says whether there was a scrape since it last said so."""
    seen = [0.0]

    def is_new() -> bool:
        latest = max((value for _, value in prometheus.query("timestamp(up)")), default=0.0)
        is_later, seen[0] = latest > seen[0], latest
        return is_later

    return is_new


def test_every_panel_shows_something(prometheus: PrometheusServer) -> None:
    """All of it, though not all at the same moment; and no query is refused."""
    waiting = [query for file in LOADED for query in queries(file)]
    is_new = scrapes(prometheus)
    deadline = time.monotonic() + EVERYTHING_SECONDS
    while waiting and time.monotonic() < deadline:
        wait_until(is_new, 20, "no scrape")
        waiting = [query for query in waiting if not has_data(prometheus, query)]
        waiting = [query for query in waiting if not is_excused(prometheus, query)]
    assert waiting == []


def test_choices_and_marks_are_found(prometheus: PrometheusServer) -> None:
    """What a scrape configuration would have to add, and the name of a broker, are not there to choose here."""
    for board in LOADED.values():
        for variable in variables(board):
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", str(variable.get("query")))
            if match:
                found = ask(prometheus, f"label/{match[2]}/values", **{"match[]": filled(match[1])})
                assert bool(found) == (match[2] not in {"cluster", "namespace", "broker"}), variable["name"]
        for mark in board["annotations"]["list"]:
            if "expr" in mark:
                ask(prometheus, "query", query=filled(mark["expr"]))


def test_two_replicas_count_once(prometheus: PrometheusServer) -> None:
    wait_until(lambda: len(prometheus.query("celery_worker_up == 1")) == 2 * len(WORKERS), 30)
    for title, expected in (("Up", len(WORKERS)), ("Vanished", 0)):
        [query] = [query for query in queries("worker.json") if query.panel["title"] == title]
        assert list(values(prometheus, query, query.expr, ""))[-1] == expected
