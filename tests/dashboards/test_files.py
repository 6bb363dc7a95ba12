"""The files are what the generator makes, and what Grafana and people can rely on: ids, grid, links, words."""

from __future__ import annotations

import itertools
import json
import re
from urllib.parse import unquote

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from celery_lookout.assets.rules import rule_file
from dashboards.frame import COLUMNS
from dashboards.generate import FOLDER, render
from tests.dashboards.boards import LOADED, Json, panels, urls, variables

ROOT = FOLDER.parent

#: Alerts, links and bookmarks lead to these: a number stays with what its panel shows, and is not used again.
PANEL_IDS = {
    "overview.json": "101-108 201-203 301-302 401-402 501-502 601-602",
    "queue.json": "101-108 201-204 301-302 401-402 501-503 601",
    "task.json": "101-108 201-204 301-305 401-403 501-503",
    "worker.json": "101-106 110 201-202 301-304 401-406 501-503 601-602",
    "exporter.json": "101-106 201-205 301-305 401-403 411-412 501-504 601-605",
    "slo.json": "101-104 201-203 301-303",
}

UIDS = {
    "overview.json": "celery-overview",
    "queue.json": "celery-queue",
    "task.json": "celery-task",
    "worker.json": "celery-worker",
    "exporter.json": "celery-exporter",
    "slo.json": "celery-slo",
}

every_board = pytest.mark.parametrize("file", LOADED)
every_panel = pytest.mark.parametrize(
    "panel",
    [
        pytest.param(panel, id=f"{file.removesuffix('.json')}-{panel['id']}")
        for file, board in LOADED.items()
        for panel in panels(board)
    ],
)


def test_the_files_are_what_the_code_says() -> None:
    for name, text in render().items():
        assert (FOLDER / name).read_text("utf-8") == text, "run: make docs"


def test_there_are_no_other_files() -> None:
    assert {file.name for file in FOLDER.glob("*.json")} == set(LOADED)


def lost(before: object, after: object, path: str = "") -> list[str]:
    """Return the places in *before* that are not the same in *after*."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            place for key, value in before.items() for place in lost(value, after.get(key), f"{path}.{key}")
        ]  # fmt: skip
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [place for index, (old, new) in pairs for place in lost(old, new, f"{path}[{index}]")]
    return [] if before == after else [path]


@every_board
def test_the_sdk_understands_all_of_it(file: str) -> None:
    """What its types do not know would be lost, and is likely misspelt."""
    register_default_plugins()
    board = LOADED[file]
    understood = json.loads(JSONEncoder().encode(Dashboard.from_json(json.loads(json.dumps(board)))))
    assert lost(board, understood) == []


@every_board
def test_the_frame(file: str) -> None:
    board = LOADED[file]
    assert board["uid"] == UIDS[file]
    assert board["title"].startswith("Celery / ")
    assert board["description"]
    assert board["tags"] == ["celery"]
    assert board["schemaVersion"] == 42
    assert board["editable"] is False
    assert board["graphTooltip"] == 1
    assert "id" not in board
    [dropdown] = board["links"]
    assert (dropdown["type"], dropdown["tags"], dropdown["asDropdown"]) == ("dashboards", ["celery"], True)
    assert dropdown["includeVars"]
    assert dropdown["keepTime"]
    annotations = {annotation["name"]: annotation for annotation in board["annotations"]["list"]}
    assert list(annotations) == [
        "Annotations & Alerts", "Firing alerts", "Restarts of the sidecar", "Restarts of workers", "Deploys",
    ]  # fmt: skip
    assert 'component="celery"' in annotations["Firing alerts"]["expr"]
    assert "changes(process_start_time_seconds{" in annotations["Restarts of the sidecar"]["expr"]
    assert "resets(celery_worker_tasks_processed_total{" in annotations["Restarts of workers"]["expr"]
    assert annotations["Deploys"]["target"]["tags"] == ["deploy"]


@every_board
def test_variables(file: str) -> None:
    found = {variable["name"]: variable for variable in variables(LOADED[file])}
    assert list(found)[:5] == ["datasource", "cluster", "namespace", "job", "broker"]
    assert (found["datasource"]["type"], found["datasource"]["query"]) == ("datasource", "prometheus")
    assert found["filters"]["type"] == "adhoc"
    assert found["filters"]["datasource"]["uid"] == "${datasource}"
    for name, variable in found.items():
        assert (variable.get("hide", 0) == 2) == (name in {"cluster", "namespace", "broker"})
        if variable["type"] != "query":
            continue
        assert variable["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert variable["refresh"] == 2, "a queue that is new in the time shown must be there to choose"
        if name == "task":
            assert not variable["multi"]
            assert not variable["includeAll"]
        else:
            assert variable["multi"]
            assert variable["allValue"] == (".+" if name == "job" else ".*")
            assert variable["current"]["value"] == ["$__all"]


def numbers(text: str) -> list[int]:
    """Return the numbers in a list such as ``1-3 7``."""
    spans = (part.partition("-") for part in text.split())
    return [number for first, _, last in spans for number in range(int(first), int(last or first) + 1)]


@every_board
def test_ids_of_panels_stay(file: str) -> None:
    board = LOADED[file]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    assert sorted(panel["id"] for panel in panels(board)) == numbers(PANEL_IDS[file])


@every_panel
def test_a_panel_explains_itself(panel: Json) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 20
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    if panel["type"] == "alertlist":
        assert "component" in panel["options"]["alertInstanceLabelFilter"]
        return
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@every_panel
def test_legends_are_tables_at_the_right(panel: Json) -> None:
    """Below, where a panel is so narrow that no lines were left beside them."""
    if panel["type"] == "timeseries":
        legend = panel["options"]["legend"]
        assert (legend["displayMode"], legend["showLegend"]) == ("table", True)
        assert legend["placement"] == ("right" if panel["gridPos"]["w"] >= 12 else "bottom")
        assert legend["calcs"] == ["lastNotNull", "max"]


@every_panel
def test_columns_have_units_and_exist(panel: Json) -> None:
    """Columns are renamed by what Grafana calls them; every value is shown by a name, with a unit."""
    if panel["type"] != "table":
        return
    [options] = [each["options"] for each in panel["transformations"] if each["id"] == "organize"]
    columns, hidden = options["renameByName"], options["excludeByName"]
    overrides = {
        override["matcher"]["options"]: {prop["id"] for prop in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    for target in panel["targets"]:
        assert (target["format"], target["instant"]) == ("table", True)
        column = columns.pop(f"Value #{target['refId']}")
        assert "unit" in overrides.pop(column)
    assert set(columns) <= {
        *("job", "broker", "queue", "task", "worker", "instance", "version", "pool", "entry"), *hidden
    }  # fmt: skip
    assert set(overrides) <= set(columns.values())
    for name in re.findall(r"__data\.fields\.(\w+)", json.dumps(panel)):
        assert name in columns.values()


@every_board
def test_the_grid_has_neither_overlap_nor_hole(file: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in LOADED[file]["panels"]:
        grid = panel["gridPos"]
        cells = set(itertools.product(range(grid["x"], grid["x"] + grid["w"]), range(grid["y"], grid["y"] + grid["h"])))
        assert not cells & taken, panel["title"]
        taken |= cells
    bottom = max(y for _, y in taken) + 1
    assert taken == set(itertools.product(range(COLUMNS), range(bottom)))


def assert_leads_to_a_dashboard(url: str) -> None:
    """Fail unless the dashboard exists and has every variable that *url* sets or carries."""
    match = re.fullmatch(r"/d/([\w-]+)\?(.*)", url)
    assert match, url
    [board] = [board for board in LOADED.values() if board["uid"] == match[1]]
    there = {variable["name"] for variable in variables(board)}
    for part in match[2].split("&"):
        if not re.fullmatch(r"\$\{__url_time_range\}|(from|to)=[\w-]+", part):
            name = re.match(r"var-(\w+)=.|\$\{(\w+):queryparam\}$", part)
            assert name, part
            assert {name[1] or name[2]} <= there, url


@every_board
def test_links_lead_somewhere(file: str) -> None:
    board = LOADED[file]
    own = {variable["name"] for variable in variables(board)}
    for url in urls(board["panels"]):
        carried = re.findall(r"\$\{(\w+)(?::\w+)?\}", url)
        assert {name for name in carried if not name.startswith("__")} <= own, url
        if url.startswith("${sentry}/"):
            assert re.match(r"\$\{sentry\}/issues/\?query=(transaction|error\.type):\$\{", unquote(url))
        else:
            assert_leads_to_a_dashboard(url)


def test_rows_lead_from_the_overview_to_sentry() -> None:
    """Overview to queue to task to Sentry, and every other dashboard from somewhere."""
    found = {board["uid"]: " ".join(urls(board["panels"])) for board in LOADED.values()}
    for here, there in (
        ("celery-overview", "/d/celery-queue?"), ("celery-overview", "/d/celery-task?"),
        ("celery-queue", "/d/celery-task?"), ("celery-task", "${sentry}/issues/"),
    ):  # fmt: skip
        assert there in found[here]
    for uid in found.keys() - {"celery-overview"}:
        assert any(f"/d/{uid}?" in links for other, links in found.items() if other != uid)


def test_alerts_lead_to_dashboards_that_take_their_labels() -> None:
    alerts = [rule for group in rule_file()["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        url: str = alert["annotations"]["dashboard_url"]
        assert_leads_to_a_dashboard(re.sub(r"\{\{.*?\}\}", "x", url[url.index("/d/") :]))


def test_grafana_finds_them_in_the_compose_example() -> None:
    deploy = ROOT / "deploy"
    volumes = yaml.safe_load((deploy / "compose.yaml").read_text("utf-8"))["services"]["grafana"]["volumes"]
    mounts = dict(volume.split(":")[:2] for volume in volumes)
    provisioning = deploy / "grafana" / "provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "celery.yaml").read_text("utf-8"))["providers"]
    [source] = [here for here, there in mounts.items() if there == provider["options"]["path"]]
    assert (deploy / source).resolve() == FOLDER.resolve()
    [data] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
    [destination] = data["jsonData"]["exemplarTraceIdDestinations"]
    assert destination["name"] == "trace_id"


def test_the_readme_names_every_dashboard() -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    for name, board in LOADED.items():
        assert f"`{name}`" in page
        assert f"`{board['uid']}`" in page
    for path in re.findall(r"\]\(([^)#\s]+)\)", page):
        assert path.startswith("https://") or (FOLDER / path).exists()
