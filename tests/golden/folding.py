"""From a recording, or from snapshots, to the text of a scrape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery_lookout.intake.decode import EventDecoder
from celery_lookout.intake.snapshots import SnapshotDecoder
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.state.cluster import Cluster, ClusterOptions

HERE = Path(__file__).parent
RECORDINGS = sorted((HERE.parent / "recordings").glob("*.jsonl"))
SNAPSHOTS = HERE / "snapshots-v1.json"

#: Seconds between two ticks, as in the monitor.
_TICK_SECONDS = 0.25

#: Seconds from the last event to the scrape: time enough for workers to count as gone, and tasks as lost.
_AFTERWARDS_SECONDS = 90.0


def load(recording: Path) -> tuple[dict[str, str], list[tuple[float, Any]]]:
    """Return the meaning of each task id, and the bodies with the times they came."""
    first, *lines = map(json.loads, recording.read_text("utf-8").splitlines())
    return first["meaning"], [(line["at"], line["body"]) for line in lines]


def fold(recording: Path) -> str:
    """
    Return what a scrape shows after the whole recording.

    Without help texts, which say nothing about counting, and without buckets: ``_count`` and ``_sum`` speak for them
    here, and ``test_registry`` holds them to prometheus-client.
    """
    registry = Registry()
    cluster = Cluster(Scope(registry), ClusterOptions())
    decoder = EventDecoder(cluster.refused)
    _, bodies = load(recording)
    now = bodies[0][0]
    for at, body in bodies:
        while now + _TICK_SECONDS < at:
            now += _TICK_SECONDS
            cluster.tick(now)
        now = at
        cluster.fold(decoder.body(json.dumps(body).encode(), now), now)
    _afterwards(cluster, now)
    return "".join(line for line in _without_help(registry) if "_bucket{" not in line)


def fold_snapshots() -> str:
    """
    Return what a scrape shows after all of ``SNAPSHOTS``, each of which is read by itself.

    Without help texts and without histograms' buckets that are empty, but with the others: which one a value belongs
    to is part of the wire. Lines with exemplars follow, as only OpenMetrics has them.
    """
    registry = Registry()
    cluster = Cluster(Scope(registry), ClusterOptions(latency_slos={"celery": 60.0}))
    decoder = SnapshotDecoder(cluster.refused_snapshot)
    now = 0.0
    for body in json.loads(SNAPSHOTS.read_text("utf-8")):
        now = max(now, body.get("at", 0.0) + 0.25)
        snapshot = decoder.body(json.dumps(body).encode(), now)
        number = cluster.precedence.poll_begins()
        cluster.take_snapshots([], [snapshot] if snapshot is not None else [], now)
        cluster.snapshots_polled(number, now, worked=True)
    _afterwards(cluster, now)
    text = "".join(line for line in _without_help(registry) if not ("_bucket{" in line and line.endswith(" 0\n")))
    lines = registry.render(openmetrics=True).splitlines(keepends=True)
    return text + "".join(line for line in lines if " # {" in line)


def _afterwards(cluster: Cluster, now: float) -> None:
    end = now + _AFTERWARDS_SECONDS
    while now < end:
        now += _TICK_SECONDS
        cluster.tick(now)
    cluster.refresh(end)


def _without_help(registry: Registry) -> Iterator[str]:
    return (line for line in registry.render().splitlines(keepends=True) if not line.startswith("# HELP "))
