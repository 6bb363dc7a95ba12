"""Who takes Sentry events in, in the test process: for all that a real server cannot be told to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.servers.process import wait_until
from tests.servers.receiver import Receiver, Request

#: The public key of every DSN. It is in ``raw``: clients send it with each request.
KEY = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Item:
    """One part of an envelope: a Sentry event, a check-in, a client's report of what it dropped."""

    headers: Mapping[str, Any]
    payload: bytes

    @property
    def kind(self) -> str:
        """Such as ``event``, ``check_in``, ``client_report``."""
        return str(self.headers["type"])

    @property
    def content(self) -> Any:
        return json.loads(self.payload)


@dataclass(frozen=True)
class Envelope:
    """What a client sends in one request."""

    project: str
    headers: Mapping[str, Any]
    items: tuple[Item, ...]


class Ingest(Receiver):
    """
    Keep the envelopes that are sent to ``dsn`` and were answered 200.

    With ``status`` it refuses, as 400, 401, 403, 413, 429 or 500. ``headers`` may hold Retry-After and
    X-Sentry-Rate-Limits; clients obey the latter whatever the status is.
    """

    content_type = "application/json"

    def __init__(self) -> None:
        super().__init__()
        #: In the order of arrival.
        self.envelopes: list[Envelope] = []

    @property
    def dsn(self) -> str:
        """The DSN of project 1."""
        return self.dsn_of("1")

    def dsn_of(self, project: str, *, port: int | None = None) -> str:
        """Return the DSN of a project, which is there without being made; *port* is that of a proxy in between."""
        return f"http://{KEY}@127.0.0.1:{port or self.port}/{project}"

    def items(self, kind: str, project: str = "") -> list[Any]:
        """Return the contents of all items of one kind, in the order of arrival, of one project or of all."""
        return [
            item.content
            for envelope in list(self.envelopes)
            for item in envelope.items
            if item.kind == kind and project in {"", envelope.project}
        ]

    @property
    def events(self) -> list[dict[str, Any]]:
        """All Sentry events; what is sent twice is here twice."""
        return self.items("event")

    @property
    def check_ins(self) -> list[dict[str, Any]]:
        return self.items("check_in")

    def wait_for(self, count: int, *, kind: str = "event", seconds: float = 20.0) -> list[dict[str, Any]]:
        """Wait for at least *count* items of one kind, and return their contents."""
        wait_until(lambda: len(self.items(kind)) >= count, seconds, f"fewer than {count} of {kind}")
        return self.items(kind)

    def accepts(self, path: str) -> bool:
        return _project(path) is not None

    def take(self, request: Request) -> bytes:
        project = _project(request.path)
        assert project is not None
        lines = request.body.split(b"\n", 1)
        headers = _headers(lines[0])
        envelope = Envelope(project, headers, tuple(_items(lines[1] if len(lines) > 1 else b"")))
        self.envelopes.append(envelope)
        return json.dumps({"id": headers["event_id"]} if "event_id" in headers else {}).encode()


def _project(path: str) -> str | None:
    found = re.fullmatch(r"/api/(\w+)/envelope/(?:\?.*)?", path)
    return found and found[1]


def _items(body: bytes) -> Iterator[Item]:
    while body.strip():
        line, _, body = body.partition(b"\n")
        headers = _headers(line)
        # Without a length the payload ends with its line.
        length = int(headers.get("length", body.find(b"\n") if b"\n" in body else len(body)))
        if length > len(body):
            raise ValueError(f"an item of {length} bytes, of which {len(body)} came")
        yield Item(headers, body[:length])
        body = body[length:].removeprefix(b"\n")


def _headers(line: bytes) -> dict[str, Any]:
    headers = json.loads(line)
    if not isinstance(headers, dict):
        raise ValueError(f"no headers: {line[:100]!r}")  # noqa: TRY004 - what Receiver expects
    return headers
