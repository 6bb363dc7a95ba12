"""
Memory and CPU of the process that runs a task, as cheaply as the kernel gives them.

On Linux a run takes a small write to ``/proc/self``, two looks at the clock, and a small read if it needed more memory
than the runs before it. Elsewhere the files are not there and sizes are not measured.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable

#: Bytes by which a process has to grow for a run to be named for it. Smaller growth adds up until it is that much, for
#: which the run at hand then stands: every allocator moves a few pages now and then.
GROWTH_GRAIN = 128 * 1024

#: Task names remembered by a process.
WARM_LIMIT = 1000

_PAGE = resource.getpagesize()
#: Writing this to clear_refs sets the high-water mark of the resident size back. Source: proc(5).
_RESET_PEAK = b"5"


class Meter:
    """
    Measures the runs of one process, one after the other.

    *memory* is False where several tasks share the process at a time: its sizes then tell nothing of one of them.
    *cpu_clock* returns the CPU seconds of what runs the task; None where nothing does so (greenlets). *peak* is for
    processes that do nothing else, whose clock is the process's.
    """

    def __init__(self, *, memory: bool, peak: bool, cpu_clock: Callable[[], float] | None) -> None:
        self.cpu_clock = cpu_clock
        self._cpu_seconds = cpu_clock or float
        self._statm = _open("/proc/self/statm", os.O_RDONLY) if memory else None
        self._clear_refs = _open("/proc/self/clear_refs", os.O_WRONLY) if memory and peak else None
        #: The largest private size with which any run ended.
        self._settled = 0
        #: As long as no run's peak is above this, nothing can have grown that is worth a name.
        self._quiet = 0
        #: Tasks that ran here. The first run of each loads what all others of it use, which is no leak.
        self._warm: set[str] = set()

    def begin(self) -> float:
        """Return the CPU seconds at the beginning of a run."""
        if self._clear_refs is not None:
            try:
                os.write(self._clear_refs, _RESET_PEAK)
            except OSError:  # gVisor has the file and refuses
                self._clear_refs = None
        return self._cpu_seconds()

    def end(self, task: str) -> tuple[float, int, int]:
        """
        Return what is known at the end of a run of *task*.

        That is the CPU seconds until now, what the run left behind, and the largest resident size during it; 0 seconds
        and bytes for not known.
        """
        if self._clear_refs is None:
            return self._cpu_seconds(), self._growth(task), 0
        used = resource.getrusage(resource.RUSAGE_SELF)
        peak = used.ru_maxrss * 1024
        growth = 0 if peak <= self._quiet and task in self._warm else self._growth(task)
        return used.ru_utime + used.ru_stime, growth, peak

    def _growth(self, task: str) -> int:
        """
        Return by how much the process is larger than after any run before; 0 for the first run of *task*.

        Not against the size at the beginning: a task that frees what the one before it kept would hide that one's
        growth, or have it counted anew each time.
        """
        if self._statm is None:
            return 0
        _, resident, shared, *_ = os.pread(self._statm, 128, 0).split()
        private = (int(resident) - int(shared)) * _PAGE
        self._quiet = int(resident) * _PAGE + GROWTH_GRAIN
        growth = private - self._settled
        if task not in self._warm:
            if len(self._warm) < WARM_LIMIT:
                self._warm.add(task)
            self._settled = max(self._settled, private)
            return 0
        if growth < GROWTH_GRAIN:
            return 0
        self._settled = private
        return growth


def meter_for(pool: str, *, slots: int, peak: bool) -> Meter:
    """Return the meter for a process of this kind of *pool* (``prefork`` stands for a pool process)."""
    if pool in ("prefork", "solo"):
        return Meter(memory=True, peak=peak, cpu_clock=time.process_time)
    if pool == "threads":
        return Meter(memory=slots == 1, peak=False, cpu_clock=time.thread_time)
    return Meter(memory=False, peak=False, cpu_clock=None)


def _open(path: str, flags: int) -> int | None:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError:
        return None
