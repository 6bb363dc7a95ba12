"""No key and no password is committed: what is found is one of those that the tests and the pages make up."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from detect_secrets.core.scan import scan_line
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).parents[1]

#: Those that know a secret by its form. Guesses by entropy find hashes of packages and ids of traces.
PLUGINS = (
    "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "GitHubTokenDetector", "GitLabTokenDetector",
    "JwtTokenDetector", "NpmDetector", "OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector",
    "SlackDetector", "StripeDetector", "TelegramBotTokenDetector", "TwilioKeyDetector",
)  # fmt: skip

#: What stands for a secret in tests and pages.
MADE_UP = frozenset(
    {"guest", "hun", "hunter2", "hush", "password", "secret", "x%40y", "{name}-secret", "AKIA" + "TESTTESTTESTTEST"}
)

#: A Sentry DSN with a key as Sentry makes them.
DSN = re.compile(r"https?://[0-9a-f]{32}@")

#: A password without a user, as Redis has it.
PASSWORD = re.compile(r"://:([A-Za-z0-9]{8,})@")

#: Looking closely takes its time: lines in which there can be none of all these are left out.
SUSPECT = re.compile(r"://[^/\s]*@|PRIVATE KEY|[A-Za-z0-9+/_=.-]{20}")

#: Generated, pictures, or full of hashes that are meant to be read.
LEFT_OUT = (
    "requirements/",
    "docs/images/",
    "dashboards/",
    "tests/golden/",
    "tests/recordings/",
    "tests/deploy/schemas/",
)


def found_in(path: Path) -> set[str]:
    """Return the kind and the value of each secret in a file."""
    text = path.read_text("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if SUSPECT.search(line)]
    with transient_settings({"plugins_used": [{"name": name} for name in PLUGINS]}):
        found = {f"{secret.type}: {secret.secret_value}" for line in lines for secret in scan_line(line)}
    found |= {f"password in a URL: {password}" for password in PASSWORD.findall(text)}
    return found | {f"DSN: {dsn}" for dsn in DSN.findall(text)}


def test_nothing_committed_is_a_secret() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    files = [name for name in listed.stdout.split("\0") if name and not name.startswith(LEFT_OUT)]
    assert len(files) > 100
    found = {name: found_in(ROOT / name) for name in files if (ROOT / name).is_file()}
    real = {
        name: [secret for secret in secrets if secret.partition(": ")[2] not in MADE_UP]
        for name, secrets in found.items()
    }
    assert {name: secrets for name, secrets in real.items() if secrets} == {}


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param("key = '" + "AKIA" + "QYLPMN5HFIQR7XYA'", id="AWS key"),
        pytest.param("-----BEGIN RSA " + "PRIVATE KEY-----", id="private key"),
        pytest.param("https://" + "0123456789abcdef" * 2 + "@o1.ingest.sentry.io/2", id="DSN"),
        pytest.param("redis://:" + "Xk29sl3kd0@redis.internal:6379/0", id="password in a URL"),
        pytest.param("token: " + "ghp_" + "a1B2" * 9, id="GitHub token"),
    ],
)
def test_the_scan_finds_what_is_planted(planted: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.py"
    file.write_text(f"{planted}\n")
    assert found_in(file)
