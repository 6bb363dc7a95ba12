"""From a failure in a real worker to what Sentry has of it: once, in full, without what is nobody's business."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from celery import Celery

from tests.conftest import Broker
from tests.sentry import failing_tasks, sdk_worker, secret_tasks
from tests.servers.bugsink import BugsinkServer, Project
from tests.servers.ingest import Ingest
from tests.servers.process import free_port, wait_until
from tests.servers.sidecar import Metrics
from tests.servers.workers import Beat, Client, Worker

Start = Callable[..., Any]

FORWARDED = "celery_exporter_sentry_events_total"
FAILED = "celery_task_failed_total"

#: What a worker is told: snapshots every second instead of every five, so that tests need not wait for them.
OFTEN = {"interval": 1.0}

MODULE = failing_tasks.__name__


def forward(dsn: str, mode: str = "all", *more: str) -> tuple[str, ...]:
    """Return the options that forward to *dsn*."""
    return ("--sentry.mode", mode, "--sentry.dsn", dsn, *more)


def outcomes(metrics: Metrics) -> dict[str, float]:
    """Return how many events for Sentry ended in which way."""
    return {outcome: count for (outcome,), count in metrics.by(FORWARDED, "outcome").items()}


# -- what a failure looks like


class Kind(NamedTuple):
    """What Sentry must have of one kind of failure; its task is called as it is in failing_tasks.py."""

    type: str
    value: str
    #: Function and source line of the innermost frame of the exception that got out; empty where it has none.
    function: str = ""
    line: str = ""
    #: All exceptions, the one that got out last.
    chain: tuple[str, ...] = ()
    retries: int = 0
    kind: str = "exception"


KINDS = {
    "simple": Kind("OutOfStock", "item 17", "simple", 'raise OutOfStock("item 17")'),
    "explicit_cause": Kind(
        "OutOfStock",
        "no such item",
        "explicit_cause",
        'raise OutOfStock("no such item") from error',
        ("KeyError", "OutOfStock"),
    ),
    "implicit_context": Kind(
        "OutOfStock",
        "no such item",
        "implicit_context",
        'raise OutOfStock("no such item")  # noqa: B904',
        ("KeyError", "OutOfStock"),
    ),
    "recursion": Kind("RecursionError", "maximum recursion depth exceeded", "recursion", "recursion(number + 1)"),
    "group": Kind(
        "ExceptionGroup",
        "three at once (3 sub-exceptions)",
        "group",
        'raise ExceptionGroup("three at once", errors)',
    ),
    "notes": Kind("OutOfStock", "item 17\nwhile packing order 4\non a Tuesday,\nin the rain", "notes", "raise error"),
    "syntax_error": Kind("SyntaxError", "invalid syntax", "<module>", "total = = 3"),
    # Its repr is all that leaves the process.
    "unpicklable": Kind(
        "Unpicklable", "Unpicklable('cannot travel')", "unpicklable", 'raise Unpicklable("cannot travel")'
    ),
    "retry_exhausted": Kind("OutOfStock", "item 17", "simple", 'raise OutOfStock("item 17")', retries=1),
    "time_limit": Kind("TimeLimitExceeded", "TimeLimitExceeded(1,)", kind="hard_time_limit"),
    "worker_lost": Kind(
        "WorkerLostError", "Worker exited prematurely: signal 9 (SIGKILL) Job: ", kind="worker_lost"
    ),
}  # fmt: skip


@pytest.mark.redis
@pytest.mark.sentry
@pytest.mark.parametrize("signals", [None, OFTEN], ids=["events", "snapshots"])
def test_each_kind_of_failure_is_one_issue(
    redis_broker: Broker,
    bugsink_server: BugsinkServer,
    sentry_project: Project,
    signals: Mapping[str, object] | None,
    start_sidecar: Start,
    start_worker: Start,
    make_client: Start,
) -> None:
    sidecar = start_sidecar(
        redis_broker.url,
        *forward(sentry_project.dsn, "all", "--sentry.environment", "prod", "--sentry.release", "shop@1.2.3"),
    )
    start_worker(redis_broker.url, name="mail@web-1", concurrency=4, imports=[MODULE], signals=signals)
    client: Client = make_client(redis_broker.url)
    ids: dict[str, list[str]] = {name: [] for name in KINDS}
    for name in [*KINDS, *KINDS]:
        ids[name].append(client.send(f"{MODULE}.{name}").id)
    sidecar.wait_for(FORWARDED, 2 * len(KINDS), outcome="sent")
    assert outcomes(sidecar.metrics()) == {"sent": 2 * len(KINDS)}

    events = bugsink_server.wait_for_events(sentry_project, 2 * len(KINDS))
    issues = bugsink_server.issues(sentry_project)
    assert Counter(issue["digested_event_count"] for issue in issues) == {2: len(KINDS)}
    transactions = {issue["transaction"].rpartition(".")[2]: issue for issue in issues}
    assert transactions.keys() == KINDS.keys()
    for name, expected in KINDS.items():
        issue = transactions[name]
        assert (issue["calculated_type"], issue["transaction"]) == (expected.type, f"{MODULE}.{name}")
        assert issue["calculated_value"].startswith(expected.value.splitlines()[0])
    by_id = {event["data"]["tags"]["celery_task_id"]: event for event in events}
    assert by_id.keys() == {task_id for both in ids.values() for task_id in both}
    for name, expected in KINDS.items():
        for task_id in ids[name]:
            _check(by_id[task_id], name, expected)


def _check(event: dict[str, Any], name: str, expected: Kind) -> None:
    data = event["data"]
    assert data["tags"] == {
        "task": f"{MODULE}.{name}",
        "queue": "celery",
        "worker": "mail@web-1",
        "retries": str(expected.retries),
        "celery_task_id": data["contexts"]["celery"]["task_id"],
        "kind": expected.kind,
    }
    assert (data["environment"], data["release"], data["server_name"]) == ("prod", "shop@1.2.3", "web-1")
    values = data["exception"]["values"]
    raised = values[-1]
    assert raised["type"] == expected.type
    assert raised["value"].startswith(expected.value)
    if expected.chain:
        assert tuple(value["type"] for value in values) == expected.chain
    elif name != "group":
        assert len(values) == 1
    if name == "group":
        assert len(values) > 3
    if expected.function:
        innermost = raised["stacktrace"]["frames"][-1]
        assert (innermost["function"], innermost["context_line"]) == (expected.function, expected.line)
        if name != "syntax_error":
            assert innermost["filename"] == "tests/sentry/failing_tasks.py"
            assert innermost["in_app"] is True
            assert innermost["module"] == MODULE
            assert innermost["lineno"] > 0
        assert expected.line in event["stacktrace_md"]


# -- what nobody may read

#: In every task's arguments and results: as text, and inside of other things.
SECRET = "s3cr3t-0f-4da"


@pytest.mark.redis
@pytest.mark.parametrize("signals", [None, OFTEN], ids=["events", "snapshots"])
def test_arguments_and_results_go_nowhere(
    redis_broker: Broker,
    ingest: Ingest,
    signals: Mapping[str, object] | None,
    start_sidecar: Start,
    start_worker: Start,
    make_client: Start,
) -> None:
    sidecar = start_sidecar(redis_broker.url, *forward(ingest.dsn), "--log.level", "debug")
    worker = start_worker(
        redis_broker.url,
        concurrency=len(secret_tasks.TASKS) + 2,
        imports=[secret_tasks.__name__],
        signals=signals,
        conf={"worker_max_tasks_per_child": 1},
    )
    client: Client = make_client(redis_broker.url)
    names = [function.__name__ for function in secret_tasks.TASKS]
    for name in names:
        client.send(f"{secret_tasks.__name__}.{name}", {"customer": [SECRET]}, kwargs={"key": {"token": SECRET}})
    client.send("sample.unknown", SECRET, kwargs={"key": SECRET})
    events = ingest.wait_for(len(names))  # one of them succeeds

    by_task = {event["tags"]["task"].rpartition(".")[2]: event["exception"]["values"][-1] for event in events}
    types = {task: value["type"] for task, value in by_task.items()}
    assert types == {
        "fail": "ValueError",
        "retry_in_vain": "MaxRetriesExceededError",
        "retry_in_vain_with_lines": "MaxRetriesExceededError",
        "return_opaque": "EncodeError",
        "return_opaque_inside": "EncodeError",
        "lack_an_argument": "TypeError",
        "time_limit": "TimeLimitExceeded",
        "soft_time_limit": "SoftTimeLimitExceeded",
        "kill_self": "WorkerLostError",
        "unknown": "NotRegistered",
    }
    # It was there to be found.
    assert SECRET in worker.log.read_text()
    assert SECRET.encode() not in ingest.raw
    for path in ("/metrics", "/", "/api/v1/status"):
        answer = sidecar.get(path)
        assert answer.status == 200
        assert SECRET.encode() not in answer.body, path
    sidecar.stop()
    assert SECRET not in sidecar.log.read_text()
    with redis.Redis.from_url(redis_broker.url) as connection:
        snapshots = connection.xrange("celery-lookout.signals.v1")
    assert bool(snapshots) is bool(signals)
    assert SECRET not in repr(snapshots)
    if signals:
        assert "MaxRetriesExceededError" in repr(snapshots)


# -- storms

#: Failures in a storm, and of how many kinds they are.
STORM, STORM_KINDS = 2000, 4

#: What may go out: at once, and in each minute from then on.
LIMIT, LIMIT_PER_FAULT = 20, 8


def publish_failures(url: str, number: int) -> None:
    """Send the events of a worker all of whose tasks fail, as fast as can be."""
    traceback = 'Traceback (most recent call last):\n  File "/srv/shop.py", line 7, in pay\n    raise\nOSError: no\n'
    with Celery(broker=url, set_as_current=False) as app, app.connection_for_write() as connection:
        dispatcher = app.events.Dispatcher(connection, hostname="w@host", buffer_group={"task"}, buffer_limit=30)
        dispatcher.send("worker-online", freq=2.0, sw_ident="py-celery", sw_ver="5.7.0", sw_sys="Linux")
        for count in range(number):
            task_id = f"{count:08x}-0000-4000-8000-000000000000"
            name = f"shop.step_{count % STORM_KINDS}"
            dispatcher.send("task-received", uuid=task_id, name=name, args="()", kwargs="{}", retries=0)
            dispatcher.send("task-started", uuid=task_id)
            dispatcher.send("task-failed", uuid=task_id, exception="OSError('no')", traceback=traceback)
        dispatcher.flush()
        dispatcher.send("worker-offline")  # otherwise it would have vanished
        dispatcher.close()


@pytest.mark.redis
@pytest.mark.parametrize("trouble", ["none", "down", "slow", "limited"])
def test_a_storm_is_counted_as_fast_as_it_comes_whatever_sentry_does(
    redis_broker: Broker, ingest: Ingest, trouble: str, start_sidecar: Start
) -> None:
    dsn = ingest.dsn_of("1", port=free_port()) if trouble == "down" else ingest.dsn
    if trouble == "limited":
        ingest.status, ingest.headers = 429, {"Retry-After": "600"}
    ingest.delay_seconds = 10.0 if trouble == "slow" else 0.0
    limits = ("--sentry.limit", str(LIMIT), "--sentry.limit-per-fault", str(LIMIT_PER_FAULT))
    sidecar = start_sidecar(redis_broker.url, *forward(dsn, "all", *limits))
    sidecar.wait_for("celery_exporter_broker_up", 1)
    started = time.monotonic()
    publish_failures(redis_broker.url, STORM)
    published = time.monotonic()
    metrics = sidecar.wait_for(FAILED, STORM)
    counted = time.monotonic()
    print(f"published in {published - started:.1f} s, counted {counted - published:.1f} s later")

    assert (metrics.get("celery_exporter_event_lag_seconds") or 0) < 10
    assert metrics.get("celery_exporter_events_lost_total") == 0
    assert sidecar.get("/metrics").seconds < 5
    if trouble == "slow":
        # Sentry has not even answered once: what is queued waits, the rest is decided.
        assert outcomes(metrics).keys() == {"rate_limited"}
        wait_until(lambda: ingest.requests)
        assert len(ingest.requests) == 1
        ingest.delay_seconds = 0.0  # the first answer still takes its time
    wait_until(lambda: sum(outcomes(sidecar.metrics()).values()) >= STORM, 20, "some have no outcome yet")
    ended = outcomes(sidecar.metrics())
    assert sum(ended.values()) == STORM
    elapsed = time.monotonic() - started
    budget = LIMIT * (1 + elapsed / 60)
    # All that might be sent is tried; of what Sentry wants to be left alone with, only the first.
    tried = {"none": "sent", "slow": "sent", "down": "failed", "limited": "rate_limited"}[trouble]
    if trouble == "limited":
        assert ended == {"rate_limited": STORM}
        assert len(ingest.requests) == 1
        return
    assert ended.keys() == {tried, "rate_limited"}
    assert LIMIT <= ended[tried] <= budget
    if tried == "sent":
        assert len(ingest.events) == ended["sent"]
        of_each = Counter(event["tags"]["task"] for event in ingest.events)
        assert max(of_each.values()) <= LIMIT_PER_FAULT * (1 + elapsed / 60)


# -- beside Sentry's own SDK


def told(ingest: Ingest, project: str) -> list[tuple[str, str]]:
    """Return the exceptions that came to a project, with their tasks; of a log message, the message."""
    found = []
    for event in ingest.items("event", project):
        values = event.get("exception", {}).get("values") or [{"type": str(event.get("logentry"))}]
        found.append((event.get("transaction", ""), values[-1]["type"]))
    return sorted(found)


#: The projects of the worker's SDK and of the sidecar.
SDK, OURS = "1", "2"


@pytest.mark.redis
@pytest.mark.parametrize(
    ("mode", "signals", "with_loggers"),
    [("infra", None, False), ("all", OFTEN, False), ("infra", None, True)],
    ids=["events", "snapshots", "with Celery's log messages"],
)
def test_beside_the_sdk_nothing_is_told_twice(
    redis_broker: Broker,
    ingest: Ingest,
    mode: str,
    signals: Mapping[str, object] | None,
    with_loggers: bool,
    start_sidecar: Start,
    start_worker: Start,
    make_client: Start,
) -> None:
    sidecar = start_sidecar(redis_broker.url, *forward(ingest.dsn_of(OURS), mode))
    env = {sdk_worker.DSN: ingest.dsn_of(SDK), **({sdk_worker.WITH_LOGGERS: "1"} if with_loggers else {})}
    worker: Worker = start_worker(
        redis_broker.url, name="w@web-1", concurrency=4, imports=[sdk_worker.__name__], signals=signals, env=env
    )
    client: Client = make_client(redis_broker.url)
    client.send("hard_limit", 30.0)
    client.send("fail")
    ingest.wait_for(1)  # a process that dies may take along what was not sent yet
    client.send("kill_self")
    client.app.send_task("sample.gone")
    sidecar.wait_for(FAILED, 4)
    sidecar.wait_for(FORWARDED, 3, outcome="sent")
    worker.stop()  # sends what is left

    assert told(ingest, OURS) == [
        ("sample.gone", "NotRegistered"),
        ("sample.hard_limit", "TimeLimitExceeded"),
        ("sample.kill_self", "WorkerLostError"),
    ]
    assert outcomes(sidecar.metrics()) == {"sent": 3}
    by_sdk = told(ingest, SDK)
    assert by_sdk.pop() == ("sample.fail", "ValueError")
    if with_loggers:
        # Log messages of the main process, several for one kill, and none says which task it was.
        assert len(by_sdk) >= 3
        assert {task for task, _ in by_sdk} == {""}
    else:
        assert by_sdk == []


# -- two sidecars


@pytest.mark.redis
@pytest.mark.sentry
def test_what_two_sidecars_forward_is_stored_once(
    redis_broker: Broker,
    bugsink_server: BugsinkServer,
    sentry_project: Project,
    start_sidecar: Start,
    start_worker: Start,
    make_client: Start,
) -> None:
    options = forward(sentry_project.dsn)
    sidecars = [start_sidecar(redis_broker.url, *options, "--replica", name) for name in ("a", "b")]
    start_worker(redis_broker.url, name="events@web-1", queues=("celery",), concurrency=1)
    start_worker(redis_broker.url, name="snapshots@web-1", queues=("mail",), concurrency=1, signals=OFTEN)
    client: Client = make_client(redis_broker.url)
    tasks = ["fail", "fail_in_chain", "fail_unpicklable", "kill_self"]
    sent = {client.send(task, queue=queue).id for task in tasks for queue in ("celery", "mail")}
    for sidecar in sidecars:
        sidecar.wait_for(FORWARDED, len(sent), outcome="sent")
    events = bugsink_server.wait_for_events(sentry_project, len(sent))
    assert sorted(event["data"]["tags"]["celery_task_id"] for event in events) == sorted(sent)
    issues = bugsink_server.issues(sentry_project)
    assert {issue["transaction"]: issue["stored_event_count"] for issue in issues} == {
        f"sample.{task}": 2 for task in tasks
    }


# -- trouble that is no task's


def test_each_trouble_is_told_once(
    broker: Broker, ingest: Ingest, start_sidecar: Start, start_worker: Start, make_client: Start
) -> None:
    sidecar = start_sidecar(broker.url, *forward(ingest.dsn, "infra", "--sentry.stuck-after", "3"))
    worker: Worker = start_worker(broker.url, name="celery@web-1")
    client: Client = make_client(broker.url)
    client.wait(client.send("noop"), client.send("fail"))
    client.send("sample.unknown")
    for _ in range(3):
        client.send("send_mail")
    sidecar.wait_for(FORWARDED, 1, outcome="sent")
    worker.kill()
    # Looks five seconds apart: those at the queue go on until the worker's silence is long enough.
    ingest.wait_for(3)
    sidecar.wait_for("celery_worker_up", 0, worker="celery@web-1")
    events = {event["exception"]["values"][-1]["type"]: event for event in ingest.events}
    assert events.keys() == {"NotRegistered", "QueueStuck", "WorkerVanished"}
    assert len(ingest.events) == 3
    unknown, stuck, vanished = events["NotRegistered"], events["QueueStuck"], events["WorkerVanished"]
    assert (unknown["transaction"], unknown["tags"]["kind"]) == ("sample.unknown", "unknown_task")
    assert stuck["tags"] == {"kind": "queue_stuck", "queue": "mail"}
    assert stuck["exception"]["values"][-1]["value"].startswith("3 tasks wait in mail")
    assert vanished["tags"] == {"kind": "worker_vanished", "worker": "celery@web-1"}
    assert vanished["server_name"] == "web-1"
    assert outcomes(sidecar.metrics()) == {"sent": 3}


@pytest.mark.redis
def test_beat_checks_in_for_its_entries(
    redis_broker: Broker, ingest: Ingest, start_sidecar: Start, tmp_path: Path
) -> None:
    sidecar = start_sidecar(redis_broker.url, *forward(ingest.dsn, "infra", "--sentry.crons"))
    schedule = {
        "often": {"task": "sample.noop", "schedule": 1.0},
        "Count the stock": {"task": "sample.add", "schedule": 1.5, "args": [1, 2]},
        "rare": {"task": "sample.noop", "schedule": 7200.0},
    }
    with Beat(redis_broker.url, tmp_path, schedule, signals=OFTEN):
        ingest.wait_for(2, kind="check_in")
        name = "celery_beat_entry_last_sent_timestamp_seconds"
        first = sidecar.value(name, entry="often") or 0
        wait_until(lambda: (sidecar.value(name, entry="often") or 0) > first + 2)
    # Sentry knows no schedule below a minute.
    assert {check_in["monitor_slug"]: check_in["status"] for check_in in ingest.check_ins} == {
        "often": "ok",
        "count-the-stock": "ok",
    }
    assert len(ingest.check_ins) == 2
    for check_in in ingest.check_ins:
        assert check_in["monitor_config"]["schedule"] == {"type": "interval", "value": 1, "unit": "minute"}
        assert check_in["monitor_config"]["timezone"] == "UTC"
    assert ingest.events == []
