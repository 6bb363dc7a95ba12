"""What a run takes of the process that it runs in."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from celery_lookout_signals import _measure
from celery_lookout_signals._measure import GROWTH_GRAIN, Meter, meter_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sizes are measured on Linux only")

MEBIBYTE = 2**20


@pytest.fixture
def meter() -> Iterator[Meter]:
    meter = Meter(memory=True, peak=True, cpu_clock=None)
    yield meter
    for descriptor in (meter._statm, meter._clear_refs):
        if descriptor is not None:
            os.close(descriptor)


class Sizes:
    """Stands in for ``/proc/self/statm``: the process has as many private bytes as the test says."""

    def __init__(self, meter: Meter, tmp_path: Path) -> None:
        self._file = tmp_path / "statm"
        self._file.touch()
        assert meter._statm is not None
        os.close(meter._statm)
        meter._statm = os.open(self._file, os.O_RDONLY)
        # With the real peak, a run that is only said to have grown would not be looked at.
        if meter._clear_refs is not None:
            os.close(meter._clear_refs)
            meter._clear_refs = None
        self._meter = meter

    def run(self, task: str, private: int, *, shared: int = 500) -> int:
        """Run *task*, after which the process has *private* bytes and *shared* pages; return the growth."""
        pages = private // os.sysconf("SC_PAGESIZE")
        # Size, resident, shared, … in pages.
        self._file.write_text(f"99999 {pages + shared} {shared} 1 0 7 0\n")
        self._meter.begin()
        return self._meter.end(task)[1]


@pytest.fixture
def sizes(meter: Meter, tmp_path: Path) -> Sizes:
    return Sizes(meter, tmp_path)


def test_the_first_run_of_a_task_may_load_what_it_needs(sizes: Sizes) -> None:
    assert sizes.run("a", 100 * MEBIBYTE) == 0
    assert sizes.run("b", 150 * MEBIBYTE) == 0
    assert sizes.run("a", 150 * MEBIBYTE) == 0


def test_what_a_run_leaves_behind_is_counted_once_and_for_the_run_that_left_it(sizes: Sizes) -> None:
    sizes.run("a", 100 * MEBIBYTE)
    sizes.run("b", 100 * MEBIBYTE)
    assert sizes.run("a", 103 * MEBIBYTE) == 3 * MEBIBYTE
    assert sizes.run("b", 103 * MEBIBYTE) == 0
    assert sizes.run("a", 103 * MEBIBYTE) == 0


def test_memory_that_comes_and_goes_is_no_growth(sizes: Sizes) -> None:
    sizes.run("a", 100 * MEBIBYTE)
    assert [sizes.run("a", size * MEBIBYTE) for size in (110, 90, 110, 90, 110)] == [10 * MEBIBYTE, 0, 0, 0, 0]


def test_shared_pages_are_not_the_tasks(sizes: Sizes) -> None:
    sizes.run("a", 100 * MEBIBYTE)
    assert sizes.run("a", 100 * MEBIBYTE, shared=9000) == 0
    assert sizes.run("a", 103 * MEBIBYTE, shared=0) == 3 * MEBIBYTE


def test_small_growth_adds_up_until_it_is_worth_a_name(sizes: Sizes) -> None:
    sizes.run("a", 100 * MEBIBYTE)
    step = GROWTH_GRAIN // 4
    grown = [sizes.run("a", 100 * MEBIBYTE + step * number) for number in range(1, 9)]
    assert grown == [0, 0, 0, GROWTH_GRAIN, 0, 0, 0, GROWTH_GRAIN]


def test_task_names_are_not_remembered_without_end(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_measure, "WARM_LIMIT", 2)
    for name in ("a", "b", "c", "c", "d"):
        # Those without a place are new each time.
        assert sizes.run(name, 100 * MEBIBYTE) == 0
    assert sizes.run("c", 110 * MEBIBYTE) == 0
    assert sizes.run("a", 120 * MEBIBYTE) == 10 * MEBIBYTE


def touch(mebibytes: int) -> bytearray:
    """Return memory of which every page is in use."""
    block = bytearray(mebibytes * MEBIBYTE)
    block[::4096] = b"x" * len(block[::4096])
    return block


def test_this_process_is_measured(meter: Meter) -> None:
    def run(mebibytes: int, kept: list[Any] | None = None) -> tuple[int, int]:
        meter.begin()
        block = touch(mebibytes)
        if kept is not None:
            kept.append(block)
        del block
        return meter.end("task")[1:]

    _, ground = run(1)
    if not ground:
        pytest.skip("this kernel does not set the high-water mark back")
    growth, peak = run(64)
    assert growth < 16 * MEBIBYTE
    assert peak - ground == pytest.approx(64 * MEBIBYTE, abs=16 * MEBIBYTE)
    # The mark was set back: the peak before is no longer seen.
    assert run(1)[1] - ground < 16 * MEBIBYTE
    kept: list[Any] = []
    growth, peak = run(64, kept)
    assert growth == pytest.approx(64 * MEBIBYTE, abs=16 * MEBIBYTE)
    assert peak - ground == pytest.approx(64 * MEBIBYTE, abs=16 * MEBIBYTE)


def test_only_a_run_that_needed_more_is_looked_at_for_growth(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(peak: int) -> int:
        used = SimpleNamespace(ru_maxrss=peak // 1024, ru_utime=1.0, ru_stime=0.5)
        monkeypatch.setattr(resource, "getrusage", lambda _: used)
        reads.clear()
        meter.begin()
        assert meter.end("task") == (1.5, 0, peak)
        return len(reads)

    def read(descriptor: int, *_: int) -> bytes:
        reads.append(descriptor)
        return statm

    reads: list[int] = []
    resident, shared = 100 * MEBIBYTE, 40 * MEBIBYTE
    page = os.sysconf("SC_PAGESIZE")
    statm = f"99999 {resident // page} {shared // page} 1 0 7 0\n".encode()
    monkeypatch.setattr(os, "pread", read)
    assert run(resident) == 1  # the first
    assert run(resident) == 0
    assert run(resident + GROWTH_GRAIN) == 0
    assert run(resident + GROWTH_GRAIN + page) == 1


def test_a_kernel_that_refuses_the_reset_costs_only_the_peak(meter: Meter) -> None:
    """So does gVisor's, which has the file."""
    assert meter._clear_refs is not None
    os.close(meter._clear_refs)
    meter._clear_refs = os.open("/proc/self/statm", os.O_RDONLY)
    refusing = meter._clear_refs
    meter.begin()
    assert meter.end("task") == (0, 0, 0)
    # Not tried again.
    assert vars(meter)["_clear_refs"] is None
    os.close(refusing)


def test_without_proc_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(*_: Any) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", not_there)
    meter = Meter(memory=True, peak=True, cpu_clock=None)
    meter.begin()
    assert meter.end("task") == (0, 0, 0)


@pytest.mark.parametrize(
    ("pool", "slots", "memory", "peak", "clock"),
    [
        ("prefork", 1, True, True, time.process_time),
        ("solo", 1, True, True, time.process_time),
        # The size of a process with several threads says nothing of one of them.
        ("threads", 1, True, False, time.thread_time),
        ("threads", 2, False, False, time.thread_time),
        ("gevent", 1, False, False, None),
        ("eventlet", 100, False, False, None),
        ("SomebodysPool", 1, False, False, None),
    ],
)
def test_each_pool_measures_what_is_true_in_it(
    pool: str, slots: int, memory: bool, peak: bool, clock: Callable[[], float] | None
) -> None:
    for wanted in (True, False):
        meter = meter_for(pool, slots=slots, peak=wanted)
        found = (meter._statm is not None, meter._clear_refs is not None, meter.cpu_clock)
        assert found == (memory, peak and wanted, clock)
        for descriptor in (meter._statm, meter._clear_refs):
            if descriptor is not None:
                os.close(descriptor)


def test_the_cpu_clock_of_a_thread_does_not_run_for_others() -> None:
    clock = meter_for("threads", slots=2, peak=True).cpu_clock
    assert clock is not None
    before = clock()

    def burn() -> None:
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass

    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
    assert clock() - before < 0.1
