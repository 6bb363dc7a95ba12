"""Redis Sentinel, and a group of Redis servers that it watches over."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Self

import redis

from tests.servers.process import Server, free_port, wait_until
from tests.servers.redis import RedisServer, find_redis


class SentinelServer(Server):
    """Redis Sentinel over one master called ``shop``."""

    def __init__(self, folder: Path, master: RedisServer) -> None:
        self.port = free_port()
        folder.mkdir(parents=True)
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds shop 1000\nsentinel failover-timeout shop 3000\n"
        )
        super().__init__([find_redis(), config, "--sentinel"], folder, name="sentinel")

    def ready(self) -> bool:
        try:
            return bool(self.ask("GET-MASTER-ADDR-BY-NAME"))
        except redis.ConnectionError as error:
            raise OSError(str(error)) from error

    def ask(self, command: str) -> Any:
        """Return the answer to a command about the master."""
        with redis.Redis(port=self.port, socket_timeout=5, decode_responses=True) as connection:
            return connection.execute_command("SENTINEL", command, "shop")

    def master_port(self) -> int:
        """Return where clients are sent."""
        return int(self.ask("GET-MASTER-ADDR-BY-NAME")[1])

    def fail_over(self) -> None:
        """Make a replica the master, as planned: the old master is well and becomes a replica."""
        self.ask("FAILOVER")

    def replicas(self) -> int:
        """Return how many replicas Sentinel knows that are well and fit to be promoted."""
        return sum(row["master-link-status"] == "ok" and row["flags"] == "slave" for row in self.ask("REPLICAS"))


class RedisGroup:
    """Two Redis servers, of which one replicates the other, and a Sentinel; use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.servers = [
            RedisServer(folder / f"redis{number}", options=["--repl-diskless-sync-delay", "0"]) for number in (1, 2)
        ]
        self._stack = contextlib.ExitStack()
        self._folder = folder

    def __enter__(self) -> Self:
        first, second = (self._stack.enter_context(server) for server in self.servers)
        second.replicate(first.port)
        self.sentinel = self._stack.enter_context(SentinelServer(self._folder / "sentinel", first))
        wait_until(lambda: self.sentinel.replicas() == 1, 40, "Sentinel sees no replica")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The broker URL; the transport option ``master_name`` is ``shop``."""
        return f"sentinel://127.0.0.1:{self.sentinel.port}/0"

    def master(self) -> RedisServer:
        """Return the server to which Sentinel sends clients now."""
        port = self.sentinel.master_port()
        return next(server for server in self.servers if server.port == port)
