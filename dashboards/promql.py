"""
PromQL for panels.

Every expression filters by the variables of its dashboard, and takes the larger one where two sidecars tell of the same
thing: ``max by (job, broker, …)`` first, ``sum`` after it. Labels come from the declarations of the metrics, so that a
metric or a label that does not exist stops the generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from celery_lookout.metrics.exporter import ProcessMetrics, SentryMetrics
from celery_lookout.metrics.registry import Family, Registry, Scope
from celery_lookout.metrics.spans import SpanMetrics
from celery_lookout.state.cluster import Cluster, ClusterOptions

#: What Prometheus adds, and who counted; whatever differs in none of these is told twice.
IDENTITY: Final = ("cluster", "namespace", "job", "broker")

#: Long enough for four scrapes; Grafana knows the interval.
RATE: Final = "$__rate_interval"

#: What prometheus-client tells of the sidecar's process, and Prometheus of its scrapes.
PLAIN: Final = frozenset({
    "process_cpu_seconds_total", "process_open_fds", "process_max_fds", "process_resident_memory_bytes",
    "process_start_time_seconds", "scrape_duration_seconds", "scrape_samples_scraped", "up",
})  # fmt: skip


@cache
def declared() -> Mapping[str, Family[Any]]:
    """Return every family that the sidecar declares, by name, as with named brokers."""
    registry = Registry()
    ProcessMetrics(registry, "0")
    SentryMetrics(registry)
    scope = Scope(registry, "name")
    Cluster(scope, ClusterOptions())
    SpanMetrics(scope)
    return registry.families


def labels_of(metric: str) -> tuple[str, ...]:
    """Return the labels that the sidecar gives to *metric*. Raises LookupError when there is no such metric."""
    if metric in PLAIN:
        return ()
    families = declared()
    if metric in families and families[metric].kind != "histogram":
        return families[metric].labels
    name, _, part = metric.rpartition("_")
    if part in ("bucket", "count", "sum") and name in families:
        labels = families[name].labels
        return (*labels, "le") if part == "bucket" else labels
    raise LookupError(f"no metric {metric}")


def ratio(part: str, whole: str) -> str:
    """Return *part* of *whole*, and nothing where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def added(*terms: str) -> str:
    """Return the sum of expressions with the same labels."""
    return f"({' + '.join(terms)})"


def quantile(share: float, buckets: str) -> str:
    """Return a quantile of *buckets*, which have kept their ``le``."""
    return f"histogram_quantile({share:g}, {buckets})"


def _by(names: tuple[str, ...]) -> str:
    return f" by ({', '.join(names)}) " if names else ""


@dataclass(frozen=True)
class Promql:
    """Writes expressions for one dashboard, which filters by the labels in *variables*."""

    variables: tuple[str, ...] = ()
    #: Variables that have one value, which is meant literally.
    single: tuple[str, ...] = ()
    #: Show each sidecar instead of what they agree on.
    by_instance: bool = False
    _identity: tuple[str, ...] = field(default=IDENTITY, repr=False)

    def series(self, metric: str, **where: str) -> str:
        """Return the selector of *metric*; *where* holds further labels and the values they must have."""
        labels = labels_of(metric)
        names = [name for name in self._identity if name != "broker" or name in labels]
        names += ["instance"] if self.by_instance else []
        names += [name for name in self.variables if name in labels]
        matchers = [f'{name}{"=" if name in self.single else "=~"}"${name}"' for name in names]
        if not where.keys() <= set(labels):
            raise LookupError(f"{metric} has the labels {labels}, not all of {tuple(where)}")
        matchers += [f'{name}="{value}"' for name, value in where.items()]
        return f"{metric}{{{', '.join(matchers)}}}"

    def merge(self, metric: str, expression: str) -> str:
        """Return *expression*, which has the labels of *metric*, with what several sidecars tell taken once."""
        labels = tuple(name for name in labels_of(metric) if name not in self._identity)
        return f"max by ({', '.join((*self._identity, *labels))}) ({expression})"

    def gauge(self, metric: str, *by: str, how: str = "sum", **where: str) -> str:
        """Return a gauge, added up (or *how*) by the labels *by*."""
        return self._aggregate(how, by, metric, self.series(metric, **where))

    def rate(self, metric: str, *by: str, window: str = RATE, **where: str) -> str:
        """Return how fast a counter rises per second, added up by the labels *by*."""
        return self._aggregate("sum", by, metric, f"rate({self.series(metric, **where)}[{window}])")

    def increase(self, metric: str, *by: str, window: str = "$__range", offset: str = "", **where: str) -> str:
        """Return by how much a counter rose, added up by the labels *by*."""
        shift = f" offset {offset}" if offset else ""
        return self._aggregate("sum", by, metric, f"increase({self.series(metric, **where)}[{window}]{shift})")

    def over_time(self, function: str, metric: str, *by: str, window: str = RATE, how: str = "sum") -> str:
        """Return *function*, such as ``deriv``, of a gauge, added up (or *how*) by the labels *by*."""
        return self._aggregate(how, by, metric, f"{function}({self.series(metric)}[{window}])")

    def ahead(self, metric: str, *by: str, window: str, seconds: int) -> str:
        """Return the value that a gauge has *seconds* from now, if it goes on as in *window*."""
        line = f"predict_linear({self.series(metric)}[{window}], {seconds})"
        return f"clamp_min({self._aggregate('sum', by, metric, line)}, 0)"

    def failures(self, *by: str, window: str = RATE) -> str:
        """Return the share of runs that fail for good."""
        failed = self.rate("celery_task_failed_total", *by, window=window)
        return ratio(failed, added(failed, self.rate("celery_task_succeeded_total", *by, window=window)))

    def late(self, *by: str, window: str = RATE) -> str:
        """Return the share of starts that come later than the SLO of their queue."""
        return ratio(
            self.rate("celery_queue_slo_violations_total", *by, window=window),
            self.rate("celery_queue_slo_eligible_total", *by, window=window),
        )

    def starts(self, *by: str) -> str:
        """Return how many tasks workers start per second."""
        return self.rate("celery_task_started_total", *by)

    def growth(self, *by: str) -> str:
        """Return by how many tasks per second the queues grow, or shrink."""
        return self.over_time("deriv", "celery_queue_length", *by)

    def arrivals(self, *by: str) -> str:
        """Return how many tasks arrive per second: what is started and what the queue grows by, whoever publishes."""
        return f"clamp_min({self.starts(*by)} + {self.growth(*by)}, 0)"

    def ends(self, *by: str) -> str:
        """Return how many runs end per second: successes, failures and retries."""
        return added(*(self.rate(f"celery_task_{end}_total", *by) for end in ("succeeded", "failed", "retried")))

    def _aggregate(self, how: str, by: tuple[str, ...], metric: str, inner: str) -> str:
        if self.by_instance:
            return f"{how}{_by(('instance', *by))}({inner})"
        if how == "max":
            return f"max{_by(by)}({inner})"
        return f"{how}{_by(by)}({self.merge(metric, inner)})"
