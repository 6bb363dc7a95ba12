"""Real Celery workers and beats as processes, and a client that publishes to them."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.servers import sample_app
from tests.servers.celery_versions import NEWEST, ROOT, python_with_celery
from tests.servers.process import Server, wait_until

SAMPLE_APP = "tests.servers.sample_app"


class CeleryProcess(Server):
    """Any ``celery`` subcommand of the sample application."""

    start_seconds = 60.0
    #: A pool process whose last result is not read waits 30 s for that (billiard), and the worker for the process.
    stop_seconds = 45.0

    def __init__(
        self,
        broker_url: str,
        folder: Path,
        arguments: Sequence[str],
        *,
        name: str,
        celery: str = NEWEST,
        conf: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        app: str = SAMPLE_APP,
    ) -> None:
        self.results = folder / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        settings = {
            "SAMPLE_BROKER": broker_url,
            "SAMPLE_RESULTS": str(self.results),
            "SAMPLE_CONF": json.dumps(dict(conf or {})),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'signals'}",
            "PYTHONWARNINGS": "default",
            # billiard leaves folders behind when a worker is killed.
            "TMPDIR": str(folder),
            # Old Celery warns about running as root in containers, and asks in some cases.
            "C_FORCE_ROOT": "1",
        }
        python = python_with_celery(celery)
        argv = [str(python), "-m", "celery", "-A", app, *arguments]
        super().__init__(argv, folder, env={**settings, **(env or {})}, name=name)


class Worker(CeleryProcess):
    """
    A worker node of the sample application; call start(), or use it as a context manager.

    *celery* is a version of celery_versions.VERSIONS. *name* is the node name, so that tests can assert on it.
    *conf* are Celery settings, *options* further command line options, *imports* modules that the worker loads.
    *events* and *sent_events* are switches of Celery's own; *signals* installs ``celery_lookout_signals`` with these
    arguments.
    """

    def __init__(
        self,
        broker_url: str,
        folder: Path,
        *,
        name: str = "worker@host",
        celery: str = NEWEST,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: Sequence[str] = ("celery",),
        prefetch: int = 4,
        events: bool = True,
        sent_events: bool = True,
        signals: Mapping[str, object] | None = None,
        imports: Sequence[str] = (),
        conf: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        app: str = SAMPLE_APP,
    ) -> None:
        self.node = name
        if signals is not None:
            env = {"SAMPLE_SIGNALS": json.dumps(dict(signals)), **(env or {})}
        settings: dict[str, object] = {
            "worker_send_task_events": events,
            "task_send_sent_event": sent_events,
            "imports": list(imports),
            **(conf or {}),
        }
        arguments = ["worker", "-n", name, "-P", pool, "-c", str(concurrency), "-Q", ",".join(queues)]
        arguments += ["--prefetch-multiplier", str(prefetch), "-l", "INFO", *options]
        super().__init__(broker_url, folder, arguments, name=name, celery=celery, conf=settings, env=env, app=app)
        self._log_start = 0

    def launch(self) -> None:
        # After a restart the log still holds the "ready" of the life before.
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        super().launch()

    def ready(self) -> bool:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return f"{self.node} ready.".encode() in log.read()

    def stop_cold(self) -> None:
        """Ask twice: running tasks are not waited for."""
        if self.is_running:
            assert self.process is not None
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(self.stop_seconds)
        self.kill()


class Beat(CeleryProcess):
    """
    Celery beat with *schedule*, a mapping as in ``beat_schedule`` (JSON types only).

    *signals* installs ``celery_lookout_signals`` with these arguments.
    """

    def __init__(
        self,
        broker_url: str,
        folder: Path,
        schedule: Mapping[str, Mapping[str, object]],
        *,
        celery: str = NEWEST,
        signals: Mapping[str, object] | None = None,
        conf: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        if signals is not None:
            env = {"SAMPLE_SIGNALS": json.dumps(dict(signals)), **(env or {})}
        arguments = ["beat", "-l", "DEBUG", "-s", str(folder / "schedule"), "--pidfile=", *options]
        settings = {"beat_schedule": {key: dict(entry) for key, entry in schedule.items()}, **(conf or {})}
        super().__init__(broker_url, folder, arguments, name="beat", celery=celery, conf=settings, env=env)

    def ready(self) -> bool:
        return b"beat: Starting..." in self.log.read_bytes()


class Client:
    """
    Publish sample tasks from the test process, with the test environment's Celery.

    *folder* is the one given to the worker: results are files there. *conf* are Celery settings; give the client and
    the worker the same for priorities and other transport options.
    """

    def __init__(self, broker_url: str, folder: Path, *, sent_events: bool = True, **conf: Any) -> None:
        results = folder / "results"
        results.mkdir(parents=True, exist_ok=True)
        self.app = sample_app.make_app(broker_url, str(results), task_send_sent_event=sent_events, **conf)

    def send(self, task: str, *args: object, **options: Any) -> Any:
        """
        Publish ``sample.<task>`` and return Celery's result object.

        *options* are those of apply_async: ``queue``, ``priority``, ``eta``, ``countdown``, ``expires``, ``kwargs``, …
        A task that the application does not have is published by its full name.
        """
        known = self.app.tasks.get(f"sample.{task}")
        if known is None:
            return self.app.send_task(task, args=args, **options)
        return known.apply_async(args=args, **options)

    def wait(self, *results: Any, seconds: float = 30.0) -> list[str]:
        """Wait until each has a final state; return the states. Failures do not raise."""

        def states() -> list[str]:
            return [result.state for result in results]

        final = {"SUCCESS", "FAILURE", "REVOKED"}
        wait_until(lambda: final.issuperset(states()), seconds, f"no final state of {results}: {states()}")
        return states()

    def control(self, command: str, *, arguments: Mapping[str, object] | None = None, timeout: float = 2.0) -> Any:
        """Broadcast a remote control command and return the replies."""
        return self.app.control.broadcast(command, arguments=dict(arguments or {}), reply=True, timeout=timeout)

    def close(self) -> None:
        """Close all connections of this client."""
        self.app.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
