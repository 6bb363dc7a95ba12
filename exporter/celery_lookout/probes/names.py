"""Which of a broker's queues hold tasks: the rest belongs to Celery's own plumbing, or to us."""

from __future__ import annotations

import re

#: Longest queue name taken from a broker; AMQP allows no longer one.
NAME_LIMIT = 255

#: Event receivers, remote control and its replies, broadcast queues of single workers, server-named queues,
#: RabbitMQ native delayed delivery (with its optional prefix), and our own.
_PLUMBING = re.compile(
    r"celeryev(\..*)?$ | .*\.pidbox$ | reply\. | bcast\. | amq\. | (.+_)?celery_delayed_\d+$ | celery-lookout",
    re.VERBOSE,
)

#: The queues in which RabbitMQ native delayed delivery keeps what is not due yet. Source: kombu.
DELAYED = re.compile(r"(?:.+_)?celery_delayed_(?:1?\d|2[0-7])$")


def is_fit(name: str) -> bool:
    """Whether *name*, of a queue or a worker, is fit to be a label: not empty, of sane length, printable."""
    return 0 < len(name) <= NAME_LIMIT and name.isprintable()


def is_task_queue(name: str) -> bool:
    """Whether *name* is fit to be a queue label, and not plumbing."""
    return is_fit(name) and not _PLUMBING.match(name)


def is_broadcast(name: str) -> bool:
    """Whether *name* was made up by Celery for one worker's share of a broadcast: a new one with each start."""
    return name.startswith("bcast.")
