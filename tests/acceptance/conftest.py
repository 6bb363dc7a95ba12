"""The sidecar as a process, for tests that look at it from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.signals import before_task_publish

from celery_lookout_signals._stamp import stamp
from tests.servers.sidecar import Sidecar


@pytest.fixture
def stamped() -> Iterator[None]:
    """Stamp what the test process publishes, as the worker package would there; it cannot be taken out again."""
    before_task_publish.connect(stamp, weak=False)
    yield
    before_task_publish.disconnect(stamp)


@pytest.fixture
def start_sidecar(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    """Return a function that starts a sidecar and waits until it is ready: ``start_sidecar(url, *options)``."""
    sidecars: list[Sidecar] = []

    def start(broker_url: str, *options: str, **more: Any) -> Sidecar:
        sidecars.append(Sidecar(broker_url, tmp_path / f"sidecar{len(sidecars)}", *options, **more))
        return sidecars[-1].start()

    yield start
    for sidecar in sidecars:
        print(sidecar.log_tail())  # pytest shows it when the test failed
        sidecar.kill()
