"""
The way from where tasks run to where they are counted.

From a forked pool process that is a pipe made before the fork: what a process wrote is with the kernel and outlives its
SIGKILL, and neither a connection nor a thread is needed. Where tasks run in the main process it is a queue in memory.
Neither ever waits: what does not fit is counted and gone.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from ._records import Decoder, Failure, Run, encode_failure, encode_run

#: Bytes asked for; some 10,000 runs, many more than a main process can start between two drains. Linux may grant less.
PIPE_BYTES = 1024 * 1024

#: Records kept in memory between two drains.
QUEUE_LIMIT = 100_000

_F_SETPIPE_SZ = 1031


class Pipe:
    """Written by pool processes, read by the main process."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        with suppress(OSError):  # not Linux, or the user's share of pipe memory is used up
            fcntl.fcntl(self._write_end, _F_SETPIPE_SZ, PIPE_BYTES)
        self._decoder = Decoder()
        self._lost = 0

    def send(self, run: Run) -> None:
        """Hand *run* over, or count it as lost in the next one."""
        try:
            os.write(self._write_end, encode_run(run._replace(lost_before=self._lost) if self._lost else run))
            self._lost = 0
        except BlockingIOError:
            self._lost += 1

    def send_failure(self, failure: Failure) -> None:
        """Hand *failure* over; if there is no room for all of it, it is in the counts only."""
        with suppress(BlockingIOError):
            for part in encode_failure(failure):
                os.write(self._write_end, part)

    def drain(self) -> Iterator[Run | Failure]:
        """Yield what has come."""
        while True:
            try:
                data = os.read(self._read_end, 65536)
            except BlockingIOError:
                return
            yield from self._decoder.feed(data)
            if len(data) < 65536:
                return

    def forget(self, pid: int) -> None:
        """Drop what the process *pid*, which is gone, had only begun to tell."""
        self._decoder.forget(pid)


class Memory:
    """The same for tasks that run in the main process, in whichever thread or greenlet."""

    def __init__(self) -> None:
        self._records: deque[Run | Failure] = deque()
        self._lost = 0

    def send(self, run: Run) -> None:
        """Hand *run* over, or count it as lost in the next one."""
        if len(self._records) >= QUEUE_LIMIT:
            self._lost += 1
            return
        lost, self._lost = self._lost, 0
        self._records.append(run._replace(lost_before=lost) if lost else run)

    def send_failure(self, failure: Failure) -> None:
        """Hand *failure* over."""
        if len(self._records) < QUEUE_LIMIT:
            self._records.append(failure)

    def drain(self) -> Iterator[Run | Failure]:
        """Yield what has come."""
        while self._records:
            yield self._records.popleft()

    def forget(self, pid: int) -> None:
        """Nothing comes in parts here."""
