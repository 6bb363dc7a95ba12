"""Clients that the tests of the harness share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sentry_sdk


@pytest.fixture
def make_sentry() -> Iterator[Callable[..., sentry_sdk.Client]]:
    """Return a function that makes a client of its own: ``make_sentry(ingest.dsn)``. It catches nothing by itself."""
    clients: list[sentry_sdk.Client] = []

    def make(dsn: str, **options: Any) -> sentry_sdk.Client:
        clients.append(sentry_sdk.Client(dsn, default_integrations=False, auto_enabling_integrations=False, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close(timeout=0)
