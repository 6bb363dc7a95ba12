"""
Every option of ``serve``, in one table, and what the sidecar is made of.

The command line, the ``LOOKOUT_…`` variables, the YAML file and the reference page ``docs/configuration.md`` are all
read off ``OPTIONS``. Nothing else in the program reads the environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .broker import Broker
from .errors import SettingsError
from .metrics.labels import Labels
from .sentry.options import SentryOptions
from .state.cluster import ClusterOptions, Limits
from .traces.options import OtlpOptions

#: Names that end up in labels and queue names.
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Option:
    """
    One option. *kind* is its type; ``many`` options may be repeated and are lists in the file.

    Those of ``many`` that are *pairs*, NAME=VALUE, may be mappings in the file.
    """

    name: str
    help: str
    default: Any = None
    kind: type = str
    many: bool = False
    pairs: bool = False
    choices: tuple[str, ...] = ()
    #: Variables read besides ``LOOKOUT_…``, which wins.
    also_from: tuple[str, ...] = ()
    #: Its old name, which still works.
    formerly: str = ""

    @property
    def key(self) -> str:
        """The option's name as a Python identifier."""
        return _identifier(self.name)

    @property
    def names(self) -> list[str]:
        """What it is called, the old name last."""
        return [self.name, *filter(None, [self.formerly])]

    @property
    def variables(self) -> list[str]:
        """The environment variables that set it, the strongest first."""
        return [*(f"LOOKOUT_{_identifier(name).upper()}" for name in self.names), *self.also_from]


def _identifier(name: str) -> str:
    return re.sub(r"[.-]", "_", name)


_LIMITS: Final = Limits()

OPTIONS: Final = (
    Option(
        "broker",
        "Broker URL as Celery writes it, or NAME=URL; repeat it to watch several, which must then all be named.",
        many=True,
        pairs=True,
        also_from=("CELERY_BROKER_URL",),
    ),
    Option("broker.file", "File with one broker URL, or NAME=URL, per line: keeps passwords out of the process list."),
    Option("broker.transport-options", "JSON object, the application's broker_transport_options, for every broker."),
    Option("broker.use-ssl", "JSON object or true, the application's broker_use_ssl, for every broker."),
    Option("broker.event-exchange", "The application's event_exchange.", "celeryev"),
    Option("broker.control-exchange", "The application's control_exchange.", "celery"),
    Option("broker.accept-msgpack", "Also read msgpack, for event_serializer = msgpack.", False, bool),
    Option("web.listen-address", "Address to serve on, host:port; an empty host is every interface.", ":9808"),
    Option("web.telemetry-path", "Path of the metrics.", "/metrics"),
    Option(
        "web.config.file",
        "File with TLS, client certificates, users and headers, in the form of Prometheus's exporter-toolkit.",
    ),
    Option("log.level", "Least severe messages to log.", "info", choices=("debug", "info", "warning", "error")),
    Option("log.format", "Form of the log lines.", "logfmt", choices=("logfmt", "json")),
    Option(
        "state.file",
        "File that keeps counters and tasks in flight over a clean stop, for the next start to go on from. It needs a"
        " folder that stays and can be written to.",
    ),
    Option("rabbitmq.management-url", "RabbitMQ's management API; the default is port 15672 on the broker's host."),
    Option(
        "replica",
        "Name of this sidecar if several watch one broker: each needs its own events and snapshots.",
        "",
        formerly="rabbitmq.replica",
    ),
    Option(
        "control.enable-events",
        "Switch task events on in workers that have them off. Costs a worker 0.2 to 0.7 ms per task.",
        False,
        bool,
    ),
    Option("control.interval", "Seconds between two rounds of questions to the workers.", 15.0, float),
    Option("probe.interval", "Seconds between two readings of the queues.", 2.0, float),
    Option("queue", "Queue to show from the start, whether anybody consumes it or not.", many=True),
    Option("queue.latency-slo", "QUEUE=SECONDS, the longest acceptable wait.", many=True, pairs=True),
    Option(
        "sentry.mode",
        "What to forward to Sentry: nothing; every failure, for workers without Sentry's SDK; or what workers cannot"
        " report themselves, such as kills.",
        "off",
        choices=("off", "all", "infra"),
    ),
    Option("sentry.dsn", "Where to forward it: the DSN of a Sentry project.", also_from=("SENTRY_DSN",)),
    Option("sentry.dsn-file", "File with the DSN: keeps it out of the process list."),
    Option("sentry.environment", "Environment that its events name.", also_from=("SENTRY_ENVIRONMENT",)),
    Option("sentry.release", "Release of the application that they name.", also_from=("SENTRY_RELEASE",)),
    Option("sentry.sample-rate", "Part of the failures that is forwarded, up to 1.", 1.0, float),
    Option("sentry.allow", "Glob of the tasks to forward, or TASK:EXCEPTION; default is all.", many=True),
    Option("sentry.deny", "Glob of the tasks not to forward, or TASK:EXCEPTION; it wins over allow.", many=True),
    Option("sentry.limit", "Events that may go out at once, and in each minute from then on.", 60, int),
    Option("sentry.limit-per-fault", "The same for those of one task and class of exception.", 10, int),
    Option("sentry.strip-prefix", "Folder to leave away from paths of source files.", many=True),
    Option("sentry.stuck-after", "Seconds without a start after which a queue with tasks is stuck.", 900.0, float),
    Option("sentry.crons", "Check in for beat's entries, for Sentry to notice when one is missing.", False, bool),
    Option(
        "otlp.endpoint",
        "Where to send spans made from task events: a collector's OTLP over HTTP. Needs the extra otlp.",
    ),
    Option(
        "otlp.header",
        "NAME=VALUE, sent along with spans; a space in the value is written %20. Secrets are better off in the file.",
        many=True,
        pairs=True,
    ),
    Option("otlp.service-name", "The service that spans name.", "celery"),
    *(
        option
        for label, things, rest in (
            ("task", "tasks", "the others count as _other"),
            ("queue", "queues", "the others count as _other"),
            ("worker", "workers", "the others are left out"),
        )
        for option in (
            Option(f"label.{label}-allow", f"Glob of the {things} to show by name; {rest}. Default is all.", many=True),
            Option(f"label.{label}-deny", f"Glob of the {things} not to show by name; it wins over allow.", many=True),
            Option(
                f"label.{label}-rename",
                f"PATTERN=REPLACEMENT: show {things} that match the whole regular expression by another name, in which"
                " $1 is its first group. Before the lists, in the order given.",
                many=True,
                pairs=True,
            ),
        )
    ),
    Option("limit.series", "Most series on the metrics page; what comes after is counted and not shown.", 200_000, int),
    Option("limit.tasks-in-flight", "Most tasks remembered, some 400 bytes each.", _LIMITS.tasks_in_flight, int),
    Option("limit.task-names", "Most values of the label task, then _other.", _LIMITS.task_names, int),
    Option("limit.queues", "Most values of the label queue, then _other.", _LIMITS.queues, int),
    Option("limit.exceptions", "Most values of the label exception, then _other.", _LIMITS.exceptions, int),
    Option("limit.workers", "Most workers followed; what comes after is left out.", _LIMITS.workers, int),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to serve. An empty host is every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Read ``host:port``, ``[::1]:port`` or ``:port``; port 0 is any free one. Raises SettingsError otherwise."""
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):(\d{1,5})", text)
        if match is None or not int(match[3]) < 65536:
            raise SettingsError(f"--web.listen-address {text!r} is not an address: write for example 127.0.0.1:9808")
        return cls(match[1] or match[2] or "", int(match[3]))


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``serve`` was told, checked."""

    brokers: tuple[Broker, ...]
    listen: ListenAddress = ListenAddress("", 9808)
    telemetry_path: str = "/metrics"
    #: None when everybody may scrape, in the clear.
    web_config_file: Path | None = None
    accept_msgpack: bool = False
    management_url: str | None = field(default=None, repr=False)
    replica: str = ""
    enable_events: bool = False
    control_interval_seconds: float = 15.0
    probe_interval_seconds: float = 2.0
    series_limit: int = 200_000
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    #: None when nothing is kept over a stop.
    state_file: Path | None = None
    #: None when nothing is forwarded.
    sentry: SentryOptions | None = None
    #: None when no spans are wanted.
    otlp: OtlpOptions | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Settings:
        """Make settings of option values by ``Option.key``. Raises SettingsError for the first that is wrong."""
        path = given["web_telemetry_path"]
        if not path.startswith("/") or path == "/":
            raise SettingsError(
                f"--web.telemetry-path {path!r} must begin with / and be more than that: for example /metrics"
            )
        for option in OPTIONS:
            if option.kind in (int, float) and not 0 < given[option.key] < float("inf"):
                raise SettingsError(f"--{option.name} {given[option.key]!r} must be a number above 0")
        return cls(
            brokers=_brokers(given),
            listen=ListenAddress.parse(given["web_listen_address"]),
            telemetry_path=path,
            web_config_file=Path(given["web_config_file"]) if given["web_config_file"] else None,
            accept_msgpack=given["broker_accept_msgpack"],
            management_url=given["rabbitmq_management_url"],
            replica=_replica(given["replica"]),
            enable_events=given["control_enable_events"],
            control_interval_seconds=given["control_interval"],
            probe_interval_seconds=given["probe_interval"],
            series_limit=given["limit_series"],
            cluster=ClusterOptions(
                limits=Limits(
                    tasks_in_flight=given["limit_tasks_in_flight"],
                    task_names=given["limit_task_names"],
                    queues=given["limit_queues"],
                    exceptions=given["limit_exceptions"],
                    workers=given["limit_workers"],
                ),
                labels=Labels.read(given),
                latency_slos=_slos(given["queue_latency_slo"]),
                queues=tuple(given["queue"]),
            ),
            state_file=Path(given["state_file"]) if given["state_file"] else None,
            otlp=_otlp(given),
            sentry=_sentry(given),
        )


def read_file(path: str) -> dict[str, Any]:
    """
    Read the YAML configuration file into option values by ``Option.key``.

    Its keys are the options' names, flat (``web.listen-address: …``) or nested (``web: {listen-address: …}``). Raises
    SettingsError for a file that cannot be read, is not a mapping, or has a key that is no option.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text("utf-8")) or {}
    except yaml.YAMLError as error:
        # Its own text quotes the file, passwords and all.
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise SettingsError(f"--config {path!r} cannot be read: it is not YAML{line}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path!r} cannot be read: {error}") from error
    except (AttributeError, LookupError, RecursionError, ValueError) as error:
        # A date without a month, a number without digits, a list in a list in a list.
        raise SettingsError(
            f"--config {path!r} cannot be read: a value in it is none ({type(error).__name__})"
        ) from None
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path!r} must be a mapping of option names to values")
    known = {name: option for option in OPTIONS for name in option.names}
    values: dict[str, Any] = {}
    try:
        for name, value in _flatten(content, known):
            option = known.get(name)
            if option is None:
                raise SettingsError(
                    f"--config {path!r} has the unknown option {name!r}; see celery-lookout serve --help"
                )
            if value is not None:
                values[option.key] = _from_yaml(option, value)
    except (RecursionError, TypeError, ValueError):
        raise SettingsError(f"--config {path!r} cannot be read: a value holds itself, or is no plain data") from None
    return values


def _flatten(content: Mapping[Any, Any], known: Mapping[str, Option], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            yield from _flatten(value, known, f"{name}.")
        else:
            yield name, value


def _from_yaml(option: Option, value: Any) -> Any:
    """
    Bring a YAML value into the form the command line has: lists of strings, JSON text.

    Raises SettingsError for a list where one value is wanted and the reverse, and what ``json`` raises for what is no
    plain data. Values are not quoted: they may be secrets.
    """
    if option.many:
        if option.pairs and isinstance(value, dict):
            texts = [(f"{key}={item}", item) for key, item in value.items()]
        else:
            texts = [(str(item), item) for item in (value if isinstance(value, list) else [value])]
        if any(isinstance(item, dict | list | set) for _, item in texts):
            raise SettingsError(
                f"--{option.name} must be a list of texts in the configuration file: one with a colon and a space in it"
                " needs quotes"
            )
        return [text for text, _ in texts]
    if value is False and "off" in option.choices:
        return "off"  # to YAML it is a word for false
    if isinstance(value, dict) or (isinstance(value, bool) and option.kind is not bool):
        return json.dumps(value)
    if isinstance(value, list | set):
        raise SettingsError(f"--{option.name} must be one value in the configuration file, not a list")
    return value if isinstance(value, bool) else str(value)


def _brokers(given: Mapping[str, Any]) -> tuple[Broker, ...]:
    texts = list(given["broker"])
    if given["broker_file"] is not None:
        lines = _text_of(given["broker_file"], "broker.file").splitlines()
        texts += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not texts:
        raise SettingsError("no broker given: say --broker redis://host:6379/0, or set CELERY_BROKER_URL")
    brokers = tuple(_broker(text, given) for text in texts)
    names = [broker.name for broker in brokers]
    if len(brokers) > 1 and None in names:
        raise SettingsError("with several brokers each needs a name: --broker NAME=URL")
    if len(set(names)) < len(names):
        raise SettingsError(f"--broker: two brokers have the same name, of {', '.join(map(str, names))}")
    return brokers


def _broker(text: str, given: Mapping[str, Any]) -> Broker:
    name, equals, url = text.partition("=")
    if not equals or "://" in name:
        name, url = "", text
    elif not _NAME.fullmatch(name):
        shown = "***" if {":", "@"} & set(name) else name[:64]  # a torn URL has its password in front of the "="
        raise SettingsError(f"--broker name {shown!r} may have letters, digits, dot, dash and underscore only")
    options = _json(given, "broker.transport-options")
    if not isinstance(options, dict | None):
        raise SettingsError("--broker.transport-options must be a JSON object")
    use_ssl = _json(given, "broker.use-ssl")
    if not isinstance(use_ssl, dict | bool | None):
        raise SettingsError("--broker.use-ssl must be a JSON object or true")
    return Broker(
        url,
        name or None,
        transport_options=options or {},
        ssl=use_ssl,
        event_exchange=given["broker_event_exchange"],
        control_exchange=given["broker_control_exchange"],
    )


def _sentry(given: Mapping[str, Any]) -> SentryOptions | None:
    mode = given["sentry_mode"]
    if mode == "off":
        return None
    dsn = given["sentry_dsn"] or ""
    if given["sentry_dsn_file"] is not None:
        dsn = _text_of(given["sentry_dsn_file"], "sentry.dsn-file")
    dsn = dsn.strip()
    if not dsn:
        raise SettingsError(f"--sentry.mode {mode} needs --sentry.dsn, --sentry.dsn-file, or SENTRY_DSN")
    return SentryOptions(
        dsn,
        mode,
        environment=given["sentry_environment"],
        release=given["sentry_release"],
        sample_rate=given["sentry_sample_rate"],
        allow=tuple(given["sentry_allow"]),
        deny=tuple(given["sentry_deny"]),
        limit=given["sentry_limit"],
        limit_per_fault=given["sentry_limit_per_fault"],
        strip_prefixes=tuple(given["sentry_strip_prefix"]),
        stuck_after=given["sentry_stuck_after"],
        crons=given["sentry_crons"],
    )


def _text_of(path: str, option: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that cannot be one
        raise SettingsError(f"--{option} {path!r} cannot be read: {error}") from error


def _otlp(given: Mapping[str, Any]) -> OtlpOptions | None:
    if not given["otlp_endpoint"]:
        return None
    return OtlpOptions.read(given["otlp_endpoint"], given["otlp_header"], given["otlp_service_name"])


def _replica(name: str) -> str:
    if name and not _NAME.fullmatch(name):
        raise SettingsError(f"--replica {name[:64]!r} may have letters, digits, dot, dash and underscore only")
    return name


def _json(given: Mapping[str, Any], name: str) -> Any:
    text = given[_identifier(name)]
    if text is None or isinstance(text, bool):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--{name} is not JSON: {error}") from error  # the value may hold a password


def _slos(texts: Iterable[str]) -> dict[str, float]:
    slos = {}
    for text in texts:
        queue, _, seconds = text.rpartition("=")
        try:
            slos[queue] = float(seconds)
        except ValueError:
            slos[queue] = 0.0
        if not queue or not 0 < slos[queue] < float("inf"):
            raise SettingsError(
                f"--queue.latency-slo {text!r} is not QUEUE=SECONDS with seconds above 0: write for example mail=60"
            )
    return slos
