"""
Start and end other programs: the base of every server and worker in the tests.

Each process leads a group of its own and is ended through that group, never by name. A guardian process kills the
groups that are left when the test run dies without cleaning up, so that not even ``kill -9`` leaves a broker behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import psutil
import pytest

T = TypeVar("T")

#: Seconds between two looks at something that will happen soon.
POLL_SECONDS = 0.02

#: States of a process that does nothing. Who ended is not cleared away by a parent that is frozen.
_FROZEN = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}

# Reads "+group" and "-group" lines; at the end of its input, which is the end of the test run, kills what is left.
_GUARDIAN = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    group = int(line[1:])
    groups.add(group) if line[0] == "+" else groups.discard(group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


class _Guardian:
    """One process for the whole run; it learns of each group before anything else can happen to us."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def tell(self, sign: str, group: int) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _GUARDIAN], stdin=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
            )
        assert self._process.stdin is not None
        self._process.stdin.write(f"{sign}{group}\n")

    def dismiss(self) -> None:
        """End the guardian; whatever it still knows is killed."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(10)
            self._process = None


guardian = _Guardian()


class Server:
    """
    A program that is ready some time after its start.

    *ready* is asked again and again until it returns true; an OSError means "not yet". *argv*, *env* and *folder* stay
    as they are between restarts, so that a restarted server finds its port and its data again.
    """

    #: Seconds that a start may take.
    start_seconds = 60.0
    #: Seconds between SIGTERM and SIGKILL in stop().
    stop_seconds = 30.0

    def __init__(
        self, argv: Sequence[str | Path], folder: Path, *, env: Mapping[str, str] | None = None, name: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.argv = [str(part) for part in argv]
        self.folder = folder
        self.env = dict(env or {})
        self.name = name or Path(self.argv[0]).name
        self.log = folder / f"{self.name.partition('@')[0]}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def ready(self) -> bool:
        """Say whether the server answers; overridden by each kind."""
        return True

    @property
    def pid(self) -> int:
        """The process id, which is also the group's id."""
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start and wait until ready. Raises RuntimeError with the log's end when it died, TimeoutError if it hangs."""
        self.launch()
        self.wait_ready()
        return self

    def launch(self) -> None:
        """Start without waiting."""
        assert not self.is_running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                env={**os.environ, **self.env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        guardian.tell("+", self.process.pid)

    def wait_ready(self, seconds: float | None = None) -> None:
        """Wait until ready() holds; on failure nothing is left running."""
        deadline = time.monotonic() + (seconds or self.start_seconds)
        while time.monotonic() < deadline:
            if not self.is_running:
                raise RuntimeError(f"{self.name} died at its start\n{self.log_tail()}")
            with contextlib.suppress(OSError):
                if self.ready():
                    return
            time.sleep(POLL_SECONDS)
        self.kill()
        raise TimeoutError(f"{self.name} did not get ready\n{self.log_tail()}")

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole group, if it still exists."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """Ask it to end (SIGTERM to the first process, which then ends its children), then end what is left."""
        if self.is_running:
            assert self.process is not None
            self.signal_group(signal.SIGCONT)
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.stop_seconds)
        self.kill()

    def kill(self) -> None:
        """Kill -9 the whole group. Also sweeps up the children of a first process that is already gone."""
        if self.process is None:
            return
        self.signal_group(signal.SIGKILL)
        self.process.wait(10)
        guardian.tell("-", self.process.pid)

    def discard(self) -> None:
        """End it and all it needed, at once: its folder is temporary, so a clean stop would only take time."""
        self.kill()

    def pause(self) -> None:
        """Freeze the whole group: connections stay open and nobody answers any more."""
        self.signal_group(signal.SIGSTOP)
        first = psutil.Process(self.pid)
        group = [one for one in (first, *first.children(recursive=True)) if os.getpgid(one.pid) == first.pid]
        wait_until(lambda: all(one.status() in _FROZEN for one in group))

    def resume(self) -> None:
        self.signal_group(signal.SIGCONT)

    def restart(self) -> None:
        """Stop (or clear away a killed one) and start again on the same port, with the same folder."""
        self.stop()
        self.start()

    def log_tail(self, lines: int = 40) -> str:
        """The log's last lines, for failure messages."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join([f"--- end of {self.log.name}", *text.splitlines()[-lines:]])

    def __enter__(self) -> Self:
        return self if self.is_running else self.start()

    def __exit__(self, *exc: object) -> None:
        self.discard()


def free_port() -> int:
    """
    Return a loopback port that nobody listens on now.

    Somebody else may take it before we do; the ports handed out here are at least never handed out twice.
    """
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given_ports:
            _given_ports.add(port)
            return port


_given_ports: set[int] = set()


def wait_until(condition: Callable[[], T], seconds: float = 20.0, message: str = "") -> T:
    """Return the first true value of *condition*; fail the test when none came in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{message or 'nothing happened'} within {seconds:g} s; last value: {value!r}")
        time.sleep(POLL_SECONDS)
    return value


def need(found: Path | str | None, what: str, how: str) -> Path:
    """
    Return *found*; without it skip the test with the command that would get it.

    With REQUIRE_REAL set, as in CI, it fails: a check that silently did not run is worse than a red one.
    """
    if found:
        return Path(found)
    message = f"{what} not found: {how}"
    if os.environ.get("REQUIRE_REAL"):
        pytest.fail(message)
    pytest.skip(message)
