"""The Sentry-compatible server, against the client that everybody uses."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import sentry_sdk

from tests.servers.bugsink import BugsinkServer, Project
from tests.servers.process import wait_until
from tests.servers.proxy import FaultProxy

pytestmark = pytest.mark.sentry


def failure(error: str, **more: Any) -> Any:
    """Return a Sentry event about an exception, raised in one place whatever its kind is."""
    frame = {"filename": "mail/tasks.py", "function": "send", "lineno": 3, "context_line": "raise it", "in_app": True}
    exception = {"type": error, "value": "boom", "stacktrace": {"frames": [frame]}}
    return {"exception": {"values": [exception]}, "tags": {"queue": "mail"}, **more}


def test_sentry_events_are_read_back(
    bugsink_server: BugsinkServer, sentry_project: Project, make_sentry: Callable[..., sentry_sdk.Client]
) -> None:
    client = make_sentry(sentry_project.dsn)
    client.capture_event(failure("ValueError", transaction="mail.send", level="error"))
    client.capture_event(failure("ValueError", transaction="mail.send", level="warning"))
    first, second = bugsink_server.wait_for_events(sentry_project, 2)
    [issue] = bugsink_server.issues(sentry_project)
    assert (issue["calculated_type"], issue["calculated_value"]) == ("ValueError", "boom")
    assert (issue["transaction"], issue["stored_event_count"]) == ("mail.send", 2)
    assert (first["data"]["level"], second["data"]["level"]) == ("error", "warning")
    assert first["data"]["tags"] == {"queue": "mail"}
    assert "raise it" in first["stacktrace_md"]


def test_an_issue_is_one_place_and_kind(
    bugsink_server: BugsinkServer, sentry_project: Project, make_sentry: Callable[..., sentry_sdk.Client]
) -> None:
    client = make_sentry(sentry_project.dsn)
    for error in ("ValueError", "KeyError", "ValueError"):
        client.capture_event(failure(error))
    bugsink_server.wait_for_events(sentry_project, 3)
    issues = bugsink_server.issues(sentry_project)
    assert [(issue["calculated_type"], len(bugsink_server.events(issue))) for issue in issues] == [
        ("ValueError", 2),
        ("KeyError", 1),
    ]


def test_what_has_the_same_id_is_kept_once(
    bugsink_server: BugsinkServer, sentry_project: Project, make_sentry: Callable[..., sentry_sdk.Client]
) -> None:
    client = make_sentry(sentry_project.dsn)
    for event_id in ("1" * 32, "1" * 32, "2" * 32):
        client.capture_event(failure("ValueError", event_id=event_id))
    events = bugsink_server.wait_for_events(sentry_project, 2)
    assert [event["data"]["event_id"] for event in events] == ["1" * 32, "2" * 32]


def test_projects_are_private(
    bugsink_server: BugsinkServer, sentry_project: Project, make_sentry: Callable[..., sentry_sdk.Client]
) -> None:
    other = bugsink_server.add_project()
    make_sentry(other.dsn).capture_event(failure("ValueError"))
    bugsink_server.wait_for_issues(other, 1)
    assert bugsink_server.issues(sentry_project) == []


def test_an_issue_has_a_page_that_needs_no_login(
    bugsink_server: BugsinkServer, sentry_project: Project, make_sentry: Callable[..., sentry_sdk.Client]
) -> None:
    make_sentry(sentry_project.dsn).capture_event(failure("OddError"))
    [issue] = bugsink_server.wait_for_issues(sentry_project, 1)
    for page in ("", "details"):
        with urllib.request.urlopen(bugsink_server.issue_url(issue, page), timeout=10) as answer:
            assert b"OddError" in answer.read()


def test_a_proxy_makes_it_unreachable(
    bugsink_server: BugsinkServer, sentry_project: Project, make_sentry: Callable[..., sentry_sdk.Client]
) -> None:
    with FaultProxy(bugsink_server.port) as proxy:
        proxy.mode = "refuse"
        client = make_sentry(sentry_project.dsn_through(proxy.port))
        client.capture_event(failure("LostError"))
        wait_until(lambda: proxy.connections)
        client.flush(5)
        proxy.mode = "pass"
        client.capture_event(failure("FoundError"))
        issues = bugsink_server.wait_for_issues(sentry_project, 1)
    assert [issue["calculated_type"] for issue in issues] == ["FoundError"]


def test_it_listens_on_loopback_only_and_keeps_issues_over_a_kill(
    own_bugsink: BugsinkServer, make_sentry: Callable[..., sentry_sdk.Client]
) -> None:
    project = own_bugsink.add_project()
    make_sentry(project.dsn).capture_event(failure("ValueError"))
    own_bugsink.wait_for_issues(project, 1)
    master = psutil.Process(own_bugsink.pid)
    processes = [master, *master.children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert (len(processes), listening) == (2, {"127.0.0.1"})
    own_bugsink.kill()
    assert psutil.wait_procs(processes, 5)[1] == []
    with pytest.raises(urllib.error.URLError):
        own_bugsink.issues(project)
    own_bugsink.start()
    assert [issue["calculated_type"] for issue in own_bugsink.issues(project)] == ["ValueError"]
