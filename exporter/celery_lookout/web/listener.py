"""
Accepts connections and bounds how many are open: past that, the one unused for longest makes room.

So whoever opens connections and leaves them idle, or talks slowly, is in nobody's way. asyncio's own server accepts
until no file descriptor is left, and keeps the context for handshakes that it was given at first.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from ..metrics.web import WebMetrics
from ..settings import ListenAddress

#: Open connections; each may hold some 400 KB of headers that are not complete yet. A scraper needs one.
MOST_CONNECTIONS: Final = 200
#: Seconds for the handshake, and for the goodbye, of TLS.
HANDSHAKE_SECONDS: Final = 10.0
GOODBYE_SECONDS: Final = 2.0
#: Connections that wait to be accepted, in the kernel.
_BACKLOG: Final = 1024
#: Seconds to wait when none can be accepted: most likely no file descriptor is left.
_PAUSE_SECONDS: Final = 0.2


class Listener:
    """Accepts connections; *context* gives what the next handshake is made with, None without TLS."""

    def __init__(self, context: Callable[[], ssl.SSLContext | None], metrics: WebMetrics) -> None:
        self._context = context
        self._metrics = metrics
        self._listening: list[socket.socket] = []
        #: By file descriptor, the one unused for longest first. Some may be closed.
        self._open: OrderedDict[int, socket.socket] = OrderedDict()
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port of the first address."""
        return int(self._listening[0].getsockname()[1])

    async def bind(self, address: ListenAddress, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        """
        Begin to listen on all that *address* stands for; *protocol* makes what speaks on a connection.

        Raises OSError when the address is taken or not ours.
        """
        self._protocol = protocol
        found = await asyncio.get_running_loop().getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        missing: OSError | None = None
        for family, _, _, _, where in dict.fromkeys(found):
            try:
                self._listening.append(_listen(family, where))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    self.close()
                    raise
                missing = error  # no IPv6 on this machine, say
        if missing is not None and not self._listening:
            raise missing

    async def run(self) -> None:
        """Accept connections until cancelled."""
        await asyncio.gather(*map(self._accept, self._listening))

    def close(self) -> None:
        """Stop to listen. What is open stays open."""
        for listening in self._listening:
            listening.close()
        self._listening.clear()

    def used(self, descriptor: int) -> None:
        """Note that a connection has just been of use."""
        with suppress(KeyError):
            self._open.move_to_end(descriptor)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except ConnectionAbortedError:
                continue  # gone before it was accepted
            except OSError:
                self._close_oldest()
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            self._make_room()
            self._open.pop(connection.fileno(), None)  # closed meanwhile, its number given away anew
            self._open[connection.fileno()] = connection
            task = loop.create_task(self._serve(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            await asyncio.sleep(0)  # whatever the number of those that knock, others get their turn

    async def _serve(self, connection: socket.socket) -> None:
        context = self._context()
        # asyncio's TLS takes 256 KiB of buffer for each connection: not for one that says nothing.
        if context is not None and not await self._speaks(connection):
            connection.close()
            return
        seconds = {} if context is None else {
            "ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": GOODBYE_SECONDS,
        }  # fmt: skip
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, ssl=context, **seconds)
        except (ssl.SSLError, ConnectionAbortedError):  # the latter when it took too long
            self._metrics.refuse("handshake")
        except OSError:
            pass  # went away, as a probe that only connects does

    async def _speaks(self, connection: socket.socket) -> bool:
        """Wait for the first byte, and say whether it came before the end or the limit in time."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(connection, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), HANDSHAKE_SECONDS)
            return bool(connection.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            self._metrics.refuse("handshake")
        except OSError:
            pass
        finally:
            loop.remove_reader(connection)
        return False

    def _make_room(self) -> None:
        if len(self._open) < MOST_CONNECTIONS:
            return
        for descriptor, connection in list(self._open.items()):
            if connection.fileno() < 0:
                del self._open[descriptor]
        while len(self._open) >= MOST_CONNECTIONS:
            self._close_oldest()

    def _close_oldest(self) -> None:
        if not self._open:
            return
        _, connection = self._open.popitem(last=False)
        self._metrics.refuse("connections")
        # Whoever reads or writes on it finds it closed, in the middle of a handshake too.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _listen(family: int, where: Any) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(where)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
