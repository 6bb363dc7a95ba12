"""A TCP proxy that misbehaves on request: slow, silent, refusing, or cutting connections in the middle of a message."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Literal, Self


class FaultProxy:
    """
    Forward a loopback port to *host*:*port*; its attributes may be changed at any time.

    It runs its own event loop in a daemon thread, so it works for blocking and for asyncio clients. Clients may
    reconnect without a word after a cut: assert on ``connections``.
    """

    #: Seconds added to each chunk, in both directions.
    latency: float = 0.0
    #: Bytes per second in each direction; 0 means no limit.
    rate: int = 0
    #: ``pass`` forwards; ``blackhole`` keeps connections open and silent; ``refuse`` resets new connections.
    mode: Literal["pass", "blackhole", "refuse"] = "pass"
    #: Reset the connection once this many bytes went through the proxy; None means never.
    cut_after: int | None = None
    #: Keep a connection to the server open after its client has left, as a route that was lost does.
    strand: bool = False

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self.port = 0
        self.connections = 0
        self.bytes = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listening.wait(10):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def cut(self) -> None:
        """Reset every open connection now; new ones are treated as ``mode`` says."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def _cut_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stopped.wait()
        server.close()
        self._cut_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            if self.mode == "refuse":
                _reset(writer)
                return
            await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            _reset(writer)
        finally:
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        self._writers |= {writer, far_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer))
                group.create_task(self._pump(far_reader, writer))
        finally:
            self._writers -= {writer, far_writer}
            writer.close()
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                while self.mode == "blackhole":  # noqa: ASYNC110 - set from another thread, as a plain attribute
                    await asyncio.sleep(0.02)
                await asyncio.sleep(self.latency + (len(data) / self.rate if self.rate else 0))
                if self.cut_after is not None and self.bytes + len(data) >= self.cut_after:
                    writer.write(data[: max(0, self.cut_after - self.bytes)])
                    await writer.drain()
                    self._cut_all()
                    return
                self.bytes += len(data)
                writer.write(data)
                await writer.drain()
        if not self.strand:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST: no linger, then abort."""
    with contextlib.suppress(OSError, AttributeError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
