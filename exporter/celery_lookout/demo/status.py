"""Read the sidecar's own ``/metrics`` and say in one line how the shop is doing."""

from __future__ import annotations

import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

#: Seconds until an answer counts as none; scrapes render memory and take milliseconds.
TIMEOUT_SECONDS = 2.0

_SUCCEEDED = "celery_task_succeeded_total"
_FAILED = "celery_task_failed_total"
_RETRIED = "celery_task_retried_total"
_LENGTH = "celery_queue_length"
_AGE = "celery_queue_oldest_task_age_seconds"
_WANTED = (_SUCCEEDED, _FAILED, _RETRIED, _LENGTH, _AGE)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one scrape says. *lengths* is by queue; *oldest_seconds* is None when no queue's age is known."""

    succeeded: float
    failed: float
    retried: float
    lengths: Mapping[str, float]
    oldest_seconds: float | None

    @property
    def finished(self) -> float:
        """Tasks that came to an end, well or not."""
        return self.succeeded + self.failed


#: What there is before the first task.
EMPTY = Reading(succeeded=0, failed=0, retried=0, lengths={}, oldest_seconds=None)


def is_ready(base_url: str) -> bool:
    """Return whether the sidecar has reached its broker."""
    try:
        with urllib.request.urlopen(f"{base_url}/-/ready", timeout=TIMEOUT_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def scrape(base_url: str) -> Reading | None:
    """Return what ``/metrics`` says now, or None when there is no answer."""
    try:
        with urllib.request.urlopen(f"{base_url}/metrics", timeout=TIMEOUT_SECONDS) as answer:
            return parse(answer.read().decode())
    except OSError:
        return None


def parse(exposition: str) -> Reading:
    """Return the few numbers of *exposition* that the status line is made of."""
    # Histograms are most of the text and none of them is wanted: skipping them first saves most of the parsing.
    lines = "\n".join(line for line in exposition.splitlines() if line.startswith(_WANTED))
    by_queue: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            by_queue[sample.name][sample.labels.get("queue", "")] += sample.value
    return Reading(
        succeeded=sum(by_queue[_SUCCEEDED].values()),
        failed=sum(by_queue[_FAILED].values()),
        retried=sum(by_queue[_RETRIED].values()),
        lengths=by_queue[_LENGTH],
        oldest_seconds=max(by_queue[_AGE].values(), default=None),
    )


def describe(reading: Reading, rate: float) -> str:
    """Return the status line for *reading*, where *rate* is in finished tasks per second."""
    # The longest queue first: on a narrow terminal the end is cut off.
    longest_first = sorted(reading.lengths.items(), key=lambda item: (-item[1], item[0]))
    waiting = ", ".join(f"{queue} {length:.0f}" for queue, length in longest_first)
    oldest = "" if reading.oldest_seconds is None else f" (oldest {reading.oldest_seconds:.0f} s)"
    return (
        f"{reading.finished:.0f} finished, {rate:.1f}/s, {reading.failed:.0f} failed, {reading.retried:.0f} retried"
        f" | waiting{oldest}: {waiting or 'not known'}"
    )
