"""
What stands before every page once there is a web configuration file: client certificates, then users.

All paths are protected alike, ``/-/healthy`` and unknown ones too, as in Prometheus's own servers.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import ssl
from collections.abc import Iterable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from ..metrics.web import WebMetrics
from .reload import WebConfigFile
from .users import Passwords, TooManyLogins, bcrypt_matches


class Guard:
    """Lets through whom the web configuration *file* names."""

    def __init__(self, file: WebConfigFile, metrics: WebMetrics) -> None:
        self._file = file
        self._passwords = Passwords(bcrypt_matches)
        self._metrics = metrics

    @property
    def context(self) -> ssl.SSLContext | None:
        """What the next handshake is made with; None without TLS."""
        tls = self._file.current.tls
        return None if tls is None else tls.context

    async def watch(self) -> None:
        """Take in changes of the file until cancelled."""
        await self._file.watch(self._metrics)

    def close(self) -> None:
        """Check no more passwords."""
        self._passwords.close()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer 403, 401 or 503, or let *handler* answer."""
        config = self._file.current
        if config.tls is not None and config.tls.allowed_sans is not None:
            certificate = request.get_extra_info("peercert")  # always there, unless clients may come without
            if certificate and config.tls.allowed_sans.isdisjoint(_names(certificate)):
                self._metrics.refuse("certificate")
                refusal = web.Response(status=403, text="none of the certificate's names is allowed\n")
                refusal.force_close()
                return refusal
        if config.users:
            credentials = _credentials(request.headers.get("Authorization", ""))
            try:
                allowed = credentials is not None and await self._passwords.allow(config.users, *credentials)
            except TooManyLogins:
                self._metrics.refuse("busy")
                return web.Response(status=503, headers={"Retry-After": "5"}, text="too many logins at once\n")
            if not allowed:
                self._metrics.refuse("credentials")
                return web.Response(
                    status=401, headers={"WWW-Authenticate": 'Basic realm="celery-lookout"'}, text="Unauthorized\n"
                )
        return await handler(request)

    def add_headers(self, response: web.StreamResponse) -> None:
        """Set the headers that the file wants on *response*, whatever it is."""
        response.headers.update(self._file.current.headers)


def _credentials(header: str) -> tuple[bytes, bytes] | None:
    """Return name and password of an Authorization header, None when it has none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (name, password) if colon else None


def _names(certificate: dict[str, Any]) -> Iterable[str]:
    """Return the subject alternative names of a client's certificate, as Go writes them."""
    for kind, name in certificate.get("subjectAltName", ()):
        yield str(ipaddress.ip_address(name.strip())) if kind == "IP Address" else name
