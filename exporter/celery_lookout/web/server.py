"""The HTTP endpoints. Nothing here waits for a broker: every answer is made from memory."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from ..metrics.exporter import ProcessMetrics
from ..metrics.exposition import Exposition
from ..metrics.registry import Registry
from ..metrics.web import WebMetrics
from ..monitor import Monitor
from ..settings import ListenAddress
from .answers import Answers
from .listener import Listener
from .status import page, status

if TYPE_CHECKING:
    from .guard import Guard  # brings a parser of YAML

#: Seconds that a connection may stay open after the stop, to finish its answer.
_GRACE_SECONDS: Final = 2.0
#: Seconds after which a connection is closed that has sent no whole request, from its start or its last answer on.
#: Longer than the usual scrape interval, so that scrapers keep theirs.
IDLE_SECONDS: Final = 90.0
#: Seconds for which the rest of a request's body is read and dropped; nothing here needs any.
_BODY_SECONDS: Final = 2.0
#: Headers of a request, each of at most 8 KB.
_MOST_HEADERS: Final = 50

log = logging.getLogger(__name__)


class WebServer:
    """Serves the metrics and the state of *monitors*, to those whom *guard* lets through; without one, to everybody."""

    def __init__(
        self,
        monitors: Sequence[Monitor],
        registry: Registry,
        process: ProcessMetrics,
        metrics: WebMetrics,
        *,
        telemetry_path: str,
        guard: Guard | None = None,
    ) -> None:
        self._monitors = monitors
        self._process = process
        self._telemetry_path = telemetry_path
        self._exposition = Exposition(registry)
        self._answers = Answers(metrics)
        self._guard = guard
        app = web.Application(middlewares=[] if guard is None else [guard.middleware])
        app.router.add_get(telemetry_path, self._metrics)
        app.router.add_get("/-/healthy", self._healthy)
        app.router.add_get("/-/ready", self._ready)
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/", self._page)
        app.on_response_prepare.append(self._prepare)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            handle_signals=False,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=_BODY_SECONDS,
            logger=_logger(metrics),
            max_headers=_MOST_HEADERS,
            shutdown_timeout=_GRACE_SECONDS,
        )
        self.listener = Listener(self._context, metrics)

    async def start(self, listen: ListenAddress) -> None:
        """Begin to listen. Raises OSError when the address is taken or not ours."""
        await self._runner.setup()
        await self.listener.bind(listen, cast("web.Server", self._runner.server))

    async def run(self) -> None:
        """Serve until cancelled."""
        if self._guard is None:
            await self.listener.run()
        else:
            await asyncio.gather(self.listener.run(), self._guard.watch())

    async def stop(self) -> None:
        """Finish the answers under way and close."""
        self.listener.close()
        await self._runner.cleanup()
        if self._guard is not None:
            self._guard.close()

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        self._refresh()
        scrape = self._exposition.scrape(request.headers.get("Accept", ""), request.headers.get("Accept-Encoding", ""))
        return await self._answers.send(request, scrape.body, scrape.headers)

    async def _healthy(self, _request: web.Request) -> web.Response:
        return web.Response(text="celery-lookout is healthy\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        missing = [monitor.name for monitor in self._monitors if not monitor.was_reached]
        if missing:
            return web.Response(status=503, text=f"never reached yet: {', '.join(missing)}\n")
        return web.Response(text="celery-lookout is ready\n")

    async def _status(self, request: web.Request) -> web.StreamResponse:
        self._refresh()
        return await self._send_text(request, json.dumps(status(self._monitors)), "application/json")

    async def _page(self, request: web.Request) -> web.StreamResponse:
        self._refresh()
        return await self._send_text(request, page(status(self._monitors), self._telemetry_path), "text/html")

    async def _send_text(self, request: web.Request, text: str, kind: str) -> web.StreamResponse:
        return await self._answers.send(request, text.encode(), {"Content-Type": f"{kind}; charset=utf-8"})

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._guard is not None:
            self._guard.add_headers(response)
        connection = request.get_extra_info("socket")
        if connection is not None:
            self.listener.used(connection.fileno())

    def _context(self) -> ssl.SSLContext | None:
        return None if self._guard is None else self._guard.context

    def _refresh(self) -> None:
        for monitor in self._monitors:
            monitor.refresh()
        self._process.refresh()


def _logger(metrics: WebMetrics) -> logging.Logger:
    """Return aiohttp's log, without what clients sent wrongly: its text quotes them, and their passwords."""

    def is_ours(record: logging.LogRecord) -> bool:
        if record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError):
            return True
        metrics.refuse("malformed")
        return False

    logger = logging.Logger("aiohttp.server")  # noqa: LOG001 - a filter that counts for one server only
    logger.parent = log
    logger.addFilter(is_ours)
    return logger
