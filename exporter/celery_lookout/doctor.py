"""
``celery-lookout doctor``: watches a broker for a moment and says what is wrong with the set-up, and how to mend it.

It uses the very parts that ``serve`` uses, so what it finds is what ``serve`` would live with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from .findings import findings
from .metrics.registry import Registry
from .monitor import THREADS_PER_BROKER, Monitor
from .settings import Settings

#: What the exit code says of the worst finding.
EXIT_CODES: Final = {"ok": 0, "warning": 1, "error": 2}


def examine(settings: Settings, seconds: float, show: Callable[[str], None]) -> int:
    """Watch every broker for *seconds*, *show* what was found, and return the exit code: 0, or 1 or 2 for the worst."""
    logging.disable(logging.CRITICAL)  # everything it would say is a finding
    worst = 0
    for monitor in asyncio.run(_watch(settings, seconds)):
        show(f"{monitor.name}:")
        for finding in findings(monitor):
            show(f"  {finding.level:8}{finding.what}")
            if finding.mend:
                show(f"          -> {finding.mend}")
            worst = max(worst, EXIT_CODES[finding.level])
    return worst


async def _watch(settings: Settings, seconds: float) -> list[Monitor]:
    executor = ThreadPoolExecutor(THREADS_PER_BROKER * len(settings.brokers))
    monitors = [Monitor(broker, settings, Registry(), executor, is_guest=True) for broker in settings.brokers]
    tasks = [asyncio.create_task(monitor.run()) for monitor in monitors]
    await asyncio.wait(tasks, timeout=seconds)
    for monitor in monitors:
        monitor.refresh()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    executor.shutdown(wait=False, cancel_futures=True)
    return monitors
