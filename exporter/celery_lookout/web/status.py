"""The status page and its JSON twin: which brokers answer, how deep the queues are, who works."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from .. import __version__
from ..findings import findings
from ..monitor import Monitor

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2933 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } small { color: #6b7785; font-weight: normal }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem } .bad { color: #b42318 } .good { color: #18794e }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e4e8ec }
td.number { font-variant-numeric: tabular-nums }
@media (prefers-color-scheme: dark) { body { background: #14181d; color: #d8dee6 } th, td { border-color: #2b323b } }
"""


#: Seconds after which a browser loads the page again.
REFRESH_SECONDS: Final = 5

#: Rows of the table of tasks on the page; the JSON has them all.
TASKS_SHOWN: Final = 200


def status(monitors: Sequence[Monitor]) -> dict[str, Any]:
    """Return the state of every broker as JSON-able data. The keys are part of the interface."""
    return {"version": __version__, "brokers": [_broker(monitor) for monitor in monitors]}


def _broker(monitor: Monitor) -> dict[str, Any]:
    return {
        "name": monitor.broker.name,
        "url": monitor.broker.masked_url,
        "up": monitor.is_up,
        "hints": [f"{finding.what}: {finding.mend}." for finding in findings(monitor) if finding.level != "ok"],
    } | monitor.cluster.summary()


def page(content: Mapping[str, Any], telemetry_path: str) -> str:
    """Return the status page as HTML."""
    brokers = "".join(_broker_section(broker) for broker in content["brokers"])
    return (
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<meta http-equiv=refresh content={REFRESH_SECONDS}>"
        f"<title>celery-lookout</title><style>{_STYLE}</style>"
        f"<h1>celery-lookout <small>{escape(content['version'])}</small></h1>"
        f"<p><a href='{escape(telemetry_path)}'>metrics</a> · <a href='/api/v1/status'>this page as JSON</a> · "
        "<a href='/-/healthy'>healthy</a> · <a href='/-/ready'>ready</a></p>" + brokers
    )


def _broker_section(broker: Mapping[str, Any]) -> str:
    title = escape(broker["name"] or broker["url"])
    state = "<span class=good>answers</span>" if broker["up"] else "<span class=bad>does not answer</span>"
    queues = _table(
        ("Queue", "Ready", "Oldest, s", "Workers", "Slots"),
        (
            (row["queue"], row["length"], row["oldest_task_age_seconds"], row["workers"], row["slots"])
            for row in broker["queues"]
        ),
    )
    workers = _table(
        ("Worker", "State", "Pool", "Celery", "Slots", "Running"),
        (
            (row["worker"], row["state"], row["pool"], row["version"], row["slots"], row["running"])
            for row in broker["workers"]
        ),
    )
    hints = "".join(f"<p class=bad>{escape(hint)}</p>" for hint in broker["hints"])
    tasks = _table(
        ("Task", "Queue", "Running", "Succeeded", "Failed", "Retried"),
        (
            (row["task"], row["queue"], row["running"], row["succeeded"], row["failed"], row["retried"])
            for row in broker["tasks"][:TASKS_SHOWN]
        ),
    )
    return f"<h2>{title} <small>{state}</small></h2>{hints}{queues}{workers}{tasks}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    if not body:
        return f"<p><small>No {heads[0].lower()} seen yet.</small></p>"
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td>-</td>"
    if isinstance(value, int | float):
        return f"<td class=number>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"
