"""
Record the event streams that the golden tests replay.

    python -m tests.recordings.record                   all Celery versions on both brokers
    python -m tests.recordings.record 5.3.6 redis       one of them

Each line of ``<celery>-<broker>.jsonl`` is ``{"at": <arrival, Unix time>, "body": <event or list of events>}``, in the
order of arrival; a first line ``{"meaning": {<uuid>: <outcome>}}`` says what was done to each task. The listener takes
raw bodies: Celery's own EventReceiver rewrites timestamps and clocks. Names and paths of the recording machine are
replaced.
"""

from __future__ import annotations

import base64
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import kombu
import redis

from tests.servers.celery_versions import ROOT, VERSIONS, python_with_celery
from tests.servers.process import guardian
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.workers import Worker

HERE = Path(__file__).resolve().parent


class Source(Protocol):
    """Where raw bodies come from."""

    def bodies(self) -> Iterator[bytes | None]:
        """Yield bodies for ever; None when nothing came for a moment."""


class RedisSource:
    """Celery's fanout on Redis is a channel per routing key; the body sits in kombu's envelope, in base64."""

    def __init__(self, url: str) -> None:
        self._listener = redis.Redis.from_url(url).pubsub()
        self._listener.psubscribe("/0.celeryev/*")

    def bodies(self) -> Iterator[bytes | None]:
        while True:
            message = self._listener.get_message(timeout=0.1)
            if message is None or message["type"] != "pmessage":
                yield None
            else:
                yield base64.b64decode(json.loads(message["data"])["body"])


class AmqpSource:
    """An exclusive queue bound to the event exchange."""

    def __init__(self, url: str) -> None:
        self._connection = kombu.Connection(url)
        exchange = kombu.Exchange("celeryev", type="topic")
        queue = kombu.Queue("recorder", exchange, "#", exclusive=True, auto_delete=True, durable=False)
        self._bodies: list[bytes] = []
        self._consumer = kombu.Consumer(self._connection, [queue], on_message=self._keep, no_ack=True)
        self._consumer.consume()

    def _keep(self, message: Any) -> None:
        body = message.body
        self._bodies.append(body if isinstance(body, bytes) else body.encode())

    def bodies(self) -> Iterator[bytes | None]:
        while True:
            try:
                self._connection.drain_events(timeout=0.1)
            except TimeoutError:
                yield None
            yield from self._bodies
            self._bodies.clear()


class Recorder(threading.Thread):
    """Listens until told to stop."""

    def __init__(self, source: Source) -> None:
        super().__init__(name="recorder", daemon=True)
        self.source = source
        self.lines: list[dict[str, Any]] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        for body in self.source.bodies():
            if body is not None:
                self.lines.append({"at": time.time(), "body": json.loads(body)})
            elif self._stopped.is_set():
                return

    def finish(self) -> list[dict[str, Any]]:
        """Return what came, after a moment of silence."""
        self._stopped.set()
        self.join(30)
        return self.lines


def anonymous(text: str, folder: Path, python: Path) -> str:
    """Replace what tells about the recording machine: folders inside out, then its name."""
    places = {
        str(folder): "/tmp/sample",
        str(python.parents[1]): "/venv",
        str(ROOT): "/app",
        sys.base_prefix: "/usr/local",
        str(Path.home()): "/home/app",
    }
    for place, name in places.items():
        text = text.replace(place, name)
    return text.replace(f"@{socket.gethostname()}", "@host")


def record(celery: str, broker: str, folder: Path) -> list[dict[str, Any]]:
    """Run the scenario on a fresh broker and return the lines of its recording."""
    python = python_with_celery(celery)
    server = RedisServer(folder / "redis") if broker == "redis" else RabbitServer(folder / "rabbitmq")
    with server:
        url = server.url()
        recorder = Recorder(RedisSource(url) if broker == "redis" else AmqpSource(url))
        recorder.start()
        main = Worker(url, folder, name="worker@host", celery=celery, concurrency=2)
        mail = Worker(url, folder, name="mail@host", celery=celery, concurrency=1, queues=["mail"])
        with main, mail:
            scenario = subprocess.run(
                [str(python), "-m", "tests.recordings.scenario"],
                cwd=ROOT,
                env={**main.env, "SCENARIO_FOLDER": str(folder)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            # One node vanishes without a word, the other says good-bye, comes back and leaves again.
            mail.kill()
            main.restart()
            main.stop()
        lines = recorder.finish()
    meaning = {"meaning": json.loads(scenario.stdout)}
    return json.loads(anonymous(json.dumps([meaning, *lines], ensure_ascii=False), folder, python))  # type: ignore[no-any-return]


def main(arguments: list[str]) -> None:
    wanted = [tuple(arguments)] if arguments else list(itertools.product(VERSIONS, ("redis", "amqp")))
    for celery, broker in wanted:
        print(f"{celery} on {broker} …", flush=True)
        with tempfile.TemporaryDirectory(prefix="sample") as folder:
            lines = record(celery, broker, Path(folder).resolve())
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        (HERE / f"{celery}-{broker}.jsonl").write_text(text)
    guardian.dismiss()


if __name__ == "__main__":
    main(sys.argv[1:])
