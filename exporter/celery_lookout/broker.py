"""
Where a broker is and how to talk to it.

A :class:`Broker` is what the settings say, checked. Opening a connection is left to kombu, which knows URLs, TLS,
Sentinel and credential providers as Celery names them; reading from it is left to ``intake`` and ``probes``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from .errors import SettingsError

if TYPE_CHECKING:
    import kombu

#: Seconds that connecting, and any single answer, may take before the broker counts as unreachable.
SOCKET_TIMEOUT_SECONDS = 5.0

#: Characters of a driver's message that are passed on: enough for the reason, too few for a payload.
_MESSAGE_LIMIT = 300

#: How each URL scheme is read. Everything else that kombu knows goes through kombu itself.
_REDIS_SCHEMES = frozenset({"redis", "rediss", "redis+socket", "sentinel"})
_AMQP_SCHEMES = frozenset({"amqp", "amqps", "pyamqp"})

_SCHEME = re.compile(r"[a-z][a-z0-9+]*://")
#: Greedy, so that a password with an unescaped ``@``, ``/`` or ``;`` does not show its tail. Ends at a fail-over URL.
_USERINFO = re.compile(r"(?<=://)(?:(?!;[a-z][a-z0-9+]*://).)*@", re.DOTALL)
#: The same for what is no URL.
_BEFORE_HOST = re.compile(r"^.*@", re.DOTALL)
#: Of transport options, parts of the names of those that are secrets.
_SECRET_WORDS = ("password", "secret", "token")
_QUERY_SECRET = re.compile(r"(?i)([?&][^=&;]*(?:password|secret|token)[^=&;]*=)[^&;]*")


@dataclass(frozen=True, slots=True)
class Broker:
    """One broker to watch. ``name`` is the value of the ``broker`` label, or None for the only, unnamed one."""

    url: str = field(repr=False)
    name: str | None = None
    transport_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: As Celery's ``broker_use_ssl``: None, True, or a mapping of ``ssl_*`` (Redis) or ``ca_certs`` … (AMQP) options.
    ssl: Mapping[str, Any] | bool | None = field(default=None, repr=False)
    event_exchange: str = "celeryev"
    control_exchange: str = "celery"

    def __post_init__(self) -> None:
        if not _SCHEME.match(self.url):
            raise SettingsError(
                f"--broker {self.masked_url!r} is not a broker URL: write for example redis://host:6379/0 or amqp://user:password@host//"
            )

    @property
    def kind(self) -> Literal["redis", "amqp", "kombu"]:
        """Which reader serves this broker."""
        if self.scheme in _REDIS_SCHEMES:
            return "redis"
        return "amqp" if self.scheme in _AMQP_SCHEMES else "kombu"

    @property
    def scheme(self) -> str:
        """The URL's scheme, which names kombu's transport."""
        return self.url.split("://", 1)[0]

    @property
    def has_events(self) -> bool:
        """Whether Celery has events and remote control there: both need messages that reach all who listen."""
        return self.scheme != "sqs"

    @property
    def masked_url(self) -> str:
        """The URL without user, password or secret query values: fit for logs, pages and errors."""
        userinfo = _USERINFO if _SCHEME.match(self.url) else _BEFORE_HOST
        return _QUERY_SECRET.sub(r"\1***", userinfo.sub("***@", self.url))

    def connection(self, *, heartbeat: int = 0) -> kombu.Connection:
        """Return an unopened kombu connection. Its own ways to open retry for long or for ever: use ``connect``."""
        import kombu

        options: dict[str, Any] = dict(self.transport_options)
        if self.kind == "redis":
            options.setdefault("socket_timeout", SOCKET_TIMEOUT_SECONDS)
            options.setdefault("socket_connect_timeout", SOCKET_TIMEOUT_SECONDS)
        elif self.kind == "amqp":
            from .amqp_messages import handle_frames

            options["frame_handler"] = handle_frames
        more: dict[str, Any] = {"ssl": self.ssl or None, "connect_timeout": SOCKET_TIMEOUT_SECONDS}
        return kombu.Connection(self.url, transport_options=options, heartbeat=heartbeat, **more)

    def connect(self, *, heartbeat: int = 0) -> kombu.Connection:
        """
        Return an open kombu connection with a limit on every wait.

        One attempt per host of a fail-over list; the hosts of a Sentinel list belong to a single attempt. Raises
        whatever the transport raises, for callers to turn into BrokerUnavailable.
        """
        connection = self.connection(heartbeat=heartbeat)
        hosts = 1 if self.url.startswith("sentinel") else len(connection.alt or ())
        try:
            connection.ensure_connection(max_retries=max(hosts - 1, 0))
        except BaseException:
            connection.collect()
            raise
        if (sock := getattr(connection.connection, "sock", None)) is not None:
            # py-amqp waits for ever for the answer to a method unless the socket itself has a limit.
            sock.settimeout(SOCKET_TIMEOUT_SECONDS)
        return connection


def describe(broker: Broker, error: BaseException) -> str:
    """Return *error* in one line that starts with the masked URL and holds none of the broker's secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    for secret in sorted(_secrets(broker), key=len, reverse=True):
        text = text.replace(secret, "***")
    return f"{broker.masked_url}: {text[:_MESSAGE_LIMIT]}"


def _secrets(broker: Broker) -> Iterator[str]:
    yield broker.url
    for url in broker.url.split(";"):
        with suppress(ValueError):
            if password := urlsplit(url).password:
                yield password
                yield unquote(password)
    yield from _option_secrets(broker.transport_options)
    if isinstance(broker.ssl, Mapping):
        yield from _option_secrets(broker.ssl)


def _option_secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, Mapping):
                yield from _option_secrets(one)
            elif isinstance(one, str) and one and any(word in str(key).lower() for word in _SECRET_WORDS):
                yield one
