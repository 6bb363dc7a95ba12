"""The sidecar beside the best-known exporter and Flower, on the same stream, turn by turn: the table of the README."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from . import ingest
from .ingest import Ingest, Start
from .stream import Load

#: What everybody can take.
STEADY: Final = Load(10_000, rate=1_000)
#: As fast as can be, and so much as Redis keeps for a subscriber.
BURST: Final = Load(40_000)
#: A large cluster.
BUSY: Final = Load(200_000, rate=20_000)

#: There is one that takes two seconds for each.
SCRAPES: Final = 20


@dataclass(frozen=True)
class Compared:
    """Medians of one exporter on one broker, but the worst of what is lost."""

    exporter: str
    us_per_event_at_1000: float
    ratio_at_1000: float
    us_per_event_in_a_burst: float
    ratio_in_a_burst: float
    #: Percent of 200,000 events at 20,000 a second; 100 when it ended itself.
    lost_percent_at_20000: float
    rss_mib: float
    #: Milliseconds, with 10 workers and 50 task names.
    scrape_p99_ms_idle: float
    scrape_p99_ms_at_1000: float


def measure(starts: Sequence[Start], url: str, rounds: int, tidy: Callable[[], object]) -> Iterator[Compared]:
    """
    Yield a row for each exporter, the one to compare with first. Loads take turns too, so that noise is shared.

    *tidy* is called after each: a queue that was left behind would fill, and slow the broker for the next one.
    """
    taken: list[dict[Load, list[Ingest | None]]] = [{STEADY: [], BURST: [], BUSY: []} for _ in starts]
    for _ in range(rounds):
        for load in (STEADY, BURST, BUSY):
            for start, loads in zip(starts, taken, strict=True):
                loads[load].append(_survived(start, url, load))
                tidy()
    costs = [(_median(loads[STEADY]), _median(loads[BURST])) for loads in taken]
    for start, loads, (steady, burst) in zip(starts, taken, costs, strict=True):
        idle = ingest.measure_idle(start, url, rate=STEADY.rate, scrapes=SCRAPES)
        tidy()
        yield Compared(
            exporter=next(one.exporter for one in loads[STEADY] if one is not None),
            us_per_event_at_1000=steady,
            ratio_at_1000=steady / costs[0][0],
            us_per_event_in_a_burst=burst,
            ratio_in_a_burst=burst / costs[0][1],
            lost_percent_at_20000=max(100.0 if one is None else one.lost / one.events * 100 for one in loads[BUSY]),
            rss_mib=idle.rss_mib,
            scrape_p99_ms_idle=idle.scrape_p99_ms,
            scrape_p99_ms_at_1000=idle.loaded_p99_ms,
        )


def _survived(start: Start, url: str, load: Load) -> Ingest | None:
    """Measure; None when the exporter ended itself meanwhile."""
    try:
        return ingest.measure(start, url, load)
    except (OSError, psutil.Error):
        return None


def _median(rounds: Sequence[Ingest | None]) -> float:
    return statistics.median(one.cpu_us_per_event for one in rounds if one is not None)
