"""
Panels: what all of one kind have in common.

A panel is made whole by one call. *id* is written by hand and never changes, because links lead to panels by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import bargauge, heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel: TypeAlias = dashboard.Panel

PROMETHEUS: Final = common.DataSourceRef(type_val="prometheus", uid="${datasource}")

GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"

#: Columns from which on a legend fits beside the lines; in narrower panels it stands below, or no lines were left.
LEGEND_BESIDE: Final = 12

#: Pixels of the columns whose values are long.
_WIDTHS: Final = {"task": 240, "worker": 200}

_AnyPanel = TypeVar(
    "_AnyPanel", stat.Panel, timeseries.Panel, bargauge.Panel, heatmap.Panel, statetimeline.Panel, table.Panel
)


class Target(NamedTuple):
    """A query and the name of its series."""

    expr: str
    legend: str = "__auto"


class Link(NamedTuple):
    """A link from a value."""

    title: str
    url: str
    new_tab: bool = False


class Column(NamedTuple):
    """A column of a table: a label, or the value of a query."""

    name: str
    label: str = ""
    expr: str = ""
    unit: str = "short"
    links: Sequence[Link] = ()
    steps: Sequence[tuple[float | None, str]] = ()
    texts: dict[str, tuple[str, str]] | None = None
    decimals: int | None = None
    #: Not shown: asked only for the labels that it has.
    hidden: bool = False


def to_dashboard(uid: str, *variables: str, **values: str) -> str:
    """Return a link to a dashboard that takes the time, *variables* and the *values* of others with it."""
    kept = [f"${{{name}:queryparam}}" for name in ("datasource", "job", *variables) if name not in values]
    given = [f"var-{name}={value}" for name, value in values.items()]
    return f"/d/{uid}?{'&'.join((*kept, *given, '${__url_time_range}'))}"


def field_value(column: str) -> str:
    """Return what stands for the value of *column* in the row that was clicked."""
    return f"${{__data.fields.{column}}}"


def place(panel: Panel, width: int, height: int) -> Panel:
    """Give *panel* its size; where it stands is found by the layout."""
    panel.grid_pos = dashboard.GridPos(w=width, h=height)
    return panel


def stat_panel(
    id: int,  # noqa: A002
    title: str,
    description: str,
    unit: str,
    *targets: Target,
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    texts: dict[str, tuple[str, str]] | None = None,
    none: str = "-",
    width: int = 3,
    height: int = 4,
    decimals: int | None = None,
    instant: bool = False,
    link: Link | None = None,
) -> Panel:
    """Return one number, or one for each target, with its recent course behind it unless it is *instant*."""
    panel = _start(stat.Panel(), id, title, description, unit, targets, instant=instant)
    panel.graph_mode(common.BigValueGraphMode.NONE if instant else common.BigValueGraphMode.AREA)
    panel.color_mode(common.BigValueColorMode.VALUE)
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.text_mode(common.BigValueTextMode.VALUE_AND_NAME if len(targets) > 1 else common.BigValueTextMode.VALUE)
    panel.thresholds(_thresholds(steps)).color_scheme(_by_threshold()).no_value(none)
    if decimals is not None:
        panel.decimals(decimals)
    if texts:
        panel.mappings([_mapping(texts)])
    if link:
        panel.data_links([_link(link)])
    return place(panel.build(), width, height)


def time_panel(
    id: int,  # noqa: A002
    title: str,
    description: str,
    unit: str,
    *targets: Target,
    width: int = 12,
    height: int = 8,
    stacked: bool = False,
    bars: bool = False,
    centered: bool = False,
    exemplars: bool = False,
    most: float | None = None,
    least: float | None = 0,
    limit: float | None = None,
    dashed: str = "",
    negative: str = "",
    colors: Mapping[str, str] | None = None,
    links: Sequence[Link] = (),
    none: str = "-",
) -> Panel:
    """
    Return lines over time, with a table of last and largest values at their right (below, if the panel is narrow).

    *limit* is drawn as a red line; series whose name matches the pattern *dashed* are limits or forecasts; those that
    match *negative* are drawn downwards; *colors* are for series whose names have a meaning of their own.
    """
    panel = _start(timeseries.Panel(), id, title, description, unit, targets, exemplars=exemplars)
    legend = common_builders.VizLegendOptions().show_legend(True).display_mode(common.LegendDisplayMode.TABLE)
    place_of_it = common.LegendPlacement.RIGHT if width >= LEGEND_BESIDE else common.LegendPlacement.BOTTOM
    # What was large comes first, or it is hidden below what never happened.
    panel.legend(legend.placement(place_of_it).calcs(["lastNotNull", "max"]).sort_by("Max").sort_desc(True))
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel.tooltip(tooltip.sort(common.SortOrder.DESCENDING))
    panel.line_width(1).fill_opacity(80 if bars else 40 if stacked else 8).show_points(common.VisibilityMode.NEVER)
    panel.color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC)).no_value(none)
    if bars:
        panel.draw_style(common.GraphDrawStyle.BARS)
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if centered:
        panel.axis_centered_zero(True)
    elif least is not None and not negative:
        panel.min(least)
    if most is not None:
        panel.max(most)
    elif unit == "ops" and not negative:
        # Where nothing happens, Grafana's axis would end at 100 a second.
        panel.axis_soft_max(0.1)
    if limit is not None:
        panel.thresholds(_thresholds(((None, GREEN), (limit, RED))))
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel.thresholds_style(style)
    if dashed:
        line = _property("custom.lineStyle", {"fill": "dash", "dash": [8, 8]})
        panel.override_by_regexp(dashed, [line, _property("custom.fillOpacity", 0)])
    for name, color in (colors or {}).items():
        panel.override_by_name(name, [_property("color", {"mode": "fixed", "fixedColor": color})])
    if negative:
        panel.override_by_regexp(negative, [_property("custom.transform", common.GraphTransform.NEGATIVE_Y)])
    if links:
        panel.data_links([_link(link) for link in links])
    return place(panel.build(), width, height)


def heatmap_panel(
    id: int,  # noqa: A002
    title: str,
    description: str,
    unit: str,
    buckets: str,
    *,
    width: int = 12,
    height: int = 8,
) -> Panel:
    """Return how the values of a histogram are spread over time: *unit* is that of its bounds."""
    panel = heatmap.Panel().id(id).title(title).description(description).datasource(PROMETHEUS).unit("ops")
    query = Dataquery().expr(buckets).range().exemplar(True).ref_id("A").datasource(PROMETHEUS)
    panel.with_target(query.legend_format("{{le}}").format(PromQueryFormat.HEATMAP))
    panel.calculate(False).cell_gap(1).show_legend().exemplars_color("rgba(255,0,255,0.7)")
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).exponent(0.5))
    panel.filter_values(heatmap.FilterValueRange().le(1e-9))
    panel.rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT))
    panel.cell_values(heatmap.CellValues().unit("ops"))
    return place(panel.build(), width, height)


def bars_panel(
    id: int,  # noqa: A002
    title: str,
    description: str,
    unit: str,
    *targets: Target,
    width: int = 12,
    height: int = 8,
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    none: str = "-",
) -> Panel:
    """Return one horizontal bar for each series, as of now; it is full at the last of *steps*."""
    panel = _start(bargauge.Panel(), id, title, description, unit, targets, instant=True)
    panel.orientation(common.VizOrientation.HORIZONTAL).display_mode(common.BarGaugeDisplayMode.GRADIENT)
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.value_mode(common.BarGaugeValueMode.COLOR).show_unfilled(True)
    # Else the least of all values has no bar and the largest a full one, however small both are.
    panel.min(0)
    if (full := steps[-1][0]) is not None:
        panel.max(full)
    panel.thresholds(_thresholds(steps)).color_scheme(_by_threshold()).no_value(none)
    return place(panel.build(), width, height)


def states_panel(
    id: int,  # noqa: A002
    title: str,
    description: str,
    *targets: Target,
    texts: dict[str, tuple[str, str]],
    width: int = 12,
    height: int = 8,
) -> Panel:
    """Return one band of colours over time for each series; *texts* says what each value means."""
    panel = _start(statetimeline.Panel(), id, title, description, "bool", targets)
    panel.show_value(common.VisibilityMode.NEVER).merge_values(True).row_height(0.8).fill_opacity(80)
    panel.legend(common_builders.VizLegendOptions().show_legend(False))
    panel.mappings([_mapping(texts)]).thresholds(_thresholds(((None, BLUE),)))
    return place(panel.build(), width, height)


def table_panel(
    id: int,  # noqa: A002
    title: str,
    description: str,
    *columns: Column,
    sort: str,
    descending: bool = True,
    width: int = 24,
    height: int = 8,
    none: str = "-",
) -> Panel:
    """Return a table as of now: label columns first, then one column for each query, merged by those labels."""
    values = [column for column in columns if column.expr]
    targets = [Target(column.expr) for column in values]
    panel = _start(table.Panel(), id, title, description, "short", targets, instant=True)
    refs = {column.name: ref for column, ref in zip(values, _REFS, strict=False)}
    # Grafana calls the one value of a single query differently.
    fields = {c.name: c.label or (f"Value #{refs[c.name]}" if len(values) > 1 else "Value") for c in columns}
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True, **{fields[column.name]: True for column in columns if column.hidden}},
                "indexByName": {field: index for index, field in enumerate(fields.values())},
                "renameByName": {field: name for name, field in fields.items()},
            },
        )
    )
    for column in columns:
        if properties := list(_column_properties(column)):
            panel.override_by_name(column.name, properties)
    panel.sort_by([common_builders.TableSortByFieldState().display_name(sort).desc(descending)])
    panel.filterable(True).min_width(60).no_value(none).show_header(True)
    return place(panel.build(), width, height)


def alerts_panel(id: int, title: str, description: str, *, width: int, height: int = 8) -> Panel:  # noqa: A002
    """Return the list of alerts that are about Celery, from every alert rule that this Grafana knows."""
    panel = builders.Panel().type("alertlist").id(id).title(title).description(description).datasource(PROMETHEUS)
    states = {"firing": True, "pending": True, "noData": False, "normal": False, "error": True}
    panel.options({
        "viewMode": "list",
        "groupMode": "default",
        "groupBy": [],
        "maxItems": 20,
        "sortOrder": 3,
        "dashboardAlerts": False,
        "alertName": "",
        "alertInstanceLabelFilter": '{component="celery"}',
        "stateFilter": states,
    })  # fmt: skip
    return place(panel.build(), width, height)


_REFS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _start(
    panel: _AnyPanel,
    id: int,  # noqa: A002
    title: str,
    description: str,
    unit: str,
    targets: Iterable[Target],
    *,
    instant: bool = False,
    exemplars: bool = False,
) -> _AnyPanel:
    panel.id(id).title(title).description(description).unit(unit).datasource(PROMETHEUS)
    for ref, target in zip(_REFS, targets, strict=False):
        query = Dataquery().expr(target.expr).legend_format(target.legend).ref_id(ref).datasource(PROMETHEUS)
        query = query.instant() if instant else query.range()
        if exemplars:
            query.exemplar(True)
        if isinstance(panel, table.Panel):
            query.format(PromQueryFormat.TABLE)
        panel.with_target(query)
    return panel


def _column_properties(column: Column) -> Iterable[dashboard.DynamicConfigValue]:
    if column.expr:
        yield _property("unit", column.unit)
    if column.label in _WIDTHS:
        yield _property("custom.width", _WIDTHS[column.label])
    if column.decimals is not None:
        yield _property("decimals", column.decimals)
    if column.steps:
        steps = [{"value": value, "color": color} for value, color in column.steps]
        yield _property("thresholds", {"mode": "absolute", "steps": steps})
    if column.texts:
        yield _property("mappings", [_mapping(column.texts)])
    if column.steps or column.texts:
        yield _property("custom.cellOptions", {"type": "color-text"})
    if column.links:
        links = [{"title": link.title, "url": link.url, "targetBlank": link.new_tab} for link in column.links]
        yield _property("links", links)


def _property(name: str, value: Any) -> dashboard.DynamicConfigValue:
    return dashboard.DynamicConfigValue(id_val=name, value=value)


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> builders.ThresholdsConfig:
    found = [dashboard.Threshold(value=value, color=color) for value, color in steps]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(found)


def _by_threshold() -> builders.FieldColor:
    return builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS)


def _mapping(texts: dict[str, tuple[str, str]]) -> dashboard.ValueMap:
    results = {
        value: dashboard.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(texts.items())
    }
    return dashboard.ValueMap(options=results)


def _link(link: Link) -> builders.DashboardLink:
    return builders.DashboardLink(link.title).url(link.url).target_blank(link.new_tab)
