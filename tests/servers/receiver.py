"""An HTTP server in the test process that keeps what it is sent, and answers as badly as it is told to."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Request:
    """One POST, whatever it was answered."""

    path: str
    #: Names in lower case.
    headers: Mapping[str, str]
    #: Decompressed.
    body: bytes
    #: What it was answered, or would have been had the client waited.
    status: int


class Receiver:
    """
    Keep what is posted; use it as a context manager, change its attributes at any time.

    Its end does not wait for clients: one that still waits for an answer loses its connection. For a server that
    refuses connections or hangs, put a FaultProxy before it.
    """

    #: What every request is answered; nothing is taken in unless it is 200.
    status: int = 200
    #: Seconds between a request and its answer. What was sent is taken in before.
    delay_seconds: float = 0.0
    #: Of the answer to a request that was taken in.
    content_type: ClassVar[str] = "application/octet-stream"

    def __init__(self) -> None:
        #: Further headers of each answer, such as Retry-After.
        self.headers: dict[str, str] = {}
        #: Every request, in the order of arrival.
        self.requests: list[Request] = []
        self._taking = threading.Lock()
        self._stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        name = type(self).__name__.lower()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name=name, daemon=True)

    def accepts(self, path: str) -> bool:
        """Say whether something is served there; overridden by each kind."""
        raise NotImplementedError

    def take(self, request: Request) -> bytes:
        """
        Take a request in and return the answer's body; overridden by each kind.

        Raises ValueError for what cannot be read; it is answered 400.
        """
        raise NotImplementedError

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def raw(self) -> bytes:
        """All that was sent, decompressed, headers included: for what must not be in it."""
        return b"\n".join(
            part
            for request in list(self.requests)
            for part in (request.path.encode(), repr(dict(request.headers)).encode(), request.body)
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def _answer(self, path: str, headers: Mapping[str, str], sent: bytes) -> tuple[int, bytes]:
        body, status = b"", self.status if self.accepts(path) else 404
        with self._taking:
            try:
                body = _decompressed(sent, headers.get("content-encoding", ""))
                reply = self.take(Request(path, headers, body, status)) if status == 200 else b""
            except ValueError as error:
                status, reply = 400, str(error).encode()
            self.requests.append(Request(path, headers, body or sent, status))
        return status, reply

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                sent = self.rfile.read(int(headers.get("content-length", 0)))
                status, reply = receiver._answer(self.path, headers, sent)
                if receiver._stopped.wait(receiver.delay_seconds):
                    return
                self.send_response(status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", receiver.content_type if status == 200 else "text/plain")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
                """Stay silent: the requests say it all."""

        return Handler


class _Server(ThreadingHTTPServer):
    # No answer is worth waiting for at the end.
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: clients leave while a slow answer is due."""


def _decompressed(sent: bytes, encoding: str) -> bytes:
    try:
        if encoding == "gzip":
            return gzip.decompress(sent)
        if encoding == "deflate":
            return zlib.decompress(sent)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"not {encoding}: {error}") from error
    if encoding:
        raise ValueError(f"unknown encoding {encoding}")
    return sent
