"""No secret that the sidecar is given shows anywhere: not in its log, its pages, its process, or the doctor's words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.process import wait_until
from tests.servers.redis import RedisServer
from tests.servers.sidecar import Sidecar

#: Each is given in another option, and is like nothing else.
BROKER, SENTINEL, KEY, DSN, HEADER, MANAGEMENT, FILE = (
    f"S3cret{name}{'xyzzy'}" for name in ("Broker", "Sentinel", "Key", "Dsn", "Header", "Management", "File")
)
SECRETS = (BROKER, SENTINEL, KEY, DSN, HEADER, MANAGEMENT, FILE)


class Living(Sidecar):
    """A sidecar of which some brokers are never reached."""

    def ready(self) -> bool:
        return self.get("/-/healthy").status == 200


def secrets_in(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@pytest.fixture
def given(own_redis_with_password: RedisServer, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a sidecar that is given every secret there is, and knows two brokers."""
    brokers = tmp_path / "brokers"
    brokers.write_text(f"second=redis://:{FILE}@127.0.0.1:{own_redis_with_password.port}/1\n")
    config = tmp_path / "lookout.yml"
    config.write_text(
        f"rabbitmq.management-url: http://user:{MANAGEMENT}@127.0.0.1:1\n"
        f"otlp: {{endpoint: 'http://127.0.0.1:1', header: ['x-key={HEADER}']}}\n"
        f"broker.file: {brokers}\n"
    )
    return {
        "LOOKOUT_CONFIG": str(config),
        "LOOKOUT_BROKER": f"first=redis://:{BROKER}@127.0.0.1:{own_redis_with_password.port}/0",
        "LOOKOUT_BROKER_TRANSPORT_OPTIONS": json.dumps({"sentinel_kwargs": {"password": SENTINEL}}),
        "LOOKOUT_SENTRY_MODE": "all",
        "SENTRY_DSN": f"http://{DSN}@127.0.0.1:1/1",
        "LOOKOUT_LOG_LEVEL": "debug",
        "PYTHONFAULTHANDLER": "1",
    }


@pytest.fixture
def own_redis_with_password(tmp_path: Path) -> RedisServer:
    return RedisServer(tmp_path / "redis", password=BROKER)


def run_doctor(env: dict[str, str], *options: str) -> str:
    argv = [sys.executable, "-m", "celery_lookout", "doctor", "--seconds", "2", *options]
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.redis
@pytest.mark.parametrize("tls", [False, True], ids=["works", "fails"])
def test_no_secret_is_shown(
    tls: bool,
    given: dict[str, str],
    own_redis_with_password: RedisServer,
    tmp_path: Path,
) -> None:
    """The first broker answers, unless TLS is tried with it; the second refuses its password; nothing else is there."""
    if tls:
        options = {"ssl_cert_reqs": "none", "ssl_keyfile": "/none", "ssl_certfile": "/none", "ssl_password": KEY}
        given["LOOKOUT_BROKER_USE_SSL"] = json.dumps(options)
    with own_redis_with_password, Living("", tmp_path / "sidecar", env=given) as sidecar:
        wait_until(lambda: sidecar.value("celery_exporter_broker_up", broker="first") == float(not tls), 30)
        # Each broker that fails has said so by now, and each collector has been tried.
        wait_until(lambda: sidecar.log.read_text().count("broker=second") >= 2, 30)
        pages = [sidecar.get(path).body.decode() for path in ("/", "/api/v1/status", "/metrics", "/-/ready", "/x")]
        shown = Path(f"/proc/{sidecar.pid}/cmdline").read_text()
        said = run_doctor(given)
        assert sidecar.process is not None
        os.kill(sidecar.pid, signal.SIGABRT)
        sidecar.process.wait(10)
    log = sidecar.log.read_text()
    assert "Fatal Python error: Aborted" in log
    assert "second" in said
    found = {name: secrets_in(text) for name, text in {"pages": "".join(pages), "process": shown, "log": log}.items()}
    assert found | {"doctor": secrets_in(said)} == {"pages": [], "process": [], "log": [], "doctor": []}


@pytest.mark.redis
def test_a_secret_on_the_command_line_is_told_once_and_not_said(
    own_redis_with_password: RedisServer, start_sidecar: Callable[..., Sidecar]
) -> None:
    with own_redis_with_password as server:
        url = server.url()
        sidecar = start_sidecar(url, "--rabbitmq.management-url", f"http://user:{MANAGEMENT}@h")
        said = run_doctor({}, "--broker", url)
    log = sidecar.log.read_text()
    warning = "secrets on the command line, for everybody on this machine to read: --broker"
    assert log.count(warning + ", --rabbitmq.management-url") == 1
    assert warning + "\n" in said
    assert secrets_in(log + said) == []
