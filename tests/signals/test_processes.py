"""What the main process sees of itself and its pool."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from celery_lookout_signals import _processes
from celery_lookout_signals._processes import Processes


def child(pid: int | None, exitcode: int | None = None) -> Any:
    """Return what we use of billiard's processes."""
    return SimpleNamespace(pid=pid, exitcode=exitcode)


@pytest.mark.parametrize(
    ("exitcode", "kind"),
    [
        # billiard's EX_RECYCLE.
        (0x9B, "recycled"),
        (-9, "killed"),
        (-15, "killed"),
        (0, "exited"),
        (3, "exited"),
        (None, "exited"),
    ],
)
def test_processes_that_ended_are_counted_by_the_way_they_did(exitcode: int | None, kind: str) -> None:
    processes = Processes()
    first = child(1)
    assert processes.look([first, child(2), child(None)]) == []
    first.exitcode = exitcode
    assert processes.look([child(2), child(3)]) == [1]
    assert processes.exits == {"recycled": 0, "killed": 0, "exited": 0} | {kind: 1}
    assert processes.look([child(2), child(3)]) == []
    assert sum(processes.exits.values()) == 1


# -- usage

_BUSY = """
import sys
block = bytearray(64 * 2**20)
block[::4096] = b"x" * len(block[::4096])
end = __import__("time").process_time() + 0.3
while __import__("time").process_time() < end: pass
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has 64 MiB and took 0.3 seconds of CPU time; it ends when its input is closed."""
    with subprocess.Popen([sys.executable, "-c", _BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_memory_and_cpu_are_those_of_all_processes(busy: subprocess.Popen[bytes]) -> None:
    processes = Processes()
    alone = processes.usage()
    assert alone.child_memory_max is None
    assert alone.memory is not None
    assert alone.cpu_seconds is not None
    assert alone.memory == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    # User and system, its own and that of children that ended.
    assert alone.cpu_seconds == pytest.approx(sum(psutil.Process().cpu_times()[:4]), abs=0.2)

    # A process that is gone meanwhile is measured as nothing.
    processes.look([child(busy.pid), child(2**22 + 1)])
    both = processes.usage()
    assert both.child_memory_max == pytest.approx(psutil.Process(busy.pid).memory_info().rss, rel=0.05)
    assert both.child_memory_max is not None
    assert both.memory == pytest.approx(alone.memory + both.child_memory_max, rel=0.05)
    assert both.cpu_seconds is not None
    assert 0.3 <= both.cpu_seconds - alone.cpu_seconds < 3

    # When it ends, its CPU time is not lost, and the total never falls in between.
    assert busy.stdin is not None
    busy.stdin.close()
    os.waitid(os.P_PID, busy.pid, os.WEXITED | os.WNOWAIT)
    dying = processes.usage().cpu_seconds
    busy.wait()
    processes.look([])
    after = processes.usage().cpu_seconds
    assert dying is not None
    assert after is not None
    assert both.cpu_seconds <= dying <= after
    assert after - alone.cpu_seconds < 3


def test_a_name_with_blanks_and_parentheses_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_processes, "Path", below(tmp_path))
    stat = tmp_path / "proc/7/stat"
    stat.parent.mkdir(parents=True)
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text(f"7 (celery) R 1 (x) S {' 0' * 10} {3 * ticks} {4 * ticks} 0 0")
    assert _processes._child_cpu(7) == 7.0
    assert _processes._child_cpu(8) == 0.0


# -- cgroups


def below(root: Path) -> Callable[[str], Path]:
    """Return what takes the place of ``Path`` for absolute paths, under *root*."""
    return lambda path: root / path.lstrip("/")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Return a function that writes the files of a machine: path and text."""
    monkeypatch.setattr(_processes, "Path", below(tmp_path))

    def write(files: dict[str, str]) -> None:
        for path, text in files.items():
            file = tmp_path / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    return write


V2 = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/memory"
EVENTS = "low 0\nhigh 0\nmax 12\noom 4\noom_kill {}\noom_group_kill 9\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
#: The memory controller of version 1 beside a version 2 that has no controllers, as systemd does it.
HYBRID = "11:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n1:name=systemd:/docker/x\n0::/docker/x\n"


@pytest.mark.parametrize(
    ("cgroup", "limit", "events", "counts"),
    [
        pytest.param("0::/\n", f"{V2}/memory.max", f"{V2}/memory.events", EVENTS, id="v2 in a container"),
        pytest.param(
            "0::/app.slice/x:y\n", f"{V2}/app.slice/x:y/memory.max", f"{V2}/app.slice/x:y/memory.events", EVENTS,
            id="v2 on a host",
        ),
        pytest.param(
            HYBRID, f"{V1}/docker/x/memory.limit_in_bytes", f"{V1}/docker/x/memory.oom_control", CONTROL,
            id="v1 on a host",
        ),
        pytest.param(
            HYBRID, f"{V1}/memory.limit_in_bytes", f"{V1}/memory.oom_control", CONTROL, id="v1 in a container"
        ),
        pytest.param(
            "0::/\n5:memory:/\n", f"{V1}/memory.limit_in_bytes", f"{V1}/memory.oom_control", CONTROL,
            id="v1 after an empty v2",
        ),
    ],
)  # fmt: skip
def test_limit_and_kills_are_read_of_either_version(
    machine: Callable[[dict[str, str]], None], cgroup: str, limit: str, events: str, counts: str
) -> None:
    machine({"/proc/self/cgroup": cgroup, limit: "536870912\n", events: counts.format(3)})
    processes = Processes()
    # Those before this worker do not count.
    assert (processes.memory_limit, processes.oom_kills) == (536870912, 0)
    machine({events: counts.format(5), limit: "268435456\n"})
    assert (processes.memory_limit, processes.oom_kills) == (268435456, 2)
    # The cgroup was made anew.
    machine({events: counts.format(1)})
    assert processes.oom_kills == 0


@pytest.mark.parametrize(
    ("path", "text"),
    [(f"{V2}/memory.max", "max\n"), (f"{V2}/memory.max", "\n"), (f"{V2}/memory.max", "9223372036854771712\n")],
)
def test_no_limit_is_none(machine: Callable[[dict[str, str]], None], path: str, text: str) -> None:
    machine({"/proc/self/cgroup": "0::/\n", f"{V2}/memory.events": EVENTS.format(0), path: text})
    assert Processes().memory_limit is None


@pytest.mark.parametrize("cgroup", [None, "", "junk", "1:name=systemd:/\n", "0::/\n", "é\n"])
def test_without_a_memory_cgroup_both_are_none(machine: Callable[[dict[str, str]], None], cgroup: str | None) -> None:
    machine({} if cgroup is None else {"/proc/self/cgroup": cgroup})
    processes = Processes()
    assert (processes.memory_limit, processes.oom_kills) == (None, None)


def test_old_kernels_do_not_count_kills(machine: Callable[[dict[str, str]], None]) -> None:
    """Before Linux 4.13."""
    machine({"/proc/self/cgroup": "5:memory:/\n", f"{V1}/memory.limit_in_bytes": "1048576",
             f"{V1}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"})  # fmt: skip
    processes = Processes()
    assert (processes.memory_limit, processes.oom_kills) == (1048576, None)
