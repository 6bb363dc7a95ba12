"""
Memory and CPU of a worker's processes, and how pool processes ended, seen from the main process.

Read from ``/proc`` and the cgroup's files, once for each snapshot. Where they are not there, values are None.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")

#: Exit code of a pool process that has run as many tasks, or grown as large, as it may. Source: billiard.
_RECYCLED = 0x9B

#: Memory limits above this mean "none": cgroup v1 writes its largest number.
_NO_LIMIT = 2**60


class Usage(NamedTuple):
    """What the processes of a worker take."""

    memory: int | None
    child_memory_max: int | None
    cpu_seconds: float | None


class Processes:
    """The main process and its pool."""

    def __init__(self) -> None:
        self._children: dict[int, Any] = {}
        self._cpu_seconds = 0.0
        self.exits = {"recycled": 0, "killed": 0, "exited": 0}
        self._cgroup = _Cgroup()

    def look(self, children: Iterable[Any]) -> list[int]:
        """Take note of the pool's processes (billiard's) and count those that ended; return the ids of these."""
        now = {child.pid: child for child in children if child.pid is not None}
        gone = [pid for pid in self._children if pid not in now]
        for pid in gone:
            self._count_exit(self._children[pid].exitcode)
        self._children = now
        return gone

    def _count_exit(self, exitcode: int | None) -> None:
        if exitcode == _RECYCLED:
            self.exits["recycled"] += 1
        elif exitcode is not None and exitcode < 0:
            self.exits["killed"] += 1
        else:
            self.exits["exited"] += 1

    def usage(self) -> Usage:
        """Measure."""
        own = _resident("self")
        sizes = [size for size in map(_resident, map(str, self._children)) if size is not None]
        return Usage(
            memory=None if own is None else own + sum(sizes),
            child_memory_max=max(sizes, default=None),
            cpu_seconds=self._cpu(),
        )

    def _cpu(self) -> float:
        own = resource.getrusage(resource.RUSAGE_SELF)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        living = sum(map(_child_cpu, self._children))
        total = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + living
        # Between its end and its burial a process is in neither sum.
        self._cpu_seconds = max(self._cpu_seconds, total)
        return round(self._cpu_seconds, 3)

    @property
    def memory_limit(self) -> int | None:
        """The cgroup's limit in bytes, None if there is none."""
        return self._cgroup.memory_limit()

    @property
    def oom_kills(self) -> int | None:
        """Processes of the cgroup that were killed for want of memory since this worker booted."""
        return self._cgroup.oom_kills()


class _Cgroup:
    """The memory cgroup of this process, of either version."""

    def __init__(self) -> None:
        self._limit, self._events = _cgroup_files()
        self._kills_before = self._read_kills() or 0

    def memory_limit(self) -> int | None:
        text = _read(self._limit)
        return int(text) if text is not None and text.isdigit() and int(text) < _NO_LIMIT else None

    def oom_kills(self) -> int | None:
        kills = self._read_kills()
        return None if kills is None else max(kills - self._kills_before, 0)

    def _read_kills(self) -> int | None:
        for line in (_read(self._events) or "").splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill" and number.isdigit():
                return int(number)
        return None


def _cgroup_files() -> tuple[Path, Path]:
    """Return the files with the limit and with the count of kills. In a container its own cgroup is the root."""
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if "memory" in controllers.split(","):
            folder = _first_with("memory.limit_in_bytes", Path("/sys/fs/cgroup/memory"), path)
            return folder / "memory.limit_in_bytes", folder / "memory.oom_control"
        if not controllers:
            folder = _first_with("memory.events", Path("/sys/fs/cgroup"), path)
            unified = folder / "memory.max", folder / "memory.events"
            if unified[1].exists():
                return unified
    return Path("/nonexistent"), Path("/nonexistent")


def _first_with(name: str, root: Path, path: str) -> Path:
    own = root / path.lstrip("/")
    return own if (own / name).exists() else root


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _resident(pid: str) -> int | None:
    text = _read(Path(f"/proc/{pid}/statm"))
    return int(text.split()[1]) * _PAGE if text else None


def _child_cpu(pid: int) -> float:
    # The name of the program, in parentheses, may have blanks in it.
    fields = (_read(Path(f"/proc/{pid}/stat")) or "").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS if len(fields) > 12 else 0.0
