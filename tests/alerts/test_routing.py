"""Who is told of what, and which alert speaks for others: the example for Alertmanager on a real one."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_lookout.assets.rules import rule_file
from tests.servers.alertmanager import EXAMPLE, Alertmanager, example, routes
from tests.servers.pager import Pager
from tests.servers.process import wait_until

pytestmark = pytest.mark.prometheus

StartAlertmanager = Callable[[Mapping[str, Any]], Alertmanager]

#: The alerts that speak for others, from the one that knows least.
LADDER = ("CeleryExporterDown", "CeleryExporterBrokerDown", "CeleryExporterBlind")


def alert(name: str, severity: str = "critical", **labels: str) -> dict[str, str]:
    """Return the labels of an alert of ours."""
    return {"alertname": name, "component": "celery", "severity": severity, "job": "celery", **labels}


def dead_broker() -> list[dict[str, str]]:
    """Return what fifty alerts say while a broker is dead, the one that matters last."""
    queues = [f"queue{number}" for number in range(9)]
    alerts = [
        alert(name, queue=queue) for name in ("CeleryQueueNotDraining", "CeleryQueueNoConsumers") for queue in queues
    ]
    alerts += [alert("CeleryQueueLatencySLOBreached", queue=queue) for queue in queues]
    alerts += [alert("CeleryQueueBacklogGrowing", "warning", queue=queue) for queue in queues]
    alerts += [alert("CeleryTaskRetryStorm", "warning", queue="queue0", task=f"task{number}") for number in range(6)]
    alerts += [alert("CeleryWorkerHeartbeatLost", "warning", worker=f"worker{number}@host") for number in range(5)]
    alerts += [alert("CeleryWorkersMissing"), alert("CeleryExporterBlind"), alert("CeleryExporterBrokerDown")]
    assert len(alerts) == 50
    return alerts


def names_in_example() -> set[str]:
    """Return every name of an alert that the example's text has."""
    return set(re.findall(r"Celery[A-Z]\w+", EXAMPLE.read_text()))


def post(alertmanager: Alertmanager, alerts: Sequence[Mapping[str, str]]) -> None:
    """Send alerts, and wait until it is decided which of them are muted: Alertmanager does so in order, and later."""
    alertmanager.post(alerts)
    alertmanager.post([alert(name, job="sentinel") for name in ("CeleryQueueNotDraining", "CeleryExporterBrokerDown")])
    wait_until(lambda: any(one["status"]["inhibitedBy"] for one in alertmanager.alerts('job="sentinel"')))


def judged(alertmanager: Alertmanager, *matchers: str) -> list[tuple[dict[str, str], bool]]:
    """Return the labels of all alerts that were sent, and whether they are muted."""
    found = alertmanager.alerts('job!="sentinel"', *matchers)
    return [(one["labels"], bool(one["status"]["inhibitedBy"])) for one in found]


def active(alertmanager: Alertmanager, *matchers: str) -> set[str]:
    """Return the names of the alerts that are not muted."""
    return {labels["alertname"] for labels, is_muted in judged(alertmanager, *matchers) if not is_muted}


def muted(alertmanager: Alertmanager, label: str = "queue") -> set[tuple[str, str]]:
    """Return the names of those that are, and what they have for *label*."""
    return {(labels["alertname"], labels.get(label, "")) for labels, is_muted in judged(alertmanager) if is_muted}


def test_the_alerts_it_names_exist() -> None:
    """But for the watchdog, which some set up for themselves."""
    rules = [rule for group in rule_file()["groups"] for rule in group["rules"]]
    assert names_in_example() - {rule.get("alert") for rule in rules} == {"CeleryWatchdog"}


def test_amtool_accepts_it(amtool: Path) -> None:
    result = subprocess.run([str(amtool), "check-config", str(EXAMPLE)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["component=celery", "severity=critical"], "celery-pager"),
        (["component=celery", "severity=warning"], "celery-tickets"),
        (["component=celery", "severity=info"], "nowhere"),
        (["component=celery", "severity=catastrophe"], "celery-tickets"),
        (["component=celery"], "celery-tickets"),
        (["severity=critical"], "default"),
        (["component=database", "severity=critical"], "default"),
    ],
)
def test_each_severity_finds_its_receiver(labels: list[str], receiver: str, amtool: Path) -> None:
    command = [
        str(amtool),
        "config",
        "routes",
        "test",
        f"--config.file={EXAMPLE}",
        f"--verify.receivers={receiver}",
        *labels,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_receiver_for_pages_hears_of_the_end(amtool: Path) -> None:
    config = yaml.safe_load(EXAMPLE.read_text())
    (pager,) = [receiver for receiver in config["receivers"] if receiver["name"] == "celery-pager"]
    assert all(one["send_resolved"] for one in pager["webhook_configs"])
    assert {route["receiver"] for route in routes(config["route"])} == {one["name"] for one in config["receivers"]}


def test_a_dead_broker_is_one_page(pager: Pager, start_alertmanager: StartAlertmanager) -> None:
    alertmanager = start_alertmanager(example(pager.url))
    alertmanager.post(dead_broker())
    pager.wait_for("CeleryExporterBrokerDown")
    # What waits as long as the others did, and begins later, comes after them.
    alertmanager.post([alert("CeleryExporterDown", job="another")])
    pager.wait_for("CeleryExporterDown", job="another")
    assert [page.name for page in pager.pages] == ["CeleryExporterBrokerDown", "CeleryExporterDown"]
    assert len(pager.notifications) == 2
    assert len(alertmanager.alerts('job="celery"')) == 50
    assert active(alertmanager, 'job="celery"') == {"CeleryExporterBrokerDown"}


def test_without_it_they_are_many(pager: Pager, start_alertmanager: StartAlertmanager) -> None:
    """The test above would notice if nothing were muted."""
    config = example(pager.url)
    config["inhibit_rules"] = []
    start_alertmanager(config).post(dead_broker())
    for number in range(9):
        pager.wait_for("CeleryQueueNotDraining", queue=f"queue{number}")


@pytest.fixture
def alertmanager(start_alertmanager: StartAlertmanager, pager: Pager) -> Alertmanager:
    """An Alertmanager whose verdicts are looked at and whose notifications are not."""
    return start_alertmanager(example(pager.url))


@pytest.mark.parametrize("rung", range(3))
def test_the_alert_that_knows_least_speaks_for_all(rung: int, alertmanager: Alertmanager) -> None:
    names = [*LADDER[rung:], "CeleryQueueNoConsumers", "CeleryWorkersMissing", "CeleryTaskFailureSpike"]
    post(alertmanager, [alert(name) for name in names])
    assert active(alertmanager) == {LADDER[rung]}


def test_no_two_alerts_mute_each_other(alertmanager: Alertmanager) -> None:
    """Each pair has a job of its own, in both orders of severity; one of the two is always heard."""
    pairs = [
        (first, second, severities)
        for first, second in itertools.combinations(sorted(names_in_example()), 2)
        for severities in itertools.product(("critical", "warning"), repeat=2)
    ]
    post(
        alertmanager,
        [
            alert(name, severity, job=f"job{number}")
            for number, (first, second, severities) in enumerate(pairs)
            for name, severity in zip((first, second), severities, strict=True)
        ],
    )
    heard: dict[str, int] = {}
    for labels, is_muted in judged(alertmanager):
        heard[labels["job"]] = heard.get(labels["job"], 0) + (not is_muted)
    assert len(heard) == len(pairs)
    assert [pairs[int(job.removeprefix("job"))] for job, number in heard.items() if not number] == []


def test_nothing_mutes_the_exporters_end(alertmanager: Alertmanager) -> None:
    """Nor the watchdog, whose silence is an alarm; whatever fires, with whatever labels, at the same time."""
    everything = sorted(names_in_example())
    post(alertmanager, [alert(name, queue="mail", broker="a") for name in everything])
    post(alertmanager, [alert(name) for name in everything])
    assert len(judged(alertmanager)) == 2 * len(everything)
    assert not any(is_muted for _, is_muted in judged(alertmanager, 'alertname=~"CeleryExporterDown|CeleryWatchdog"'))


def test_an_exporter_without_a_job_mutes_nothing(alertmanager: Alertmanager) -> None:
    """``absent(up{job=~"..."})`` has no job; another Prometheus may see one."""
    jobless = {"alertname": "CeleryExporterDown", "component": "celery", "severity": "critical"}
    other = {"alertname": "CeleryTaskFailureSpike", "component": "celery", "severity": "critical"}
    post(alertmanager, [jobless, other, alert("CeleryQueueNoConsumers", queue="mail")])
    assert active(alertmanager) == {"CeleryExporterDown", "CeleryTaskFailureSpike", "CeleryQueueNoConsumers"}


def test_jobs_and_brokers_do_not_speak_for_each_other(alertmanager: Alertmanager) -> None:
    post(
        alertmanager,
        [
            alert("CeleryExporterBrokerDown", broker="shop"),
            alert("CeleryQueueNotDraining", broker="shop", queue="a"),
            alert("CeleryQueueNoConsumers", broker="mail", queue="a"),
            alert("CeleryTaskFailureSpike", job="other", broker="shop", queue="a", task="t"),
            {**alert("DiskFull"), "component": "host"},
        ],
    )
    assert active(alertmanager) == {
        "CeleryExporterBrokerDown", "CeleryQueueNoConsumers", "CeleryTaskFailureSpike", "DiskFull"
    }  # fmt: skip


def test_a_queue_without_consumers_speaks_for_its_backlog(alertmanager: Alertmanager) -> None:
    follow = ("CeleryQueueBacklogGrowing", "CeleryQueueNotDraining", "CeleryQueueDrainTimeTooLong")
    post(alertmanager, [alert("CeleryQueueNoConsumers", queue="mail")])
    post(alertmanager, [alert(name, "warning", queue=queue) for name in follow for queue in ("mail", "images")])
    assert muted(alertmanager) == {(name, "mail") for name in follow}


def test_missing_workers_speak_for_lost_heartbeats(alertmanager: Alertmanager) -> None:
    post(alertmanager, [alert("CeleryWorkersMissing"), alert("CeleryWorkersMissing", broker="shop")])
    lost: tuple[dict[str, str], ...] = ({}, {"broker": "shop"}, {"broker": "mail"})
    post(alertmanager, [alert("CeleryWorkerHeartbeatLost", "warning", worker="w@h", **labels) for labels in lost])
    assert muted(alertmanager, "broker") == {("CeleryWorkerHeartbeatLost", ""), ("CeleryWorkerHeartbeatLost", "shop")}


def test_a_page_speaks_for_the_ticket_of_the_same_trouble(alertmanager: Alertmanager) -> None:
    name = "CeleryTaskTerminations"
    post(
        alertmanager,
        [
            alert(name, queue="mail", task="bulk", reason="worker_lost"),
            alert(name, "warning", queue="mail", task="bulk", reason="worker_lost"),
            alert(name, "warning", queue="mail", task="other", reason="worker_lost"),
            alert("CeleryTaskRetryStorm", "warning", queue="mail", task="bulk"),
        ],
    )
    assert muted(alertmanager, "task") == {(name, "bulk")}
    assert active(alertmanager) == {name, "CeleryTaskRetryStorm"}
