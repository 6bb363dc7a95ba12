"""
Metric families and their text.

Each series keeps its line of exposition text and writes it anew only after a change, because at ten thousand
series rendering is what a scrape costs. Families are declared once, in the tables of this package; only the process
and Python collectors come from prometheus-client.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from .exemplars import Exemplar

#: The label value that gathers everything past a limit.
OTHER: Final = "_other"

Kind = Literal["counter", "gauge", "histogram"]

#: Control characters and line breaks that would tear a terminal, a log line or the text of a scrape in some reader.
_UNREADABLE: Final = dict.fromkeys({*range(32), *range(127, 160), 0x2028, 0x2029} - {ord("\n")}, "�")
_ESCAPES: Final = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n"}


def readable(value: str) -> str:
    """Return *value* without what no label shows: control characters but the line break, and half surrogates."""
    if value.isprintable():
        return value
    return value.translate(_UNREADABLE).encode("utf-8", "replace").decode("utf-8")


def escape(value: str) -> str:
    """Return a label's *value* as it stands between quotes."""
    return readable(value).translate(_ESCAPES)


class Counter:
    """A number that only rises."""

    __slots__ = ("_head", "_text", "exemplar", "value")
    samples = 1

    def __init__(self, name: str, labels: str, _bounds: Sequence[float]) -> None:
        self._head = f"{name}{{{labels}}} " if labels else f"{name} "
        self._text: str | None = None
        self.value: float = 0
        #: The newest.
        self.exemplar: Exemplar | None = None

    def inc(self, amount: float = 1) -> None:
        """Add *amount*, which must not be negative."""
        self.value += amount
        self._text = None

    def rise_to(self, value: float) -> None:
        """Show *value*, a count that somebody else keeps (a worker's own, say) and resets when it restarts."""
        if value != self.value:
            self.value = value
            self._text = None

    def text(self) -> str:
        """Return the exposition line, newline included."""
        if self._text is None:
            self._text = f"{self._head}{self.value!r}\n"
        return self._text

    def exemplify(self, exemplar: Exemplar) -> None:
        """Show *exemplar* from now on, unless there is a newer one: Prometheus takes them in their order only."""
        if self.exemplar is None or exemplar.at > self.exemplar.at:
            self.exemplar = exemplar

    def openmetrics(self) -> str:
        """Return the exposition line with the exemplar, if there is one."""
        text = self.text()
        return text if self.exemplar is None else f"{text[:-1]}{self.exemplar.text}\n"


class Gauge(Counter):
    """A number that goes up and down."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Show *value* from now on."""
        if value != self.value:
            self.value = value
            self._text = None


class Histogram:
    """Observations counted in buckets; bounds are upper and inclusive, as Prometheus has them."""

    __slots__ = ("_bounds", "_counts", "_template", "_text", "exemplar", "sum")

    def __init__(self, name: str, labels: str, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._text: str | None = None
        #: The newest of each bucket that has one.
        self.exemplar: dict[int, Exemplar] | None = None
        shown = labels.replace("%", "%%")
        lead = f"{shown}," if shown else ""
        tail = f"{{{shown}}}" if shown else ""
        edges = (*(repr(float(bound)) for bound in bounds), "+Inf")
        buckets = "".join(f'{name}_bucket{{{lead}le="{edge}"}} %d\n' for edge in edges)
        self._template = f"{buckets}{name}_count{tail} %d\n{name}_sum{tail} %r\n"

    @property
    def samples(self) -> int:
        """How many series this is to Prometheus."""
        return len(self._counts) + 2

    @property
    def count(self) -> int:
        """How many observations were made."""
        return sum(self._counts)

    @property
    def counts(self) -> list[int]:
        """How many fell into each bucket alone, the last being +Inf's."""
        return self._counts

    def observe(self, value: float) -> None:
        """Add one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value
        self._text = None

    def add(self, bucket: int, count: int) -> None:
        """Add *count* observations, made elsewhere, to the *bucket*-th bucket alone; ``add_sum`` has the rest."""
        self._counts[bucket] += count
        self._text = None

    def add_sum(self, amount: float) -> None:
        """Add what the observations of ``add`` sum up to."""
        self.sum += amount
        self._text = None

    def text(self) -> str:
        """Return all lines of this histogram."""
        if self._text is None:
            cumulated = tuple(accumulate(self._counts))
            self._text = self._template % (*cumulated, cumulated[-1], self.sum)
        return self._text

    def exemplify(self, exemplar: Exemplar) -> None:
        """Show *exemplar* with the bucket that its value falls into, unless that has a newer one."""
        if self.exemplar is None:
            self.exemplar = {}
        bucket = bisect_left(self._bounds, exemplar.value)
        shown = self.exemplar.get(bucket)
        if shown is None or exemplar.at > shown.at:
            self.exemplar[bucket] = exemplar

    def openmetrics(self) -> str:
        """Return all lines, with the exemplars of buckets that have one."""
        text = self.text()
        if not self.exemplar:
            return text
        lines = text.split("\n")  # buckets come first, and no label has a line break in it
        for bucket, exemplar in self.exemplar.items():
            lines[bucket] += exemplar.text
        return "\n".join(lines)


Child = TypeVar("Child", bound="Counter | Histogram")


class Family(Generic[Child]):
    """One metric name with its help, its label names and its series."""

    def __init__(
        self,
        registry: Registry,
        child_type: type[Child],
        kind: Kind,
        name: str,
        help_text: str,
        labels: tuple[str, ...],
        bounds: Sequence[float] = (),
        *,
        kept: bool,
    ) -> None:
        self.name = name
        self.kind = kind
        self.labels = labels
        self.bounds = bounds
        #: Whether its values go on over a clean stop, see ``kept``.
        self.kept = kept
        self.children: dict[tuple[str, ...], Child] = {}
        self._registry = registry
        self._child_type = child_type
        self._help = help_text.replace("\\", "\\\\").replace("\n", "\\n")

    def child(self, *values: str) -> Child:
        """
        Return the series with these label *values*, made at 0 on first sight.

        Past the registry's limit the series is counted as dropped and works, but is never shown. Values that would look
        the same lead to the same series: of two, Prometheus takes one.
        """
        child = self.children.get(values)
        if child is None:
            values = tuple(map(readable, values))
            child = self.children.get(values)
        if child is None:
            child = self._make(values)
            if self._registry.admit(self.name, child.samples):
                self.children[values] = child
        return child

    def remove(self, *values: str) -> None:
        """Forget the series; nothing happens when it is not there."""
        child = self.children.pop(tuple(map(readable, values)), None)
        if child is not None:
            self._registry.series -= child.samples

    def drop(self) -> None:
        """Count one series as dropped."""
        self._registry.drop(self.name, 1)

    def _make(self, values: tuple[str, ...]) -> Child:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has labels {self.labels}, not {len(values)} of them")
        labels = ",".join(f'{name}="{escape(value)}"' for name, value in zip(self.labels, values, strict=True))
        return self._child_type(self.name, labels, self.bounds)

    def render(self, *, openmetrics: bool) -> Iterator[str]:
        """Yield the family's text, nothing while it has no series. OpenMetrics names a counter without ``_total``."""
        if self.children:
            name = self.name.removesuffix("_total") if openmetrics and self.kind == "counter" else self.name
            yield f"# HELP {name} {self._help}\n# TYPE {name} {self.kind}\n"
            if not openmetrics or self.kind == "gauge":  # no format has exemplars for gauges
                for child in self.children.values():
                    yield child.text()
                return
            for child in self.children.values():
                yield child.text() if child.exemplar is None else child.openmetrics()


class Bound(Generic[Child]):
    """A family as one broker's state sees it: the ``broker`` label, if there is one, is already filled in."""

    __slots__ = ("_fixed", "family")

    def __init__(self, family: Family[Child], fixed: tuple[str, ...]) -> None:
        self.family = family
        self._fixed = fixed

    def child(self, *values: str) -> Child:
        """As :meth:`Family.child`, without the broker's name."""
        return self.family.child(*values, *self._fixed)

    def find(self, *values: str) -> Child | None:
        """Return the series with these label values if there is one, without the broker's name."""
        return self.family.children.get((*map(readable, values), *self._fixed))

    def drop(self) -> None:
        """Count a series as dropped that its owner did not even ask for: there were too many."""
        self.family.drop()

    def remove(self, *values: str) -> None:
        """As :meth:`Family.remove`, without the broker's name."""
        self.family.remove(*values, *self._fixed)


class Registry:
    """All families of one sidecar, and the limit on how many series they may have together."""

    def __init__(self, *, series_limit: int = 200_000) -> None:
        self.series_limit = series_limit
        self.series = 0
        self.families: dict[str, Family[Any]] = {}
        self._dropped = Scope(self).counter(
            "celery_exporter_series_dropped_total",
            "Series not shown because the limit on series was reached.",
            ("metric",),
        )

    def admit(self, metric: str, samples: int) -> bool:
        """Say whether *samples* more series fit; count them as dropped if not. The drop counter itself always fits."""
        if not self.has_room(samples) and metric != "celery_exporter_series_dropped_total":
            self.drop(metric, samples)
            return False
        self.series += samples
        return True

    def has_room(self, samples: int) -> bool:
        """Say whether *samples* more series fit."""
        return self.series + samples <= self.series_limit

    def drop(self, metric: str, samples: int) -> None:
        """Count series that are not shown."""
        self._dropped.child(metric).inc(samples)

    def render(self, *, openmetrics: bool = False) -> str:
        """Return the exposition text of all families, in the order of their declaration, without an end mark."""
        return "".join(text for family in self.families.values() for text in family.render(openmetrics=openmetrics))


class Scope:
    """Declares families for one broker; the same declaration for a second broker joins the first."""

    def __init__(self, registry: Registry, broker: str | None = None) -> None:
        self.registry = registry
        self.broker = broker
        self._names = () if broker is None else ("broker",)
        self._values = () if broker is None else (broker,)

    def has_room(self, samples: int) -> bool:
        """Say whether *samples* more series fit, of all brokers together."""
        return self.registry.has_room(samples)

    def counter(self, name: str, help_text: str, labels: tuple[str, ...] = (), *, kept: bool = True) -> Bound[Counter]:
        """Declare a counter; *name* ends in ``_total``. One that somebody else keeps is not *kept* over a stop."""
        return self._declare(Counter, "counter", name, help_text, labels, kept=kept)

    def gauge(self, name: str, help_text: str, labels: tuple[str, ...] = (), *, kept: bool = False) -> Bound[Gauge]:
        """Declare a gauge. One that is *kept* over a stop only rises: the time of something last done."""
        return self._declare(Gauge, "gauge", name, help_text, labels, kept=kept)

    def histogram(
        self, name: str, help_text: str, labels: tuple[str, ...], bounds: Sequence[float]
    ) -> Bound[Histogram]:
        """Declare a histogram with these upper *bounds*, ascending and without +Inf."""
        return self._declare(Histogram, "histogram", name, help_text, labels, tuple(bounds), kept=True)

    def _declare(
        self,
        child_type: type[Child],
        kind: Kind,
        name: str,
        help_text: str,
        labels: tuple[str, ...],
        bounds: Sequence[float] = (),
        *,
        kept: bool,
    ) -> Bound[Child]:
        families = self.registry.families
        labels = (*labels, *self._names)
        family = families.get(name)
        if family is None:
            family = Family(self.registry, child_type, kind, name, help_text, labels, bounds, kept=kept)
            families[name] = family
        elif family.kind != kind or family.labels != labels:
            raise ValueError(f"{name} is declared twice and differently")
        return Bound(family, self._values)
