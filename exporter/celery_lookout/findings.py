"""
What is wrong with a set-up and how to mend it, as far as it shows from here.

``doctor`` prints it, the status page shows it, and ``serve`` logs each thing once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from .state.cluster import Cluster

if TYPE_CHECKING:
    from .monitor import Monitor

#: A clock that is further off than this makes waits wrong by as much, in seconds.
SKEW_SECONDS: Final = 2.0

#: Part of the tasks that must be stamped by their publisher: some waits tell of all.
STAMPED_SHARE: Final = 0.5

#: Part of the snapshots that may be missing: a broker that was away explains some, another reader takes half or more.
MISSED_SHARE: Final = 0.25

#: Names in one sentence.
NAMES_SHOWN: Final = 10

_RIGHTS: Final = "see docs/permissions.md"


class Finding(NamedTuple):
    """One thing looked at. ``topic`` stays the same while names in the text change; ``mend`` may be empty."""

    level: Literal["ok", "warning", "error"]
    topic: str
    what: str
    mend: str = ""


def findings(monitor: Monitor) -> Iterator[Finding]:
    """Yield what can be said of one broker, after it has been watched for a few heartbeats."""
    if not monitor.was_reached:
        yield Finding(
            "error",
            "broker",
            f"the broker cannot be reached: {monitor.listener.problem or 'no answer'}",
            "check host, port, password and TLS of --broker",
        )
        return
    if monitor.listener.problem is None:
        yield Finding("ok", "fine", "the broker answers")
    else:
        yield Finding(
            "error",
            "broker",
            f"there are no events, since the connection was lost: {monitor.listener.problem}",
            f"if the broker is up, {_RIGHTS}",
        )
    for poller in monitor.pollers:
        if poller.problem is not None:
            yield Finding(
                "warning",
                "collector",
                f"the collector {poller.name} fails: {poller.problem}",
                "see docs/traces.md" if poller.name == "otlp" else _RIGHTS,
            )
    if monitor.queues.refusal is not None:
        yield Finding("warning", "rights", f"the broker shows less than it could: {monitor.queues.refusal}", _RIGHTS)
    if monitor.queues.problem is not None:
        yield Finding(
            "warning",
            "management",
            f"RabbitMQ's management API is not in use: {monitor.queues.problem}",
            "set --rabbitmq.management-url, and give the user the tag management",
        )
    if monitor.broker.has_events or list(monitor.cluster.workers):
        yield from _about_workers(monitor.cluster)
    else:
        yield Finding(
            "warning",
            "snapshots",
            "Amazon SQS has no events, and no worker sends snapshots: nothing is known but the depth of queues",
            "install celery_lookout_signals in the workers",
        )


def _about_workers(cluster: Cluster) -> Iterator[Finding]:
    workers = list(cluster.workers)
    if not workers:
        yield Finding(
            "warning",
            "workers",
            "no worker was heard and none answered",
            "start one; if they run, compare their broker URL with --broker, above all the database number or virtual"
            " host, and global_keyprefix, fanout_prefix and control_exchange",
        )
        return
    yield Finding("ok", "fine", f"{len(workers)} workers: {_some(worker.name for worker in workers)}")
    deaf = [worker.name for worker in workers if worker.last_heartbeat is None]
    if deaf:
        yield Finding(
            "warning",
            "heartbeats",
            f"no heartbeat from {_some(deaf)}",
            "start workers without --without-heartbeat; compare event_exchange, fanout_prefix and fanout_patterns",
        )
    skewed = {worker.name: max(worker.differences) for worker in workers if worker.differences}
    wrong = [f"{name} {seconds:+.1f} s" for name, seconds in skewed.items() if abs(seconds) > SKEW_SECONDS]
    if wrong:
        yield Finding("warning", "clock", f"clocks differ from ours: {_some(wrong)}", "run NTP on those hosts")
    covered = cluster.covered_workers()
    if covered:
        yield from _about_snapshots(cluster, len(covered))
    if cluster.living_workers().keys() - covered or not covered:
        yield from _about_events(cluster)


def _about_snapshots(cluster: Cluster, covered: int) -> Iterator[Finding]:
    yield Finding("ok", "fine", f"{covered} workers send snapshots, and need no task events")
    read, missed = cluster.exporter.snapshots.value, cluster.exporter.snapshots_missed.value
    if missed > max(read * MISSED_SHARE, 5):
        yield Finding(
            "warning",
            "missed",
            f"{missed:.0f} snapshots did not reach us, and {read:.0f} did: counts come late",
            "if several sidecars watch this broker, give each a name of its own with --replica",
        )
    told = cluster.snapshots
    if told.waits < told.starts * STAMPED_SHARE:
        yield Finding(
            "warning",
            "stamp",
            f"of {told.starts} tasks that ran, {told.starts - told.waits} were not stamped when they were published:"
            " how long they waited is not known",
            "install celery_lookout_signals in the applications that publish, too",
        )


def _about_events(cluster: Cluster) -> Iterator[Finding]:
    heard = cluster.exporter.events.child
    silent = cluster.workers_without_task_events()
    if silent:
        yield Finding(
            "warning",
            "task-events",
            f"workers run tasks and send no task events: {_some(silent)}",
            "start them with -E, set worker_send_task_events = True, or serve with --control.enable-events",
        )
    elif not heard("task-received").value and not heard("task-started").value:
        yield Finding("ok", "fine", "no task ran while we watched, so whether task events are on was not seen")
    elif not heard("task-sent").value:
        yield Finding(
            "warning",
            "task-sent",
            "tasks ran, and no publisher sends task-sent: queues are known only of workers that consume a single"
            " queue, and neither waits nor the age of the oldest task are known",
            "set task_send_sent_event = True in the applications that publish",
        )
    else:
        yield Finding("ok", "fine", "task events and task-sent are on")


def _some(names: Iterable[str]) -> str:
    """Return the first few of *names*, sorted, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - NAMES_SHOWN
    return ", ".join(ordered[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
