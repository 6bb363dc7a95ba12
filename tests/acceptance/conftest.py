"""The sidecar as a process, for tests that look at it from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.sidecar import Sidecar


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
