"""Where spans go, as the options ``otlp.…`` say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import SettingsError

#: Where a collector takes spans, when the URL says nothing of it.
PATH: Final = "/v1/traces"

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
#: What somebody may take for a name although it is a secret: a whole value without a name.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z][A-Za-z-]{0,40}")


@dataclass(frozen=True, slots=True)
class OtlpOptions:
    """A collector of OpenTelemetry's that takes OTLP over HTTP."""

    #: With its path. A query may be a secret.
    endpoint: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    service_name: str = "celery"

    @property
    def shown(self) -> str:
        """The endpoint without its query."""
        return self.endpoint.partition("?")[0]

    @classmethod
    def read(cls, endpoint: str, headers: Iterable[str], service_name: str) -> OtlpOptions:
        """Check what was given. Raises SettingsError for the first that is wrong, without what may be secret."""
        if not service_name.strip():
            raise SettingsError("--otlp.service-name '' is empty: leave it out, or give a name")
        return cls(_endpoint(endpoint), dict(_header(text) for text in headers), service_name)


def _endpoint(text: str) -> str:
    if "@" in text:
        raise SettingsError("--otlp.endpoint '***' may not hold user and password: give them as an --otlp.header")
    url = _split(text)
    if url is None or url.fragment or re.search(r"[\s\x00-\x1f\x7f-\U0010ffff]", text):
        shown = text.partition("?")[0][:200]
        raise SettingsError(f"--otlp.endpoint {shown!r} is not an HTTP URL: write for example http://collector:4318")
    return url._replace(path=PATH if url.path in ("", "/") else url.path).geturl()


def _split(text: str) -> SplitResult | None:
    """Return the parts of an HTTP URL; None if it is none."""
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        return None
    return url if usable else None


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    value = unquote(value)
    if not equals or not _TOKEN.fullmatch(name):
        shown = name if equals and _PLAIN_NAME.fullmatch(name) else "***"
        raise SettingsError(f"--otlp.header {shown!r} is not NAME=VALUE: write for example api-key=123")
    if not _VALUE.fullmatch(value):
        raise SettingsError(
            f"--otlp.header {name}='***' has an empty value, or characters that no header may have: they are written"
            " as in a URL, a space as %20, and must be printable ASCII"
        )
    return name.lower(), value
