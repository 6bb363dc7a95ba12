"""
RabbitMQ's management API: what it says about the queues of one virtual host.

Its numbers come from statistics that queues send every five seconds, so they lag; ``rabbitmq`` takes from here only
what AMQP itself does not tell.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

import msgspec
from kombu.connection import Connection

from ..broker import SOCKET_TIMEOUT_SECONDS, Broker
from ..errors import ProbeFailed, SettingsError

#: Seconds in which an answer must be complete, however large: depths wait for it.
ANSWER_SECONDS = 10.0

#: Largest answer taken, in bytes: about 100,000 queues.
_BODY_LIMIT = 16 * 1024 * 1024

#: Columns asked for; without them a queue takes 2 KB instead of 150 bytes.
_COLUMNS = "name,messages_ready,messages_unacknowledged,head_message_timestamp,exclusive"

#: What to change, by HTTP status. RabbitMQ answers 401 to wrong credentials and to users without a tag alike.
_REFUSALS = {
    401: "wrong user or password, or the user lacks the tag 'management'",
    403: "the user may not see virtual host {vhost!r}",
}

#: Ports of the management plugin, plain and TLS.
_PORT, _TLS_PORT = 15672, 15671


class QueueRow(msgspec.Struct, frozen=True):
    """One queue as the API shows it. Statistics are None until the queue sent its first ones."""

    name: str
    messages_ready: int | None = None
    messages_unacknowledged: int | None = None
    #: Unix seconds; the API writes an empty string or null where there is none.
    head_message_timestamp: int | str | None = None
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Management:
    """Where the API of a broker is, and as whom to ask."""

    host: str
    port: int
    vhost: str
    authorization: str = field(repr=False)
    path: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def locate(cls, broker: Broker, url: str | None) -> Management:
        """
        Return the API at *url*, or on the broker's host when it is None.

        Credentials come from *url*, else from the broker's URL. A broker reached over TLS is asked over TLS too, so
        that its password never crosses the network in the clear unless *url* says so. Raises SettingsError for a bad
        *url*.
        """
        connection = broker.connection()
        secure = bool(connection.ssl) or broker.url.startswith("amqps://")
        default = f"https://{_host(connection)}:{_TLS_PORT}" if secure else f"http://{_host(connection)}:{_PORT}"
        try:
            parts = urlsplit(url or default)
            port = parts.port or (_TLS_PORT if parts.scheme == "https" else _PORT)
        except ValueError:
            parts, port = urlsplit(""), 0
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(
                "--rabbitmq.management-url is not a URL: write for example http://user:password@host:15672"
            )
        user = unquote(parts.username) if parts.username else (connection.userid or "guest")
        password = unquote(parts.password) if parts.password else (connection.password or "guest")
        return cls(
            host=parts.hostname,
            port=port,
            vhost=connection.virtual_host or "/",
            authorization="Basic " + base64.b64encode(f"{user}:{password}".encode()).decode(),
            path=parts.path.rstrip("/"),
            tls=_context(broker) if parts.scheme == "https" else None,
        )

    def queues(self) -> tuple[QueueRow, ...]:
        """Return all queues of the virtual host. Raises ProbeFailed with what to change when that does not work."""
        target = f"{self.path}/api/queues/{quote(self.vhost, safe='')}?columns={_COLUMNS}"
        try:
            status, body = self._get(target)
        except (OSError, http.client.HTTPException) as error:
            raise ProbeFailed(self._message(f"no answer ({str(error) or type(error).__name__})")) from None
        if status in _REFUSALS:
            raise ProbeFailed(self._message(_REFUSALS[status].format(vhost=self.vhost)))
        if status != 200:
            raise ProbeFailed(self._message(f"HTTP status {status} for virtual host {self.vhost!r}"))
        if len(body) > _BODY_LIMIT:
            raise ProbeFailed(self._message(f"the answer is larger than {_BODY_LIMIT} bytes"))
        try:
            return msgspec.json.decode(body, type=tuple[QueueRow, ...])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProbeFailed(self._message("the answer is not RabbitMQ's list of queues")) from None

    def _get(self, target: str) -> tuple[int, bytes]:
        connection: http.client.HTTPConnection
        if self.tls is not None:
            connection = http.client.HTTPSConnection(
                self.host, self.port, timeout=SOCKET_TIMEOUT_SECONDS, context=self.tls
            )
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=SOCKET_TIMEOUT_SECONDS)
        # The time limit of the socket starts anew with each byte; this one does not.
        started = time.monotonic()
        limit = threading.Timer(ANSWER_SECONDS, _hang_up, [connection])
        limit.start()
        try:
            connection.request(
                "GET", target, headers={"Authorization": self.authorization, "Accept": "application/json"}
            )
            response = connection.getresponse()
            body = response.read(_BODY_LIMIT + 1)
            if time.monotonic() - started >= ANSWER_SECONDS:
                raise TimeoutError(f"not complete within {ANSWER_SECONDS:g} s")
            return response.status, body
        finally:
            limit.cancel()
            connection.close()

    def _message(self, problem: str) -> str:
        scheme = "https" if self.tls is not None else "http"
        return f"RabbitMQ management API at {scheme}://{self.host}:{self.port}: {problem}"


def _hang_up(connection: http.client.HTTPConnection) -> None:
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _host(connection: Connection) -> str:
    host = connection.hostname or "localhost"
    return f"[{host}]" if ":" in host else host


def _context(broker: Broker) -> ssl.SSLContext:
    """Return a context that verifies, with the broker's own authority and client certificate if it has them."""
    options = broker.ssl if isinstance(broker.ssl, Mapping) else {}
    context = ssl.create_default_context(cafile=options.get("ca_certs"))
    if options.get("certfile"):
        context.load_cert_chain(options["certfile"], options.get("keyfile"))
    return context
