"""The web server in the test's own event loop, on a real socket."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from celery_lookout.metrics.exporter import ProcessMetrics
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.metrics.web import WebMetrics
from celery_lookout.settings import ListenAddress
from celery_lookout.web.guard import Guard
from celery_lookout.web.reload import WebConfigFile
from celery_lookout.web.server import WebServer


class Reply(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Serving:
    """A server without brokers; *context* is what clients need for TLS, None for a server without."""

    def __init__(self, config_file: Path | None, context: ssl.SSLContext | None) -> None:
        self.registry = Registry(series_limit=10_000_000)
        metrics = WebMetrics(self.registry, config_file=config_file is not None)
        guard = None if config_file is None else Guard(WebConfigFile(config_file), metrics)
        process = ProcessMetrics(self.registry, "1.2.3")
        self.server = WebServer([], self.registry, process, metrics, telemetry_path="/metrics", guard=guard)
        self.context = context

    @property
    def port(self) -> int:
        return self.server.listener.port

    def grow(self, size: int) -> None:
        """Make the metrics more than *size* bytes large."""
        many = Scope(self.registry).gauge("celery_exporter_padding", "Nothing.", ("padding",))
        for number in range(size // 1000):
            many.child(f"{number:0>1000}")

    def value(self, name: str, *labels: str) -> float:
        """Return a value without asking over the wire."""
        return float(self.registry.families[name].child(*labels).value)

    def refused(self, reason: str) -> float:
        return self.value("celery_exporter_web_refused_total", reason)

    async def connect(self, context: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = context or self.context
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname="localhost" if context else None
        )

    async def get(
        self,
        path: str = "/metrics",
        *,
        user: str = "",
        context: ssl.SSLContext | None = None,
        method: str = "GET",
        headers: str = "",
    ) -> Reply:
        """Ask on a new connection; *user* is NAME:PASSWORD, *headers* whole lines."""
        if user:
            headers += f"Authorization: Basic {base64.b64encode(user.encode()).decode()}\r\n"
        async with asyncio.timeout(30):
            reader, writer = await self.connect(context)
            with closing(writer):
                writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode())
                return parse(await reader.read())


@contextmanager
def closing(writer: asyncio.StreamWriter) -> Iterator[None]:
    """Cut the connection at the end, whatever state it is in."""
    try:
        yield
    finally:
        writer.transport.abort()


def parse(raw: bytes) -> Reply:
    """Read the one answer in *raw*. Raises ConnectionError when there is none."""
    if not raw:
        raise ConnectionError("closed without an answer")
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return Reply(int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body)


@asynccontextmanager
async def serving(config_file: Path | None = None, context: ssl.SSLContext | None = None) -> AsyncIterator[Serving]:
    """Serve until the end of the block."""
    here = Serving(config_file, context)
    await here.server.start(ListenAddress("127.0.0.1", 0))
    running = asyncio.create_task(here.server.run())
    try:
        yield here
    finally:
        running.cancel()
        await asyncio.wait([running])
        await here.server.stop()
        assert running.cancelled(), running.exception()


async def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until the function *condition* returns something true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
