"""
Where snapshots go: a bounded place on the broker, by a connection of our own.

One connection for a whole worker, whatever its concurrency. Our own, because a refusal closes an AMQP channel and a
wait would hold up Celery's: here nothing is waited for longer than a second, and after a failure the broker is left
alone for a while. Called from one thread at a time, never in a pool process.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

#: Name of the stream, exchange and queue. Part of the wire format, as are the bounds below.
NAME = "celery-lookout.signals.v1"

#: The same for transports that only know queues: on Amazon SQS names have no dots.
PLAIN_NAME = "celery-lookout-signals-v1"

MESSAGES_LIMIT = 2000
EXPIRES_SECONDS = 6 * 3600
QUEUE_ARGUMENTS = {
    "x-max-length": MESSAGES_LIMIT,
    "x-max-length-bytes": 64 * 2**20,
    "x-message-ttl": 900_000,
    "x-expires": EXPIRES_SECONDS * 1000,
}

#: Seconds that connecting, and any answer of the broker, may take.
PATIENCE_SECONDS = 1.0

#: Seconds to leave a broker alone after it failed; doubled with each failure, up to the second number.
FIRST_PAUSE_SECONDS = 5.0
LAST_PAUSE_SECONDS = 60.0

log = logging.getLogger("celery_lookout_signals")


class Way(Protocol):
    """How one kind of broker takes a snapshot. All raise whatever the transport raises."""

    def open(self) -> None:
        """Connect."""

    def send(self, body: str) -> None:
        """Hand *body* to the broker and wait until it has it."""

    def close(self) -> None:
        """Let go of the connection; there may be none."""


class Channel:
    """Publishes snapshots of one process, or not: what cannot be sent now is told by the next one."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._way: Way | None = None
        self._is_open = False
        self._pause = 0.0
        self._not_before = 0.0

    def publish(self, body: str, *, last: bool = False) -> bool:
        """
        Publish *body*, JSON text, and say whether the broker took it. Never raises, never waits for long.

        The *last* one is tried whatever happened before, and once more where only an old connection is known to be bad:
        no other will tell what it says.
        """
        if last:
            was_open = self._is_open
            return self._try(body) or (was_open and self._try(body))
        return time.monotonic() >= self._not_before and self._try(body)

    def _try(self, body: str) -> bool:
        try:
            if self._way is None:
                self._way = _way(self._app)
            if not self._is_open:
                self._way.open()
                self._is_open = True
            self._way.send(body)
        except Exception as error:  # noqa: BLE001  # each transport raises its own
            self._failed(error)
            return False
        if self._pause:
            self._pause = 0.0
            log.info("snapshots are published again")
        return True

    def close(self) -> None:
        """Let go of the connection; the next ``publish`` opens another."""
        self._is_open = False
        if self._way is not None:
            try:
                self._way.close()
            except Exception:  # a broken connection has the right to break while closing
                log.debug("while closing", exc_info=True)

    def _failed(self, error: Exception) -> None:
        self.close()
        if not self._pause:
            # The class only: some drivers put the URL, with its password, into the text.
            log.warning("snapshot not published (%s), trying again until the broker takes it", type(error).__name__)
        self._pause = min(self._pause * 2 or FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS)
        self._not_before = time.monotonic() + self._pause


#: How long the drivers of each kind of transport may wait, in their own words.
_PATIENCE: dict[str, dict[str, Any]] = {
    "redis": {"socket_timeout": PATIENCE_SECONDS, "socket_connect_timeout": PATIENCE_SECONDS},
    "amqp": {"confirm_publish": True},
    "sqs": {
        "client-config": {
            "connect_timeout": PATIENCE_SECONDS,
            "read_timeout": PATIENCE_SECONDS,
            "retries": {"max_attempts": 0},
        }
    },
}


def _way(app: Any) -> Way:
    kind = _connection(app).transport.driver_type
    if kind == "redis":
        return _Stream(app)
    if kind == "amqp":
        return _Published(app, NAME, "fanout", QUEUE_ARGUMENTS)
    return _Published(app, PLAIN_NAME, "direct")


def _connection(app: Any) -> Any:
    """Return an unopened connection of *app* that waits for nothing long."""
    connection = app.connection_for_write(heartbeat=0, connect_timeout=PATIENCE_SECONDS)
    # A copy: without it the application's own connections would get our options.
    options = _PATIENCE.get(connection.transport.driver_type, {})
    connection.transport_options = {**connection.transport_options, **options}
    return connection


class _Stream:
    """Redis: a stream, trimmed and kept alive with each entry."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._key = ""
        self._pool: Any = None
        self._redis: Any = None

    def open(self) -> None:
        if self._pool is None:
            channel = _connection(self._app).channel()
            self._key = f"{channel.global_keyprefix or ''}{NAME}"
            self._pool = channel.pool
            # It has looked whether Redis is there. We need only its settings: TLS, Sentinel, credentials.
            self._pool.disconnect()
        # A bare connection: redis-py's client tries again and again before it gives up.
        self._redis = self._pool.make_connection()
        self._redis.retry = _without_retries()
        self._redis.connect()

    def send(self, body: str) -> None:
        self._ask("XADD", self._key, "MAXLEN", MESSAGES_LIMIT, "*", "body", body)
        self._ask("EXPIRE", self._key, EXPIRES_SECONDS)

    def _ask(self, *command: Any) -> None:
        self._redis.send_command(*command)
        self._redis.read_response()

    def close(self) -> None:
        if self._redis is not None:
            self._redis.disconnect()


class _Published:
    """Through an exchange that kombu declares, with the queue that keeps snapshots while there is no sidecar."""

    def __init__(self, app: Any, name: str, exchange_type: str, arguments: dict[str, Any] | None = None) -> None:
        self._app = app
        self._name = name
        self._exchange_type = exchange_type
        self._arguments = arguments
        self._connection: Any = None
        self._producer: Any = None

    def open(self) -> None:
        from kombu import Exchange, Queue

        self._connection = connection = _connection(self._app)
        # One attempt for each host of a fail-over list.
        connection.ensure_connection(max_retries=max(len(connection.alt or ()) - 1, 0))
        sock = getattr(connection.connection, "sock", None)
        if sock is not None:
            sock.settimeout(PATIENCE_SECONDS)  # py-amqp waits for an answer for ever otherwise
        channel = connection.channel()
        exchange = Exchange(self._name, type=self._exchange_type, durable=True)
        Queue(self._name, exchange, self._name, durable=True, queue_arguments=self._arguments)(channel).declare()
        self._producer = connection.Producer(channel, exchange, self._name, auto_declare=False)

    def send(self, body: str) -> None:
        self._producer.publish(body, content_type="application/json", content_encoding="utf-8", retry=False)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.collect()


def _without_retries() -> Any:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Retry(NoBackoff(), 0)
