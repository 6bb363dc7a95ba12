"""The demo's child processes: started with a log file each, watched, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import LookoutError
from .guard import kill_group

#: Seconds that workers get to finish what they are doing after SIGTERM; a report may take longer and is cut off.
GRACE_SECONDS = 4.0

#: Seconds between two looks at something that is awaited.
POLL_SECONDS = 0.1

_IMPORT_ROOT = Path(__file__).resolve().parents[2]


class ChildFailed(LookoutError):
    """A child process ended, or did not come up. The message has the tail of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """One started process; it leads a session of its own, so that Ctrl-C reaches the demo alone."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        """Return the last *lines* of its log, indented."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(f"    {line}" for line in text) or "    (it wrote nothing)"


class Children:
    """
    All child processes and their folder; a context manager, at whose end neither is left.

    They run in the folder with *environment* on top of ours. ``Celery`` and ``Lookout`` variables of the user are kept
    from them, since they could point the demo at a real broker.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="celery-lookout-demo-"))
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("CELERY", "LOOKOUT_"))}
        # Children run elsewhere; what was importable from here has to be importable there.
        paths = [str(_IMPORT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment["PYTHONPATH"] = os.pathsep.join(paths)
        # A worker that is killed leaves temporary folders of its own (billiard's), which have to go with ours.
        self.environment["TMPDIR"] = str(self.folder)
        self._running: list[Child] = []
        guard_end, self._to_guard = os.pipe()
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "celery_lookout.demo.guard", str(self.folder)],
            env=self.environment,
            stdin=guard_end,
            start_new_session=True,
        )
        os.close(guard_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The broker was started first and goes last, or the workers would spend their end reconnecting.
        first, rest = self._running[:1], self._running[1:]
        self._end(rest)
        self._end(first)
        os.close(self._to_guard)
        self._guard.wait()

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start *argv*, its output going to ``name.log`` in the folder."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                argv,
                cwd=self.folder,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._tell_guard(f"+{process.pid}")
        child = Child(name, process, log)
        self._running.append(child)
        return child

    def check(self) -> None:
        """Raise ChildFailed when one of them has ended: none does by itself."""
        for child in self._running:
            if (code := child.process.poll()) is not None:
                raise ChildFailed(f"the {child.name} ended (exit code {code}); the end of its log:\n{child.tail()}")

    def wait_until(self, ready: Callable[[], bool], child: Child, seconds: float) -> None:
        """Wait for *ready*, which is about *child*; raise ChildFailed when it takes longer or any of them ends."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ChildFailed(f"the {child.name} is not ready after {seconds:.0f} s; its log:\n{child.tail()}")
            time.sleep(POLL_SECONDS)

    def _end(self, children: Sequence[Child]) -> None:
        """Ask *children* to end with SIGTERM, wait, and kill what is left of their groups."""
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(child.process.poll() is None for child in children) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for child in children:
            kill_group(child.process.pid)
            child.process.wait()
            self._tell_guard(f"-{child.process.pid}")

    def _tell_guard(self, line: str) -> None:
        # A broken pipe: somebody killed the guard, which an orderly end does not need.
        with suppress(BrokenPipeError):
            os.write(self._to_guard, f"{line}\n".encode())
