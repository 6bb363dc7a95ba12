"""Sending to Sentry: what becomes of an event for each way in which a server can behave, and what goes along."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sentry_sdk

from celery_lookout.metrics.exporter import SentryMetrics
from celery_lookout.metrics.registry import Registry
from celery_lookout.poller import FAREWELL_SECONDS
from celery_lookout.sentry import delivery as module
from celery_lookout.sentry.checkins import CheckIns
from celery_lookout.sentry.delivery import BACK_OFF_SECONDS, LONGEST_BACK_OFF_SECONDS, Delivery
from celery_lookout.sentry.episodes import Episode
from celery_lookout.sentry.event import sentry_event
from celery_lookout.sentry.forwarder import Forwarder
from celery_lookout.sentry.options import SentryOptions
from tests.clusters import EPOCH, beat_snapshot
from tests.sentry.test_forwarder import FAILURE, attempts
from tests.servers.celery_versions import ROOT
from tests.servers.ingest import KEY, Ingest
from tests.servers.process import free_port
from tests.servers.proxy import FaultProxy

CHECK_IN = {"type": "check_in", "monitor_slug": "nightly", "status": "ok", "check_in_id": "c" * 32}

#: Seconds that Sentry may take where a test has it take longer.
SHORT_SECONDS = 0.3
#: Less than a server that does not answer takes, and more than a busy machine needs for one that does.
LONG_SECONDS = 15


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def opened(dsn: str, clock: Callable[[], float] = time.monotonic, **options: Any) -> AsyncIterator[Delivery]:
    """Yield a delivery to *dsn*, and close it."""
    delivery = Delivery(SentryOptions(dsn, "all", **options), clock)
    try:
        yield delivery
    finally:
        await delivery.close()


def an_event(**more: Any) -> dict[str, Any]:
    return {**sentry_event(FAILURE), **more}


async def test_what_sentry_takes_is_sent(ingest: Ingest) -> None:
    async with opened(ingest.dsn_of("7")) as delivery:
        assert await delivery.send(an_event()) == "sent"
        assert await delivery.send(an_event(event_id="2" * 32)) == "sent"
    first, second = ingest.events
    assert (first["event_id"], second["event_id"]) == (an_event()["event_id"], "2" * 32)
    assert first["exception"] == an_event()["exception"]
    assert first["tags"] == an_event()["tags"]
    assert first["timestamp"] == an_event()["timestamp"]
    assert [envelope.project for envelope in ingest.envelopes] == ["7", "7"]
    assert [envelope.headers["event_id"] for envelope in ingest.envelopes] == [first["event_id"], "2" * 32]
    headers = ingest.requests[0].headers
    assert headers["content-encoding"] == "gzip"
    assert f"sentry_key={KEY}" in headers["x-sentry-auth"]
    assert headers["user-agent"].startswith("celery-lookout/")


async def test_check_ins_arrive_as_such(ingest: Ingest) -> None:
    entry = {"entry": "nightly", "task": "shop.report", "last_sent_at": EPOCH, "crontab": "0 3 * * *"}
    (made,) = CheckIns().of(beat_snapshot(1, entry), EPOCH + 1)
    async with opened(ingest.dsn, environment="prod") as delivery:
        assert await delivery.send(made) == "sent"
    assert ingest.events == []
    (check_in,) = ingest.check_ins
    assert (check_in["monitor_slug"], check_in["status"]) == ("nightly", "ok")
    assert check_in["monitor_config"]["schedule"] == {"type": "crontab", "value": "0 3 * * *"}
    assert check_in["environment"] == "prod"
    assert len(check_in["check_in_id"]) == 32


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 500, 503])
async def test_what_sentry_refuses_has_failed(ingest: Ingest, status: int) -> None:
    ingest.status = status
    async with opened(ingest.dsn) as delivery:
        assert await delivery.send(an_event()) == "failed"
        assert await delivery.send(an_event()) == "failed"
        ingest.status = 200
        assert await delivery.send(an_event()) == "sent"
    assert [request.status for request in ingest.requests] == [status, status, 200]


async def test_a_redirect_is_not_followed(ingest: Ingest) -> None:
    """The key is for the host in the DSN alone."""
    with Ingest() as elsewhere:
        for status in (301, 302, 307, 308):
            ingest.status = status
            ingest.headers = {"Location": f"http://127.0.0.1:{elsewhere.port}/api/1/envelope/"}
            async with opened(ingest.dsn) as delivery:
                assert await delivery.send(an_event()) == "failed"
        assert elsewhere.requests == []
    assert len(ingest.requests) == 4


# -- limits


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, BACK_OFF_SECONDS),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "7.5"}, 7.5),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, BACK_OFF_SECONDS),
        ({"Retry-After": "0"}, BACK_OFF_SECONDS),
        ({"Retry-After": "-5"}, BACK_OFF_SECONDS),
        ({"Retry-After": "nan"}, BACK_OFF_SECONDS),
        ({"Retry-After": "inf"}, BACK_OFF_SECONDS),
        ({"Retry-After": "1e9"}, LONGEST_BACK_OFF_SECONDS),
        ({"Retry-After": "7", "X-Sentry-Rate-Limits": "20:error:organization"}, 20.0),
        ({"Retry-After": "7", "X-Sentry-Rate-Limits": "20:transaction:organization"}, 7.0),
        ({"X-Sentry-Rate-Limits": "20:transaction:organization"}, 60.0),
        ({"X-Sentry-Rate-Limits": "abc"}, 60.0),
    ],
    ids=str,
)
async def test_sentry_is_left_alone_as_long_as_it_asks(
    ingest: Ingest, clock: Clock, headers: dict[str, str], seconds: float
) -> None:
    ingest.status, ingest.headers = 429, headers
    async with opened(ingest.dsn, clock) as delivery:
        assert await delivery.send(an_event()) == "rate_limited"
        ingest.status, ingest.headers = 200, {}
        clock.now += seconds - 0.01
        for _ in range(3):
            assert await delivery.send(an_event()) == "rate_limited"
        assert len(ingest.requests) == 1
        clock.now += 0.02
        assert await delivery.send(an_event()) == "sent"
    assert len(ingest.requests) == 2


@pytest.mark.parametrize(
    ("limits", "of_events", "of_check_ins"),
    [
        ("60:error:organization", 60, 0),
        ("60:monitor:project:quota", 0, 60),
        ("60::organization", 60, 60),
        ("60:error;monitor:organization", 60, 60),
        ("60:transaction;profile;replay:organization:quota", 0, 0),
        ("60:default;error;security:organization", 60, 0),
        ("5:error:key, 90:monitor:key", 5, 90),
        ("30:transaction:key,60::organization:reason:namespace", 60, 60),
        ("60", 60, 60),
        ("abc:error:key", 0, 0),
        (":error:key", 0, 0),
        ("", 0, 0),
        (",,:::;;", 0, 0),
    ],
)
async def test_limits_are_of_categories(
    ingest: Ingest, clock: Clock, limits: str, of_events: int, of_check_ins: int
) -> None:
    """Sentry tells them with any answer."""
    ingest.headers = {"X-Sentry-Rate-Limits": limits}
    async with opened(ingest.dsn, clock) as delivery:
        assert await delivery.send(an_event()) == "sent"
        ingest.headers = {}
        for thing, seconds in ((an_event(), of_events), (CHECK_IN, of_check_ins)):
            started = clock.now
            if seconds:
                before = len(ingest.requests)
                clock.now = started + seconds - 0.01
                assert await delivery.send(thing) == "rate_limited"
                assert len(ingest.requests) == before
                clock.now = started + seconds + 0.01
            assert await delivery.send(thing) == "sent"
            clock.now = started


@pytest.mark.parametrize("first", ["60:error:organization", "60:error:organization, 1:error:key"])
async def test_a_shorter_limit_does_not_end_a_longer_one(ingest: Ingest, clock: Clock, first: str) -> None:
    ingest.headers = {"X-Sentry-Rate-Limits": first}
    async with opened(ingest.dsn, clock) as delivery:
        await delivery.send(an_event())
        ingest.headers = {"X-Sentry-Rate-Limits": "1:error:key"}
        await delivery.send(CHECK_IN)
        clock.now += 30
        assert await delivery.send(an_event()) == "rate_limited"


# -- a server that is not there


async def test_a_refused_connection_has_failed(ingest: Ingest) -> None:
    async with opened(ingest.dsn_of("1", port=free_port())) as delivery:
        assert await delivery.send(an_event()) == "failed"


async def test_a_host_that_does_not_exist_has_failed() -> None:
    async with opened(f"http://{KEY}@sentry.invalid/1") as delivery:
        assert await delivery.send(an_event()) == "failed"


async def test_a_connection_that_is_reset_has_failed_and_the_next_is_made_anew(ingest: Ingest) -> None:
    with FaultProxy(ingest.port) as proxy:
        async with opened(ingest.dsn_of("1", port=proxy.port)) as delivery:
            assert await delivery.send(an_event()) == "sent"
            proxy.mode = "refuse"
            proxy.cut()
            assert await delivery.send(an_event()) == "failed"
            proxy.mode = "pass"
            assert await delivery.send(an_event()) == "sent"


async def test_silence_has_failed_when_the_time_is_over(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", SHORT_SECONDS)
    with FaultProxy(ingest.port) as proxy:
        proxy.mode = "blackhole"
        async with opened(ingest.dsn_of("1", port=proxy.port)) as delivery:
            assert SHORT_SECONDS <= await _seconds(delivery, "failed") < LONG_SECONDS


async def test_a_server_that_takes_too_long_has_failed(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", SHORT_SECONDS)
    ingest.delay_seconds = 30
    async with opened(ingest.dsn) as delivery:
        assert SHORT_SECONDS <= await _seconds(delivery, "failed") < LONG_SECONDS
        monkeypatch.setattr(module, "ANSWER_SECONDS", LONG_SECONDS)
        ingest.delay_seconds = 0.05
        assert await delivery.send(an_event()) == "sent"


async def test_a_handshake_that_nobody_answers_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", SHORT_SECONDS)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        async with opened(f"https://{KEY}@127.0.0.1:{listening.getsockname()[1]}/1") as delivery:
            assert SHORT_SECONDS <= await _seconds(delivery, "failed") < LONG_SECONDS


async def test_the_event_loop_does_not_wait(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", SHORT_SECONDS)
    ingest.delay_seconds = 30
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    turning = asyncio.create_task(turn())
    async with opened(ingest.dsn) as delivery:
        await delivery.send(an_event())
    turning.cancel()
    assert turns >= 5


async def _seconds(delivery: Delivery, outcome: str) -> float:
    started = time.monotonic()
    assert await delivery.send(an_event()) == outcome
    return time.monotonic() - started


async def test_a_proxy_of_the_environment_is_used(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain HTTP proxy is asked for the whole address."""
    monkeypatch.setattr(Ingest, "accepts", lambda self, path: path.startswith("http://sentry.example/"))
    monkeypatch.setattr(Ingest, "take", lambda self, request: b"{}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{ingest.port}")
    async with opened(f"http://{KEY}@sentry.example/base/9") as delivery:
        assert await delivery.send(an_event()) == "sent"
    assert ingest.requests[0].path == "http://sentry.example/base/api/9/envelope/"


# -- what is told


#: All that an event of ours has, and what the client adds: nothing of this process.
KEYS = {
    "breadcrumbs", "contexts", "environment", "event_id", "exception", "extra", "fingerprint", "level", "logger",
    "platform", "release", "sdk", "server_name", "tags", "timestamp", "transaction", "user",
}  # fmt: skip


async def test_an_event_tells_nothing_of_this_machine(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTRY_RELEASE", "of-this-process")
    monkeypatch.setenv("HEROKU_SLUG_COMMIT", "of-this-process")
    async with opened(ingest.dsn, environment="prod", release="shop@1.2.3") as delivery:
        await delivery.send(an_event())
    (event,) = ingest.events
    assert (event["environment"], event["release"], event["server_name"]) == ("prod", "shop@1.2.3", "web-1")
    assert not event.keys() - KEYS
    assert event["contexts"].keys() == {"celery"}
    assert not event.get("user")
    assert not event.get("extra")
    for of_here in (socket.gethostname(), "of-this-process", str(ROOT), sys.executable, sys.argv[0]):
        assert of_here.encode() not in ingest.raw


async def test_without_a_release_none_is_told(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK would take the commit of the folder in which it is started."""
    monkeypatch.chdir(ROOT)
    commit = _commit()
    async with opened(ingest.dsn) as delivery:
        await delivery.send(an_event())
    (event,) = ingest.events
    assert "release" not in event
    assert event["server_name"] == "web-1"
    assert not commit or commit.encode() not in ingest.raw


def _commit() -> str:
    """Return the checkout's commit; nothing where there is none."""
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


async def test_an_episode_of_no_worker_names_no_server(ingest: Ingest) -> None:
    metrics = SentryMetrics(Registry())
    options = SentryOptions(ingest.dsn, "infra")
    forwarder = Forwarder(options, metrics, Delivery(options))
    forwarder.start()
    forwarder.of("west").take_episode(Episode("broker_down", "west", EPOCH, "it is down"))
    forwarder.of("west").take_episode(Episode("worker_vanished", "mail@web-1", EPOCH, "it vanished"))
    await forwarder.stop()
    down, vanished = ingest.events
    assert "server_name" not in down
    assert vanished["server_name"] == "web-1"
    assert socket.gethostname().encode() not in ingest.raw


async def test_the_key_is_in_no_log(
    ingest: Ingest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", SHORT_SECONDS)
    caplog.set_level(logging.DEBUG)
    for status in (200, 302, 401, 429, 500):
        ingest.status = status
        async with opened(ingest.dsn) as delivery:
            await delivery.send(an_event())
    ingest.status, ingest.delay_seconds = 200, 30
    for dsn in (ingest.dsn, ingest.dsn_of("1", port=free_port()), f"https://{KEY}@sentry.invalid/1"):
        async with opened(dsn) as delivery:
            await delivery.send(an_event())
    assert caplog.records
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert KEY not in said
    assert KEY not in repr(SentryOptions(ingest.dsn, "all"))


async def test_trouble_is_logged_once_and_its_end_too(ingest: Ingest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, module.__name__)

    def said() -> list[tuple[str, str, Any]]:
        found = [(record.levelname, record.message, vars(record).get("error")) for record in caplog.records]
        caplog.clear()
        return found

    async with opened(ingest.dsn) as delivery:
        await delivery.send(an_event())
        assert said() == []
        for _ in range(2):
            ingest.status = 403
            for _ in range(5):
                await delivery.send(an_event())
            assert said() == [("WARNING", "Sentry does not take events", "HTTP status 403")]
            ingest.status = 200
            for _ in range(5):
                await delivery.send(an_event())
            assert said() == [("INFO", "Sentry takes events again", None)]


async def test_a_limit_is_no_trouble(ingest: Ingest, caplog: pytest.LogCaptureFixture) -> None:
    ingest.status = 429
    async with opened(ingest.dsn) as delivery:
        await delivery.send(an_event())
    assert [record for record in caplog.records if record.name == module.__name__] == []


# -- nothing global


async def test_sentry_sdk_of_this_process_is_left_alone(ingest: Ingest) -> None:
    """Its threads, hooks and handlers as well."""
    threads = {thread.name for thread in threading.enumerate()}
    hooks = sys.excepthook, threading.excepthook, logging.Logger.callHandlers
    async with opened(ingest.dsn) as delivery:
        await delivery.send(an_event())
        assert not sentry_sdk.get_client().is_active()
        assert sentry_sdk.capture_message("not ours") is None
        started = {thread.name for thread in threading.enumerate()} - threads
        assert not [name for name in started if "sentry" in name]
    assert hooks == (sys.excepthook, threading.excepthook, logging.Logger.callHandlers)
    assert len(ingest.events) == 1


_IMPORTED = """
import asyncio, sys, threading
from celery_lookout import app
from celery_lookout.cli import main
import celery_lookout.doctor

def stop(*_):
    print("sentry_sdk" in sys.modules)
    raise SystemExit(0)

app.WebServer.start = stop
main()
"""


@pytest.mark.parametrize("mode", ["off", "infra"])
def test_sentry_sdk_is_loaded_only_when_it_is_used(mode: str) -> None:
    env = {"PYTHONPATH": str(ROOT / "exporter"), "PATH": os.environ["PATH"]}
    serve = ["serve", "--broker", "redis://127.0.0.1:1", "--sentry.mode", mode, "--sentry.dsn", f"http://{KEY}@h/1"]
    done = subprocess.run([sys.executable, "-c", _IMPORTED, *serve], env=env, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"{mode != 'off'}\n", 0), done.stderr


# -- the forwarder, with a real delivery


class Bench:
    """A forwarder that sends to a real server."""

    def __init__(self, dsn: str, clock: Callable[[], float] = time.monotonic, **options: Any) -> None:
        self.registry = Registry()
        chosen = SentryOptions(dsn, "all", **{"limit": 1000, "limit_per_fault": 1000, **options})
        self.forwarder = Forwarder(chosen, SentryMetrics(self.registry), Delivery(chosen, clock))
        self.sink = self.forwarder.of(None)
        self.forwarder.start()

    def outcomes(self) -> dict[str, int]:
        family = self.registry.families["celery_exporter_sentry_events_total"]
        return {outcome: int(child.value) for (outcome,), child in family.children.items() if child.value}

    async def sent(self, number: int) -> None:
        """Take so many failures and wait until something became of each."""
        for failure in attempts(number):
            self.sink.take(failure)
        await self.forwarder._queue.join()


async def test_each_failure_has_one_outcome(ingest: Ingest, clock: Clock) -> None:
    bench = Bench(ingest.dsn, clock)
    await bench.sent(3)
    ingest.status = 500
    await bench.sent(4)
    ingest.status, ingest.headers = 429, {"Retry-After": "30"}
    await bench.sent(5)
    clock.now += 31
    ingest.status, ingest.headers = 200, {}
    await bench.sent(6)
    await bench.forwarder.stop()
    assert bench.outcomes() == {"sent": 9, "failed": 4, "rate_limited": 5}
    assert [request.status for request in ingest.requests] == [200] * 3 + [500] * 4 + [429] + [200] * 6
    assert len({event["event_id"] for event in ingest.events}) == 6


async def test_the_end_waits_a_moment_for_sentry(ingest: Ingest) -> None:
    bench = Bench(ingest.dsn)
    ingest.delay_seconds = 30
    for failure in attempts(20):
        bench.sink.take(failure)
    started = time.monotonic()
    await bench.forwarder.stop()
    assert time.monotonic() - started == pytest.approx(FAREWELL_SECONDS, abs=1.5)
    assert bench.outcomes() == {"dropped": 20}
