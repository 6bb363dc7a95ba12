"""From a recording to the text of a scrape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from celery_lookout.intake.decode import EventDecoder
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.state.cluster import Cluster, ClusterOptions

HERE = Path(__file__).parent
RECORDINGS = sorted((HERE.parent / "recordings").glob("*.jsonl"))

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
    end = now + _AFTERWARDS_SECONDS
    while now < end:
        now += _TICK_SECONDS
        cluster.tick(now)
    cluster.refresh(end)
    lines = registry.render().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("# HELP ") and "_bucket{" not in line)
