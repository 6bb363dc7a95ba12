"""What a worker says of itself at the moment of a snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest

from tests.conftest import Broker
from tests.servers.celery_versions import NEWEST
from tests.servers.workers import Client, Worker
from tests.signals.snapshots import Reader

MEBIBYTE = 2**20


@pytest.mark.parametrize("celery", [pytest.param("5.3.6", marks=pytest.mark.old_celery), NEWEST])
def test_a_busy_worker_tells_what_it_holds(
    broker: Broker, celery: str, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    """Two tasks run, of which one is acknowledged; three wait for a slot and two for their time."""
    worker = start_worker(
        broker.url, name="w@host", celery=celery, queues=("mail", "celery"), concurrency=2, prefetch=4, events=False,
        sent_events=False, signals={"interval": 0.5},
    )  # fmt: skip
    begun = time.time()
    client = make_client(broker.url, sent_events=False)
    # Celery's logs and events call it otherwise; our rows are of registered names, as those of runs.
    client.send("sleep", 60.0, shadow="nap 17")
    client.send("sleep_late", 60.0, queue="mail")
    reader = Reader(broker.url)
    reader.wait_for(lambda reader: reader.snapshots[-1]["active"] == 2)
    for number in range(3):
        client.send("noop", shadow=f"nothing {number}")
    for _ in range(2):
        client.send("add", 1, 1, countdown=60)

    def is_busy(reader: Reader) -> bool:
        last = reader.snapshots[-1]
        return (last["active"], last["reserved"], last["scheduled"]) == (2, 3, 2) and len(last["running"]) == 2

    last = reader.wait_for(is_busy).snapshots[-1]
    assert (last["kind"], last["node"], last["celery"], last["pid"]) == ("worker", "w@host", celery, worker.pid)
    assert (last["pool"], last["slots"], last["queues"], last["counts"]) == ("prefork", 2, ["celery", "mail"], True)
    assert (last["processed"], last["runs_lost"], last["faults"]) == (2, 0, 0)
    assert last["child_exits"] == {"recycled": 0, "killed": 0, "exited": 0}
    running = sorted(last["running"])
    assert [row[:4] for row in running] == [["sample.sleep", "celery", 1, 1], ["sample.sleep_late", "mail", 1, 0]]
    assert all(begun <= row[4] <= last["at"] for row in running)
    # Those that run have started, and those that wait were received.
    assert reader.counts() == {
        ("sample.sleep", "celery"): {"received": 1, "started": 1},
        ("sample.sleep_late", "mail"): {"received": 1, "started": 1},
        ("sample.noop", "celery"): {"received": 3},
        ("sample.add", "celery"): {"received": 2},
    }
    processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children()]
    sizes = [process.memory_info().rss for process in processes]
    assert last["memory"] == pytest.approx(sum(sizes), rel=0.1)
    assert last["child_memory_max"] == pytest.approx(max(sizes[1:]), rel=0.1)
    assert 0 < last["cpu_seconds"] < 60


@pytest.mark.redis
def test_snapshots_begin_before_the_first_task_and_end_with_a_goodbye(
    redis_broker: Broker, start_worker: Callable[..., Worker], make_client: Callable[..., Client]
) -> None:
    client = make_client(redis_broker.url, sent_events=False)
    waiting = [client.send("add", number, 1) for number in range(5)]
    worker = start_worker(redis_broker.url, signals={"interval": 60}, events=False, sent_events=False)
    client.wait(*waiting)
    # When it has done nothing yet it has no pool; then it tells as soon as it has one, and not again for a minute.
    reader = Reader(redis_broker.url)
    reader.wait_for(lambda reader: len(reader.snapshots) == 2)
    worker.stop()
    reader.wait_final()
    told = [(s["seq"], s["pool"], s["slots"], s["interval"], s["final"]) for s in reader.snapshots]
    assert told == [
        (1, None, None, 60.0, False),
        (2, "prefork", 2, 60.0, False),
        (3, "prefork", 2, 60.0, False),  # when it begins to stop
        (4, "prefork", 2, 60.0, True),
    ]
    assert [bool(snapshot["rows"]) for snapshot in (reader.snapshots[0], reader.snapshots[3])] == [False, True]
    assert len({(snapshot["boot"], snapshot["started_at"]) for snapshot in reader.snapshots}) == 1
    assert reader.counts() == {("sample.add", "celery"): {"received": 5, "started": 5, "succeeded": 5}}

    worker.start()
    reader.wait_for(lambda reader: len(reader.snapshots) == 6)
    assert reader.snapshots[4]["seq"] == 1
    assert reader.snapshots[4]["boot"] != reader.snapshots[0]["boot"]
    # The next life begins at nothing.
    assert reader.counts() == {("sample.add", "celery"): {"received": 5, "started": 5, "succeeded": 5}}
