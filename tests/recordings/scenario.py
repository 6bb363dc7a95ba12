"""
What is done to the workers while record.py listens: every outcome that Celery knows, one after the other.

Run by the interpreter whose Celery is recorded, so that ``task-sent`` is of that version, too. It waits for results
where there are any; where there are none (ignored, rejected, unknown) it gives the worker a moment. It prints the uuid
and the meaning of each message, which record.py keeps as the recording's first line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.servers.sample_app import make_app

#: Seconds after which a step is given up; the recording then lacks its end, and a line on the terminal says so.
STEP_SECONDS = 30.0


class Scenario:
    """Publishes and waits, step by step."""

    def __init__(self, app: Any, folder: Path) -> None:
        self.app = app
        self.folder = folder
        self.meaning: dict[str, str] = {}

    def send(self, meaning: str, task: str, *args: object, **options: Any) -> Any:
        known = self.app.tasks.get(f"sample.{task}")
        result = known.apply_async(args=args, **options) if known else self.app.send_task(task, args=args, **options)
        self.meaning[result.id] = meaning
        return result

    def finish(self, *results: Any, seconds: float = STEP_SECONDS) -> None:
        """Wait for final states."""
        what = f"end of {[self.meaning[result.id] for result in results]}"
        self.wait(lambda: all(result.ready() for result in results), what, seconds)

    def wait(self, condition: Callable[[], object], what: str, seconds: float = STEP_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                print(f"gave up: {what}", file=sys.stderr)
                return
            time.sleep(0.05)

    def plain(self) -> None:
        """Successes on two queues, with parents and children, and failures of each kind."""
        self.finish(self.send("succeeded", "add", 2, 3), self.send("succeeded", "noop"), self.send("mail", "send_mail"))
        self.finish(self.send("mail", "send_mail", "grace@example.com"), self.send("parent", "spawn", 2))
        for task in ("fail", "fail_as_announced", "fail_unpicklable", "fail_in_chain"):
            self.finish(self.send(task, task))
        self.finish(self.send("multi-line failure", "fail", "first line\nsecond: line\n\tthird"))

    def retries(self) -> None:
        self.finish(self.send("retried twice, then succeeded", "retry_then_succeed"))
        self.finish(self.send("retries exhausted", "retry_exhaust"))

    def limits(self) -> None:
        """Time limits and dying pool processes."""
        self.finish(self.send("hard time limit", "hard_limit", 30))
        self.finish(self.send("soft time limit", "soft_limit", 30))
        self.finish(self.send("soft time limit handled", "soft_limit_handled"))
        self.finish(self.send("worker lost by SIGKILL", "kill_self"))
        # Celery before 5.7 says nothing more about it.
        self.finish(self.send("worker lost by sys.exit", "exit_self"), seconds=6)
        self.finish(self.send("worker lost by SIGKILL, acks_late", "kill_self_late"))

    def without_result(self) -> None:
        self.send("ignored", "ignore")
        self.send("rejected", "reject")
        self.send("unknown task", "sample.never_registered")
        self.finish(self.send("rejected with requeue, then succeeded", "reject_requeue", str(self.folder / "rejected")))
        time.sleep(1)

    def waiting(self) -> None:
        """ETA and expiry."""
        self.finish(self.send("eta", "add", 1, 1, countdown=1.5))
        self.finish(self.send("expired", "noop", expires=datetime.now(UTC) - timedelta(seconds=5)))

    def revokes(self) -> None:
        """Revoked in a process, behind busy processes, and before its ETA."""
        long = self.send("terminated", "sleep", 60)
        self.wait(lambda: self.active(long.id), "start of the task to be terminated")
        self.app.control.revoke(long.id, terminate=True, signal="SIGKILL")
        self.finish(long)
        # More busy tasks than processes, so that the next message surely waits in the worker.
        busy = [self.send("succeeded", "sleep", 1.5) for _ in range(3)]
        queued = self.send("revoked while reserved", "noop")
        early = self.send("revoked before its eta", "noop", countdown=2)
        self.app.control.revoke([queued.id, early.id])
        self.finish(*busy, queued, early)

    def active(self, uuid: str) -> bool:
        replies = self.app.control.inspect(timeout=0.5).active() or {}
        return any(task["id"] == uuid for tasks in replies.values() for task in tasks)


def main() -> None:
    folder = Path(os.environ["SCENARIO_FOLDER"])
    scenario = Scenario(make_app(os.environ["SAMPLE_BROKER"], str(folder / "results"), current=True), folder)
    steps: list[Callable[[], None]] = [
        scenario.plain,
        scenario.retries,
        scenario.limits,
        scenario.without_result,
        scenario.waiting,
        scenario.revokes,
    ]
    for step in steps:
        step()
    scenario.app.close()
    print(json.dumps(scenario.meaning))


if __name__ == "__main__":
    main()
