from __future__ import annotations

import pytest

from celery_lookout.demo.run import ListenAddress
from celery_lookout.errors import SettingsError


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
    address = ListenAddress.parse(text)
    assert address.url == url
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "9808", "localhost", ":0", ":65536", "::1:9808", "http://localhost:9808"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--web\.listen-address"):
        ListenAddress.parse(text)
