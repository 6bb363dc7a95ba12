"""A broker, two workers and a sidecar of the soak, with what can be done to them."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psutil
from celery import Celery

from tests.servers.proxy import FaultProxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.sidecar import Metrics, Sidecar
from tests.servers.workers import Worker

from .app import truth

APP: Final = "tests.soak.app"

#: Tasks a second that are published to each of the two workers.
RATE: Final = 20.0

#: Out of a hundred tasks. A pool process that dies can only be told of by its worker, so there are few of these.
MIX: Final = ("soak.good",) * 80 + ("soak.bad",) * 10 + ("soak.again",) * 9 + ("soak.killed",)

#: Seconds that a fault lasts, at most; RabbitMQ's heartbeats and ours forgive less than that.
LONGEST_FAULT: Final = 15.0

#: What a worker may end after it began to stop and told its totals: all it can hold.
ENDED_UNTOLD: Final = 8

#: Seconds without a change after which none is expected: two intervals of the snapshots.
STILL_SECONDS: Final = 10.0


class SoakCluster:
    """Everything on one broker. The worker of the queue ``signals`` has our package, that of ``events`` has not."""

    def __init__(self, kind: str, folder: Path, chance: random.Random) -> None:
        self.kind = kind
        self._chance = chance
        self.broker = (
            RedisServer(folder / "broker", keep_data=True) if kind == "redis" else RabbitServer(folder / "broker")
        )
        self.broker.start()
        url = self.broker.url()
        self.proxy = FaultProxy(self.broker.port)
        self.proxy.__enter__()
        self.results = folder / "workers" / "results"
        self.workers = [
            Worker(url, folder / "workers", name=f"{name}@soak", queues=[name], signals=signals, app=APP)
            for name, signals in (("signals", {}), ("events", None))
        ]
        seen = urlsplit(url)
        through = urlunsplit(seen._replace(netloc=seen.netloc.replace(f":{self.broker.port}", f":{self.proxy.port}")))
        options = ["--state.file", str(folder / "state")]
        if isinstance(self.broker, RabbitServer):
            options += ["--rabbitmq.management-url", self.broker.management_url]
        self.sidecar = Sidecar(through, folder / "sidecar", *options)
        self.sidecar.start()
        for worker in self.workers:
            worker.start()
        self.publisher = Publisher(url)
        self.watch = Watch(self.sidecar)
        self.faults: Counter[str] = Counter()
        #: Times that the worker with our package had to be killed: Celery's hangs at times while it stops, after its
        #: broker hung.
        self.killed = 0

    def disturb(self) -> str:
        """Do something bad that is over when this returns; return what it was."""
        fault = self._chance.choice(self._possible())
        name = fault.__name__.strip("_").replace("_", " ")
        fault()
        self.faults[name] += 1
        return name

    def _possible(self) -> list[Callable[[], None]]:
        # Not the end of the broker: Celery's workers do not always live on after that.
        return [
            self._cut, self._cut_often, self._slow_line, self._late_line, self._silent_line, self._paused_broker,
            self._stopped_sidecar, self._restarted_worker,
        ]  # fmt: skip

    def _for_a_while(self) -> None:
        time.sleep(self._chance.uniform(2.0, LONGEST_FAULT))

    def _cut(self) -> None:
        self.proxy.cut()

    def _cut_often(self) -> None:
        for _ in range(5):
            self.proxy.cut()
            time.sleep(self._chance.uniform(0.1, 2.0))

    def _slow_line(self) -> None:
        self.proxy.rate = 20_000
        self._for_a_while()
        self.proxy.rate = 0

    def _late_line(self) -> None:
        self.proxy.latency = 0.5
        self._for_a_while()
        self.proxy.latency = 0.0

    def _silent_line(self) -> None:
        self.proxy.mode = "blackhole"
        self._for_a_while()
        self.proxy.mode = "pass"

    def _paused_broker(self) -> None:
        self.broker.pause()
        self._for_a_while()
        self.broker.resume()

    def _stopped_sidecar(self) -> None:
        with self.watch.away:
            self.sidecar.stop()
            time.sleep(self._chance.uniform(0.0, 5.0))
            self.sidecar.start()

    def _restarted_worker(self) -> None:
        # Not the other: Celery sends no events of what ends after its worker began to stop.
        self._stop(self.workers[0])
        self.workers[0].start()

    def _stop(self, worker: Worker) -> None:
        begun = time.monotonic()
        worker.stop()
        if worker is self.workers[0]:
            self.killed += time.monotonic() - begun >= worker.stop_seconds

    def settle(self) -> None:
        """End the load, let everything that is queued run, and let the workers say their last."""
        self.publisher.stop()
        _wait_still(lambda: truth(self.results))
        for worker in self.workers:
            self._stop(worker)
        _wait_still(lambda: self.sidecar.metrics().counters())

    def close(self) -> None:
        """End everything."""
        self.publisher.stop()
        self.watch.stop()
        for server in (*self.workers, self.sidecar, self.broker):
            server.discard()
        self.proxy.__exit__()


def _wait_still(look: Callable[[], object]) -> None:
    """Wait until what is looked at has not changed for a while, but not for ever."""
    before, ends = look(), time.monotonic() + 300
    while time.monotonic() < ends:
        time.sleep(STILL_SECONDS)
        now = look()
        if now == before:
            return
        before = now


class Publisher:
    """Publishes the mix to both queues at a steady rate; what the broker does not take is left out."""

    def __init__(self, url: str) -> None:
        self._app = Celery("soak-publisher", broker=url, set_as_current=False)
        timeouts = ("socket_timeout", "socket_connect_timeout") if url.startswith("redis") else ("write_timeout",)
        self._app.conf.update(
            task_send_sent_event=True,
            task_publish_retry=False,
            broker_transport_options=dict.fromkeys(timeouts, LONGEST_FAULT * 2),
        )
        self._done = threading.Event()
        self.refused = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for task, queue in itertools.cycle(
            itertools.product(random.Random(1).sample(MIX, len(MIX)), ("signals", "events"))
        ):
            if self._done.wait(0.5 / RATE):
                return
            try:
                self._app.send_task(task, queue=queue)
            except Exception:  # noqa: BLE001  # of whatever kind: the broker is in trouble on purpose
                self.refused += 1

    def stop(self) -> None:
        """Publish no more."""
        self._done.set()
        self._thread.join(60)


class Watch:
    """Scrapes every second, as Prometheus would, and notes what must not happen."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._done = threading.Event()
        #: Held while the sidecar is away on purpose.
        self.away = threading.Lock()
        self.slowest = 0.0
        self.scrapes = 0
        self.complaints: list[str] = []
        #: Resident size in MiB, once a scrape.
        self.rss: list[float] = []
        self.files: list[int] = []
        self._last: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(1.0):
            with self.away:
                try:
                    answer = self._sidecar.get("/metrics")
                except OSError as error:
                    self.complaints.append(f"no answer: {error}")
                    continue
                self.scrapes += 1
                self.slowest = max(self.slowest, answer.seconds)
                process = psutil.Process(self._sidecar.pid)
                self.rss.append(process.memory_info().rss / 2**20)
                self.files.append(process.num_fds())
                self._compare(Metrics(answer.body.decode()))

    def _compare(self, metrics: Metrics) -> None:
        now = metrics.counters()
        fell = [series for series, value in self._last.items() if now.get(series, 0.0) < value]
        if fell:
            example = f"{fell[0]} from {self._last[fell[0]]:g} to {now.get(fell[0], 0.0):g}"
            self.complaints.append(f"{len(fell)} counters fell, such as {example}")
        self._last = now

    def stop(self) -> None:
        """Scrape no more."""
        self._done.set()
        self._thread.join(30)
