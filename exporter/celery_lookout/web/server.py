"""The HTTP endpoints. Nothing here waits for a broker: every answer is made from memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from ..metrics.exporter import ProcessMetrics
from ..metrics.exposition import Exposition
from ..metrics.registry import Registry
from ..monitor import Monitor
from ..settings import ListenAddress
from .status import page, status

#: Seconds that a connection may stay open after the stop, to finish its answer.
_GRACE_SECONDS: Final = 2.0


class WebServer:
    """Serves the metrics and the state of *monitors*."""

    def __init__(
        self, monitors: Sequence[Monitor], registry: Registry, process: ProcessMetrics, *, telemetry_path: str
    ) -> None:
        self._monitors = monitors
        self._process = process
        self._telemetry_path = telemetry_path
        self._exposition = Exposition(registry)
        app = web.Application()
        app.router.add_get(telemetry_path, self._metrics)
        app.router.add_get("/-/healthy", self._healthy)
        app.router.add_get("/-/ready", self._ready)
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/", self._page)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_GRACE_SECONDS)

    async def start(self, listen: ListenAddress) -> None:
        """Begin to serve. Raises OSError when the address is taken or not ours."""
        await self._runner.setup()
        await web.TCPSite(self._runner, listen.host or None, listen.port, reuse_address=True).start()

    async def stop(self) -> None:
        """Finish the answers under way and close."""
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        self._refresh()
        scrape = self._exposition.scrape(request.headers.get("Accept", ""), request.headers.get("Accept-Encoding", ""))
        return web.Response(body=scrape.body, headers=scrape.headers)

    async def _healthy(self, _request: web.Request) -> web.Response:
        return web.Response(text="celery-lookout is healthy\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        missing = [monitor.name for monitor in self._monitors if not monitor.was_reached]
        if missing:
            return web.Response(status=503, text=f"never reached yet: {', '.join(missing)}\n")
        return web.Response(text="celery-lookout is ready\n")

    async def _status(self, _request: web.Request) -> web.Response:
        self._refresh()
        return web.json_response(status(self._monitors))

    async def _page(self, _request: web.Request) -> web.Response:
        self._refresh()
        return web.Response(text=page(status(self._monitors), self._telemetry_path), content_type="text/html")

    def _refresh(self) -> None:
        for monitor in self._monitors:
            monitor.refresh()
        self._process.refresh()
