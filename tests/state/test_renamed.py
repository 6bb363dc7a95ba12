"""Tasks, queues and workers that users rename or keep out: what is shown stays true."""

from __future__ import annotations

from celery_lookout.metrics.labels import LabelRules, Labels, Rename
from celery_lookout.readings import BrokerReading, ConsumedQueue, QueueHead, QueueReading, WorkerReading
from celery_lookout.state.cluster import ClusterOptions, Limits
from celery_lookout.state.workers import KEEP_SECONDS
from tests.clusters import (
    EPOCH,
    Watched,
    failed,
    heartbeat,
    of,
    offline,
    online,
    received,
    row,
    sent,
    series,
    snapshot,
    started,
    succeeded,
)

DROPPED = "celery_exporter_label_values_dropped_total"
PODS = r"(\w+)-[a-z0-9]+@h=$1"


def rename(text: str) -> tuple[Rename, ...]:
    return (Rename.parse(text, "label.x-rename"),)


def with_labels(limits: Limits | None = None, **rules: LabelRules) -> Watched:
    return Watched(ClusterOptions(limits=limits or Limits(), labels=Labels(**rules)))


def with_pods() -> Watched:
    return with_labels(worker=LabelRules(renames=rename(PODS)))


def of_worker(name: str, worker: str = "web", **labels: str) -> str:
    return series(f"celery_worker_{name}", worker=worker, **labels)


# -- tasks


def run(watched: Watched, name: str, queue: str = "celery", *, uuid: str, fails: bool = False) -> None:
    at = watched.seconds
    end = failed(at + 0.3, uuid=uuid) if fails else succeeded(at + 0.3, uuid=uuid)
    watched.hear(sent(at, uuid=uuid, name=name, queue=queue), received(at + 0.1, uuid=uuid, name=name))
    watched.hear(started(at + 0.2, uuid=uuid), end)


def test_denied_tasks_count_as_other_and_sums_stay_true() -> None:
    watched = with_labels(task=LabelRules(deny=("noise.*",)))
    for number, name in enumerate(("mail", "noise.a", "noise.b", "mail")):
        run(watched, name, uuid=str(number))
    assert watched.series("celery_task_succeeded_total") == {
        of("succeeded_total", task="mail"): 2,
        of("succeeded_total", task="_other"): 2,
    }
    assert watched.series()[series(DROPPED, label="task", reason="denied")] == 2


def test_tasks_renamed_to_one_name_are_counted_together_by_events_and_snapshots() -> None:
    watched = with_labels(task=LabelRules(renames=rename(r"report_\d+=report")))
    run(watched, "report_1", uuid="a")
    run(watched, "report_2", uuid="b", fails=True)
    told = [row("report_3", started=5), row("report_4", started=7)]
    watched.poll(snapshot(1, *told, worker="other@h"))
    watched.poll(snapshot(6, row("report_3", started=(5, 6)), row("report_4", started=(7, 9)), worker="other@h"))
    assert watched.series("celery_task_started_total") == {of("started_total", task="report"): 2 + 6 + 9}


def test_a_name_that_another_is_renamed_to_is_renamed_itself() -> None:
    """``b`` is shown as ``c`` although there are series of a ``b``, which is what ``a`` is shown as."""
    watched = with_labels(task=LabelRules(renames=(*rename("b=c"), *rename("a=b"))))
    run(watched, "a", uuid="1")
    run(watched, "b", uuid="2")
    assert watched.series("celery_task_sent_total") == {of("sent_total", task="b"): 1, of("sent_total", task="c"): 1}


def test_tasks_and_queues_that_nobody_could_name_are_unknown_whatever_is_allowed() -> None:
    nothing = LabelRules(allow=("nothing",))
    watched = with_labels(task=nothing, queue=nothing, limits=Limits(task_names=1, queues=1))
    watched.hear(started(0))
    watched.wait(2)
    assert watched.series()[of("started_total", task="unknown", queue="unknown")] == 1


# -- queues


def reading(*queues: QueueReading, at: float = 0.0) -> BrokerReading:
    return BrokerReading(EPOCH + at, queues)


def test_queues_renamed_to_one_name_are_read_by_their_own_and_shown_together() -> None:
    watched = with_labels(queue=LabelRules(renames=rename(r"user-\d+=user")))
    watched.wait_until(100)
    for number in (1, 2):
        watched.hear(sent(100, uuid=str(number), queue=f"user-{number}"))
    assert watched.cluster.queues.names() == {"user-1", "user-2"}
    old = QueueReading("user-1", 3, {0: 3}, unacked=1, consumers=2, head=QueueHead("x", EPOCH + 40))
    new = QueueReading("user-2", 4, {0: 1, 3: 3}, unacked=5, consumers=0, head=QueueHead("y", EPOCH + 90))
    watched.cluster.take_broker(reading(old, new, at=100))
    shown = {
        name: value for name, value in watched.series("celery_queue_").items() if not name.endswith('queue="celery"}')
    }
    assert shown == {
        series("celery_queue_length", queue="user"): 7,
        series("celery_queue_priority_length", queue="user", priority="0"): 4,
        series("celery_queue_priority_length", queue="user", priority="3"): 3,
        series("celery_queue_unacked", queue="user"): 6,
        series("celery_queue_consumers", queue="user"): 2,
        series("celery_queue_oldest_task_age_seconds", queue="user"): 60,
    }
    assert watched.series()[of("sent_total", queue="user")] == 2


def test_a_worker_of_several_queues_that_share_a_name_is_one_worker() -> None:
    watched = with_labels(queue=LabelRules(renames=rename(r"user-\d+=user")))
    watched.hear(heartbeat(0))
    queues = tuple(ConsumedQueue(f"user-{number}", "", "") for number in (1, 2))
    watched.cluster.take_workers([WorkerReading("w@h", EPOCH, slots=4, queues=queues)])
    assert watched.series()[series("celery_queue_workers", queue="user")] == 1
    assert watched.series()[series("celery_queue_slots", queue="user")] == 4


def test_no_depth_is_shown_of_a_name_with_more_queues_than_are_read() -> None:
    watched = with_labels(queue=LabelRules(renames=rename(r"user-\d+=user")), limits=Limits(queues=2))
    watched.cluster.take_broker(reading(QueueReading("user-1", 3), QueueReading("user-2", 3)))
    assert watched.series()[series("celery_queue_length", queue="user")] == 6
    watched.hear(sent(0, queue="user-3"))
    watched.cluster.take_broker(reading(QueueReading("user-1", 3), QueueReading("user-2", 3)))
    assert watched.series("celery_queue_length") == {}
    assert watched.series()[of("sent_total", queue="user")] == 1


def test_denied_queues_are_neither_read_nor_shown_and_their_tasks_count() -> None:
    watched = with_labels(queue=LabelRules(deny=("tmp*",)))
    run(watched, "mail", "tmp1", uuid="a")
    assert watched.cluster.queues.names() == frozenset()
    assert watched.series()[of("succeeded_total", task="mail", queue="_other")] == 1
    assert watched.series("celery_queue_") == {}


# -- workers


def test_pods_of_one_workload_share_one_line_that_says_what_they_are_together() -> None:
    watched = with_pods()
    watched.hear(heartbeat(0, worker="web-a@h", active=2, loadavg=(1.0, 1.0, 1.0)))
    watched.hear(heartbeat(1, worker="web-b@h", active=3, loadavg=(2.0, 1.0, 1.0)), heartbeat(1, worker="mail@h"))
    watched.cluster.take_workers(
        [
            WorkerReading(f"web-{pod}@h", EPOCH, slots=4, main_max_memory_bytes=size)
            for pod, size in (("a", 7), ("b", 9))
        ]
    )
    shown = watched.series("celery_worker_")
    assert {name.split('worker="')[1].split('"')[0] for name in shown} == {"web", "mail@h"}
    assert shown[of_worker("up")] == 1
    assert shown[of_worker("nodes")] == 2
    assert shown[of_worker("tasks_active")] == 5
    assert shown[of_worker("slots")] == 8
    assert shown[of_worker("load_average", period="1m")] == 2
    assert shown[of_worker("main_max_memory_bytes")] == 9
    assert shown[of_worker("last_heartbeat_timestamp_seconds")] == EPOCH + 1
    assert shown[of_worker("nodes", "mail@h")] == 1


def test_a_name_is_up_while_one_of_its_workers_is_and_said_goodbye_when_all_did() -> None:
    watched = with_pods()
    watched.hear(heartbeat(0, worker="web-a@h"), heartbeat(0, worker="web-b@h"))
    watched.hear(offline(1, worker="web-a@h"))
    shown = watched.series()
    assert (shown[of_worker("up")], shown[of_worker("nodes")], shown[of_worker("shutdown_graceful")]) == (1, 1, 0)
    watched.hear(offline(2, worker="web-b@h"))
    shown = watched.series()
    assert (shown[of_worker("up")], shown[of_worker("nodes")], shown[of_worker("shutdown_graceful")]) == (0, 0, 1)


def test_counters_of_a_shared_name_neither_fall_nor_jump_when_workers_come_and_go() -> None:
    watched = with_pods()
    counted = of_worker("tasks_processed_total")
    watched.hear(heartbeat(0, worker="web-a@h", processed=1000))
    assert watched.series()[counted] == 0
    watched.hear(heartbeat(2, worker="web-a@h", processed=1007))
    assert watched.series()[counted] == 7
    watched.hear(online(3, worker="web-b@h", processed=0), heartbeat(5, worker="web-b@h", processed=4))
    assert watched.series()[counted] == 11
    watched.hear(online(6, worker="web-b@h", pid=2, processed=0), heartbeat(8, worker="web-b@h", pid=2, processed=3))
    assert watched.series()[counted] == 14
    watched.hear(heartbeat(9, worker="web-b@h", pid=3, processed=2))  # its first words were lost
    assert watched.series()[counted] == 16
    watched.hear_each(
        heartbeat(second, worker="web-b@h", pid=3, processed=2) for second in range(10, int(KEEP_SECONDS) + 20, 2)
    )
    assert {worker.name for worker in watched.cluster.workers} == {"web-a@h", "web-b@h"}
    assert watched.series()[counted] == 16  # and forgot the first of them
    assert {worker.name for worker in watched.cluster.workers} == {"web-b@h"}


def test_the_last_worker_of_a_name_takes_its_series_with_it() -> None:
    watched = with_pods()
    watched.hear(heartbeat(0, worker="web-a@h"), heartbeat(10, worker="web-b@h"))
    watched.poll(snapshot(1, row(started=1), worker="web-c@h", memory=5, child_exits={"killed": 2}))
    assert watched.series()[of_worker("memory_bytes")] == 5
    watched.wait(KEEP_SECONDS + 60)
    before = watched.registry.series
    assert watched.series("celery_worker_") == {}
    assert watched.registry.series == len(watched.series()) < before


def test_workers_that_are_not_shown_are_followed_all_the_same() -> None:
    watched = with_labels(worker=LabelRules(deny=("w@*",)))
    watched.hear(heartbeat(0), heartbeat(0, worker="mail@h"))
    run(watched, "add", uuid="a")
    watched.hear(sent(1, uuid="b"), received(1, uuid="b"), started(1, uuid="b"))
    watched.cluster.take_workers([WorkerReading("w@h", EPOCH, slots=4, queues=(ConsumedQueue("celery", "", ""),))])
    watched.poll(snapshot(2, row(started=1), worker="w@other"))
    shown = watched.series()
    assert {name for name in shown if "w@" in name} == set()
    assert shown[of_worker("up", "mail@h")] == 1
    assert shown[series("celery_queue_slots", queue="celery")] == 4
    assert shown[of("started_total")] == 3
    assert shown[series(DROPPED, label="worker", reason="denied")] == 2
    watched.wait(200)
    assert watched.series()[of("lost_total")] == 1
