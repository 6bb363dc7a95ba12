"""A web configuration file as its users have it: the sidecar as a process, and a real Prometheus that scrapes it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml

from tests.conftest import Broker
from tests.servers.celery_versions import ROOT
from tests.servers.certificates import Authority
from tests.servers.process import wait_until
from tests.servers.prometheus import PrometheusServer
from tests.servers.sidecar import Sidecar

RELOAD = "celery_exporter_web_config_reload_success"
TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"
CLIENTS = f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"


def user(name: str, password: str) -> str:
    return f"basic_auth_users:\n  {name}: {bcrypt.hashpw(password.encode(), bcrypt.gensalt(5)).decode()}\n"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path / "authority")
    authority.issue("server", "localhost", "127.0.0.1")
    authority.issue("client", "prometheus.example")
    return authority


def written(authority: Authority, name: str, text: str) -> Path:
    path = authority.folder / name
    path.write_text(text)
    return path


def job(name: str, sidecar: Sidecar, authority: Authority, *, tls: str = "", user: str = "") -> dict[str, Any]:
    """Return a scrape configuration; *tls* is the name of a client certificate, *user* is NAME:PASSWORD."""
    files = {"cert_file": f"{authority.folder}/{tls}.pem", "key_file": f"{authority.folder}/{tls}.key"} if tls else {}
    found: dict[str, Any] = {
        "job_name": name,
        "scheme": "https",
        "tls_config": {"ca_file": str(authority.path)} | files,
        "static_configs": [{"targets": [f"127.0.0.1:{sidecar.port}"]}],
    }
    if user:
        found["basic_auth"] = dict(zip(("username", "password"), user.split(":"), strict=True))
    return found


def scraping(*jobs: dict[str, Any]) -> str:
    """Return the configuration of a Prometheus that scrapes every second."""
    return yaml.safe_dump({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": list(jobs)})


def up(prometheus: PrometheusServer) -> dict[str, float]:
    return {labels["job"]: value for labels, value in prometheus.query("up")}


@pytest.mark.redis
@pytest.mark.prometheus
def test_prometheus_scrapes_over_tls_whoever_is_let_in(
    authority: Authority,
    redis_broker: Broker,
    start_sidecar: Callable[..., Sidecar],
    start_prometheus: Callable[..., PrometheusServer],
) -> None:
    # Given a sidecar that asks for passwords and one that asks for certificates
    file = written(authority, "users.yml", TLS + user("prometheus", "hunter2"))
    asking = start_sidecar(
        redis_broker.url, "--web.config.file", str(file), context=authority.client_context(), user="prometheus:hunter2"
    )
    certain = start_sidecar(
        redis_broker.url,
        env={"LOOKOUT_WEB_CONFIG_FILE": str(written(authority, "clients.yml", CLIENTS))},
        context=authority.client_context("client"),
    )
    # When Prometheus comes with the right ones, with wrong ones, and with none
    prometheus = start_prometheus(
        scraping(
            job("password", asking, authority, user="prometheus:hunter2"),
            job("wrong", asking, authority, user="prometheus:hunter3"),
            job("stranger", asking, authority, user="mallory:hunter2"),
            job("none", asking, authority),
            job("certificate", certain, authority, tls="client"),
            job("no certificate", certain, authority),
        )
    )
    # Then it scrapes with the right ones
    wait_until(
        lambda: up(prometheus) == {
            "password": 1, "wrong": 0, "stranger": 0, "none": 0, "certificate": 1, "no certificate": 0,
        },
        60, "the targets did not become what they should be",
    )  # fmt: skip
    assert prometheus.query(f'{RELOAD}{{job="password"}} == 1')
    # And with a thousand idle connections it goes on
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection(("127.0.0.1", asking.port), timeout=30))
        [(_, at)] = prometheus.query('timestamp(up{job="password"})')
        wait_until(lambda: prometheus.query('timestamp(up{job="password"})')[0][1] > at + 2, 30)
        [(_, least)] = prometheus.query('min_over_time(up{job="password"}[2s])')
        assert least == 1
    # And when passwords change, it is those that count, without a restart
    file.write_text(TLS + user("prometheus", "hunter3"))
    wait_until(lambda: (found := up(prometheus))["wrong"] == 1 and found["password"] == 0, 30, "the old ones count")
    asking.user = "prometheus:hunter3"
    # And a broken file changes nothing, which shows
    file.write_text("basic_auth_users:\n  prometheus: hunter4\n")
    wait_until(lambda: prometheus.query(f'{RELOAD}{{job="wrong"}} == 0'), 30, "nobody said that the file is broken")
    assert up(prometheus)["wrong"] == 1
    # And nowhere is there a secret
    told = b"".join(asking.get(path).body for path in ("/", "/metrics", "/api/v1/status")).decode()
    told += asking.log.read_text() + certain.log.read_text()
    assert "web configuration file is broken" in told
    key = (authority.folder / "server.key").read_text().splitlines()[2]
    assert [secret for secret in ("hunter", "$2b$", key, "PRIVATE KEY") if secret in told] == []


@pytest.mark.redis
def test_a_renewed_certificate_is_shown_without_a_restart(
    authority: Authority, redis_broker: Broker, start_sidecar: Callable[..., Sidecar]
) -> None:
    file = written(authority, "web.yml", TLS)
    sidecar = start_sidecar(redis_broker.url, "--web.config.file", str(file), context=authority.client_context())

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", sidecar.port))

    before = shown()
    authority.issue("server", "localhost", "127.0.0.1")
    wait_until(lambda: shown() != before, 30, "the old certificate is shown")
    sidecar.wait_for(RELOAD, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("basic_auth_users:\n  prometheus: hunter2\n", "basic_auth_users.prometheus must be a bcrypt hash"),
        (TLS.replace("server.key", "client.key"), "tls_server_config.key_file does not belong to the certificate"),
    ],
)
def test_a_broken_file_stops_the_start_with_one_line(authority: Authority, text: str, said: str) -> None:
    file = written(authority, "web.yml", text)
    config = written(authority, "lookout.yml", f"broker: redis://127.0.0.1:1/0\nweb: {{config: {{file: {file}}}}}\n")
    ran = subprocess.run(
        [sys.executable, "-m", "celery_lookout", "serve", "--web.listen-address", "127.0.0.1:0", "--config", config],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT / "exporter")},
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"celery-lookout: error: --web.config.file '{file}', line ")
    assert said in ran.stderr
    assert "hunter2" not in ran.stderr
