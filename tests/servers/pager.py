"""Whom Alertmanager calls: a webhook that keeps every notification, in the test process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

import pytest

Status = Literal["firing", "resolved"]


@dataclass(frozen=True)
class Page:
    """One alert of a notification."""

    #: When it arrived, on the monotonic clock.
    at: float
    receiver: str
    status: Status
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.labels["alertname"]

    def says(self, name: str, status: Status, labels: Mapping[str, str]) -> bool:
        """Say whether this is the word about alert *name* with at least these labels."""
        return self.name == name and self.status == status and labels.items() <= self.labels.items()

    def __str__(self) -> str:
        labels = ", ".join(f'{key}="{value}"' for key, value in sorted(self.labels.items()) if key != "alertname")
        return f"{self.receiver}: {self.name} {self.status} {{{labels}}}"


class Pager:
    """
    Keep what Alertmanager sends to ``url``; use it as a context manager.

    An alert is open from the first word that it fires until the word that it is resolved, as it is for somebody who
    carries a pager.
    """

    def __init__(self) -> None:
        #: Bodies of the notifications, in the order of their arrival.
        self.notifications: list[dict[str, Any]] = []
        #: Every alert in them.
        self.pages: list[Page] = []
        self._heard = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        # Notifications are short; none is worth waiting for at the end.
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="pager", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def wait_for(self, name: str, status: Status = "firing", *, seconds: float = 30.0, **labels: str) -> Page:
        """
        Wait until the last word about an alert *name* with at least these labels is *status*; return that word.

        Among several the one that came first is returned.
        """
        deadline = time.monotonic() + seconds
        with self._heard:
            while not (found := [page for page in self._last_words() if page.says(name, status, labels)]):
                left = deadline - time.monotonic()
                if left <= 0 or not self._heard.wait(left):
                    pytest.fail(f"no word of {name} {labels or ''} {status} within {seconds:g} s, but of\n{self}")
            return found[0]

    def open(self, receiver: str = "") -> list[Page]:
        """Return the alerts that are open, at one receiver or at all."""
        with self._heard:
            pages = self._last_words()
        return [page for page in pages if page.status == "firing" and receiver in {"", page.receiver}]

    def silence(self, start: float, end: float, receiver: str = "") -> float:
        """Return for how many seconds between two times no alert was open."""
        with self._heard:
            pages = [page for page in self.pages if receiver in {"", page.receiver} and page.at <= end]
        silent, quiet_since, firing = 0.0, start, set[frozenset[tuple[str, str]]]()
        for page in pages:
            was_quiet = not firing
            identity = frozenset(page.labels.items())
            (firing.add if page.status == "firing" else firing.discard)(identity)
            if was_quiet and firing:
                silent += max(page.at - quiet_since, 0.0)
            elif not was_quiet and not firing:
                quiet_since = max(page.at, start)
        return silent if firing else silent + end - quiet_since

    def __str__(self) -> str:
        if not self.pages:
            return "(no page)"
        return "\n".join(f"+{page.at - self.pages[0].at:.1f} s {page}" for page in self.pages)

    def _last_words(self) -> list[Page]:
        last: dict[tuple[str, frozenset[tuple[str, str]]], Page] = {}
        for page in self.pages:
            last[page.receiver, frozenset(page.labels.items())] = page
        return sorted(last.values(), key=lambda page: page.at)

    def _take(self, notification: dict[str, Any]) -> None:
        at = time.monotonic()
        with self._heard:
            self.notifications.append(notification)
            self.pages += [
                Page(at, notification["receiver"], alert["status"], alert["labels"], alert["annotations"])
                for alert in notification["alerts"]
            ]
            self._heard.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pager = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                pager._take(json.loads(self.rfile.read(length)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
                """Stay silent: the notifications say it all."""

        return Handler
