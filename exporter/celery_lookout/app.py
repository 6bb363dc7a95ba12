"""The sidecar: one monitor per broker, one web server, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from . import __version__
from .errors import SettingsError
from .metrics.exporter import ProcessMetrics, SentryMetrics
from .metrics.registry import Registry
from .metrics.web import WebMetrics
from .monitor import THREADS_PER_BROKER, Monitor
from .sentry.forwarder import Forwarder
from .settings import Settings
from .web.server import WebServer

if TYPE_CHECKING:
    from .web.guard import Guard

#: Seconds after which everything there is will stay: from then on the garbage collector need not walk through the
#: hundred thousand objects that the imported modules are made of.
SETTLED_SECONDS: Final = 3.0

log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises SettingsError when the address cannot be listened on."""
    registry = Registry(series_limit=settings.series_limit)
    process = ProcessMetrics(registry, __version__)
    executor = ThreadPoolExecutor(THREADS_PER_BROKER * len(settings.brokers), thread_name_prefix="poll")
    forwarder = _forwarder(settings, registry)
    monitors = [Monitor(broker, settings, registry, executor, forwarder=forwarder) for broker in settings.brokers]
    web_metrics = WebMetrics(registry, config_file=settings.web_config_file is not None)
    guard = _guard(settings, web_metrics)
    web = WebServer(monitors, registry, process, web_metrics, telemetry_path=settings.telemetry_path, guard=guard)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await web.start(settings.listen)
    except OSError as error:
        raise SettingsError(
            f"--web.listen-address {settings.listen}: {error.strerror or error}; choose another port"
        ) from error
    log.info(
        "serving", extra={"address": str(settings.listen), "path": settings.telemetry_path, "version": __version__}
    )
    loop.call_later(SETTLED_SECONDS, gc.freeze)
    stopping = asyncio.create_task(stop.wait())
    running = (web.run(), *(monitor.run() for monitor in monitors))
    tasks: list[asyncio.Task[Any]] = [stopping, *map(asyncio.create_task, running)]
    if forwarder is not None:
        forwarder.start()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    if forwarder is not None:
        await forwarder.stop()
    await web.stop()
    executor.shutdown(wait=False, cancel_futures=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    log.info("stopped")


def _forwarder(settings: Settings, registry: Registry) -> Forwarder | None:
    if settings.sentry is None:
        return None
    from .sentry.delivery import Delivery  # imported when needed: sentry-sdk is large

    return Forwarder(settings.sentry, SentryMetrics(registry), Delivery(settings.sentry))


def _guard(settings: Settings, metrics: WebMetrics) -> Guard | None:
    if settings.web_config_file is None:
        return None
    from .web.guard import Guard  # imported when needed, with a parser of YAML
    from .web.reload import WebConfigFile

    return Guard(WebConfigFile(settings.web_config_file), metrics)
