"""
A private RabbitMQ node with its management API.

Debian's ``rabbitmq-server`` on PATH changes user and refuses everyone but root, so the script behind it is run. An
Erlang port mapper is started first and bound to loopback: else RabbitMQ starts one that stays behind and
listens everywhere.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.servers.process import Server, free_port, need

HOW = "apt-get install rabbitmq-server, or brew install rabbitmq"
DEBIAN_SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def find_rabbitmq() -> Path:
    """Return the script that starts a node, else skip."""
    script = DEBIAN_SCRIPT if DEBIAN_SCRIPT.exists() else shutil.which("rabbitmq-server")
    need(shutil.which("epmd"), "Erlang's epmd", HOW)
    return need(script, "RabbitMQ", HOW)


class PortMapper(Server):
    """Erlang's epmd, on loopback and on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        epmd = need(shutil.which("epmd"), "Erlang's epmd", HOW)
        super().__init__([epmd, "-address", "127.0.0.1", "-port", str(self.port)], folder, name="epmd")

    def ready(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        return True


class RabbitServer(Server):
    """
    One RabbitMQ node; ``guest``/``guest`` is its administrator.

    The data folder survives kill() and restart(), so durable queues and persistent messages do, too.
    """

    start_seconds = 90.0

    def __init__(self, folder: Path, *, config: str = "") -> None:
        script = find_rabbitmq()
        self.port, self.management_port, self._distribution_port = free_port(), free_port(), free_port()
        self.port_mapper = PortMapper(folder)
        self.extra_config = config
        super().__init__([script], folder, env=self._environment(folder), name="rabbitmq")

    def _environment(self, folder: Path) -> dict[str, str]:
        return {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self.port_mapper.port),
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
            # Lets the script become the node, rather than wait for it as a parent that swallows signals.
            "RUNNING_UNDER_SYSTEMD": "true",
            # One scheduler that does not spin, and no listener beyond loopback.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
        }

    def launch(self) -> None:
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        settings = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {self.management_port}",
            # The API's numbers are at most this old, in milliseconds; 5000 is the default.
            "collect_statistics_interval = 1000",
            # A developer's full disk or small machine is not what these tests are about.
            "disk_free_limit.absolute = 1MB",
            self.extra_config,
        ]
        (self.folder / "rabbitmq.conf").write_text("\n".join(settings) + "\n")
        if not self.port_mapper.is_running:
            self.port_mapper.start()
        super().launch()

    def ready(self) -> bool:
        # The listener accepts before the broker can answer: only Connection.Start means ready.
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            if b"capabilities" not in connection.recv(4096):
                return False
        self.management("GET", "overview")
        return True

    def stop(self) -> None:
        super().stop()
        self.port_mapper.stop()

    def discard(self) -> None:
        super().discard()
        self.port_mapper.discard()

    def url(self, vhost: str = "/", user: str = "guest", password: str = "guest") -> str:
        """The broker URL of one virtual host."""
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}/{urllib.parse.quote(vhost, safe='')}"

    @property
    def management_url(self) -> str:
        """Address of the management API, without credentials."""
        return f"http://127.0.0.1:{self.management_port}"

    def management(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API as administrator; *path* comes after ``/api/``. Raises OSError on any failure."""
        request = urllib.request.Request(
            f"{self.management_url}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
            },
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            answer = response.read()
        return json.loads(answer) if answer else None

    def control(self, *arguments: str) -> None:
        """Run rabbitmqctl. Raises CalledProcessError when it fails."""
        program = self.argv[0].replace("rabbitmq-server", "rabbitmqctl")
        subprocess.run(
            [program, "--quiet", "--node", self.env["RABBITMQ_NODENAME"], *arguments],
            env={**os.environ, **self.env},
            check=True,
            timeout=30,
        )

    def add_vhost(self, vhost: str, user: str, password: str, tags: str = "management") -> str:
        """Create a virtual host and a user who may do everything in it and nothing elsewhere; return its URL."""
        self.management("PUT", f"vhosts/{vhost}")
        self.management("PUT", f"users/{user}", {"password": password, "tags": tags})
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        self.management("PUT", f"permissions/{vhost}/{user}", rights)
        self.management("PUT", f"permissions/{vhost}/guest", rights)
        return self.url(vhost, user, password)

    def remove_vhost(self, vhost: str, user: str) -> None:
        self.management("DELETE", f"vhosts/{vhost}")
        self.management("DELETE", f"users/{user}")
