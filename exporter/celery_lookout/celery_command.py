"""
``celery -A proj lookout …``: the same program, told by the application where its broker is.

Celery has imported the application when this runs. We take a few settings from it and then become a fresh process that
never imports it: the sidecar keeps neither its memory nor its side effects.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from .errors import SettingsError


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Watch the cluster: celery-lookout with this application's broker.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def lookout(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Run celery-lookout with the broker of this application: ``lookout serve …``, ``lookout doctor …``."""
    try:
        environment = {**settings_of(context.obj.app), **os.environ}
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    command = [sys.executable, "-m", "celery_lookout", *(arguments or ("serve",))]
    os.execve(sys.executable, command, environment)  # noqa: S606  # the very program that runs already


def settings_of(app: Any) -> dict[str, str]:
    """Return the application's settings as ``LOOKOUT_…`` variables. Raises SettingsError for what is no plain data."""
    conf = app.conf
    url = conf.broker_read_url or conf.broker_url
    variables = {
        "LOOKOUT_BROKER": ";".join(url)
        if isinstance(url, list | tuple)
        else url or app.connection_for_read().as_uri(True),
        "LOOKOUT_BROKER_EVENT_EXCHANGE": conf.event_exchange,
        "LOOKOUT_BROKER_CONTROL_EXCHANGE": conf.control_exchange,
        "LOOKOUT_QUEUE": " ".join(sorted(app.amqp.queues)),
    }
    if conf.broker_transport_options:
        variables["LOOKOUT_BROKER_TRANSPORT_OPTIONS"] = _json("broker_transport_options", conf.broker_transport_options)
    if conf.broker_use_ssl:
        variables["LOOKOUT_BROKER_USE_SSL"] = _json("broker_use_ssl", conf.broker_use_ssl)
    return variables


def _json(name: str, value: Mapping[str, Any] | bool) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise SettingsError(
            f"{name} holds a value that is not plain data ({error}): run celery-lookout with --broker and"
            f" --{name.replace('_', '.', 1).replace('_', '-')} instead"
        ) from error
