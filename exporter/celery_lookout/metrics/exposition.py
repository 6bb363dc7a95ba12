"""
From all metrics to the bytes of one scrape.

prometheus-client decides which format the scraper understands and shows the process and the Python runtime; everything
else is our registry's own text.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from .registry import Registry

try:
    from isal.isal_zlib import compressobj  # three to ten times faster, when it is there
except ImportError:
    from zlib import compressobj  # type: ignore[assignment]  # same call, other annotations

#: Fastest level: exposition text repeats itself so much that more effort gains little.
_LEVEL: Final = 1
#: zlib's way of asking for gzip with the largest window.
_GZIP_WINDOW: Final = 31


class Scrape(NamedTuple):
    """A response body and its headers."""

    body: bytes
    headers: dict[str, str]


class Exposition:
    """Renders one registry for any scraper."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._runtime = CollectorRegistry()
        ProcessCollector(registry=self._runtime)
        PlatformCollector(registry=self._runtime)
        GCCollector(registry=self._runtime)

    def scrape(self, accept: str, accept_encoding: str) -> Scrape:
        """Render for a scraper with these ``Accept`` and ``Accept-Encoding`` headers."""
        encode, content_type = _encoder(accept)
        openmetrics = content_type.startswith("application/openmetrics-text")
        # Ours first: the runtime's text ends with OpenMetrics' end mark.
        body = self._registry.render(openmetrics=openmetrics).encode() + encode(self._runtime)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if _accepts_gzip(accept_encoding):
            headers["Content-Encoding"] = "gzip"
            compressor = compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
            body = compressor.compress(body) + compressor.flush()
        return Scrape(body, headers)


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """Return how to encode for a scraper, and what that is called; plain text for who asks for what is no version."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # it compares the parts of versions as they come
        return choose_encoder("")


def _accepts_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.lower().split(","):
        name, _, parameters = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
