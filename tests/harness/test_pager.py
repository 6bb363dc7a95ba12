"""Alertmanager and whom it calls: what the tests of alerts rely on."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.servers.alertmanager import Alertmanager, example, routes
from tests.servers.pager import Pager, Status


def call(pager: Pager, name: str, status: Status = "firing", **labels: str) -> float:
    """Do as Alertmanager does, and return when the pager heard of it."""
    alert = {"status": status, "labels": {"alertname": name, **labels}, "annotations": {}}
    body = json.dumps({"receiver": "celery-pager", "status": status, "alerts": [alert]}).encode()
    with urllib.request.urlopen(urllib.request.Request(pager.url, data=body), timeout=5) as response:
        assert response.status == 200
    return pager.pages[-1].at


def test_a_page_is_waited_for(pager: Pager) -> None:
    caller = threading.Timer(0.2, call, (pager, "Late"), {"queue": "mail"})
    caller.start()
    page = pager.wait_for("Late", queue="mail")
    caller.join()
    assert (page.receiver, page.labels["queue"]) == ("celery-pager", "mail")


def test_a_page_that_does_not_come_fails_and_says_what_came(pager: Pager) -> None:
    call(pager, "Other", queue="mail")
    with pytest.raises(pytest.fail.Exception, match=r'Other firing \{queue="mail"\}'):
        pager.wait_for("Late", seconds=0.1)


def test_the_last_word_counts(pager: Pager) -> None:
    call(pager, "A", queue="mail")
    call(pager, "A", queue="images")
    call(pager, "A", "resolved", queue="mail")
    assert [page.labels["queue"] for page in pager.open()] == ["images"]
    assert pager.wait_for("A", "resolved").labels["queue"] == "mail"
    assert pager.open("somebody-else") == []


def test_silence_is_what_lies_between_open_alerts(pager: Pager) -> None:
    start = time.monotonic()
    first = call(pager, "A")
    call(pager, "B")
    call(pager, "A", "resolved")
    ended = call(pager, "B", "resolved")
    again = call(pager, "A")
    end = time.monotonic() + 5
    assert pager.silence(start, end) == pytest.approx((first - start) + (again - ended))
    assert pager.silence(first, end) == pytest.approx(again - ended)
    assert pager.silence(first, ended) == 0
    assert pager.silence(again, end) == 0
    assert pager.silence(start, end, "somebody-else") == pytest.approx(end - start)


@pytest.mark.prometheus
def test_alertmanager_calls_and_says_when_it_is_over(
    pager: Pager, start_alertmanager: Callable[[Mapping[str, Any]], Alertmanager]
) -> None:
    config = example(pager.url)
    assert {route["group_wait"] for route in routes(config["route"]) if "group_wait" in route} == {"1s"}
    # An alert that nobody repeats is over after this time.
    config["global"] = {"resolve_timeout": "2s"}
    start_alertmanager(config).post([{"alertname": "A", "component": "celery", "severity": "critical"}])
    fired = pager.wait_for("A")
    resolved = pager.wait_for("A", "resolved")
    assert resolved.receiver == "celery-pager"
    assert fired.at < resolved.at
