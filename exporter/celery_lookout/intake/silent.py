"""
The event stream of a broker on which Celery has none: nothing ever comes, but the broker is there or it is not.

Celery sends each event to all who listen, and Amazon SQS has no way for that. Listening all the same would make kombu
create a queue that nobody ever writes to.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Final

from ..errors import BrokerUnavailable, LookoutError
from ..events import Event

#: Seconds between two looks whether the broker is there: each is a request that costs money.
LOOK_SECONDS: Final = 15.0


class SilentEvents:
    """
    Calls *look* again and again to see whether the broker is there.

    It asks the broker for anything, blocks, and raises LookoutError when there is no answer or nothing but refusals. It
    is called by one thread at a time.
    """

    answers_beats = False
    loses_when_away = False
    live = True

    def __init__(self, look: Callable[[], object], *, seconds: float = LOOK_SECONDS) -> None:
        self._look = look
        self._seconds = seconds
        self._stop = threading.Event()
        self._failure: str | None = None
        self._sockets: tuple[socket.socket, ...] = ()

    def open(self) -> None:
        """Look, and go on looking. Raises BrokerUnavailable."""
        try:
            self._look()
        except LookoutError as error:
            raise BrokerUnavailable(str(error)) from None
        self._failure = None
        self._stop = threading.Event()
        self._sockets = socket.socketpair()
        threading.Thread(target=self._keep_looking, args=(self._stop,), daemon=True, name="broker-look").start()

    def _keep_looking(self, stop: threading.Event) -> None:
        while not stop.wait(self._seconds):
            try:
                self._look()
            except LookoutError as error:
                self._failure = str(error)
                return

    def fileno(self) -> int:
        """Return a socket on which nothing comes."""
        if not self._sockets:
            raise BrokerUnavailable("not connected")
        return self._sockets[0].fileno()

    def read(self, now: float) -> tuple[list[Event], bool]:  # noqa: ARG002  # others need the time
        """Return nothing. Raises BrokerUnavailable after a look in vain; the listener reads every second."""
        if self._failure is not None:
            raise BrokerUnavailable(self._failure)
        return [], False

    def settle(self) -> None:
        """Nothing to acknowledge."""

    def beat(self) -> None:
        """Nothing to send."""

    def farewell(self) -> None:
        """Nothing to say."""

    def close(self) -> None:
        """Stop looking, without waiting for a look under way."""
        self._stop.set()
        for end in self._sockets:
            end.close()
        self._sockets = ()
