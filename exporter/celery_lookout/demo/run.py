"""Start the whole demo, show how it is doing, and end it without a trace."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple, Self

from ..errors import LookoutError, SettingsError
from ..settings import ListenAddress
from .broker import free_port, provide_broker
from .processes import POLL_SECONDS, Child, Children
from .status import EMPTY, Reading, describe, is_ready, scrape


class ShopWorker(NamedTuple):
    """One worker: node name, queues, pool processes, and after how many tasks a process is replaced."""

    name: str
    queues: str
    processes: int
    tasks_per_child: int | None = None
    #: Counts for itself, with ``celery_lookout_signals``; else it is heard by its events.
    counts: bool = True


#: Both ways of seeing tasks side by side. The reports leak, so that their process has to be replaced often.
WORKERS = (
    ShopWorker("shop", "celery", 2, tasks_per_child=100),
    ShopWorker("mail", "mail", 1, counts=False),
    ShopWorker("images", "images", 2),
    ShopWorker("reports", "reports", 1, tasks_per_child=10),
)

#: The longest acceptable wait by queue, in seconds. Images miss theirs in every rush.
LATENCY_SLOS = {"images": 10, "mail": 5}

#: The package that applications import.
PACKAGE = "celery_lookout_signals"

#: Seconds until the sidecar must have reached the broker; one or two on an idle machine.
SIDECAR_START_SECONDS = 30.0

#: Seconds between two status lines, on a terminal and elsewhere.
TERMINAL_INTERVAL_SECONDS = 1.0
LOG_INTERVAL_SECONDS = 10.0

#: Seconds that the rate looks back; over one second alone it would jump.
RATE_SECONDS = 10.0

HINTS = """\
metrics   {url}/metrics
look      curl -s {url}/metrics | grep ^celery_queue
PromQL    sum by (task) (rate(celery_task_failed_total[1m]))
          histogram_quantile(0.95, sum by (le, queue) (rate(celery_task_queue_wait_seconds_bucket[1m])))
          topk(1, sum by (task) (rate(celery_task_memory_growth_bytes_total[5m])))
logs      {folder}
stop      Ctrl-C\
"""


def run_demo(*, broker_url: str | None, listen_address: str, seconds: float | None) -> int:
    """
    Run the demo for *seconds*, or until SIGINT, SIGTERM or SIGHUP, and return the exit code.

    The sidecar listens on *listen_address* (``host:port``, ``:port``). 0 is an end on request; 1 is a start that failed
    or a child process that ended by itself, with the reason on standard error. Either way nothing is left running.
    """
    try:
        address = ListenAddress.parse(listen_address)
        if address.port == 0:
            address = replace(address, port=free_port())
        require_free(address)
        if importlib.util.find_spec("celery") is None:
            raise SettingsError("the demo runs real Celery workers: pip install 'celery-lookout[demo]'")
        with Stop() as stop, Children() as children:
            _run(broker_url, address, children, stop, seconds)
    except LookoutError as error:
        print(f"celery-lookout demo: {error}", file=sys.stderr)
        return 1
    return 0


def require_free(address: ListenAddress) -> None:
    """Raise SettingsError when nobody can listen on *address*, for instance because somebody does."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        socket.create_server((address.host, address.port), family=family).close()
    except OSError as error:
        # Not error.strerror: there the socket module repeats the address.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(
            f"cannot listen on {address}: {reason}. Choose another address, for example --web.listen-address :9809"
        ) from None


def local_url(address: ListenAddress) -> str:
    """Return the URL at which this machine reaches what listens on *address*."""
    host = "localhost" if address.host in ("", "0.0.0.0", "::") else address.host
    return f"http://{replace(address, host=host)}"


class Stop:
    """
    Remember that the user wants to stop, while it is the context.

    A flag, looked at often, instead of an exception, which could strike between a child's start and its registration.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _request(self, *_: Any) -> None:
        self.requested = True


def _run(broker_url: str | None, address: ListenAddress, children: Children, stop: Stop, seconds: float | None) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    broker = provide_broker(broker_url, children)
    print("A small web shop: a broker, four Celery workers, beat, visitors in waves, and celery-lookout beside them.\n")
    print(f"broker    {broker.description}")
    if broker.remark:
        print(f"          {broker.remark}")
    has_package = importlib.util.find_spec(PACKAGE) is not None
    print(f"workers   {describe_workers(has_package=has_package)}")
    # By environment and not by option: a password does not belong into the list of processes.
    children.environment["CELERY_BROKER_URL"] = broker.url
    sidecar = _start_sidecar_and_workers(address, children, has_package=has_package)
    url = local_url(address)
    print(HINTS.format(url=url, folder=children.folder), end="\n\n", flush=True)
    # Only the task-sent event knows the queue, so the sidecar has to listen before the first task is sent.
    children.wait_until(lambda: stop.requested or is_ready(url), sidecar, SIDECAR_START_SECONDS)
    if not stop.requested:
        children.start("load", [sys.executable, "-m", "celery_lookout.demo.load"])
    _show_status(url, children, stop, end)
    print("stopping ...", flush=True)


def describe_workers(*, has_package: bool) -> str:
    """Say which workers count for themselves and which are heard by their events."""
    if not has_package:
        return (
            f"heard by their events; {PACKAGE} is not installed here, so without memory, CPU, pool processes and beat"
            "\n          pip install ./signals brings them"
        )
    counting = ", ".join(worker.name for worker in WORKERS if worker.counts)
    heard = ", ".join(worker.name for worker in WORKERS if not worker.counts)
    return f"{counting} count for themselves ({PACKAGE}); {heard} is heard by its events"


def worker_options(worker: ShopWorker, *, has_package: bool) -> list[str]:
    """Return the options of ``celery worker`` for *worker*."""
    options = ["-P", "prefork", "-c", str(worker.processes), "-Q", worker.queues, "-n", f"{worker.name}@%h"]
    options += ["-l", "info", "--without-mingle"]
    if worker.tasks_per_child is not None:
        options += ["--max-tasks-per-child", str(worker.tasks_per_child)]
    if not (has_package and worker.counts):
        options.append("-E")
    return options


def _start_sidecar_and_workers(address: ListenAddress, children: Children, *, has_package: bool) -> Child:
    serve = [sys.executable, "-m", "celery_lookout", "serve", "--web.listen-address", str(address)]
    for queue, seconds in LATENCY_SLOS.items():
        serve += ["--queue.latency-slo", f"{queue}={seconds}"]
    sidecar = children.start("sidecar", serve)
    celery = [sys.executable, "-m", "celery", "-A", "celery_lookout.demo.tasks"]
    for worker in WORKERS:
        environment = {} if worker.counts else {"CELERY_LOOKOUT_SIGNALS": "0"}
        options = worker_options(worker, has_package=has_package)
        children.start(f"{worker.name} worker", [*celery, "worker", *options], environment)
    # Its schedule goes into the children's folder, where it runs.
    children.start("beat", [*celery, "beat", "-l", "info", "--pidfile="])
    return sidecar


def _show_status(url: str, children: Children, stop: Stop, end: float | None) -> None:
    """Print a status line until *end* or a request to stop: redrawn on a terminal, one below the other elsewhere."""
    is_terminal = sys.stdout.isatty()
    interval = TERMINAL_INTERVAL_SECONDS if is_terminal else LOG_INTERVAL_SECONDS
    started = due = time.monotonic()
    past: deque[tuple[float, Reading]] = deque(maxlen=int(RATE_SECONDS / interval))
    try:
        while not stop.requested and (end is None or time.monotonic() < end):
            children.check()
            if time.monotonic() >= due and (reading := scrape(url)) is not None:
                now = time.monotonic()
                due = now + interval
                since, before = past[0] if past else (started, EMPTY)
                past.append((now, reading))
                rate = (reading.finished - before.finished) / (now - since)
                minutes, rest = divmod(int(now - started), 60)
                _print_status(f"{minutes:02d}:{rest:02d}  {describe(reading, rate)}", is_terminal)
            time.sleep(POLL_SECONDS)
    finally:
        if is_terminal:
            print()


def _print_status(line: str, is_terminal: bool) -> None:
    if is_terminal:
        # A line that wraps could not be redrawn.
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]}\x1b[K", end="", flush=True)
    else:
        print(line, flush=True)
