"""
Keeps the web configuration file in force as it is now.

Each handshake and each request asks for the newest good version. A broken one changes nothing, and is said.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ..errors import SettingsError
from ..metrics.web import WebMetrics
from .config import WebConfig, read_web_config

#: Seconds between two looks at the files.
CHECK_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class WebConfigFile:
    """The file at *path*; ``current`` is its newest good version. Raises SettingsError when the first one is broken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._error = ""
        self.current = read_web_config(path)

    async def watch(self, metrics: WebMetrics) -> None:
        """Take in changes until cancelled. A thread reads the files: a disk may hang."""
        loop = asyncio.get_running_loop()
        executor = ThreadPoolExecutor(1, thread_name_prefix="web-config")
        try:
            while True:
                await asyncio.sleep(CHECK_SECONDS)
                found = await loop.run_in_executor(executor, self._look)
                if found is not None:
                    self._take(found, metrics)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _look(self) -> WebConfig | SettingsError | None:
        """Return what the files say now: an error when they are broken, None when nothing has changed."""
        if not self._error and not self.current.files.changed():
            return None
        try:
            found = read_web_config(self._path)
        except SettingsError as error:
            return error
        if (found.tls is None) != (self.current.tls is None):
            return SettingsError(
                f"--web.config.file {str(self._path)!r} switches TLS {'on' if found.tls else 'off'}: restart for that"
            )
        return found

    def _take(self, found: WebConfig | SettingsError, metrics: WebMetrics) -> None:
        """Put *found* in force, or say once what is wrong."""
        metrics.reloaded(success=isinstance(found, WebConfig))
        if isinstance(found, WebConfig):
            self.current, self._error = found, ""
            log.info("web configuration file reloaded", extra={"file": str(self._path)})
        elif str(found) != self._error:
            self._error = str(found)
            log.error("web configuration file is broken; what it said before stays", extra={"error": self._error})
