"""
Write ``docs/metrics.md`` and ``docs/configuration.md`` from what the code declares: ``python -m tests.docs.write``.

The code is the source; this file adds the words around the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from celery_lookout.cli import command
from celery_lookout.metrics.exporter import ProcessMetrics, SentryMetrics, StateMetrics
from celery_lookout.metrics.exposition import Exposition
from celery_lookout.metrics.registry import Family, Registry, Scope
from celery_lookout.metrics.spans import SpanMetrics
from celery_lookout.metrics.web import WebMetrics
from celery_lookout.settings import OPTIONS, Option
from celery_lookout.state.cluster import Cluster, ClusterOptions
from tests.docs.metric_sources import SOURCES

DOCS: Final = Path(__file__).parents[2] / "docs"

_MADE: Final = "<!-- Made by python -m tests.docs.write from the code; do not edit. -->"


class Section(NamedTuple):
    """A group of metrics by the beginning of their names."""

    title: str
    prefix: str
    text: str


SECTIONS: Final = (
    Section(
        "Tasks",
        "celery_task_",
        "The series of a (task, queue) appear together, counters at 0, with the first event about such a task, or the "
        "first snapshot that tells of it. A terminal outcome counts once per task id, an attempt that ends in a retry "
        "once per attempt. Of each worker either its task events count or its snapshots, never both; where an event is "
        "named below, the same from snapshots is meant for those that send them ([wire.md](wire.md)).",
    ),
    Section(
        "Queues",
        "celery_queue_",
        "Queues become known from workers, from `task-sent`, from the broker (Redis: binding sets, RabbitMQ: "
        "management API) and from `--queue`, and stay when the last worker has left. Depths are withdrawn when the "
        "broker has not told them for 30 s: a gap is better than a stale number.",
    ),
    Section("Broker", "celery_broker_", "What a broker tells that belongs to no single queue."),
    Section(
        "Workers",
        "celery_worker_",
        "`worker` is the whole node name, `name@host`, or what `--label.worker-rename` makes of it "
        "([labels.md](labels.md)). The series stay for 2 hours after the last heartbeat or "
        "snapshot. For workers without heartbeats, snapshots are the sign of life.",
    ),
    Section(
        "Beat",
        "celery_beat_",
        "Where beat runs with `celery_lookout_signals`. The series stay for 2 hours after its last snapshot, so that "
        "its silence can be noticed; those of an entry go when the schedule has it no more.",
    ),
    Section("The sidecar itself", "celery_exporter_", "What it heard, what it lost, what it cannot see."),
)


def families() -> dict[str, Family[Any]]:
    """Return every family that the sidecar declares, by name."""
    registry = Registry()
    ProcessMetrics(registry, "0")
    SentryMetrics(registry)
    WebMetrics(registry, config_file=True)
    StateMetrics(registry)
    Cluster(Scope(registry), ClusterOptions())
    SpanMetrics(Scope(registry))
    return registry.families


def metrics_page() -> str:
    """Return ``docs/metrics.md``."""
    declared = families()
    parts = [_METRICS_HEAD]
    for section in SECTIONS:
        rows = [_metric_row(family) for name, family in declared.items() if name.startswith(section.prefix)]
        table = _table(("Metric", "Labels", "Meaning", "From", "Absent"), rows)
        parts.append(f"## {section.title}\n\n{section.text}\n\n{table}")
    buckets = _table(
        ("Histogram", "Upper bounds in its unit, and +Inf"),
        ((f"`{family.name}`", ", ".join(f"{bound:.15g}" for bound in family.bounds))
         for family in declared.values() if family.kind == "histogram"),
    )  # fmt: skip
    parts.append(f"## Buckets\n\n{buckets}")
    runtime = ", ".join(f"`{name}`" for name in _runtime_names())
    parts.append(f"## Process and Python\n\nFrom prometheus-client, of the sidecar's own process: {runtime}.\n")
    return "\n".join(parts)


_METRICS_HEAD: Final = f"""\
{_MADE}

# Metrics

Every metric the sidecar has. Two formats on one address: Prometheus text, and OpenMetrics for whoever asks for it.

Labels:

- `task`: the declared name; `unknown` when no event told it.
- `queue`: `unknown` when it could not be found out. Nothing is guessed.
- `broker`: only if brokers are named (`--broker NAME=URL`); then every series of a broker has it.
- `_other`: what came after a limit (`--limit.task-names`, `--limit.queues`, `--limit.exceptions`), or is kept out by
  `--label.task-deny` and its kin ([labels.md](labels.md)).
- No metric of tasks has a `worker` label, and none has a task id, an argument or an exception's text.

Events come late, twice, out of order or never. [events.md](events.md) says what is made of each.
"""


def _metric_row(family: Family[Any]) -> tuple[str, ...]:
    source = SOURCES[family.name]
    name = f"`{family.name}` ({family.kind})"
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return name, labels or "-", family._help, source.origin, source.absent or "-"


def _runtime_names() -> Iterator[str]:
    for line in Exposition(Registry()).scrape("", "").body.decode().splitlines():
        if line.startswith("# TYPE "):
            yield line.split()[2]


def configuration_page() -> str:
    """Return ``docs/configuration.md``."""
    config = next(parameter for parameter in command.commands["serve"].params if parameter.name == "config")
    rows: list[tuple[str, ...]] = [("`--config`", f"`{config.envvar}`", "-", "-", getattr(config, "help", ""))]
    rows += map(_option_row, OPTIONS)
    table = _table(("Option", "Variable", "Key in the file", "Default", "Meaning"), rows)
    return f"{_CONFIGURATION_HEAD}\n{table}{_CONFIGURATION_TAIL}"


_CONFIGURATION_HEAD: Final = f"""\
{_MADE}

# Configuration

The options of `celery-lookout serve`. Telling it where the broker is should be enough. Each option can also be given by
an environment variable or in one YAML file; the command line wins over the environment, and both win over the file.
"""

_CONFIGURATION_TAIL: Final = """
"Repeatable" options are given several times on the command line, as a list in the file, and separated by spaces in a
variable. An unknown key in the file, a wrong URL scheme or a number that makes no sense stops the program at the start
with one sentence that says what to change; exit code 2.

## A file

Keys are written flat (`web.listen-address`) or nested, as here.

```yaml
broker.file: /run/secrets/brokers     # one URL, or NAME=URL, per line
broker.transport-options:
  visibility_timeout: 7200
  global_keyprefix: "shop:"
web:
  listen-address: 0.0.0.0:9808
log.format: json
queue: [celery, mail]
queue.latency-slo:
  mail: 60
```

```console
celery-lookout serve --config lookout.yaml
```

## What must match the application

The sidecar imports nothing of yours, so it cannot see these settings. If they differ, it hears nothing or sees no
queue.

| Celery setting | Option |
|---|---|
| database number or virtual host in `broker_url` | `--broker` |
| `broker_transport_options`: prefixes, `priority_steps`, `visibility_timeout` … | `--broker.transport-options` |
| `broker_use_ssl` | `--broker.use-ssl` |
| `event_exchange` | `--broker.event-exchange` |
| `control_exchange` | `--broker.control-exchange` |
| `event_serializer = "msgpack"` | `--broker.accept-msgpack` |

## Several brokers

```console
celery-lookout serve --broker shop=redis://redis:6379/0 --broker mail=amqp://lookout:secret@rabbit//
```

Every series of a broker then has the label `broker`. A broker that hangs or is gone touches no other's numbers.
`--broker.transport-options`, `--broker.use-ssl` and the exchanges hold for all of them.

## Secrets

A password on the command line can be read by everybody on the machine: use `CELERY_BROKER_URL`, `LOOKOUT_BROKER` or
`--broker.file`. The same holds for the values of `--otlp.header`. The sidecar shows broker URLs without user and
password, in logs and on the status page.
"""


def _option_row(option: Option) -> tuple[str, ...]:
    default = "-" if option.default is None or option.default == "" else f"`{_plain(option.default)}`"
    notes = []
    if option.choices:
        notes.append("One of " + ", ".join(f"`{choice}`" for choice in option.choices) + ".")
    if option.many:
        notes.append("Repeatable.")
    if option.formerly:
        notes.append(f"Formerly `--{option.formerly}`, which still works.")
    variables = " or ".join(f"`{name}`" for name in option.variables)
    return f"`--{option.name}`", variables, f"`{option.name}`", default, " ".join([option.help, *notes])


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


PAGES: Final = {"metrics.md": metrics_page, "configuration.md": configuration_page}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")
        print(f"wrote docs/{name}")
