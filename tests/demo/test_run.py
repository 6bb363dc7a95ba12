from __future__ import annotations

import pytest

from celery_lookout.demo.run import local_url
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
