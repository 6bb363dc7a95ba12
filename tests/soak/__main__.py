"""
Disturb two clusters for a while, and compare every total with what the tasks wrote down.

    python -m tests.soak --minutes 20 [--broker redis] [--seed 7]

Exit code 1 when a total is wrong that the broker's keeping makes right, when a counter fell, when a scrape failed or
took a second, or when memory grew.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.servers.process import guardian

from .app import truth
from .cluster import ENDED_UNTOLD, SoakCluster

OUTCOMES: Final = ("started", "succeeded", "failed", "retried")

#: Part of its size after the first quarter by which the sidecar may have grown at the end.
GROWTH: Final = 0.15

#: Part of the starts heard of by events by which what was seen and what was measured as lost may be off, together.
UNMEASURED: Final = 0.01


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Mixed load and random faults.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), action="append", help="default: both at once")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the faults; shown at the start")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(soak, kind, Path(folder) / kind, random.Random(f"{options.seed} {kind}"), options.minutes * 60)
            for kind in options.broker or ("redis", "rabbitmq")
        ]
        complaints = [complaint for run in runs for complaint in run.result()]
    guardian.dismiss()
    print("\n".join(complaints) or "nothing to complain about")
    sys.exit(1 if complaints else 0)


def soak(kind: str, folder: Path, chance: random.Random, seconds: float) -> list[str]:
    """Run one cluster for so long; return what is wrong."""
    cluster = SoakCluster(kind, folder, chance)
    try:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(chance.uniform(5.0, 20.0))
            print(f"{time.strftime('%H:%M:%S')} {kind}: {cluster.disturb()}", flush=True)
        cluster.settle()
        return [f"{kind}: {complaint}" for complaint in judge(cluster)]
    finally:
        cluster.close()


def judge(cluster: SoakCluster) -> list[str]:
    """Print what was counted beside the truth; return what is wrong."""
    watch, shown, happened = cluster.watch, cluster.sidecar.metrics(), truth(cluster.results)
    complaints = list(watch.complaints)
    lost = shown.get("celery_exporter_events_lost_total") or 0.0
    print(f"\n### {cluster.kind}\n\nfaults: {dict(cluster.faults)}; {cluster.publisher.refused} tasks refused")
    print(f"the worker with our package had to be killed {cluster.killed} times")
    print("\n| queue | what | happened | shown |\n|---|---|---|---|")
    for queue in ("signals", "events"):
        for outcome in OUTCOMES:
            true = happened[queue, outcome]
            seen = shown.get(f"celery_task_{outcome}_total", queue=queue) or 0.0
            print(f"| {queue} | {outcome} | {true} | {seen:g} |")
            exact = queue == "signals" or cluster.kind == "rabbitmq"
            untold = cluster.killed * ENDED_UNTOLD if queue == "signals" else 0
            if exact and not true - untold <= seen <= true:
                complaints.append(f"{queue}: {outcome} {true} times, {seen:g} shown")
            if queue == "events" and outcome == "started" and abs(true - seen - lost) > UNMEASURED * true:
                complaints.append(f"{queue}: started {true} times, {seen:g} seen and {lost:g} counted as lost")
    quarter = len(watch.rss) // 4
    early, late = (statistics.median(part) for part in (watch.rss[quarter : 2 * quarter], watch.rss[-quarter:]))
    print(f"\n{lost:g} starts counted as lost; {watch.scrapes} scrapes, the slowest {watch.slowest * 1000:.0f} ms")
    print(f"RSS {early:.1f} MiB in the second quarter, {late:.1f} in the last; at most {max(watch.files)} files open")
    if late > early * (1 + GROWTH):
        complaints.append(f"grew from {early:.1f} to {late:.1f} MiB")
    if watch.slowest > 1.0:
        complaints.append(f"a scrape took {watch.slowest:.1f} s")
    return complaints


main()
