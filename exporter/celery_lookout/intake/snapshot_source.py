"""What the collector needs from the place where snapshots wait, whichever the broker."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

#: What is read, and declared on RabbitMQ.
NAME: Final = "celery-lookout.signals.v1"

#: Messages read at a time.
CHUNK: Final = 100

#: Seconds for which what was read is shown again to the next process: some intervals of a worker.
SHOWN_AGAIN_SECONDS: Final = 20.0


class Message(NamedTuple):
    """A body, and what is known of it without a look inside."""

    body: bytes
    content_type: str | None = "application/json"
    is_compressed: bool = False
    #: Whether an earlier process has counted it.
    is_old: bool = False


class SnapshotSource(Protocol):
    """
    The snapshots that wait on one broker. Belongs to one thread at a time.

    The broker remembers how far was read, so that a new process goes on where the one before it stopped. What that one
    read last is shown to the new one as well: so it learns at once which workers send snapshots.
    """

    def read(self) -> list[Message]:
        """
        Return some messages in the order they came; none means that there are none.

        Raises BrokerUnavailable when the broker does not answer, ProbeFailed when it refuses.
        """

    def settle(self) -> None:
        """Everything that was read has been counted. Raises as ``read``."""

    def close(self) -> None:
        """Close the connection."""
