"""
Publishes a load at a steady rate, from messages that were made before; a process of its own.

Says ``ready`` when they are made, begins at the first line it is told, and then says how long it took, as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from .stream import EXCHANGE, QUEUES, Load, wire

#: Seconds between two sends.
STEP_SECONDS: Final = 0.005


def chunks(url: str, load: Load) -> tuple[list[bytes], int]:
    """Return what is to be sent in each step, and how many task events that is together."""
    to_bytes = wire(url)
    per_step = load.rate * STEP_SECONDS or 500.0
    total = 0
    made: list[bytes] = []
    parts: list[bytes] = []
    for message in load.messages():
        parts.append(to_bytes(message))
        total += message.task_events
        if total >= per_step * (len(made) + 1):
            made.append(b"".join(parts))
            parts = []
    return [*made, b"".join(parts)], total


@contextmanager
def _redis(url: str) -> Iterator[socket.socket]:
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        connection.sendall(b"CLIENT REPLY OFF\r\n")
        yield connection
        connection.sendall(b"CLIENT REPLY ON\r\nPING\r\n")
        while b"PONG" not in connection.recv(4096):
            pass


@contextmanager
def _amqp(url: str) -> Iterator[socket.socket]:
    import kombu

    with kombu.Connection(url) as connection:
        amqp: Any = connection.connect()
        channel = amqp.channel(1)
        channel.exchange_declare(EXCHANGE, "topic", durable=True, auto_delete=False)
        for name in QUEUES:
            channel.queue_declare(name, durable=True, auto_delete=False)
        yield amqp.transport.sock
        amqp.close()  # its answer says that everything has been taken in


def publish(url: str, load: Load) -> None:
    """Do as the module says."""
    made, total = chunks(url, load)
    print("ready", flush=True)
    sys.stdin.readline()
    with (_amqp if url.startswith("amqp") else _redis)(url) as connection:
        started = time.monotonic()
        for step, chunk in enumerate(made):
            if load.rate and (wait := started + step * STEP_SECONDS - time.monotonic()) > 0:
                time.sleep(wait)
            connection.sendall(chunk)
    print(json.dumps({"events": total, "seconds": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    publish(sys.argv[1], Load(**json.loads(sys.argv[2])))
