"""The sidecar: one monitor per broker, one web server, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from . import __version__
from .checkpoint import ProcessSection, Section, StateFile, save
from .errors import SettingsError, StateUnusable
from .metrics.exporter import ProcessMetrics, SentryMetrics, StateMetrics
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


class Watch:
    """All that is known, and what finds it out."""

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self.registry = Registry(series_limit=settings.series_limit)
        self.process = ProcessMetrics(self.registry, __version__)
        self.web = WebMetrics(self.registry, config_file=settings.web_config_file is not None)
        self.forwarder = _forwarder(settings, self.registry)
        self.monitors = [
            Monitor(broker, settings, self.registry, executor, forwarder=self.forwarder) for broker in settings.brokers
        ]

    @property
    def sections(self) -> list[Section]:
        """The parts of its state that are saved."""
        sections: list[Section] = [*self.monitors]
        if any(monitor.broker.name for monitor in self.monitors):
            sections.append(ProcessSection(self.registry))
        return sections


async def serve(settings: Settings) -> None:
    """
    Run until SIGTERM or SIGINT; a second one ends the program at once, with exit code 128 and its number.

    Raises SettingsError when the address cannot be listened on, or the state file is of no use.
    """
    stop = _stop_on_signals()
    state_file = None if settings.state_file is None else StateFile(settings.state_file)
    if state_file is not None:
        state_file.claim()
    try:
        await _serve(settings, state_file, stop)
    finally:
        if state_file is not None:
            state_file.release()
    log.info("stopped")


async def _serve(settings: Settings, state_file: StateFile | None, stop: asyncio.Event) -> None:
    executor = ThreadPoolExecutor(THREADS_PER_BROKER * len(settings.brokers), thread_name_prefix="poll")
    watch = Watch(settings, executor) if state_file is None else _go_on(settings, executor, state_file)
    try:
        web = await _web(settings, watch)
    except SettingsError:
        if state_file is not None:  # it was taken from there
            save(state_file, watch.sections, time.time())
        raise
    loop = asyncio.get_running_loop()
    log.info(
        "serving", extra={"address": str(settings.listen), "path": settings.telemetry_path, "version": __version__}
    )
    loop.call_later(SETTLED_SECONDS, gc.freeze)
    stopping = asyncio.create_task(stop.wait())
    running = (web.run(), *(monitor.run() for monitor in watch.monitors))
    tasks: list[asyncio.Task[Any]] = [stopping, *map(asyncio.create_task, running)]
    if watch.forwarder is not None:
        watch.forwarder.start()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    # Before anything is saved: no scrape may show more than what the next process begins with.
    await web.stop()
    if state_file is not None and stop.is_set():
        save(state_file, watch.sections, time.time())
    if watch.forwarder is not None:
        await watch.forwarder.stop()
    executor.shutdown(wait=False, cancel_futures=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _web(settings: Settings, watch: Watch) -> WebServer:
    """Begin to serve. Raises SettingsError."""
    web = WebServer(
        watch.monitors,
        watch.registry,
        watch.process,
        watch.web,
        telemetry_path=settings.telemetry_path,
        guard=_guard(settings, watch.web),
    )
    try:
        await web.start(settings.listen)
    except OSError as error:
        raise SettingsError(
            f"--web.listen-address {settings.listen}: {error.strerror or error}; choose another port"
        ) from error
    return web


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def begin() -> None:
        stop.set()
        log.info("stopping; another signal ends the program at once, and nothing is saved")
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, lambda number, _frame: os._exit(128 + number))

    for number in numbers:
        loop.add_signal_handler(number, begin)
    return stop


def _go_on(settings: Settings, executor: Executor, state_file: StateFile) -> Watch:
    """Return a watch that goes on from the state file, or, if it cannot be used, begins at 0."""
    watch = Watch(settings, executor)
    metrics = StateMetrics(watch.registry)
    name = {"file": str(state_file)}
    try:
        restored = state_file.restore(watch.sections, time.time())
    except StateUnusable as error:
        watch = Watch(settings, executor)  # the other one has half of it
        StateMetrics(watch.registry)
        log.warning("state file cannot be used, counters begin at 0", extra=name | {"error": str(error)})
        return watch
    metrics.success.set(1)
    if restored is None:
        log.info("no state file, counters begin at 0", extra=name)
        return watch
    metrics.saved_at.child().set(round(restored.saved_at, 3))
    metrics.left_out.set(restored.left_out)
    age = round(time.time() - restored.saved_at, 1)
    log.info("going on from the state file", extra=name | {"age_seconds": age, "left_out": restored.left_out})
    return watch


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
