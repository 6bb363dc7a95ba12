"""
The rule file for Prometheus: one source for the file in ``alerts/``, for Kubernetes, and for tests in quick motion.

Replicas of the sidecar see the same tasks, so what they say of one task is put together by its maximum, and only what
is of different tasks is added up. Sidecars that share the work (``sharded``) are added up instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Literal

from celery_lookout.assets.thresholds import Thresholds

Severity = Literal["critical", "warning", "info"]
Kind = Literal["symptom", "cause"]

#: Labels that make one broker, one queue, one task and one worker. A broker without a name has no such label.
BROKER: Final = ("job", "broker")
QUEUE: Final = (*BROKER, "queue")
TASK: Final = (*QUEUE, "task")
WORKER: Final = (*BROKER, "worker")

#: A range, the step of a subquery, or an offset.
_DURATION: Final = re.compile(r"(?<=[\[:])\d+[smhd](?=[\]:])|(?<=offset )\d+[smhd]")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

#: How long Prometheus or the sidecar may be away without what was there before being taken for new, or forgotten.
_GAP: Final = "1h"


@dataclass(frozen=True)
class RuleOptions:
    """What may differ from one Prometheus to another."""

    #: Matchers that find the sidecar.
    selector: str = 'job=~".*celery.*"'
    #: The sidecars share the work instead of all doing it.
    sharded: bool = False
    thresholds: Thresholds = field(default_factory=Thresholds)
    #: Seconds; of queues to which the sidecar gives none.
    latency_slo: float | None = None
    runbook_url: str = "runbooks"
    grafana_url: str = "http://localhost:3000"
    #: Of Sentry's project page; alerts about a task then link to its issues.
    sentry_url: str = ""
    #: Multiplies every length of time: tests do not wait for minutes.
    scale: float = 1.0


@dataclass(frozen=True)
class Recording:
    """A series that Prometheus computes."""

    record: str
    expr: str


@dataclass(frozen=True)
class Alert:
    """One alert. *summary* and *description* are Prometheus templates."""

    name: str
    expr: str
    severity: Severity
    kind: Kind
    summary: str
    description: str
    #: Uid of the dashboard that shows it.
    dashboard: str
    #: The labels that the alert has, as variables of the dashboard.
    labels: tuple[str, ...]
    #: How long it must be true.
    wait: str = ""
    #: How long it goes on when it is not true any more. Every page has this: when the sidecar dies, its series end, and
    #: the page must not before the one that says so has begun.
    keep: str = ""


@dataclass(frozen=True)
class Promql:
    """Writes the parts of expressions that depend on the options."""

    options: RuleOptions

    def series(self, metric: str, matchers: str = "") -> str:
        """Return the selector of *metric* on the sidecars."""
        return f"{metric}{{{', '.join(filter(None, [self.options.selector, matchers]))}}}"

    def merge(self, labels: tuple[str, ...], expr: str) -> str:
        """Return *expr*, one amount from each sidecar, as the amount of all of them."""
        return f"{'sum' if self.options.sharded else 'max'} by ({', '.join(labels)}) ({expr})"

    def rate(self, labels: tuple[str, ...], metric: str, window: str, matchers: str = "") -> str:
        """Return by how much a counter rises per second, for all sidecars together."""
        return self.merge(labels, f"rate({self.series(metric, matchers)}[{window}])")

    def speed(self, labels: tuple[str, ...], metric: str, window: str) -> str:
        """
        Return what ``rate`` does, but for a series that is younger than *window*: by how much it rises since it exists.

        ``rate`` takes the time before for a standstill: a quarter of an hour long, a sidecar in a new place would show
        workers that hardly work, and page somebody for the wait that this would mean.
        """
        series = self.series(metric)
        young = f"deriv({series}[{window}]) > 0 unless {series} offset {window}"
        return self.merge(labels, f"({young}) or rate({series}[{window}])")

    def increase(self, labels: tuple[str, ...], metric: str, window: str, matchers: str = "") -> str:
        """
        Return by how much a counter rose, for all sidecars together.

        A series that no sidecar had at the beginning of the window, nor in the hour before, rose by what it shows:
        ``increase`` alone starts at its first sample, and misses what made it appear. The order matters, for of two
        values ``or`` takes the first.
        """
        now = self.merge(labels, self.series(metric, matchers))
        before = self.merge(labels, last_known(self.series(metric, matchers), window))
        return (
            f"({now} unless {before}) or {self.merge(labels, f'increase({self.series(metric, matchers)}[{window}])')}"
        )


def by(labels: tuple[str, ...], expr: str, how: str = "sum") -> str:
    """Return *expr* put together for *labels*."""
    return f"{how} by ({', '.join(labels)}) ({expr})"


def on(labels: tuple[str, ...]) -> str:
    """Return the clause that joins on *labels*."""
    return f"on ({', '.join(labels)})"


def last_known(series: str, age: str) -> str:
    """Return what *series* was *age* ago; where nothing was recorded then, the last of the hour before."""
    return f"last_over_time({series}[{_GAP}] offset {age})"


def rule_file(options: RuleOptions | None = None) -> dict[str, Any]:
    """Return the rule file as Prometheus reads it, for ``yaml.safe_dump``."""
    from celery_lookout.assets import exporter_alerts, queue_alerts, recordings, task_alerts, worker_alerts

    options = options or RuleOptions()
    promql = Promql(options)
    thresholds = options.thresholds.scaled(options.scale)
    # A group is read from top to bottom and no group waits for another: what an alert looks at is above it, in its own.
    groups: tuple[tuple[str, Iterable[Recording], Iterable[Alert]], ...] = (
        (
            "queues-and-tasks",
            chain(recordings.tasks(promql), recordings.queues(promql)),
            chain(queue_alerts.alerts(promql, thresholds), task_alerts.alerts(promql, thresholds)),
        ),
        (
            "budgets",
            recordings.budgets(promql),
            chain(queue_alerts.burns(promql, thresholds), task_alerts.burns(promql, thresholds)),
        ),
        ("workers", (), worker_alerts.alerts(promql, thresholds)),
        ("exporter", (), exporter_alerts.alerts(promql, thresholds)),
    )
    return {
        "groups": [
            {
                "name": f"celery.{name}",
                "rules": [
                    *({"record": one.record, "expr": _scaled(one.expr, options.scale)} for one in recorded),
                    *(_alert(one, options) for one in alerts),
                ],
            }
            for name, recorded, alerts in groups
        ]
    }


def _alert(alert: Alert, options: RuleOptions) -> dict[str, Any]:
    rule: dict[str, Any] = {"alert": alert.name, "expr": _scaled(alert.expr, options.scale)}
    if alert.wait:
        rule["for"] = _text(_seconds(alert.wait) * options.scale)
    if alert.keep:
        rule["keep_firing_for"] = _text(_seconds(alert.keep) * options.scale)
    rule["labels"] = {"severity": alert.severity, "component": "celery", "alert_type": alert.kind}
    variables = "".join(f"&var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in alert.labels)
    rule["annotations"] = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"{options.runbook_url.rstrip('/')}/{alert.name}.md",
        "dashboard_url": f"{options.grafana_url.rstrip('/')}/d/{alert.dashboard}?from=now-3h&to=now{variables}",
    }
    if options.sentry_url and "task" in alert.labels:
        query = "query=transaction%3A{{ $labels.task | urlquery }}"
        rule["annotations"]["sentry_url"] = f"{options.sentry_url.rstrip('/')}/issues/?{query}"
    return rule


def _scaled(expr: str, scale: float) -> str:
    if scale == 1:
        return expr
    return _DURATION.sub(lambda found: _text(_seconds(found[0]) * scale), expr)


def _seconds(duration: str) -> float:
    return float(duration[:-1]) * _UNITS[duration[-1]]


def _text(seconds: float) -> str:
    """Return a duration as Prometheus reads it, to the millisecond, in the largest unit that fits."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("d", 86400_000), ("h", 3600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"
