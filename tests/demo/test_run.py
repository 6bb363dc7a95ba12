from __future__ import annotations

import pytest

from celery_lookout.demo.run import WORKERS, describe_workers, local_url, worker_options
from celery_lookout.settings import ListenAddress


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (":9808", "http://localhost:9808"),
        ("0.0.0.0:9808", "http://localhost:9808"),
        ("127.0.0.1:80", "http://127.0.0.1:80"),
        ("[::1]:9808", "http://[::1]:9808"),
        ("[::]:9808", "http://localhost:9808"),
    ],
)
def test_the_printed_address_can_be_reached(text: str, url: str) -> None:
    assert local_url(ListenAddress.parse(text)) == url


def test_workers_that_count_for_themselves_send_no_events() -> None:
    with_events = [worker.name for worker in WORKERS if "-E" in worker_options(worker, has_package=True)]
    assert with_events == ["mail"]
    assert describe_workers(has_package=True) == (
        "shop, images, reports count for themselves (celery_lookout_signals); mail is heard by its events"
    )


def test_without_the_package_all_are_heard_by_their_events_and_the_demo_says_so() -> None:
    assert all("-E" in worker_options(worker, has_package=False) for worker in WORKERS)
    assert "celery_lookout_signals is not installed here" in describe_workers(has_package=False)
