"""Every number that decides whether somebody is woken, with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from celery_lookout.errors import SettingsError

#: Metadata of a threshold that is a length of time.
_SECONDS: Final = {"seconds": True}


def _number(default: float, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


def _seconds(default: float, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text, **_SECONDS})


@dataclass(frozen=True)
class Thresholds:
    """
    The numbers in the rules. Ratios are fractions, times are seconds.

    An objective is a share of good runs; what it leaves is the budget. How fast a budget may burn follows the usual
    table for a window of 30 days: 14.4 times too fast spends 2 % of it in an hour, 6 times 5 % in six hours, 3 times
    10 % in a day, and 1 all of it in the window.
    """

    latency_objective: float = _number(0.99, "share of starts within a queue's latency SLO")
    error_objective: float = _number(0.99, "share of runs that do not fail")
    burn_1h: float = _number(14.4, "burn rate over an hour (and 5 minutes) that pages")
    burn_6h: float = _number(6, "burn rate over six hours (and 30 minutes) that pages")
    burn_1d: float = _number(3, "burn rate over a day (and 2 hours) that is a ticket")
    burn_3d: float = _number(1, "burn rate over three days (and 6 hours) that is a ticket")
    burn_min_starts: float = _number(60, "starts in an hour below which a queue's latency budget pages nobody")
    burn_min_failures: float = _number(20, "failures in a window below which an error budget alerts nobody")
    burn_known_ratio: float = _number(2, "times the queue's ratio of the day before, up to which a burn is known")

    growth_ratio: float = _number(1.1, "arrivals as a multiple of starts above which a backlog grows")
    growth_horizon: float = _seconds(3600, "how far ahead a growing backlog is looked at")
    growth_horizon_critical: float = _seconds(900, "how far ahead, for a page")
    growth_wait_critical: float = _number(0.5, "share of the SLO that the wait must have reached already, for a page")
    drain_slo_ratio: float = _number(3, "estimated wait as a multiple of the SLO that is a ticket")

    failure_ratio: float = _number(0.05, "share of a task's runs that fail, in ten minutes")
    failure_min: float = _number(10, "failures in ten minutes below which a spike is none")
    failure_known_ratio: float = _number(3, "times a task's ratio of the last day, up to which failing is known")
    failure_known_limit: float = _number(0.5, "share of runs above which failing is never taken for known")
    always_failing_min: float = _number(3, "failures in an hour without a success")
    retry_min: float = _number(20, "retries in ten minutes below which a storm is none")
    retry_ratio: float = _number(0.5, "retries per start, in ten minutes")
    retry_known_ratio: float = _number(
        3, "times a task's retries per start of the last day, up to which they are known"
    )
    stuck_age: float = _seconds(600, "age of a run below which it is never stuck")
    stuck_p99_ratio: float = _number(5, "age of a run as a multiple of the task's 99th percentile")
    stuck_min_runs: float = _number(20, "runs in a day below which a task has no history to judge by")
    terminations_min: float = _number(3, "kills and hard time limits in 15 minutes")
    terminations_ratio_critical: float = _number(0.01, "kills and hard time limits per start that page")
    soft_limits_min: float = _number(10, "soft time limits in 15 minutes")
    soft_limits_ratio: float = _number(0.01, "soft time limits per start")

    workers_ratio: float = _number(0.5, "share of the workers of the last two hours that must have vanished")
    workers_together: float = _seconds(
        900, "time before the last vanished in which a worker still was one of the same fleet"
    )
    heartbeat_silence: float = _seconds(120, "age of the last heartbeat of a worker of which nothing else is known")
    heartbeat_forget: float = _seconds(3600, "time after which a vanished worker is no news")
    saturated_ratio: float = _number(0.95, "share of all slots that are busy")
    memory_ratio: float = _number(0.9, "share of a worker's memory limit")
    leak_horizon: float = _seconds(14400, "how far ahead a growing worker is looked at")
    leak_ratio: float = _number(0.5, "share of the memory limit below which growth is no leak")
    leak_min_samples: float = _number(60, "samples, a minute apart in two hours, below which a worker is too young")
    skew: float = _seconds(30, "difference of a worker's clock")
    beat_silence: float = _seconds(120, "time without a sign of beat")

    blind_silence: float = _seconds(120, "time without any event while the broker is up")
    lag: float = _seconds(30, "age of events when they are read")
    series_ratio: float = _number(0.9, "share of the limit on series")
    sentry_ratio: float = _number(0.1, "share of Sentry events that fail")
    sentry_min: float = _number(5, "Sentry events that fail, in ten minutes")
    restarts: float = _number(3, "restarts of the sidecar in half an hour")

    @classmethod
    def read(cls, settings: Sequence[str]) -> Thresholds:
        """Return the defaults with *settings*, each ``NAME=VALUE``, instead. Raises SettingsError for what is none."""
        return cls().changed(dict(_setting(text) for text in settings))

    def scaled(self, scale: float) -> Thresholds:
        """Return these with every time multiplied by *scale*."""
        times = [one.name for one in fields(self) if "seconds" in one.metadata]
        return replace(self, **{name: getattr(self, name) * scale for name in times})

    def changed(self, settings: Mapping[str, float]) -> Thresholds:
        """Return these with *settings* instead. Raises SettingsError for a name that is none or a number below 0."""
        known = {one.name for one in fields(self)}
        for name, value in settings.items():
            if name not in known:
                raise SettingsError(f"--threshold {name!r}: there is no such threshold; --thresholds lists them")
            if not 0 <= value < float("inf"):
                raise SettingsError(f"--threshold {name}={value:g}: give a number from 0 up")
            if name.endswith("_objective") and value >= 1:
                raise SettingsError(f"--threshold {name}={value:g}: no budget is left; give a number below 1")
        return replace(self, **settings)


def table() -> str:
    """Return a line for each threshold: its name, its value, what it is."""
    rows = [(one.name, f"{one.default:g}", one.metadata["help"]) for one in fields(Thresholds)]
    return "\n".join(f"{name:30}{value:>8}  {text}" for name, value, text in rows)


def _setting(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        what = "is no number" if equals else "is not NAME=VALUE"
        raise SettingsError(f"--threshold {text!r} {what}: write for example failure_ratio=0.1") from None
