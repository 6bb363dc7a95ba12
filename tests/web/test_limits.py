"""Slow, idle, greedy and confused clients: each is bounded, and none is in the way of a scrape."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from celery_lookout.settings import ListenAddress
from celery_lookout.web import answers, listener, server
from tests.servers.certificates import Authority
from tests.web.serving import Serving, closing, eventually, serving
from tests.web.test_config import TLS, write

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
MIB = 2**20


@pytest.fixture(params=["http", "https"])
async def here(request: pytest.FixtureRequest, folder: Path, authority: Authority) -> AsyncIterator[Serving]:
    """The test runs in the clear and over TLS."""
    if request.param == "http":
        async with serving() as here:
            yield here
    else:
        async with serving(write(folder, TLS), authority.client_context()) as here:
            yield here


@pytest.fixture(autouse=True)
def _many_files() -> None:
    """Allow for a thousand connections, both ends of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))


@pytest.fixture(autouse=True)
def _short_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_BODY_SECONDS", 0.2)


async def connect_slowly(here: Serving) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect with small buffers, so that what is not read stays with the server."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", here.port))
    tls = {} if here.context is None else {"ssl": here.context, "server_hostname": "localhost"}
    return await asyncio.open_connection(sock=connection, limit=1024, **tls)  # type: ignore[arg-type]


async def test_idle_connections_make_room_for_a_scrape(here: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 20)
    with contextlib.ExitStack() as stack:
        idle = [await here.connect() for _ in range(60)]
        for _, writer in idle:
            stack.enter_context(closing(writer))
        assert (await here.get()).status == 200
        assert here.refused("connections") == 41
        async with asyncio.timeout(30):
            for reader, _ in idle[:41]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        assert len(here.server.listener._open) == 20


async def test_without_file_descriptors_left_the_oldest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_PAUSE_SECONDS", 0.01)
    async with serving() as here:
        reader, writer = await here.connect()
        with closing(writer):
            assert (await here.get("/-/healthy")).status == 200
            accept = asyncio.get_running_loop().sock_accept
            failed: list[socket.socket] = []

            async def accept_later(listening: socket.socket) -> object:
                if not failed:
                    failed.append(listening)
                    raise OSError(errno.EMFILE, "Too many open files")
                return await accept(listening)

            monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", accept_later)
            assert (await here.get("/-/healthy")).status == 200  # what waits already comes before the failure
            assert (await here.get("/-/healthy")).status == 200
            assert await asyncio.wait_for(reader.read(), 30) == b""
            assert here.refused("connections") == 1


async def test_a_connection_in_use_stays_when_others_make_room(here: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 5)
    reader, writer = await here.connect()
    with closing(writer), contextlib.ExitStack() as stack:
        for _ in range(15):
            stack.enter_context(closing((await here.connect())[1]))
            writer.write(GET.replace(b"/metrics", b"/-/healthy"))
            assert await reader.readuntil(b"is healthy\n")
    assert here.refused("connections") >= 10


async def test_handshakes_that_never_end_make_room_too(
    folder: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 5)
    async with serving(write(folder, TLS), authority.client_context()) as here:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(closing((await asyncio.open_connection("127.0.0.1", here.port))[1]))
            assert (await here.get()).status == 200
        assert here.refused("connections") >= 15


async def test_a_handshake_has_a_limit_in_time(
    folder: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 0.05)
    async with serving(write(folder, TLS), authority.client_context()) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        with closing(writer):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        assert here.refused("handshake") == 1


@pytest.mark.parametrize("sent", [b"", b"GET /metr", GET[:-2], GET])
async def test_who_sends_no_whole_request_is_cut_off(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.1)
    async with serving() as here:
        reader, writer = await here.connect()
        with closing(writer):
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), 30)
        assert answer.startswith(b"HTTP/1.1 200") == (sent == GET)


async def test_headers_a_byte_at_a_time_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.3)
    async with serving() as here:
        reader, writer = await here.connect()
        ended = asyncio.ensure_future(reader.read())
        with closing(writer):
            async with asyncio.timeout(30):
                while not ended.done():
                    writer.write(b"G")
                    assert (await here.get("/-/healthy")).status == 200
            with contextlib.suppress(ConnectionError):
                await ended


async def test_who_does_not_read_the_answer_is_cut_off(here: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ANSWER_SECONDS", 0.3)
    here.grow(16 * MIB)
    _, writer = await connect_slowly(here)
    with closing(writer):
        writer.write(GET)
        await eventually(lambda: here.server._answers._under_way)
        assert (await here.get("/-/healthy")).status == 200
        await eventually(lambda: here.refused("slow") == 1)
        assert not here.server._answers._under_way
        await eventually(lambda: not here.server._runner.server.connections)  # type: ignore[union-attr]


def stands(here: Serving, under_way: int, given_up: int) -> bool:
    return (len(here.server._answers._under_way), here.refused("slow")) == (under_way, given_up)


async def test_slow_readers_share_a_limit_in_size(here: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_BYTES", 40 * MIB)
    here.grow(16 * MIB)
    with contextlib.ExitStack() as stack:
        for number in range(4):
            _, writer = await connect_slowly(here)
            stack.enter_context(closing(writer))
            writer.write(GET)
            given_up = max(number - 1, 0)
            await eventually(partial(stands, here, number + 1 - given_up, given_up))
        whole = await here.get()  # the identity of 16 MiB: one more had to go
        assert whole.status == 200
        assert len(whole.body) == int(whole.headers["Content-Length"]) > 16 * MIB
        assert here.refused("slow") == 3


async def test_head_has_the_length_and_no_body() -> None:
    async with serving() as here:
        reply = await here.get(method="HEAD")
        assert (reply.status, reply.body) == (200, b"")
        assert int(reply.headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("A: b\r\n" * 40, 200),
        ("A: b\r\n" * 60, 400),
        (f"A: {'b' * 8000}\r\n", 200),
        (f"A: {'b' * 9000}\r\n", 400),
        (f"{'A' * 9000}: b\r\n", 400),
        (f"A: {'b' * 8000}\r\n" * 100, 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
    ],
)
async def test_headers_are_limited(headers: str, status: int) -> None:
    async with serving() as here:
        assert (await here.get(headers=headers)).status == status
        assert here.refused("malformed") == (status == 400)


async def test_a_long_address_is_refused() -> None:
    async with serving() as here:
        assert (await here.get("/metrics?" + "a" * 9000)).status == 400


@pytest.mark.parametrize(
    ("method", "status"), [("POST", 405), ("DELETE", 405), ("OPTIONS", 405), ("PRI", 400), ("BREW", 400), ("get", 400)]
)
async def test_other_methods_are_refused(method: str, status: int) -> None:
    async with serving() as here:
        assert (await here.get(method=method)).status == status


async def test_a_body_is_not_kept(here: Serving) -> None:
    """The answer comes at once; what is sent on is dropped for a moment, then the connection is closed."""
    reader, writer = await here.connect()
    with closing(writer):
        writer.write(
            b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 9000000000\r\n\r\n"
        )
        assert b"405 Method Not Allowed" in await asyncio.wait_for(reader.readuntil(b"\r\n"), 30)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"x" * 65536)
                    await writer.drain()
                    await asyncio.sleep(0)


async def test_pipelined_requests_are_read_only_as_they_are_answered(here: Serving) -> None:
    here.grow(4 * MIB)
    _, writer = await connect_slowly(here)
    with closing(writer):
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    writer.write(GET * 1000)
                    await writer.drain()
                    sent += 1000
        [connection] = here.server._runner.server.connections  # type: ignore[union-attr]
        assert len(connection._messages) <= 64
        assert len(here.server._answers._under_way) == 1
        assert (await here.get("/-/healthy")).status == 200


async def test_a_thousand_connections_and_slow_clients_delay_no_scrape() -> None:
    async with serving() as here:
        here.grow(4 * MIB)
        with contextlib.ExitStack() as stack:
            for number in range(1000):
                _, writer = await (connect_slowly(here) if number % 50 == 0 else here.connect())
                stack.enter_context(closing(writer))
                if number % 50 == 0:
                    writer.write(GET)  # and never read
                elif number % 2:
                    writer.write(b"GET /")  # and no more
            for _ in range(3):
                reply = await here.get()
                assert reply.status == 200
                assert len(reply.body) == int(reply.headers["Content-Length"]) > 4 * MIB
        assert len(here.server.listener._open) <= listener.MOST_CONNECTIONS
        assert here.refused("connections") >= 800


async def test_listening_on_every_interface_takes_both_families() -> None:
    async with serving() as here:
        await here.server.listener.bind(ListenAddress("", 0), asyncio.Protocol)
        families = {listening.family for listening in here.server.listener._listening[1:]}
        assert socket.AF_INET in families
        assert not socket.has_ipv6 or socket.AF_INET6 in families


async def test_a_taken_address_is_an_error_and_leaves_nothing_open() -> None:
    async with serving() as here, serving() as other:
        with pytest.raises(OSError, match="in use"):
            await other.server.listener.bind(ListenAddress("127.0.0.1", here.port), asyncio.Protocol)
        assert other.server.listener._listening == []
