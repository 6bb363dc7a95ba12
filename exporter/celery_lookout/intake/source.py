"""What the listener needs from a broker's event stream, whichever the broker."""

from __future__ import annotations

from typing import Protocol

from ..events import Event


class EventSource(Protocol):
    """
    An open subscription to a broker's events.

    ``open`` and ``farewell`` block and run in a thread; everything else runs on the event loop, never blocks, and
    raises BrokerUnavailable when the connection is gone.
    """

    #: Whether what happened while nobody listened is gone (pub/sub), or waits for us within the bounds of a queue.
    loses_when_away: bool

    #: Whether the broker says something every few seconds, so that its silence means that it is gone.
    answers_beats: bool

    def open(self) -> None:
        """Connect, authenticate and subscribe. Raises BrokerUnavailable; also then ``close`` precedes the next."""

    def fileno(self) -> int:
        """Return the socket to wait on."""

    def read(self, now: float) -> tuple[list[Event], bool]:
        """
        Return the events that are there, at most one buffer full, and whether there may be more.

        *now* is Unix time.
        """

    def settle(self) -> None:
        """Everything returned by ``read`` has been counted; tell the broker, if it wants to know."""

    def beat(self) -> None:
        """Send a sign of life that makes the broker answer, or answer its own. Called every second."""

    @property
    def live(self) -> bool:
        """Whether all that was read last happened now; else some of it waited in a queue, or comes again."""

    def farewell(self) -> None:
        """
        Make sure that the broker has taken what ``settle`` told it, before the last ``close``.

        Waits a moment and no longer; never raises.
        """

    def close(self) -> None:
        """Let go of the connection, without waiting for anybody."""
