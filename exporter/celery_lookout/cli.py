"""The command line. Options are made from ``settings.OPTIONS``; what they do is elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from . import __version__, logs
from .errors import LookoutError
from .settings import OPTIONS, Option, Settings, read_file

#: Options that may hold a secret, and what shows that they do.
_SECRETS: Final = {
    "broker": re.compile(r"://.*@|(?i:password|secret|token)="),
    "broker.transport-options": re.compile(r"(?i:password|secret|token)"),
    "broker.use-ssl": re.compile(r"(?i:password)"),
    "rabbitmq.management-url": re.compile(r"://.*@"),
    "sentry.dsn": re.compile("."),
    "otlp.header": re.compile("."),
}

log = logging.getLogger(__name__)


def main() -> None:
    """Run the program; errors of use end it with one line and exit code 2."""
    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except LookoutError as error:
        print(f"celery-lookout: error: {error}", file=sys.stderr)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="celery-lookout")
def command() -> None:
    """Make a Celery cluster observable: Prometheus metrics from its events, queues and workers."""


def _load_file(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    if path is not None:
        context.default_map = read_file(path)


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(OPTIONS):
        function = _click_option(option)(function)
    return click.option(
        "--config", envvar="LOOKOUT_CONFIG", is_eager=True, expose_value=False, callback=_load_file, metavar="FILE",
        help="YAML file with any of the options below; the command line and the environment win over it.",
    )(function)  # fmt: skip


def _click_option(option: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    kind: Any = click.Choice(option.choices) if option.choices else option.kind
    extra: dict[str, Any] = {"is_flag": True} if option.kind is bool else {"multiple": option.many, "type": kind}
    flags = [f"--{name}" for name in option.names]
    return click.option(
        *flags, option.key, default=() if option.many else option.default, envvar=option.variables,
        show_envvar=True, show_default=option.default not in (None, False), help=option.help, **extra,
    )  # fmt: skip


def _list_thresholds(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from .assets.thresholds import table

        click.echo(table())
        context.exit()


def _exposed(context: click.Context) -> str | None:
    """Say which secrets stand on the command line, where everybody on the machine can read them; None if none does."""
    options = {option.name: option.key for option in OPTIONS}
    found = [
        f"--{name}"
        for name, secret in _SECRETS.items()
        if context.get_parameter_source(options[name]) is ParameterSource.COMMANDLINE
        and secret.search(str(context.params[options[name]] or ""))
    ]
    return f"secrets on the command line, for everybody on this machine to read: {', '.join(found)}" if found else None


#: What to do about it.
_HIDE: Final = "give them by the environment, --config, --broker.file or --sentry.dsn-file"


def _leave(code: int) -> None:
    """Exit at once: a poll may still wait for a hung broker in its thread, and holds nothing worth waiting for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@command.command()
@_with_options
@click.pass_context
def serve(context: click.Context, /, **given: Any) -> None:
    """Watch brokers and serve their metrics."""
    settings = Settings.read(given)
    logs.set_up(given["log_level"], given["log_format"])
    if (exposed := _exposed(context)) is not None:
        log.warning(exposed, extra={"mend": _HIDE})
    from .app import serve as run

    asyncio.run(run(settings))
    _leave(0)


@command.command()
@click.option("--seconds", type=float, default=12.0, show_default=True, help="How long to watch.")
@_with_options
@click.pass_context
def doctor(context: click.Context, /, seconds: float, **given: Any) -> None:
    """Say what is wrong with a set-up and how to mend it. Exit code 0 is fine, 1 a warning, 2 an error."""
    from .doctor import examine

    code = examine(Settings.read(given), seconds, click.echo)
    if (exposed := _exposed(context)) is not None:
        click.echo(f"command line:\n  warning {exposed}\n          -> {_HIDE}")
        code = max(code, 1)
    _leave(code)


@command.command()
@click.option("--out", required=True, metavar="DIR", help="Folder to write to; what has the same name is replaced.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["plain", "operator", "configmap"]),
    default="plain",
    show_default=True,
    help="Files for Prometheus and Grafana, a PrometheusRule and ConfigMaps, or ConfigMaps only.",
)
@click.option(
    "--selector", default='job=~".*celery.*"', show_default=True, help="Label matchers that find the sidecar."
)
@click.option(
    "--sharded", is_flag=True, help="The sidecars share brokers among them, instead of all watching the same."
)
@click.option("--latency-slo", type=float, metavar="SECONDS", help="SLO of queues to which the sidecar gives none.")
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    metavar="NAME=VALUE",
    help="A number in the rules; may be repeated. --thresholds lists them.",
)
@click.option("--runbook-url", default="runbooks", show_default=True, help="Where alerts/runbooks can be read.")
@click.option("--grafana-url", default="http://localhost:3000", show_default=True, help="Where the dashboards are.")
@click.option("--sentry-url", default="", help="Page of the project in Sentry; alerts about tasks then link to issues.")
@click.option("--namespace", default="", help="Of the objects for Kubernetes.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Of those objects; may be repeated.")
@click.option(
    "--thresholds",
    "_listed",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_thresholds,
    help="List the thresholds with their values and exit.",
)
def assets(out: str, form: str, **given: Any) -> None:
    """Write alert rules, runbooks and dashboards."""
    from .assets.write import read_options, write_assets

    written = write_assets(Path(out), form, *read_options(given))
    click.echo(f"{len(written)} files in {out}")


@command.command()
@click.option("--broker", metavar="URL", help="Use this broker instead of starting one.")
@click.option("--web.listen-address", "listen_address", default=":9808", show_default=True, help="Address to serve on.")
@click.option("--seconds", type=float, help="Stop after so many seconds instead of on Ctrl-C.")
def demo(broker: str | None, listen_address: str, seconds: float | None) -> None:
    """Run a broker, workers, a load and the sidecar on this machine."""
    from .demo.run import run_demo

    sys.exit(run_demo(broker_url=broker, listen_address=listen_address, seconds=seconds))
