"""
``celery-lookout doctor``: watches a broker for a moment and says what is wrong with the set-up, and how to mend it.

It uses the very parts that ``serve`` uses, so what it finds is what ``serve`` would live with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, NamedTuple

from .metrics.registry import Registry
from .monitor import Monitor
from .settings import Settings
from .state.cluster import Cluster

#: A clock that is further off than this makes waits wrong by as much, in seconds.
SKEW_SECONDS: Final = 2.0

#: What the exit code says of the worst finding.
EXIT_CODES: Final = {"ok": 0, "warning": 1, "error": 2}


class Finding(NamedTuple):
    """One thing looked at. ``mend`` is empty when there is nothing to do."""

    level: Literal["ok", "warning", "error"]
    what: str
    mend: str = ""


def examine(settings: Settings, seconds: float, show: Callable[[str], None]) -> int:
    """Watch every broker for *seconds*, *show* what was found, and return the exit code: 0, or 1 or 2 for the worst."""
    logging.disable(logging.CRITICAL)  # everything it would say is a finding
    worst = 0
    for monitor in asyncio.run(_watch(settings, seconds)):
        show(f"{monitor.name}:")
        for finding in findings(monitor, seconds):
            show(f"  {finding.level:8}{finding.what}")
            if finding.mend:
                show(f"          -> {finding.mend}")
            worst = max(worst, EXIT_CODES[finding.level])
    return worst


async def _watch(settings: Settings, seconds: float) -> list[Monitor]:
    executor = ThreadPoolExecutor(3 * len(settings.brokers))
    monitors = [Monitor(broker, settings, Registry(), executor) for broker in settings.brokers]
    tasks = [asyncio.create_task(monitor.run()) for monitor in monitors]
    await asyncio.wait(tasks, timeout=seconds)
    for monitor in monitors:
        monitor.refresh()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    executor.shutdown(wait=False, cancel_futures=True)
    return monitors


def findings(monitor: Monitor, seconds: float) -> Iterator[Finding]:
    """Yield what can be said of one broker after *seconds* of watching."""
    if not monitor.was_reached:
        yield Finding(
            "error",
            f"the broker cannot be reached: {monitor.listener.problem or 'no answer'}",
            "check host, port, password and TLS of --broker",
        )
        return
    yield Finding("ok", "the broker answers")
    for poller in monitor.pollers:
        if poller.problem is not None:
            yield Finding("warning", f"the collector {poller.name} fails: {poller.problem}", "see docs/permissions.md")
    if monitor.queues.problem is not None:
        yield Finding(
            "warning",
            f"RabbitMQ's management API is not in use: {monitor.queues.problem}",
            "set --rabbitmq.management-url, and give the user the tag monitoring",
        )
    yield from _about_workers(monitor.cluster, seconds)


def _about_workers(cluster: Cluster, seconds: float) -> Iterator[Finding]:
    workers = list(cluster.workers)
    if not workers:
        yield Finding(
            "warning",
            f"no worker was heard and none answered within {seconds:g} s",
            "start one; if they run, compare their broker URL with --broker, above all the database number or virtual"
            " host, and global_keyprefix, fanout_prefix and control_exchange",
        )
        return
    yield Finding("ok", f"{len(workers)} workers: {', '.join(sorted(worker.name for worker in workers))}"[:200])
    deaf = sorted(worker.name for worker in workers if worker.last_heartbeat is None)
    if deaf:
        yield Finding(
            "warning",
            f"no heartbeat from {', '.join(deaf)}",
            "start workers without --without-heartbeat; compare event_exchange, fanout_prefix and fanout_patterns",
        )
    skewed = [worker for worker in workers if worker.differences and abs(max(worker.differences)) > SKEW_SECONDS]
    for worker in skewed:
        yield Finding("warning", f"the clock of {worker.name} is {max(worker.differences):+.1f} s off", "run NTP")
    yield from _about_events(cluster)


def _about_events(cluster: Cluster) -> Iterator[Finding]:
    heard = cluster.exporter.events.child
    silent = sorted(cluster.workers_without_task_events())
    if silent:
        yield Finding(
            "warning",
            f"workers run tasks and send no task events: {', '.join(silent)}",
            "start them with -E, set worker_send_task_events = True, or serve with --control.enable-events",
        )
    elif not heard("task-received").value and not heard("task-started").value:
        yield Finding("ok", "no task ran while we watched, so whether task events are on was not seen")
    elif not heard("task-sent").value:
        yield Finding(
            "warning",
            "tasks ran, and no publisher sends task-sent: queues are known only of workers that consume a single"
            " queue, and neither waits nor the age of the oldest task are known",
            "set task_send_sent_event = True in the applications that publish",
        )
    else:
        yield Finding("ok", "task events and task-sent are on")
