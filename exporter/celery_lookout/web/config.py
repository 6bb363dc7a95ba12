"""
The web configuration file: who may scrape, and over what.

Its form is that of Prometheus's exporter-toolkit, so ``promtool check web-config`` and what people know hold here too.
Source: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..errors import SettingsError
from .files import Files
from .strict import Section
from .tls import Tls, read_tls

#: The headers that may be set, and their values where not any will do.
_HEADERS: Final[Mapping[str, tuple[str, ...]]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}

_BCRYPT: Final = re.compile(r"\$2[abxy]\$(\d\d)\$[./A-Za-z0-9]{53}")
_LEAST_COST: Final = 4
#: Each step doubles the work: here it is some seconds for each wrong password.
_MOST_COST: Final = 16


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What the file says, checked, with the files it names read."""

    #: None without TLS.
    tls: Tls | None
    #: Set on every answer.
    headers: Mapping[str, str]
    #: Names and bcrypt hashes; empty when nobody is asked for a password.
    users: Mapping[bytes, bytes] = field(repr=False)
    #: What it was read from.
    files: Files = field(repr=False)


def read_web_config(path: Path) -> WebConfig:
    """Read the file at *path* and those it names. Raises SettingsError, which never holds a secret."""
    file = f"--web.config.file {str(path)!r}"
    files = Files()
    try:
        text = files.read(path).decode()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError:
        raise SettingsError(f"{file} cannot be read: it is not UTF-8") from None  # the error quotes it
    content = Section.parse(file, text)
    if "rate_limit" in content:
        raise content.wrong("rate_limit", "is not built here: limit requests in front of the sidecar, and leave it out")
    content.only("tls_server_config", "http_server_config", "basic_auth_users")
    http = content.section("http_server_config")
    http.only("http2", "headers")
    http.flag("http2", default=True)  # whatever it says, answers are HTTP/1.1
    return WebConfig(
        tls=read_tls(content.section("tls_server_config"), path.parent, files),
        headers=_headers(http.section("headers")),
        users=_users(content.section("basic_auth_users")),
        files=files,
    )


def _headers(section: Section) -> dict[str, str]:
    section.only(*_HEADERS)
    headers = {}
    for name in section:
        value = section.text(name)
        if _HEADERS[name] and value not in _HEADERS[name]:
            raise section.wrong(name, f"must be {' or '.join(_HEADERS[name])}")
        if not value.isprintable():
            raise section.wrong(name, "has a line break or another control character")
        if value:
            headers[name] = value
    return headers


def _users(section: Section) -> dict[bytes, bytes]:
    users = {}
    for name in section:
        if not name or ":" in name:
            raise section.wrong(name, "is no name that a browser or Prometheus could send: it is empty or has a colon")
        found = _BCRYPT.fullmatch(section.text(name))
        if found is None:
            raise section.wrong(name, 'must be a bcrypt hash: make one with htpasswd -nBC 10 "" | tr -d ":\\n"')
        if not _LEAST_COST <= int(found[1]) <= _MOST_COST:
            raise section.wrong(
                name, f"is a bcrypt hash of cost {found[1]}: use {_LEAST_COST} to {_MOST_COST}, 10 is usual"
            )
        users[name.encode()] = found[0].encode()
    return users
