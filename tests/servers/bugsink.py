"""
A real Sentry-compatible server: bugsink, in an environment of its own.

A database with a team, an owner and a token is made once; every server starts with a copy of it. Sentry events are
digested before the answer to them is sent, so what was answered can be read back.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.environments import ROOT, made_from, make_once, python_with
from tests.servers.process import Server, free_port, wait_until

REQUIREMENTS = ROOT / "requirements" / "bugsink.txt"

#: Of the API. It opens nothing but servers of the tests, on loopback.
TOKEN = "0123456789abcdef0123456789abcdef01234567"

TEAM = "00000000-0000-4000-8000-000000000001"

# The module that bugsink reads its settings from: local use by a single user is what its licence allows freely, and
# tests must not call its makers.
_CONFIG = f"""
import os
from bugsink.settings.default import *

SECRET_KEY = "{TOKEN}"
TIME_ZONE = "UTC"
SNAPPEA = {{"TASK_ALWAYS_EAGER": True}}
EMAIL_BACKEND = "bugsink.email_backends.QuietConsoleEmailBackend"
BUGSINK = {{
    "BASE_URL": os.environ.get("BASE_URL", "http://127.0.0.1"),
    "SINGLE_USER": True,
    "SINGLE_TEAM": True,
    "USER_REGISTRATION": "CB_NOBODY",
    "PHONEHOME": False,
    "INGEST_STORE_BASE_DIR": os.path.abspath("ingestion"),
    # All tests of a run share one server.
    "MAX_EVENTS_PER_5_MINUTES": 1_000_000,
    "MAX_EVENTS_PER_HOUR": 1_000_000,
}}


class EveryVisitorIsTheOwner:
    # A browser that only takes a picture cannot log in.
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        from django.contrib.auth import get_user_model
        request.user = get_user_model().objects.get()
        return self.get_response(request)


_after = MIDDLEWARE.index("django.contrib.auth.middleware.AuthenticationMiddleware") + 1
MIDDLEWARE = [*MIDDLEWARE[:_after], "bugsink_conf.EveryVisitorIsTheOwner", *MIDDLEWARE[_after:]]
"""

_POPULATE = f"""
from bsmain.models import AuthToken
from phonehome.models import Installation
from teams.models import Team
from users.models import User

User.objects.create_superuser("owner")
Team.objects.create(id="{TEAM}", name="Tests")
AuthToken.create_full_access(token="{TOKEN}")
# It is a banner on every page.
Installation.objects.update(silence_email_system_warning=True)
"""

# The first commands of a server's life, in this order.
_PREPARE = (
    ["migrate", "--verbosity=0"],
    ["migrate", "snappea", "--database=snappea", "--verbosity=0"],
    ["shell", "-c", _POPULATE],
)


@dataclass(frozen=True)
class Project:
    """Where Sentry events go; no other test sees them."""

    id: int
    dsn: str

    def dsn_through(self, port: int) -> str:
        """Return the DSN with another port, such as that of a proxy."""
        parts = urllib.parse.urlsplit(self.dsn)
        return parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()


class BugsinkServer(Server):
    """bugsink on a free loopback port; it keeps what it has over a restart."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._projects = 0
        python = python_with("bugsink", REQUIREMENTS)
        shutil.copytree(_template(python), folder, dirs_exist_ok=True)
        argv: list[str | Path] = [python, "-m", "gunicorn", "bugsink.wsgi", f"--bind=127.0.0.1:{self.port}"]
        # Its socket for commands would lie in the home folder.
        argv += ["--threads=4", "--no-control-socket", "--graceful-timeout=1"]
        super().__init__(argv, folder, env={**_env(folder), "BASE_URL": self.url}, name="bugsink")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)

    def add_project(self, name: str = "") -> Project:
        """Make a project and return it with its DSN."""
        self._projects += 1
        made = self.api("projects/", {"team": TEAM, "name": name or f"project {self._projects}"})
        return Project(int(made["id"]), self.api(f"projects/{made['id']}/")["dsn"])

    def issues(self, project: Project) -> list[dict[str, Any]]:
        """
        Return a project's issues, in the order in which they were first seen.

        Each has ``id``, ``calculated_type``, ``calculated_value``, ``transaction``, ``digested_event_count`` and more.
        """
        return self._list("issues/", project=str(project.id))

    def events(self, issue: dict[str, Any]) -> list[dict[str, Any]]:
        """Return an issue's Sentry events without their data, oldest first; ``id`` is for ``event``."""
        return self._list("events/", issue=issue["id"], order="asc")

    def event(self, event_id: str) -> dict[str, Any]:
        """Return one Sentry event: ``data`` is what was sent, ``stacktrace_md`` what a reader is shown."""
        found: dict[str, Any] = self.api(f"events/{event_id}/")
        return found

    def wait_for_issues(self, project: Project, count: int, *, seconds: float = 20.0) -> list[dict[str, Any]]:
        """Wait for at least *count* issues, and return them."""
        wait_until(lambda: len(self.issues(project)) >= count, seconds, f"fewer than {count} issues")
        return self.issues(project)

    def wait_for_events(self, project: Project, count: int, *, seconds: float = 20.0) -> list[dict[str, Any]]:
        """Wait for at least *count* Sentry events in all issues of a project; return them with their data."""

        def found() -> list[dict[str, Any]]:
            return [event for issue in self.issues(project) for event in self.events(issue)]

        wait_until(lambda: len(found()) >= count, seconds, f"fewer than {count} Sentry events")
        return [self.event(event["id"]) for event in found()]

    def issue_url(self, issue: dict[str, Any], page: str = "") -> str:
        """
        Return the address of an issue's last Sentry event; whoever visits it is the owner.

        *page* may be ``details`` or ``breadcrumbs``; without it the page has the stack trace.
        """
        return f"{self.url}/issues/issue/{issue['id']}/event/last/{page and page + '/'}"

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call bugsink's own API: POST when there is a *body*."""
        request = urllib.request.Request(
            path if path.startswith("http") else f"{self.url}/api/canonical/0/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def _list(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        page = f"{path}?{urllib.parse.urlencode(parameters)}"
        while page:
            answer = self.api(page)
            rows += answer["results"]
            page = answer["next"]
        return rows


def take_picture(url: str, file: Path, *, width: int = 1400, height: int = 1200) -> None:
    """
    Photograph a page of the server, such as ``issue_url``, as PNG; for use by hand. Needs chromium.

    ``take_picture(server.issue_url(issue), Path("issue.png"))``
    """
    # Chromium's processes may still write to their profile when the first has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        chromium += ["--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        chromium += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--virtual-time-budget=5000"]
        chromium += [f"--screenshot={file.absolute()}", url]
        subprocess.run(chromium, check=True, capture_output=True, timeout=60)


def _env(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(folder), "DJANGO_SETTINGS_MODULE": "bugsink_conf"}


def _template(python: Path) -> Path:
    recipe = f"{made_from(REQUIREMENTS)}{_CONFIG}{_PREPARE}"
    return make_once("bugsink-database", recipe, lambda folder: _make_template(python, folder))


def _make_template(python: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "bugsink_conf.py").write_text(_CONFIG)
    for command in _PREPARE:
        manage = [str(python), "-m", "bugsink.scripts.manage", *command]
        done = subprocess.run(
            manage, cwd=folder, env={**os.environ, **_env(folder)}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"bugsink-manage {command[0]} failed:\n{done.stdout}{done.stderr}")
