"""What every dashboard has around its panels: variables, links, annotations, the grid; and the way to JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common, dashboard

from .panels import PROMETHEUS, Panel

#: Grafana's grid.
COLUMNS: Final = 24

TAG: Final = "celery"

_GRAFANA: Final = common.DataSourceRef(type_val="grafana", uid="-- Grafana --")

_ALL: Final = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])


@dataclass(frozen=True)
class Row:
    """A heading and the lines of panels below it; the panels of a line have one height and fill its width."""

    id: int
    title: str
    lines: Sequence[Sequence[Panel]]


@dataclass(frozen=True)
class Board:
    """One dashboard. Its *uid* never changes: alerts, links and bookmarks have it."""

    uid: str
    title: str
    description: str
    variables: Sequence[builders.QueryVariable | builders.CustomVariable | builders.TextBoxVariable]
    rows: Sequence[Row]
    since: str = "now-3h"

    def json(self) -> str:
        """Return the file's text."""
        built = self._builder().build()
        built.panels = list(_laid_out(self.rows))
        raw = json.loads(JSONEncoder(sort_keys=True).encode(built))
        return json.dumps(_cleaned(raw), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def _builder(self) -> builders.Dashboard:
        board = builders.Dashboard(self.title).uid(self.uid).description(self.description).tags([TAG]).readonly()
        board.tooltip(dashboard.DashboardCursorSync.CROSSHAIR).timezone("browser").time(self.since, "now")
        board.refresh("30s")
        board.with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        for name in ("cluster", "namespace"):
            # Labels that a scrape configuration may add; "All" matches where there are none.
            board.with_variable(query_variable(name, "celery_exporter_build_info").hide(_HIDDEN))
        job = query_variable("job", "celery_exporter_build_info", 'cluster=~"$cluster", namespace=~"$namespace"')
        board.with_variable(job.label("Job").description("The scrape job of the sidecar.").all_value(".+"))
        board.with_variable(query_variable("broker", "celery_exporter_broker_up", _JOB).hide(_HIDDEN))
        for variable in self.variables:
            board.with_variable(variable)
        board.with_variable(builders.AdHocVariable("filters").label("Filters").datasource(PROMETHEUS))
        for annotation in _annotations():
            board.annotation(annotation)
        others = builders.DashboardLink("Celery").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
        return board.link(others.as_dropdown(True).include_vars(True).keep_time(True).icon("external link"))


_JOB: Final = 'cluster=~"$cluster", namespace=~"$namespace", job=~"$job"'
_HIDDEN: Final = dashboard.VariableHide.HIDE_VARIABLE


def query_variable(name: str, metric: str, where: str = "") -> builders.QueryVariable:
    """Return a variable with every value of a label; several may be chosen, and all are at first."""
    selector = f"{metric}{{{where}}}" if where else metric
    variable = builders.QueryVariable(name).query(f"label_values({selector}, {name})").datasource(PROMETHEUS)
    variable.definition(f"label_values({selector}, {name})").sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    variable.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.multi(True).include_all(True).all_value(".*").current(_ALL)


def queue_variable() -> builders.QueryVariable:
    """Return the variable ``queue``."""
    return query_variable("queue", "celery_queue_length", f'{_JOB}, broker=~"$broker"').label("Queue")


def worker_variable() -> builders.QueryVariable:
    """Return the variable ``worker``."""
    return query_variable("worker", "celery_worker_up", f'{_JOB}, broker=~"$broker"').label("Worker")


def instance_variable() -> builders.QueryVariable:
    """Return the variable ``instance``: one sidecar of several."""
    return query_variable("instance", "celery_exporter_build_info", _JOB).label("Sidecar")


def task_variable() -> builders.QueryVariable:
    """Return the variable ``task``, which is a single one."""
    where = f'{_JOB}, broker=~"$broker", queue=~"$queue"'
    variable = query_variable("task", "celery_task_received_total", where).label("Task")
    return variable.multi(False).include_all(False).all_value("").current(dashboard.VariableOption())


def sentry_variable() -> builders.TextBoxVariable:
    """Return the variable ``sentry``, to which links to Sentry lead."""
    url = "https://sentry.io"
    variable = builders.TextBoxVariable("sentry").label("Sentry").default_value(url)
    variable.description("Base URL of your organisation in Sentry, such as https://acme.sentry.io")
    return variable.current(dashboard.VariableOption(selected=True, text=url, value=url))


def objective_variable() -> builders.CustomVariable:
    """Return the variable ``objective``: the share of good runs that was promised, in percent."""
    choices = ("99", "99.9", "99.5", "95", "90")
    variable = builders.CustomVariable("objective").label("Objective, %").values(",".join(choices))
    options = [dashboard.VariableOption(selected=c == choices[0], text=c, value=c) for c in choices]
    return variable.options(options).current(options[0])


def _annotations() -> Iterator[builders.AnnotationQuery]:
    built_in = builders.AnnotationQuery().name("Annotations & Alerts").datasource(_GRAFANA).built_in(1)
    yield built_in.enable(True).hide(True).icon_color("rgba(0, 211, 255, 1)").type("dashboard")
    firing = builders.AnnotationQuery().name("Firing alerts").datasource(PROMETHEUS).enable(True).icon_color("red")
    firing.expr(
        "max by (alertname, severity, job, queue, task, worker) "
        '(ALERTS{alertstate="firing", component="celery", job=~"$job|"})'
    )
    yield firing.title_format("{{alertname}}").text_format("{{severity}} {{queue}} {{task}} {{worker}}").step("60s")
    restarts = builders.AnnotationQuery().name("Restarts of the sidecar").datasource(PROMETHEUS).enable(True)
    restarts.expr(f"max by (job) (changes(process_start_time_seconds{{{_JOB}}}[2m])) > 0").step("60s")
    yield restarts.title_format("The sidecar restarted").text_format("{{job}}").icon_color("orange")
    workers = builders.AnnotationQuery().name("Restarts of workers").datasource(PROMETHEUS).enable(True)
    # A worker's own count begins anew with it. One that comes back under another name is a new worker.
    counts = f'celery_worker_tasks_processed_total{{{_JOB}, broker=~"$broker"}}'
    workers.expr(f"max by (job, broker, worker) (resets({counts}[2m])) > 0").step("60s")
    yield workers.title_format("{{worker}} restarted").text_format("{{job}} {{broker}}").icon_color("purple")
    deploys = builders.AnnotationQuery().name("Deploys").datasource(_GRAFANA).enable(True).icon_color("blue")
    tagged = builders.AnnotationTarget().limit(100).match_any(False).tags(["deploy"]).type("tags")
    # The builder wants a query; Grafana's own annotations have this instead.
    yield deploys.target(cast("Builder[Dataquery]", tagged))


def _laid_out(rows: Sequence[Row]) -> Iterator[Panel | dashboard.RowPanel]:
    top = 0
    for row in rows:
        heading = builders.Row(row.title).id(row.id).grid_pos(dashboard.GridPos(h=1, w=COLUMNS, x=0, y=top))
        yield heading.build()
        top += 1
        for line in row.lines:
            left = height = 0
            for panel in line:
                position = panel.grid_pos
                if position is None or (height and position.h != height):
                    raise ValueError(f"{panel.title}: the panels of a line have one height")
                height = position.h
                position.x, position.y = left, top
                left += position.w
                yield panel
            if left != COLUMNS:
                raise ValueError(f"{row.title}: a line is {left} columns wide")
            top += height


#: Keys that the SDK writes with its defaults where they mean nothing.
_LINK_KEYS: Final = ("title", "url", "targetBlank")


def _cleaned(raw: dict[str, Any]) -> dict[str, Any]:
    """Take out what the SDK adds to links, variables and annotations that Grafana would not."""
    for variable in raw["templating"]["list"]:
        if variable["type"] != "interval":
            for key in ("auto", "auto_min", "auto_count"):
                variable.pop(key, None)
        if variable["type"] == "query" and not variable["includeAll"]:
            variable.pop("allValue", None)
            variable.pop("current", None)
    for annotation in raw["annotations"]["list"]:
        annotation.pop("placement", None)
    for link in raw["links"]:
        link.pop("placement", None)
    for panel in raw["panels"]:
        if "repeat" not in panel:
            panel.pop("repeatDirection", None)
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        if "links" in defaults:
            defaults["links"] = [{key: link[key] for key in _LINK_KEYS} for link in defaults["links"]]
    return raw
