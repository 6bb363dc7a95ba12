from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from celery_lookout.failures import Failure
from celery_lookout.metrics.exporter import SENTRY_OUTCOMES, SentryMetrics, SentryOutcome
from celery_lookout.metrics.registry import Registry
from celery_lookout.poller import FAREWELL_SECONDS
from celery_lookout.sentry.episodes import Episode
from celery_lookout.sentry.forwarder import QUEUE_SIZE, Forwarder
from celery_lookout.sentry.limits import KINDS_LIMIT, Limits
from celery_lookout.sentry.options import SentryOptions
from celery_lookout.snapshots import BeatSnapshot, Entry

DSN = "https://key@sentry.example/7"
FAILURE = Failure(
    kind="exception",
    task_id="1c2d8d4c-3a0a-4a5e-9f0c-5b2f7a1f6f11",
    task="shop.mail",
    queue="mail",
    worker="mail@web-1",
    retries=0,
    at=1795533554.02,
    exception="ValueError('no')",
    traceback='Traceback (most recent call last):\n  File "/srv/shop.py", line 1, in mail\nValueError: no\n',
)


class Sentry:
    """Takes events as told: with an outcome, or not before it is let."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.outcome: SentryOutcome = "sent"
        self.open = asyncio.Event()
        self.open.set()
        self.closed = False

    async def send(self, event: dict[str, Any]) -> SentryOutcome:
        await self.open.wait()
        self.events.append(event)
        return self.outcome

    async def close(self) -> None:
        self.closed = True


class Bench:
    """A forwarder with its parts, and a clock that stands."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.registry = Registry()
        self.sentry = Sentry()
        self.forwarder = Forwarder(
            SentryOptions(DSN, options.pop("mode", "all"), **options),
            SentryMetrics(self.registry),
            self.sentry,
            lambda: self.now,
        )

    def outcomes(self) -> dict[str, int]:
        family = self.registry.families["celery_exporter_sentry_events_total"]
        return {outcome: int(child.value) for (outcome,), child in family.children.items() if child.value}

    async def settle(self) -> None:
        """Send all that waits, and end."""
        self.forwarder.start()
        await self.forwarder.stop()


def attempts(number: int, **changes: Any) -> list[Failure]:
    return [replace(FAILURE, task_id=f"id-{count}", **changes) for count in range(number)]


def test_every_outcome_is_there_from_the_start() -> None:
    family = {child for (child,) in Bench().registry.families["celery_exporter_sentry_events_total"].children}
    assert family == set(SENTRY_OUTCOMES)


async def test_one_fault_cannot_use_up_what_the_others_may() -> None:
    bench = Bench(limit=20, limit_per_fault=5)
    sink = bench.forwarder.of(None)
    for failure in attempts(2000):
        sink.take(failure)
    for failure in attempts(3, task="shop.resize"):
        sink.take(failure)
    await bench.settle()
    assert bench.outcomes() == {"sent": 8, "rate_limited": 1995}
    assert [event["tags"]["task"] for event in bench.sentry.events].count("shop.resize") == 3


async def test_tokens_come_back_with_time() -> None:
    bench = Bench(limit=20, limit_per_fault=6)
    sink = bench.forwarder.of(None)
    for bench.now, expected in ((0.0, 6), (10.0, 1), (10.0, 0), (40.0, 3), (1000.0, 6)):
        before = bench.forwarder._queue.qsize()
        for failure in attempts(50):
            sink.take(failure)
        assert bench.forwarder._queue.qsize() - before == expected
    await bench.settle()


def test_kinds_are_forgotten_when_there_are_too_many() -> None:
    limits = Limits(10**6, 1, 0.0)
    assert limits.admit(("first", ""), 0.0)
    assert not limits.admit(("first", ""), 0.0)
    for number in range(KINDS_LIMIT):
        limits.admit((str(number), ""), 0.0)
    assert limits.admit(("first", ""), 0.0)


async def test_a_full_queue_drops_and_says_so() -> None:
    bench = Bench(limit=1000, limit_per_fault=1000)
    for failure in attempts(QUEUE_SIZE + 50):
        bench.forwarder.of(None).take(failure)
    await bench.settle()
    assert bench.outcomes() == {"sent": QUEUE_SIZE, "dropped": 50}


async def test_what_cannot_be_sent_at_the_end_is_dropped() -> None:
    bench = Bench()
    bench.sentry.open.clear()
    for failure in attempts(5):
        bench.forwarder.of(None).take(failure)
    started = time.monotonic()
    await bench.settle()
    assert time.monotonic() - started < FAREWELL_SECONDS + 5
    assert bench.outcomes() == {"dropped": 5}
    assert bench.sentry.closed


async def test_a_fault_of_ours_costs_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    sink = bench.forwarder.of(None)

    def fail(*_: Any, **__: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("celery_lookout.sentry.forwarder.sentry_event", fail)
        sink.take(FAILURE)
    sink.take(FAILURE)
    await bench.settle()
    assert bench.outcomes() == {"sent": 1, "dropped": 1}


@pytest.mark.parametrize(
    ("mode", "changes", "is_sent"),
    [
        ("all", {}, True),
        ("all", {"kind": "lost"}, True),
        ("all", {"sentry_event_id": "f" * 32}, False),
        ("all", {"expected": True}, False),
        ("infra", {}, False),
        ("infra", {"kind": "soft_time_limit"}, False),
        ("infra", {"retries": 3}, True),
        ("infra", {"retries": 3, "sentry_event_id": "f" * 32}, False),
        ("infra", {"kind": "hard_time_limit"}, True),
        ("infra", {"kind": "worker_lost"}, True),
        ("infra", {"kind": "unknown_task"}, True),
        ("infra", {"kind": "lost"}, True),
    ],
)
async def test_modes(mode: str, changes: dict[str, Any], is_sent: bool) -> None:
    bench = Bench(mode=mode)
    bench.forwarder.of(None).take(replace(FAILURE, **changes))
    await bench.settle()
    assert bench.outcomes() == ({"sent": 1} if is_sent else {})


async def test_what_is_denied_is_no_event() -> None:
    bench = Bench(allow=("shop.*",), deny=("*:ValueError",))
    sink = bench.forwarder.of(None)
    sink.take(FAILURE)
    sink.take(replace(FAILURE, task="other.mail", exception="OSError()"))
    sink.take(replace(FAILURE, exception="OSError()", traceback="OSError"))
    await bench.settle()
    assert bench.outcomes() == {"sent": 1}


async def test_two_sidecars_sample_the_same_failures() -> None:
    chosen = []
    for _ in range(2):
        bench = Bench(sample_rate=0.3, limit=1000, limit_per_fault=1000)
        for failure in attempts(200):
            bench.forwarder.of(None).take(failure)
        await bench.settle()
        outcomes = bench.outcomes()
        assert outcomes["sent"] + outcomes["sampled"] == 200
        assert 30 < outcomes["sent"] < 90
        chosen.append([event["event_id"] for event in bench.sentry.events])
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(("mode", "counted"), [("all", {"rate_limited": 7}), ("infra", {})])
async def test_failures_that_workers_leave_out_count_as_limited(mode: str, counted: dict[str, int]) -> None:
    bench = Bench(mode=mode)
    bench.forwarder.of(None).take_untold(7)
    assert bench.outcomes() == counted


async def test_an_event_names_its_broker() -> None:
    bench = Bench()
    bench.forwarder.of("west").take(FAILURE)
    bench.forwarder.of("west").take_episode(Episode("queue_stuck", "mail", 0.0, "stuck"))
    bench.forwarder.of(None).take(FAILURE)
    await bench.settle()
    assert [event["tags"].get("broker") for event in bench.sentry.events] == ["west", "west", None]


def beat(**entry: Any) -> BeatSnapshot:
    told = Entry(entry="nightly report", task="shop.report", **entry)
    return BeatSnapshot(
        v=1, node="beat@web", boot="b", seq=1, at=1000.0, started_at=900.0, interval=5.0, final=False, entries=(told,)
    )


@pytest.mark.parametrize(
    ("entry", "schedule"),
    [
        ({"crontab": "0 3 * * *", "timezone": "Europe/Lisbon"}, {"type": "crontab", "value": "0 3 * * *"}),
        ({"every": 600.0}, {"type": "interval", "value": 10, "unit": "minute"}),
        ({"every": 5.0}, {"type": "interval", "value": 1, "unit": "minute"}),
        ({}, None),
    ],
)
async def test_beat_checks_in(entry: dict[str, Any], schedule: dict[str, Any] | None) -> None:
    bench = Bench(crons=True)
    bench.forwarder.of(None).take_beat(beat(last_sent_at=998.0, **entry), 1000.0)
    await bench.settle()
    (check_in,) = bench.sentry.events
    assert (check_in["type"], check_in["monitor_slug"], check_in["status"]) == ("check_in", "nightly-report", "ok")
    config = check_in.get("monitor_config", {})
    assert config.get("schedule") == schedule
    if "timezone" in entry:
        assert config["timezone"] == entry["timezone"]


@pytest.mark.parametrize(
    ("crons", "times", "check_ins"),
    [
        (False, [(998.0, 1000.0)], 0),
        (True, [(None, 1000.0)], 0),
        (True, [(998.0, 1000.0), (998.0, 1005.0)], 1),
        (True, [(998.0, 1000.0), (1058.0, 1060.0)], 2),
        (True, [(998.0, 1000.0), (1008.0, 1010.0)], 1),
        (True, [(998.0, 2000.0)], 0),
    ],
)
async def test_an_entry_checks_in_once_each_time_it_is_sent(
    crons: bool, times: list[tuple[float | None, float]], check_ins: int
) -> None:
    bench = Bench(crons=crons)
    sink = bench.forwarder.of(None)
    for sent_at, now in times:
        sink.take_beat(beat(last_sent_at=sent_at, every=60.0), now)
    await bench.settle()
    assert len(bench.sentry.events) == check_ins


def test_taking_a_failure_makes_no_event_yet() -> None:
    """A storm is counted as fast as it comes."""
    bench = Bench(limit=1)
    sink = bench.forwarder.of(None)
    built: list[Callable[[], Any]] = []
    sink.take(FAILURE)
    while not bench.forwarder._queue.empty():
        built.append(bench.forwarder._queue.get_nowait())
    assert len(built) == 1
    assert built[0]()["tags"]["task"] == "shop.mail"
