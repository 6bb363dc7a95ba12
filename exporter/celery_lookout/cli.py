"""The command line. Options are made from ``settings.OPTIONS``; what they do is elsewhere."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from . import __version__, logs
from .errors import LookoutError
from .settings import OPTIONS, Option, Settings, read_file


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


def _leave(code: int) -> None:
    """Exit at once: a poll may still wait for a hung broker in its thread, and holds nothing worth waiting for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@command.command()
@_with_options
def serve(**given: Any) -> None:
    """Watch brokers and serve their metrics."""
    settings = Settings.read(given)
    logs.set_up(given["log_level"], given["log_format"])
    from .app import serve as run

    asyncio.run(run(settings))
    _leave(0)


@command.command()
@click.option("--seconds", type=float, default=12.0, show_default=True, help="How long to watch.")
@_with_options
def doctor(seconds: float, **given: Any) -> None:
    """Say what is wrong with a set-up and how to mend it. Exit code 0 is fine, 1 a warning, 2 an error."""
    from .doctor import examine

    _leave(examine(Settings.read(given), seconds, click.echo))


@command.command()
@click.option("--broker", metavar="URL", help="Use this broker instead of starting one.")
@click.option("--web.listen-address", "listen_address", default=":9808", show_default=True, help="Address to serve on.")
@click.option("--seconds", type=float, help="Stop after so many seconds instead of on Ctrl-C.")
def demo(broker: str | None, listen_address: str, seconds: float | None) -> None:
    """Run a broker, workers, a load and the sidecar on this machine."""
    from .demo.run import run_demo

    sys.exit(run_demo(broker_url=broker, listen_address=listen_address, seconds=seconds))
