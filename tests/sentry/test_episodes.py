"""Trouble that is no task's failure: when it is told, how often, and what its Sentry event says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from celery_lookout.readings import BrokerReading, ConsumedQueue, QueueReading, WorkerReading
from celery_lookout.sentry.episodes import BROKER_DOWN_SECONDS, RUNNING_SECONDS, Episode, Episodes, episode_event
from tests.clusters import (
    EPOCH,
    Watched,
    failed,
    heartbeat,
    offline,
    online,
    received,
    retried,
    snapshot,
    started,
    succeeded,
)

STUCK_AFTER = 900.0

#: As the monitor looks.
STEP_SECONDS = 5.0

Told = list[tuple[str, str]]


class Scene:
    """A cluster, and who looks for trouble in it."""

    def __init__(self, stuck_after: float = STUCK_AFTER) -> None:
        self.watched = Watched()
        self.cluster = self.watched.cluster
        self.episodes = Episodes(self.cluster, "west", stuck_after=stuck_after)
        self.cluster.broker_found(self.watched.now, gap=False)
        #: Ready messages by queue, read every five seconds; None while the broker cannot be read.
        self.ready: dict[str, int] | None = {}

    def look(self) -> list[Episode]:
        self.cluster.refresh(self.watched.now)
        return [*self.episodes.look(self.watched.now)]

    def wait(self, seconds: float, *, beating: tuple[str, ...] = ()) -> Told:
        """Let time pass, with a look every five seconds; return what was told. Workers that are *beating* live."""
        told: Told = []
        end = self.watched.seconds + seconds
        while self.watched.seconds < end:
            self.watched.wait_until(min(self.watched.seconds + STEP_SECONDS, end))
            for worker in beating:
                self.watched.hear(heartbeat(self.watched.seconds, worker=worker))
            if self.ready is not None:
                queues = tuple(QueueReading(name, ready) for name, ready in self.ready.items())
                self.cluster.take_broker(BrokerReading(self.watched.now, queues))
            told += [(episode.kind, episode.subject) for episode in self.look()]
        return told


@pytest.fixture
def scene() -> Scene:
    return Scene()


DOWN = ("broker_down", "west")
VANISHED = ("worker_vanished", "w@h")
STUCK = ("queue_stuck", "mail")


# -- the broker


def test_a_broker_that_is_down_for_a_minute_is_told_once(scene: Scene) -> None:
    assert scene.wait(30) == []
    scene.cluster.broker_lost(scene.watched.now)
    assert scene.wait(BROKER_DOWN_SECONDS - 5) == []
    assert scene.wait(10) == [DOWN]
    assert scene.wait(3 * 3600) == []


def test_a_restart_of_the_broker_is_none(scene: Scene) -> None:
    for _ in range(10):
        scene.cluster.broker_lost(scene.watched.now)
        assert scene.wait(BROKER_DOWN_SECONDS - 10) == []
        scene.cluster.broker_found(scene.watched.now, gap=True)
        assert scene.wait(10) == []


def test_a_broker_that_recovered_and_is_down_again_is_told_again(scene: Scene) -> None:
    events = []
    for _ in range(3):
        scene.cluster.broker_lost(scene.watched.now)
        scene.wait(5)
        scene.watched.wait(BROKER_DOWN_SECONDS)
        (episode,) = scene.look()
        events.append(episode_event(episode))
        scene.cluster.broker_found(scene.watched.now, gap=True)
        assert scene.wait(60) == []
    assert len({event["event_id"] for event in events}) == 3
    assert len({str(event["fingerprint"]) for event in events}) == 1


def test_a_broker_that_was_never_there_is_told_as_well() -> None:
    scene = Scene()
    scene.cluster.exporter.broker_up.set(0)
    assert scene.wait(BROKER_DOWN_SECONDS + 10) == [DOWN]


# -- workers


def test_a_worker_that_fell_silent_is_told_once(scene: Scene) -> None:
    assert scene.wait(60, beating=("w@h", "other@h")) == []
    assert scene.wait(20, beating=("other@h",)) == [VANISHED]
    assert scene.wait(3600, beating=("other@h",)) == []


def test_a_worker_that_came_back_and_fell_silent_again_is_told_again(scene: Scene) -> None:
    told: Told = []
    for _ in range(3):
        scene.watched.hear(online(scene.watched.seconds + 1))
        told += scene.wait(30, beating=("w@h",))
        told += scene.wait(60)
    assert told == [VANISHED] * 3


def test_a_worker_that_said_goodbye_has_not_vanished(scene: Scene) -> None:
    scene.wait(30, beating=("w@h",))
    scene.watched.hear(offline(scene.watched.seconds))
    assert scene.wait(3600) == []


def test_a_worker_with_the_worker_package_alone_says_goodbye_in_its_last_snapshot(scene: Scene) -> None:
    """Its snapshots are its heartbeats."""
    for worker, final in (("gone@h", True), ("w@h", False)):
        for second in (5, 10):
            scene.watched.poll(snapshot(second, worker=worker, final=final and second == 10))
    assert scene.wait(3600) == [VANISHED]


def test_nobody_vanishes_while_nobody_can_be_heard(scene: Scene) -> None:
    scene.wait(30, beating=("w@h",))
    scene.cluster.broker_lost(scene.watched.now)
    assert scene.wait(1800) == [DOWN]
    scene.cluster.broker_found(scene.watched.now, gap=True)
    assert scene.wait(600, beating=("w@h",)) == []


def test_who_does_not_return_with_the_broker_has_vanished(scene: Scene) -> None:
    scene.wait(30, beating=("w@h", "other@h"))
    scene.cluster.broker_lost(scene.watched.now)
    scene.wait(600)
    scene.cluster.broker_found(scene.watched.now, gap=True)
    assert scene.wait(60, beating=("other@h",)) == [VANISHED]


def test_one_who_vanished_before_the_broker_did_is_not_told_again(scene: Scene) -> None:
    scene.wait(30, beating=("w@h",))
    assert scene.wait(60) == [VANISHED]
    scene.cluster.broker_lost(scene.watched.now)
    assert scene.wait(600) == [DOWN]
    scene.cluster.broker_found(scene.watched.now, gap=True)
    assert scene.wait(600) == []


# -- queues


def test_a_clock_that_is_set_back_puts_nothing_off_for_as_long(scene: Scene) -> None:
    scene.ready = {"mail": 7}
    scene.wait(STUCK_AFTER - 10)
    scene.watched.seconds -= 3600
    assert scene.wait(STUCK_AFTER + 20) == [STUCK]
    scene.cluster.broker_lost(scene.watched.now)
    scene.wait(BROKER_DOWN_SECONDS - 10)
    scene.watched.seconds -= 3600
    assert scene.wait(BROKER_DOWN_SECONDS + 10) == [DOWN]


def test_a_queue_in_which_nothing_happens_is_told_once(scene: Scene) -> None:
    scene.ready = {"mail": 7, "celery": 0}
    assert scene.wait(STUCK_AFTER) == []
    assert scene.wait(20) == [STUCK]
    assert scene.wait(3 * 3600) == []


def test_what_is_said_of_a_stuck_queue() -> None:
    scene = Scene(stuck_after=60.0)
    scene.ready = {"mail": 7}
    scene.wait(60)
    scene.watched.wait(5)
    (episode,) = scene.look()
    assert episode.what == "7 tasks wait in mail, and none has started or ended for 60 seconds"


@pytest.mark.parametrize("sign", ["started", "succeeded", "failed", "retried"])
def test_a_start_or_an_end_shows_that_a_queue_moves(scene: Scene, sign: str) -> None:
    scene.ready = {"mail": 7}
    scene.cluster.take_workers(
        [WorkerReading("w@h", scene.watched.now, queues=(ConsumedQueue("mail", "mail", "mail"),))]
    )
    told: Told = []
    for number in range(6):
        at, task_id = scene.watched.seconds, f"id-{number}"
        scene.watched.hear(received(at, uuid=task_id), started(at, uuid=task_id))
        told += scene.wait(STUCK_AFTER - 60, beating=("w@h",))
        end = {"succeeded": succeeded, "failed": failed, "retried": retried}.get(sign)
        if end is not None:
            scene.watched.hear(end(scene.watched.seconds, uuid=task_id))
            told += scene.wait(STUCK_AFTER - 60, beating=("w@h",))
    assert told == []


def test_a_task_that_runs_for_less_than_an_hour_is_why_others_wait(scene: Scene) -> None:
    scene.ready = {"mail": 7}
    _one_runs(scene, "mail")
    assert scene.wait(RUNNING_SECONDS - 60, beating=("w@h",)) == []
    assert scene.wait(STUCK_AFTER + 120, beating=("w@h",)) == [STUCK]


def test_a_task_of_another_queue_is_not(scene: Scene) -> None:
    scene.ready = {"mail": 7}
    _one_runs(scene, "celery")
    assert scene.wait(STUCK_AFTER + 20, beating=("w@h",)) == [STUCK]


def _one_runs(scene: Scene, queue: str) -> None:
    consumed = (ConsumedQueue(queue, queue, queue),)
    scene.cluster.take_workers([WorkerReading("w@h", scene.watched.now, queues=consumed)])
    at = scene.watched.seconds
    scene.watched.hear(online(at), heartbeat(at), received(at, uuid="long"), started(at, uuid="long"))


def test_a_queue_that_was_empty_in_between_begins_anew(scene: Scene) -> None:
    for _ in range(5):
        scene.ready = {"mail": 7}
        assert scene.wait(STUCK_AFTER - 60) == []
        scene.ready = {"mail": 0}
        assert scene.wait(10) == []


def test_a_queue_that_was_freed_and_is_stuck_again_is_told_again(scene: Scene) -> None:
    told: Told = []
    for _ in range(3):
        scene.ready = {"mail": 7}
        told += scene.wait(STUCK_AFTER + 60)
        scene.ready = {"mail": 0}
        told += scene.wait(60)
    assert told == [STUCK] * 3


def test_each_queue_is_told(scene: Scene) -> None:
    scene.ready = {"mail": 7, "celery": 1}
    assert sorted(scene.wait(STUCK_AFTER + 20)) == [("queue_stuck", "celery"), STUCK]


def test_a_queue_that_cannot_be_read_is_not_stuck(scene: Scene) -> None:
    """What was in it last is no longer true."""
    scene.ready = {"mail": 7}
    scene.wait(60)
    scene.ready = None
    assert scene.wait(3 * STUCK_AFTER) == []


def test_a_queue_is_not_stuck_while_its_workers_cannot_be_heard(scene: Scene) -> None:
    """On RabbitMQ queues may be read while the event connection is broken."""
    scene.ready = {"mail": 7}
    scene.wait(60)
    scene.cluster.broker_lost(scene.watched.now)
    assert scene.wait(3 * STUCK_AFTER) == [DOWN]
    scene.cluster.broker_found(scene.watched.now, gap=True)
    assert scene.wait(STUCK_AFTER - 60) == []
    assert scene.wait(120) == [STUCK]


def test_a_queue_is_not_stuck_whose_workers_send_no_task_events(scene: Scene) -> None:
    """Nobody knows what they start."""
    scene.ready = {"mail": 7, "celery": 3}
    consumed = (ConsumedQueue("mail", "mail", "mail"),)
    told: Told = []
    for processed in range(0, 1200, 5):
        scene.cluster.take_workers([WorkerReading("w@h", scene.watched.now, queues=consumed)])
        scene.watched.hear(heartbeat(scene.watched.seconds, processed=processed))
        told += scene.wait(5)
    assert told == [("queue_stuck", "celery")]


# -- Sentry events

EPISODES = {
    "broker_down": Episode("broker_down", "west", EPOCH, "the broker west has not answered for 60 seconds"),
    "queue_stuck": Episode("queue_stuck", "mail", EPOCH, "7 tasks wait in mail"),
    "worker_vanished": Episode("worker_vanished", "w@h", EPOCH, "w@h fell silent without saying goodbye"),
}


@pytest.mark.parametrize(
    ("kind", "name", "fingerprint", "tags", "server"),
    [
        ("broker_down", "BrokerDown", ["celery-lookout", "broker_down", "west"], {"kind": "broker_down"}, None),
        (
            "queue_stuck",
            "QueueStuck",
            ["celery-lookout", "queue_stuck", "mail"],
            {"kind": "queue_stuck", "queue": "mail"},
            None,
        ),
        (
            "worker_vanished",
            "WorkerVanished",
            ["celery-lookout", "worker_vanished", "w"],
            {"kind": "worker_vanished", "worker": "w@h"},
            "h",
        ),
    ],
)
def test_an_episode_says_what_it_is(
    kind: str, name: str, fingerprint: list[str], tags: dict[str, str], server: str | None
) -> None:
    event = episode_event(EPISODES[kind])
    (value,) = event["exception"]["values"]
    assert (value["type"], value["value"]) == (name, EPISODES[kind].what)
    assert (event["fingerprint"], event["tags"], event.get("server_name")) == (fingerprint, tags, server)
    assert (event["level"], event["platform"]) == ("error", "python")
    assert json.loads(json.dumps(event)) == event


def test_two_sidecars_tell_the_same_episode() -> None:
    """They see it begin within seconds of each other; what goes on is one event."""
    ids = {episode_event(EPISODES["queue_stuck"]._replace(began_at=EPOCH + more))["event_id"] for more in (0, 2, 10)}
    assert len(ids) == 1
    others = [episode._replace(began_at=EPOCH + 3600) for episode in EPISODES.values()]
    assert len({episode_event(episode)["event_id"] for episode in (*EPISODES.values(), *others)}) == 6


@pytest.mark.parametrize("pods", [("web@shop-7c9-abcde", "web@shop-7c9-fghij")])
def test_workers_of_one_name_are_one_issue(pods: tuple[str, str]) -> None:
    events: list[dict[str, Any]] = [
        episode_event(Episode("worker_vanished", pod, EPOCH, f"{pod} fell silent")) for pod in pods
    ]
    assert events[0]["fingerprint"] == events[1]["fingerprint"]
    assert events[0]["event_id"] != events[1]["event_id"]
