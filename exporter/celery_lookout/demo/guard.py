"""
The process that cleans up when the demo can not: killed with -9, its terminal closed, its machine out of memory.

It reads a pipe whose other end only the demo holds, so that the end of the demo, however it comes, is the end of the
file. A parent-death signal would do for Linux, but not for macOS and not for the temporary folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def kill_group(leader: int) -> None:
    """Kill the process group of *leader*; one that is gone is fine."""
    # macOS answers EPERM for a group of zombies.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def watch(lines: Iterable[str], folder: Path) -> None:
    """
    Follow *lines* to their end, then kill the process groups that are left and remove *folder*.

    A line is ``+PID`` for a group that was started and ``-PID`` for one that has ended.
    """
    groups: set[int] = set()
    for line in lines:
        leader = int(line[1:])
        if line.startswith("+"):
            groups.add(leader)
        else:
            groups.discard(leader)
    for leader in groups:
        kill_group(leader)
    # A dying process may still create a file while the folder is being removed: then once more.
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break


if __name__ == "__main__":
    watch(sys.stdin, Path(sys.argv[1]))
