"""
Loaded by a worker (``imports=["benchmarks.switch"]``): the package is on for tasks with a stamp, off for those without.

Off is what a worker without the package does: nothing is connected to the signals of a task. Whenever it changes, the
main process notes what the block of tasks before took. What decides is read from the message in either process, at the
only places that all tasks pass in Celery; that costs as much whether on or off.
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

from billiard.process import active_children
from celery import signals
from celery.app import trace
from celery.worker import request, strategy

from celery_lookout_signals._stamp import PUBLISHED_HEADER

#: Environment: the file that gets a line for each block; and, if set, that handlers do nothing.
BLOCKS, EMPTY = "BENCHMARK_BLOCKS", "BENCHMARK_EMPTY"


class _Switch:
    """Connects all that is connected to some signals, and disconnects it."""

    def __init__(self, *switched: Any) -> None:
        self.is_on: bool | None = None
        self._handlers = [(signal.receivers, list(signal.receivers)) for signal in switched]
        if os.environ.get(EMPTY):
            self._handlers = [(live, [(key, _nothing) for key, _ in kept]) for live, kept in self._handlers]

    def turn(self, on: bool) -> bool:
        """Return whether this is a change."""
        if on == self.is_on:
            return False
        self.is_on = on
        for live, kept in self._handlers:
            live[:] = kept if on else []
        return True


class _Blocks:
    """Notes what blocks of tasks took of the clock, the main process and its pool."""

    def __init__(self) -> None:
        self._file = Path(os.environ[BLOCKS])
        self._tasks = 0
        self._before = self._now()

    def count(self) -> None:
        self._tasks += 1

    def end(self, on: bool | None) -> None:
        now = self._now()
        if self._tasks:
            took = [(after - before) / self._tasks for before, after in zip(self._before, now, strict=True)]
            with self._file.open("a") as file:
                file.write(json.dumps({"on": on, "tasks": self._tasks, "took": took}) + "\n")
        self._tasks, self._before = 0, self._now()

    def _now(self) -> tuple[float, float, float]:
        children = [child.pid for child in active_children()]
        # The clock of another process, as clock_getcpuclockid(3) has it.
        return time.monotonic(), time.process_time(), sum(time.clock_gettime((~pid << 3) | 2) for pid in children)


def _nothing(**_: Any) -> None:
    pass


def _in_pool(real: Any) -> Any:
    switch: list[_Switch] = []

    @functools.wraps(real)  # it is found by its name
    def run(task: str, uuid: str, fields: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        if not switch:  # the package connects its handlers after the fork
            switch.append(_Switch(signals.task_prerun, signals.task_postrun))
        switch[0].turn(PUBLISHED_HEADER in fields)
        return real(task, uuid, fields, *arguments, **options)

    return run


def _in_main(real: Any) -> Any:
    made: list[tuple[_Switch, _Blocks]] = []

    def start(*arguments: Any, **options: Any) -> Any:
        handle = real(*arguments, **options)

        def receive(message: Any, *rest: Any, **more: Any) -> Any:
            if not made:
                made.append((_Switch(signals.task_received), _Blocks()))
            switch, blocks = made[0]
            was_on = switch.is_on
            if switch.turn(PUBLISHED_HEADER in message.headers):
                blocks.end(was_on)
            blocks.count()
            return handle(message, *rest, **more)

        return receive

    return start


trace.fast_trace_task = request.fast_trace_task = _in_pool(trace.fast_trace_task)
strategy.default = _in_main(strategy.default)
