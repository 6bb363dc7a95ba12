"""Where spans go: what is understood, and what is refused without telling a secret."""

from __future__ import annotations

import pytest

from celery_lookout.errors import SettingsError
from celery_lookout.traces.options import OtlpOptions


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://[::1]:4318/tenant/v1/traces", "https://[::1]:4318/tenant/v1/traces"),
        ("https://collector?token=secret", "https://collector/v1/traces?token=secret"),
    ],
)
def test_the_path_is_added_if_there_is_none(given: str, endpoint: str) -> None:
    options = OtlpOptions.read(given, [], "celery")
    assert options.endpoint == endpoint
    assert "secret" not in options.shown + repr(options)


@pytest.mark.parametrize(
    "given",
    [
        "collector:4318", "grpc://collector:4317", "http://", "http:///v1/traces", "http://collector:port",
        "http://collector:99999", "http://collector:0", "http://collector/#x", "http://collector/ x", "http://[::1",
        "http://collector\n", " ", "https://collector:x?token=secret", "http://me:secret@collector",
    ],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match=r"^--otlp\.endpoint '.*' (is|may) not .*: (write|give) ") as caught:
        OtlpOptions.read(given, [], "celery")
    assert "secret" not in str(caught.value)


def test_headers() -> None:
    given = ["Authorization=Bearer%20a=b", "x-tenant=a b", "empty-is=0"]
    options = OtlpOptions.read("http://collector", given, "celery")
    assert options.headers == {"authorization": "Bearer a=b", "x-tenant": "a b", "empty-is": "0"}
    assert "Bearer" not in repr(options)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("secret", "'***'"),
        ("=secret", "'***'"),
        ("se cret=secret", "'***'"),
        ("authorization: Bearer secret==", "'***'"),
        ("api-key=", "api-key="),
        ("api-key=secret%0d%0aHost:%20x", "api-key="),
        ("api-key=%20secret", "api-key="),
        ("api-key=secret\u20ac", "api-key="),
    ],
)
def test_what_is_no_header_is_refused(given: str, shown: str) -> None:
    with pytest.raises(SettingsError, match=r"^--otlp\.header ") as caught:
        OtlpOptions.read("http://collector", [given], "celery")
    assert shown in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_empty_service_name_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--otlp\.service-name '' is empty: leave it out"):
        OtlpOptions.read("http://collector", [], " ")
