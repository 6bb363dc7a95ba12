"""The committed dashboards, taken apart for the tests: panels, queries, links, and the PromQL in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import promql_parser

from dashboards.generate import BOARDS, FOLDER

Json = dict[str, Any]

FILES: Final = {name: FOLDER / name for name in BOARDS}

#: What Grafana puts in for its own variables and for ours, everything chosen.
VALUES: Final = {
    "__rate_interval": "15s",
    "__range": "30s",
    "job": ".+",
    "objective": "99",
    **dict.fromkeys(("cluster", "namespace", "broker", "queue", "task", "worker", "instance"), ".*"),
}


def load(file: Path) -> Json:
    board: Json = json.loads(file.read_text("utf-8"))
    return board


LOADED: Final = {name: load(file) for name, file in FILES.items()}


class Query(NamedTuple):
    """One target of one panel."""

    file: str
    panel: Json
    target: Json

    def __repr__(self) -> str:
        return f"<{self.file} {self.panel['id']} {self.panel['title']!r} {self.target['refId']}>"

    @property
    def expr(self) -> str:
        text: str = self.target["expr"]
        return text


def panels(board: Json) -> list[Json]:
    """Return the panels without the headings of rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(file: str) -> list[Query]:
    return [Query(file, panel, target) for panel in panels(LOADED[file]) for target in panel.get("targets", ())]


def variables(board: Json) -> list[Json]:
    found: list[Json] = board["templating"]["list"]
    return found


def filled(expr: str, values: Mapping[str, str] = VALUES) -> str:
    """Return *expr* with every variable replaced, as Grafana does; an unknown one stays and cannot be parsed."""
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), expr)


def urls(node: object) -> Iterator[str]:
    """Yield every link below *node*."""
    if isinstance(node, dict):
        if isinstance(node.get("url"), str):
            yield node["url"]
        for value in node.values():
            yield from urls(value)
    elif isinstance(node, list):
        for value in node:
            yield from urls(value)


def children(node: Any) -> Iterator[Any]:
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        if (found := getattr(node, name, None)) is not None:
            yield found
    yield from getattr(node, "args", None) or ()


def walk(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield every node of a parsed expression, with the nodes above it, outermost first."""
    yield node, above
    for child in children(node):
        yield from walk(child, (*above, node))


class Selected(NamedTuple):
    """A selector in an expression: its metric, its matchers, and the nodes above it, outermost first."""

    metric: str
    matchers: dict[str, str]
    above: tuple[Any, ...]

    @property
    def aggregates(self) -> list[promql_parser.AggregateExpr]:
        return [node for node in self.above if isinstance(node, promql_parser.AggregateExpr)]


def selectors(expr: str) -> Iterator[Selected]:
    for node, above in walk(promql_parser.parse(filled(expr))):
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, "a selector names its metric"
            yield Selected(node.name, {one.name: one.value for one in node.matchers.matchers}, above)


def grouping(node: promql_parser.AggregateExpr) -> list[str]:
    """Return the labels that an aggregation keeps; it must say which, not which not."""
    if node.modifier is None:
        return []
    assert node.modifier.type == promql_parser.AggModifierType.By
    labels: list[str] = node.modifier.labels
    return labels
