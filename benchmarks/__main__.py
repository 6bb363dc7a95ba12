"""
Measure the sidecar. See README.md beside this file.

    python -m benchmarks compare
    python -m benchmarks ingest --broker redis --rates 1000,10000,50000,0 --rounds 3
    python -m benchmarks idle --broker redis
    python -m benchmarks worker --broker redis --rounds 7
    python -m benchmarks switched --broker rabbitmq --rounds 16
    python -m benchmarks per-task --seconds 20
    python -m benchmarks stages
    python -m benchmarks scrapes
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from celery_lookout.intake.amqp import QUEUE_NAME
from tests.servers.process import guardian
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer

from . import compare, exporters, ingest, per_task, scrapes, stages, switched, worker
from .stream import Load

#: At full speed: what Redis keeps for a subscriber (32 MiB) before it closes its connection.
BURST = 40_000

WHAT = ["compare", "ingest", "idle", "worker", "switched", "per-task", "stages", "scrapes"]

#: Needs no broker.
IN_PROCESS = frozenset({"stages", "scrapes"})

#: Tasks per second at which the two ways of hearing of a task are compared.
TASK_RATES = (100, 1_000, 10_000)

#: Of these the worst of all rounds is shown; a median would hide a loss.
WORST = frozenset({"lost", "lag_seconds"})


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the sidecar.")
    parser.add_argument("what", nargs="*", default=[], help=f"of {', '.join(WHAT)}; all of them by default")
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), action="append", help="default: both")
    parser.add_argument("--rates", default="1000,10000,50000,0", help="events per second; 0 is full speed")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a run at a fixed rate")
    parser.add_argument("--names", default="50,165,1640", help="task names of an idle run: 3,000 to 100,000 series")
    parser.add_argument("--rounds", type=int, default=3, help="variants take turns; the medians are shown")
    options = parser.parse_args()
    what = options.what or WHAT
    if "stages" in what:
        _table(asdict(row) for row in stages.measure())
    if "scrapes" in what:
        _table(asdict(scrapes.measure(target)) for target in (1_000, 10_000, 100_000))
    for name in options.broker or ("redis", "rabbitmq"):
        if set(what) - IN_PROCESS:
            with tempfile.TemporaryDirectory() as folder:
                _measure_broker(name, Path(folder), what, options)
    guardian.dismiss()


def _measure_broker(name: str, folder: Path, what: list[str], options: argparse.Namespace) -> None:
    with (RedisServer if name == "redis" else RabbitServer)(folder) as server:
        url = server.url()
        more = ["--rabbitmq.management-url", server.management_url] if isinstance(server, RabbitServer) else []

        def start() -> exporters.Measured:
            return exporters.lookout(url, folder, *more)

        print(f"\n### {name}\n")
        if "compare" in what:
            peers = (exporters.prometheus_exporter_celery, exporters.flower)
            starts: list[ingest.Start] = [start, *(partial(peer, url, folder) for peer in peers)]
            _table(asdict(row) for row in compare.measure(starts, url, options.rounds, partial(_tidy, server)))
        if "idle" in what:
            _table(
                asdict(ingest.measure_idle(start, url, seconds=options.seconds, names=names))
                for names in map(int, options.names.split(","))
            )
        if "worker" in what:
            _table(asdict(cost) for cost in worker.measure(url, folder, options.rounds))
        if "switched" in what:
            _table(asdict(cost) for cost in switched.measure(url, folder, options.rounds))
        if "per-task" in what:
            _table(asdict(cost) for cost in per_task.measure(start, url, TASK_RATES, options.seconds))
        if "ingest" in what:
            for rate in map(int, options.rates.split(",")):
                load = Load(int(rate * options.seconds) or BURST, rate)
                rounds = [asdict(ingest.measure(start, url, load)) for _ in range(options.rounds)]
                _table([_median(rounds)], head=rate == int(options.rates.split(",")[0]))


def _tidy(server: RedisServer | RabbitServer) -> None:
    if isinstance(server, RabbitServer):
        with suppress(OSError):  # not there: it was another program's turn
            server.management("DELETE", f"queues/%2F/{QUEUE_NAME}")


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians, but the worst of what must not happen."""
    found = {}
    for key, value in rows[0].items():
        if isinstance(value, str):
            found[key] = value
        else:
            found[key] = (max if key in WORST else statistics.median)(row[key] for row in rows)
    return found


def _table(rows: Iterable[dict[str, Any]], *, head: bool = True) -> None:
    """Print rows as a Markdown table."""
    for number, row in enumerate(rows):
        if number == 0 and head:
            print("| " + " | ".join(key.replace("_", " ") for key in row) + " |")
            print("|" + "---|" * len(row))
        print(
            "| "
            + " | ".join(
                f"{value:,.2f}"
                if isinstance(value, float) and value < 10
                else f"{value:,.1f}"
                if isinstance(value, float)
                else str(value)
                for value in row.values()
            )
            + " |",
            flush=True,
        )


main()
