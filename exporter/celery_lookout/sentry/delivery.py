"""
From an event to Sentry's answer.

sentry-sdk makes the envelope, in a client of its own that touches nothing global; aiohttp sends it from the event
loop. The SDK's own transport would send it from a thread, and does not tell what became of which event.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import aiohttp
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from sentry_sdk.utils import Dsn

from .. import __version__
from ..metrics.exporter import SentryOutcome
from .options import SentryOptions

#: Seconds that Sentry may take for one answer.
ANSWER_SECONDS: Final = 15.0

#: Seconds without sending after an answer 429 that does not tell how long.
BACK_OFF_SECONDS: Final = 60.0

#: Longest back-off that Sentry can ask for: a day.
LONGEST_BACK_OFF_SECONDS: Final = 86400.0

#: What Sentry calls the kinds of things that it limits; limits of others are not about us.
_CATEGORIES: Final = {"": "error", "check_in": "monitor"}
_TOO_MANY: Final = 429

log = logging.getLogger(__name__)


class Delivery:
    """Sends one event after another. Made and used on the event loop."""

    def __init__(self, options: SentryOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._outbox = _Outbox()
        self._client = sentry_sdk.Client(
            options.dsn,
            transport=self._outbox,
            environment=options.environment,
            release=options.release,
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            send_client_reports=False,
            shutdown_timeout=0,
            spotlight=False,
        )
        # What the SDK finds by itself is this process's release and host, not the worker's.
        self._client.options.update(release=options.release, server_name=None)
        auth = Dsn(options.dsn).to_auth(f"celery-lookout/{__version__}")
        self._url = auth.get_api_url()
        self._headers = {
            "Content-Type": "application/x-sentry-envelope",
            "Content-Encoding": "gzip",
            "X-Sentry-Auth": auth.to_header(),
            "User-Agent": f"celery-lookout/{__version__}",
        }
        #: Category to when it may be sent again; "" is all of them.
        self._silent_until: dict[str, float] = {}
        self._session: aiohttp.ClientSession | None = None
        self._failing = False

    async def send(self, event: dict[str, Any]) -> SentryOutcome:
        """Send *event* and return what became of it. Never raises; takes up to ``ANSWER_SECONDS``."""
        category = _CATEGORIES[event.get("type", "")]
        if self._is_silent(category):
            return "rate_limited"
        body = await asyncio.get_running_loop().run_in_executor(None, self._envelope, event)
        if body is None:
            return "dropped"
        try:
            return await self._post(body, category)
        except (aiohttp.ClientError, OSError) as error:
            self._failed(type(error).__name__)
            return "failed"

    def _envelope(self, event: dict[str, Any]) -> bytes | None:
        """Return the envelope's bytes; None if the SDK did not make one. Takes milliseconds."""
        self._client.capture_event(event)  # type: ignore[arg-type]  # its own types are narrower than what it takes
        envelope = self._outbox.take()
        return None if envelope is None else gzip.compress(envelope.serialize(), compresslevel=6)

    async def _post(self, body: bytes, category: str) -> SentryOutcome:
        if self._session is None:
            # trust_env: a proxy named in the environment is used.
            self._session = aiohttp.ClientSession(
                headers=self._headers, timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS), trust_env=True
            )
        async with self._session.post(self._url, data=body, allow_redirects=False) as response:
            self._heed(response.headers.get("X-Sentry-Rate-Limits", ""))
            if response.status == _TOO_MANY:
                if not self._is_silent(category):
                    seconds = _seconds(response.headers.get("Retry-After", "")) or BACK_OFF_SECONDS
                    self._silent_until[""] = self._clock() + seconds
                return "rate_limited"
            if not response.ok or response.status >= 300:
                self._failed(f"HTTP status {response.status}")
                return "failed"
        if self._failing:
            self._failing = False
            log.info("Sentry takes events again")
        return "sent"

    def _is_silent(self, category: str) -> bool:
        return self._clock() < max(self._silent_until.get(name, 0.0) for name in ("", category))

    def _heed(self, limits: str) -> None:
        """Take note of how long Sentry wants to be left alone."""
        for limit in limits.split(","):
            # seconds:category;category:scope:reason, no category for all
            seconds, _, rest = limit.strip().partition(":")
            for category in rest.partition(":")[0].split(";"):
                if category in ("", *_CATEGORIES.values()) and _seconds(seconds):
                    # There may be several limits of one category: the longest counts.
                    until = max(self._clock() + _seconds(seconds), self._silent_until.get(category, 0.0))
                    self._silent_until[category] = until

    def _failed(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning("Sentry does not take events", extra={"error": why})

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()


class _Outbox(Transport):
    """Keeps the envelope that the client made last."""

    def __init__(self) -> None:
        super().__init__()
        self._envelope: Envelope | None = None

    def capture_envelope(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def take(self) -> Envelope | None:
        envelope, self._envelope = self._envelope, None
        return envelope


def _seconds(text: str) -> float:
    """Return a number of seconds that a header tells; 0 for what is none."""
    seconds = 0.0
    with suppress(ValueError):
        seconds = float(text)
    return min(seconds, LONGEST_BACK_OFF_SECONDS) if math.isfinite(seconds) and seconds > 0 else 0.0
