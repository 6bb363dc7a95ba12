"""
Record the tracebacks that the tests of this folder read.

    python -m tests.sentry.record

``tracebacks.json`` lists the ``task-failed`` events of failing_tasks.py in their order: the task, and the fields
``exception`` and ``traceback`` as a prefork worker with the test environment's Celery sends them. Names and paths of
the recording machine are replaced.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.recordings.record import Recorder, RedisSource, anonymous
from tests.sentry import failing_tasks
from tests.servers.process import guardian, wait_until
from tests.servers.redis import RedisServer
from tests.servers.workers import Client, Worker

FILE = Path(__file__).resolve().parent / "tracebacks.json"


def failures(lines: list[dict[str, Any]], tasks: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield what is kept of each event; *tasks* are names by task id."""
    for line in [*lines]:
        events = line["body"] if isinstance(line["body"], list) else [line["body"]]
        for event in events:
            if event["type"] == "task-failed":
                yield {"task": tasks[event["uuid"]], **{key: event[key] for key in ("exception", "traceback")}}


def record(folder: Path) -> list[dict[str, str]]:
    """Run each task on a fresh broker and return how it failed."""
    with RedisServer(folder / "redis") as server:
        recorder = Recorder(RedisSource(server.url()))
        recorder.start()
        tasks: dict[str, str] = {}

        def told(name: str) -> bool:
            return any(failure["task"] == name for failure in failures(recorder.lines, tasks))

        with (
            Worker(server.url(), folder, concurrency=1, imports=[failing_tasks.__name__]),
            Client(server.url(), folder) as client,
        ):
            for function in failing_tasks.TASKS:
                result = client.send(f"{failing_tasks.__name__}.{function.__name__}")
                tasks[result.id] = function.__name__
                client.wait(result)
                wait_until(partial(told, function.__name__), 30, f"no event of {function.__name__}")
        lines = recorder.finish()
    text = anonymous(json.dumps([*failures(lines, tasks)], ensure_ascii=False), folder, Path(sys.executable))
    return json.loads(text)  # type: ignore[no-any-return]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sample") as folder:
        recorded = record(Path(folder).resolve())
    FILE.write_text(json.dumps(recorded, ensure_ascii=False, indent=1) + "\n")
    guardian.dismiss()


if __name__ == "__main__":
    main()
