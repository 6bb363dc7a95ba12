"""The series that alerts, autoscalers and people share: what arrives, what is done, how long a queue takes."""

from __future__ import annotations

from collections.abc import Iterator

from celery_lookout.assets.rules import QUEUE, TASK, Promql, Recording, by, on

#: Windows of burn rates.
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")

#: Share of its slots that a queue is sized for. A queue that keeps all of them busy never catches up.
UTILISATION = 0.8
#: Seconds in which what waits is to be done, for queues without an SLO.
CATCH_UP_SECONDS = 300.0


def tasks(promql: Promql) -> Iterator[Recording]:
    """Yield what is known of each task."""
    for window in ("5m", "15m"):
        yield Recording(
            f"task:celery_task_starts:rate{window}", promql.speed(TASK, "celery_task_started_total", window)
        )
    for outcome in ("failed", "succeeded", "retried", "started"):
        yield Recording(
            f"task:celery_task_{outcome}:increase10m",
            promql.increase(TASK, f"celery_task_{outcome}_total", "10m"),
        )
    yield Recording(
        "task:celery_task_failures:ratio10m",
        _share("task:celery_task_failed:increase10m", "task:celery_task_succeeded:increase10m"),
    )
    yield Recording(
        "task:celery_task_failures:ratio1d",
        _share(
            promql.merge(TASK, f"increase({promql.series('celery_task_failed_total')}[1d])"),
            promql.merge(TASK, f"increase({promql.series('celery_task_succeeded_total')}[1d])"),
        ),
    )
    yield Recording(
        "task:celery_task_retries:ratio1d",
        promql.merge(TASK, f"increase({promql.series('celery_task_retried_total')}[1d])")
        + " / ("
        + promql.merge(TASK, f"increase({promql.series('celery_task_started_total')}[1d])")
        + " > 0)",
    )
    buckets = promql.rate(("outcome", *TASK, "le"), "celery_task_runtime_seconds_bucket", "1d")
    yield Recording("task:celery_task_runtime:p99_1d", f"histogram_quantile(0.99, {by((*TASK, 'le'), buckets)})")


def queues(promql: Promql) -> Iterator[Recording]:
    """Yield what is known of each queue."""
    yield from _depth(promql)
    yield from _scaling(promql)


def budgets(promql: Promql) -> Iterator[Recording]:
    """Yield what of each queue's budgets is used up, over several windows."""
    for window in WINDOWS:
        failed = by(QUEUE, promql.rate(TASK, "celery_task_failed_total", window))
        succeeded = by(QUEUE, promql.rate(TASK, "celery_task_succeeded_total", window))
        yield Recording(f"queue:celery_task_errors:ratio{window}", _share(failed, succeeded))
        late = promql.rate(QUEUE, "celery_queue_slo_violations_total", window)
        eligible = promql.rate(QUEUE, "celery_queue_slo_eligible_total", window)
        yield Recording(f"queue:celery_queue_late:ratio{window}", f"{late} / ({eligible} > 0)")


def _depth(promql: Promql) -> Iterator[Recording]:
    length = promql.series("celery_queue_length")
    yield Recording("queue:celery_queue_backlog:sum", promql.merge(QUEUE, length))
    for window in ("5m", "15m"):
        yield Recording(f"queue:celery_queue_growth:deriv{window}", promql.merge(QUEUE, f"deriv({length}[{window}])"))
    age = promql.series("celery_queue_oldest_task_age_seconds")
    yield Recording("queue:celery_queue_oldest_task_age:max", by(QUEUE, age, "max"))
    slo = promql.series("celery_queue_latency_slo_seconds")
    known = by(QUEUE, slo, "max")
    if promql.options.latency_slo is not None:
        seconds = promql.options.latency_slo * promql.options.scale
        known += f" or queue:celery_queue_backlog:sum * 0 + {seconds:g}"
    yield Recording("queue:celery_queue_latency_slo:seconds", known)
    for window in ("5m", "15m"):
        ends = f"queue:celery_task_completions:rate{window}"
        yield Recording(ends, _completions(promql, window))
        # What ended has started, where starts are not told.
        yield Recording(
            f"queue:celery_task_starts:rate{window}", f"{by(QUEUE, f'task:celery_task_starts:rate{window}')} or {ends}"
        )


def _completions(promql: Promql, window: str) -> str:
    """Return how many attempts end per second. One outcome without a series does not hide the others."""
    total = ""
    for outcome in ("succeeded", "failed", "retried"):
        rate = by(QUEUE, promql.speed(TASK, f"celery_task_{outcome}_total", window))
        total = f"({total} + {rate} or {total} or {rate})" if total else rate
    return total


def _scaling(promql: Promql) -> Iterator[Recording]:
    """Yield what docs/scaling.md explains."""
    # What left the queue and by how much it grew: so publishers need not tell. A queue that nobody consumes has no
    # starts at all yet.
    for window in ("5m", "15m"):
        starts, growth = f"queue:celery_task_starts:rate{window}", f"queue:celery_queue_growth:deriv{window}"
        yield Recording(
            f"queue:celery_task_arrivals:rate{window}",
            f"clamp_min({growth} + {on(QUEUE)} ({starts} or {growth} * 0), 0)",
        )
    backlog = "queue:celery_queue_backlog:sum"
    yield Recording(
        "queue:celery_queue_wait_estimate:seconds",
        f"{backlog} / {on(QUEUE)} (queue:celery_task_starts:rate15m > 0)",
    )
    yield Recording(
        "queue:celery_queue_time_to_drain:seconds",
        f"{backlog} / {on(QUEUE)} (-queue:celery_queue_growth:deriv15m > 0)",
    )
    for window in ("1h", "1d"):
        seconds = by(QUEUE, promql.rate(("outcome", *TASK), "celery_task_runtime_seconds_sum", window))
        runs = by(QUEUE, promql.rate(("outcome", *TASK), "celery_task_runtime_seconds_count", window))
        yield Recording(f"queue:celery_task_runtime:mean{window}", f"{seconds} / ({runs} > 0)")
    # The last hour's, else the last day's; a second for a queue that has never run anything.
    yield Recording(
        "queue:celery_task_runtime:mean",
        f"queue:celery_task_runtime:mean1h or queue:celery_task_runtime:mean1d or {backlog} * 0 + 1",
    )
    catch_up = (
        f"{backlog} / {on(QUEUE)} (queue:celery_queue_latency_slo:seconds or {backlog} * 0 + {CATCH_UP_SECONDS:g})"
    )
    coming = (
        f"(queue:celery_task_arrivals:rate5m + {on(QUEUE)} {catch_up})"
        f" * {on(QUEUE)} queue:celery_task_runtime:mean / {UTILISATION:g}"
    )
    # What runs needs its slot until it ends, though nothing else may come.
    running = by(QUEUE, promql.merge(TASK, promql.series("celery_task_running")))
    yield Recording(
        "queue:celery_queue_slots_needed:count", f"({coming} > {on(QUEUE)} {running}) or {running} or {coming}"
    )
    slots = by(QUEUE, promql.series("celery_queue_slots"), "max")
    workers = by(QUEUE, promql.series("celery_queue_workers"), "max")
    yield Recording("queue:celery_queue_slots_per_worker:mean", f"{slots} / ({workers} > 0)")
    # From no worker at all: as many slots as one had within a day, else one; and one worker as soon as anything waits.
    per_worker = (
        f"(queue:celery_queue_slots_per_worker:mean or max_over_time(queue:celery_queue_slots_per_worker:mean[1d])"
        f" or {backlog} * 0 + 1)"
    )
    needed = f"ceil(queue:celery_queue_slots_needed:count / {on(QUEUE)} {per_worker})"
    yield Recording("queue:celery_queue_workers_needed:count", f"({needed} > 0) or {backlog} > bool 0")


def _share(part: str, rest: str) -> str:
    """Return *part* of both; where *rest* does not exist, *part* is all there is."""
    return f"({part}) / (((({part}) + ({rest})) or ({part})) > 0)"
