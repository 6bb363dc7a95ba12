"""
Queue depth on Amazon SQS.

Only attributes are asked for: no queue is created and no message received. SQS counts approximately, and may need a
minute until its numbers agree. Credentials, role, region and endpoint are left to kombu, as in the workers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from itertools import islice
from typing import Any, Final

from ..broker import SOCKET_TIMEOUT_SECONDS, Broker
from ..errors import SettingsError
from ..readings import BrokerReading, QueueReading
from .names import is_task_queue
from .session import Session

try:
    from botocore.exceptions import ClientError
except ImportError as error:  # this module is imported only for a broker on SQS
    raise SettingsError("--broker sqs://… needs boto3: pip install 'celery-lookout[sqs]'") from error

_NEEDS: Final = "The sidecar needs sqs:ListQueues, sqs:GetQueueUrl and sqs:GetQueueAttributes"

#: boto's own would wait for minutes: 60 s for each of five attempts. The user's ``client-config`` wins.
_CLIENT_CONFIG: Final = {
    "connect_timeout": SOCKET_TIMEOUT_SECONDS,
    "read_timeout": SOCKET_TIMEOUT_SECONDS,
    "retries": {"total_max_attempts": 2},
}

_READY: Final = "ApproximateNumberOfMessages"
_UNACKED: Final = "ApproximateNumberOfMessagesNotVisible"

#: Celery's plumbing (see ``names``) as SQS spells it: a dash for each dot.
_PLUMBING: Final = re.compile(r"celeryev(-.*)?$|.*-pidbox$|bcast-")

#: Queue names taken from one account, a thousand in each answer.
_NAMES_LIMIT: Final = 10_000


def client_config(broker: Broker) -> dict[str, Any]:
    """Return the transport option ``client-config``, with a limit on every wait."""
    return _CLIENT_CONFIG | (broker.transport_options.get("client-config") or {})


class SqsProbe:
    """Reads the queues of one region of one account, or those of ``predefined_queues``."""

    def __init__(self, broker: Broker, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._session = Session(
            broker, needs=_NEEDS, refusals=(ClientError,), **{"client-config": client_config(broker)}
        )
        #: Queue URLs by the queue's name on SQS.
        self._urls: dict[str, str] = {}

    def collect(self, queue_names: Collection[str]) -> BrokerReading:
        """
        Read all *queue_names*, at the price of a request for each; without any, only look whether SQS answers.

        A queue that does not exist or may not be read is left out. Raises ProbeFailed when nothing may be read, and
        BrokerUnavailable when SQS does not answer.
        """
        return self._session.call(lambda channel: self._collect(channel, queue_names))

    def discover(self) -> frozenset[str]:
        """
        Return the names of ``predefined_queues``, else of all queues with the prefix ``queue_name_prefix``.

        None without either: then nothing tells Celery's queues from all the others of the account. SQS knows no dots:
        a queue ``a.b`` is found as ``a-b``.
        """
        return self._session.call(self._discover)

    def close(self) -> None:
        """Close the connection; the probe can be used again."""
        self._session.close()

    def _collect(self, channel: Any, names: Collection[str]) -> BrokerReading:
        if not names:
            self._touch(channel)
        readings: list[QueueReading | None] = []
        refusal: ClientError | None = None
        for sqs_name, name in _by_sqs_name(channel, names).items():
            try:
                readings.append(self._read(channel, sqs_name, name))
            except ClientError as error:
                refusal = error
        if refusal is not None and not readings:
            raise refusal
        return BrokerReading(read_at=self._clock(), queues=tuple(reading for reading in readings if reading))

    def _touch(self, channel: Any) -> None:
        """Ask for as little as possible."""
        if channel.predefined_queues:
            name = next(iter(channel.predefined_queues))
            self._read(channel, name, name)
        else:
            channel.sqs().list_queues(QueueNamePrefix=_prefix(channel), MaxResults=1)

    def _read(self, channel: Any, sqs_name: str, name: str) -> QueueReading | None:
        if channel.predefined_queues and sqs_name not in channel.predefined_queues:
            return None
        _part_clients(channel)
        client = channel.sqs(queue=sqs_name)
        try:
            url = self._url(channel, client, sqs_name)
            answer = client.get_queue_attributes(QueueUrl=url, AttributeNames=[_READY, _UNACKED])
        except client.exceptions.QueueDoesNotExist:
            self._urls.pop(sqs_name, None)
            return None
        counts = answer["Attributes"]
        return QueueReading(name=name, ready=int(counts[_READY]), unacked=int(counts[_UNACKED]))

    def _url(self, channel: Any, client: Any, sqs_name: str) -> str:
        if channel.predefined_queues:
            return str(channel.predefined_queues[sqs_name]["url"])
        if sqs_name not in self._urls:
            self._urls[sqs_name] = client.get_queue_url(QueueName=sqs_name)["QueueUrl"]
        return self._urls[sqs_name]

    def _discover(self, channel: Any) -> frozenset[str]:
        prefix = _prefix(channel)
        sqs_names = channel.predefined_queues or (_list(channel, prefix) if prefix else ())
        names = (name.removeprefix(prefix) for name in sqs_names if name.startswith(prefix))
        return frozenset(name for name in names if is_task_queue(name) and not _PLUMBING.match(name))


def _part_clients(channel: Any) -> None:
    """Undo that kombu before 5.7 shares the clients of predefined queues between brokers, credentials and all."""
    clients = "_predefined_queue_clients"
    if getattr(type(channel), clients, None) is getattr(channel, clients, None):
        setattr(channel, clients, {})


def _prefix(channel: Any) -> str:
    """Return ``queue_name_prefix`` as it is spelled on SQS."""
    return str(channel.entity_name(channel.queue_name_prefix))


def _list(channel: Any, prefix: str) -> list[str]:
    pages = (
        channel.sqs().get_paginator("list_queues").paginate(QueueNamePrefix=prefix, PaginationConfig={"PageSize": 1000})
    )
    urls = (url for page in pages for url in page.get("QueueUrls", ()))
    return [url.rpartition("/")[2] for url in islice(urls, _NAMES_LIMIT)]


def _by_sqs_name(channel: Any, names: Collection[str]) -> dict[str, str]:
    """Return *names* by their names on SQS. Of two for one queue, Celery's own comes out and not the discovered one."""
    pairs = [(str(channel.canonical_queue_name(name)), name) for name in names]
    prefix = _prefix(channel)
    return dict(sorted(pairs, key=lambda pair: pair[0] != prefix + pair[1]))
