"""``celery-lookout assets``: rules, runbooks and dashboards as files, for Prometheus itself or for Kubernetes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from celery_lookout.assets.rules import RuleOptions, rule_file
from celery_lookout.assets.text import to_yaml
from celery_lookout.assets.thresholds import Thresholds
from celery_lookout.errors import SettingsError

#: One label matcher, as between the braces of a PromQL selector, and the comma if another one follows.
_MATCHER: Final = re.compile(
    r'\s*(?P<label>[a-zA-Z_]\w*)\s*(?P<how>=~|!~|!=|=)\s*"(?P<value>(?:[^"\\\n]|\\.)*)"\s*(?:,\s*(?=\S)|\Z)', re.ASCII
)
#: A backslash that means nothing within PromQL's quotes.
_BAD_ESCAPE: Final = re.compile(r"(?:[^\\]|\\[abfnrtv\\\"'])*+(\\.)")
#: What Python's regular expressions have and Prometheus's have not: they never look around or back.
_LOOKS_ROUND: Final = re.compile(r"\(\?<?[=!]|(?<!\\)(?:\\\\)*\\[1-9]")

#: A namespace of Kubernetes.
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
#: The value of a label of Kubernetes, and its name without the domain that may stand before it.
_LABEL: Final = re.compile(r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)
_DOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

#: In dashboards, how what several sidecars tell alike is taken once.
_MERGED: Final = "max by (cluster, namespace, job, broker"
#: The beginning of each selector in their JSON.
_SELECTED: Final = r"{cluster=~\"$cluster\""

#: A file's path below the folder, and its text.
File = tuple[str, str]


@dataclass(frozen=True)
class KubernetesOptions:
    """What the objects are called and found by."""

    namespace: str = ""
    #: By which an operator's ``ruleSelector`` finds the rules.
    labels: Mapping[str, str] = field(default_factory=dict)

    def metadata(self, name: str, **labels: str) -> dict[str, Any]:
        """Return the metadata of an object."""
        found: dict[str, Any] = {"name": name}
        if self.namespace:
            found["namespace"] = self.namespace
        found["labels"] = {"app.kubernetes.io/name": "celery-lookout", **self.labels, **labels}
        return found


def checked_selector(text: str) -> str:
    """Return a selector's matchers. Raises SettingsError if Prometheus would not take them."""
    at = 0
    while found := _MATCHER.match(text, at):
        _check_matcher(text, found)
        at = found.end()
    if not text or at < len(text):
        raise SettingsError(f'--selector {text!r} is no list of label matchers: write for example job="celery-lookout"')
    return text


def _check_matcher(text: str, matcher: re.Match[str]) -> None:
    if matcher["label"] == "__name__":
        raise SettingsError(f"--selector {text}: the rules name their metrics themselves; leave out __name__")
    if bad := _BAD_ESCAPE.match(matcher["value"]):
        raise SettingsError(
            f"--selector {text}: {bad[1]} means nothing within Prometheus's quotes; double the backslash: \\{bad[1]}"
        )
    if matcher["how"] not in ("=~", "!~"):
        return
    pattern = re.sub(r"\\(.)", r"\1", matcher["value"])
    try:
        re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"--selector {text}: mend the regular expression {pattern}: {error}") from None
    if found := _LOOKS_ROUND.search(pattern):
        raise SettingsError(
            f"--selector {text}: leave out {found[0]}: Prometheus's regular expressions have no such thing"
        )


def checked_namespace(text: str) -> str:
    """Return a namespace. Raises SettingsError if Kubernetes has none of such a name."""
    if not _NAMESPACE.fullmatch(text):
        raise SettingsError(
            f"--namespace {text!r} is no name for Kubernetes: use up to 63 small letters, digits and -, - not at an end"
        )
    return text


def checked_label(text: str) -> tuple[str, str]:
    """Return the name and the value of a label. Raises SettingsError if Kubernetes would not take them."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SettingsError(f"--label {text!r} is not NAME=VALUE: write for example release=prometheus")
    domain, slash, name = key.rpartition("/")
    if not _LABEL.fullmatch(name) or (slash and not _DOMAIN.fullmatch(domain)):
        raise SettingsError(
            f"--label {text!r}: {key!r} is no name for Kubernetes: write for example release or example.org/release"
        )
    if value and not _LABEL.fullmatch(value):
        raise SettingsError(
            f"--label {text!r}: {value!r} is no value for Kubernetes: use up to 63 letters, digits, -, _ and ., and a "
            "letter or digit at both ends"
        )
    return key, value


def checked_url(option: str, text: str) -> str:
    """Return an address, which may hold templates of Prometheus. Raises SettingsError if it is none."""
    if not re.match(r"https?://[^/\s]", text):
        raise SettingsError(f"{option} {text!r} is no address: write for example https://grafana.example.org")
    return checked_braces(option, text)


def checked_braces(option: str, text: str) -> str:
    """Return a part of an annotation. Raises SettingsError for a template in it that has no end or no beginning."""
    if not text or text.count("{{") != text.count("}}"):
        raise SettingsError(f"{option} {text!r}: give an address; {{{{ begins a template and }}}} ends it")
    return text


def read_options(given: Mapping[str, Any]) -> tuple[RuleOptions, KubernetesOptions]:
    """Return what the command line says. Raises SettingsError for what is wrong in it."""
    slo = given["latency_slo"]
    if slo is not None and not 0 < slo < float("inf"):
        raise SettingsError(f"--latency-slo {slo:g} is no length of time: give seconds above 0")
    sentry_url, namespace = given["sentry_url"], given["namespace"]
    rules = RuleOptions(
        selector=checked_selector(given["selector"]),
        sharded=given["sharded"],
        thresholds=Thresholds.read(given["thresholds"]),
        latency_slo=slo,
        runbook_url=checked_braces("--runbook-url", given["runbook_url"]),
        grafana_url=checked_url("--grafana-url", given["grafana_url"]),
        sentry_url=sentry_url and checked_url("--sentry-url", sentry_url),
    )
    labels = dict(map(checked_label, given["labels"]))
    return rules, KubernetesOptions(namespace and checked_namespace(namespace), labels)


def write_assets(folder: Path, form: str, options: RuleOptions, kubernetes: KubernetesOptions) -> list[Path]:
    """Write the assets in a *form* of :data:`FORMS` and return the files. Raises SettingsError if that fails."""
    written = []
    for name, text in FORMS[form](options, kubernetes):
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise SettingsError(f"--out {folder}: cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written


def _plain(options: RuleOptions, _: KubernetesOptions) -> Iterator[File]:
    yield "rules.yml", to_yaml(rule_file(options))
    yield "alertmanager.example.yml", (_source("alerts") / "alertmanager.example.yml").read_text()
    yield from _texts("alerts/runbooks", ".md", "runbooks")
    yield from _dashboards(options)


def _operator(options: RuleOptions, kubernetes: KubernetesOptions) -> Iterator[File]:
    rules = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": kubernetes.metadata("celery-lookout"),
        "spec": rule_file(options),
    }
    yield "prometheus-rule.yaml", to_yaml(rules)
    yield from _dashboard_maps(options, kubernetes)
    yield from _texts("alerts/runbooks", ".md", "runbooks")


def _config_maps(options: RuleOptions, kubernetes: KubernetesOptions) -> Iterator[File]:
    rules = _config_map(kubernetes.metadata("celery-lookout-rules"), {"rules.yml": to_yaml(rule_file(options))})
    yield "rules-configmap.yaml", to_yaml(rules)
    yield from _dashboard_maps(options, kubernetes)
    yield from _texts("alerts/runbooks", ".md", "runbooks")


FORMS: Final[dict[str, Callable[[RuleOptions, KubernetesOptions], Iterator[File]]]] = {
    "plain": _plain,
    "operator": _operator,
    "configmap": _config_maps,
}


def _dashboards(options: RuleOptions) -> Iterator[File]:
    """
    Yield the dashboards, which ask about the same sidecars as the rules.

    Without a selector of one's own their variable ``job`` offers every sidecar, whatever its job is called. What
    sidecars that share the work tell is kept apart until it is added up.
    """
    changes = []
    if options.selector != RuleOptions.selector:
        matchers = json.dumps(options.selector, ensure_ascii=False)[1:-1]
        changes.append((_SELECTED, f"{{{matchers}, {_SELECTED[1:]}"))
    if options.sharded:
        changes.append((_MERGED, f"{_MERGED}, instance"))
    for name, text in _texts("dashboards", ".json", "dashboards"):
        yield name, reduce(lambda changed, change: changed.replace(*change), changes, text)


def _dashboard_maps(options: RuleOptions, kubernetes: KubernetesOptions) -> Iterator[File]:
    """Yield one ConfigMap for each dashboard, with the label that Grafana's sidecar looks for."""
    for name, text in _dashboards(options):
        uid = json.loads(text)["uid"]
        file = Path(name).name
        one = _config_map(kubernetes.metadata(f"celery-lookout-{uid}", grafana_dashboard="1"), {file: text})
        yield f"dashboards/{uid}-configmap.yaml", to_yaml(one)


def _config_map(metadata: dict[str, Any], data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _texts(folder: str, suffix: str, target: str) -> Iterator[File]:
    for file in sorted(_source(folder).iterdir(), key=lambda one: one.name):
        if file.name.endswith(suffix):
            yield f"{target}/{file.name}", file.read_text()


def _source(folder: str) -> Traversable:
    """Return a folder of the project: in the wheel it is beside this file, in a checkout at its root."""
    installed = resources.files("celery_lookout.assets") / "files" / folder
    return installed if installed.is_dir() else Path(__file__).parents[3] / folder
