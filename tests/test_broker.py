"""Broker URLs: which reader serves them, and what of them may be shown."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lookout.broker import Broker, describe
from celery_lookout.errors import SettingsError


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://h", "redis"),
        ("rediss://h", "redis"),
        ("redis+socket:///run/redis.sock", "redis"),
        ("sentinel://h:26379;sentinel://i:26379", "redis"),
        ("amqp://h//", "amqp"),
        ("amqps://h//", "amqp"),
        ("pyamqp://h//", "amqp"),
        ("memory://", "kombu"),
        ("sqs://", "kombu"),
    ],
)
def test_the_scheme_says_which_reader_serves_it(url: str, kind: str) -> None:
    assert Broker(url).kind == kind


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("amqp://user:hunter2@host//", "amqp://***@host//"),
        ("amqp://user:hun@ter2@host//", "amqp://***@host//"),
        ("amqp://user:hunt/er2@host//", "amqp://***@host//"),
        ("amqp://user:hun;ter2@host//", "amqp://***@host//"),
        ("amqp://user:hun?x=ter2@host//", "amqp://***@host//"),
        ("amqp://u:hunter2@a//;amqp://u:hunter2@b//", "amqp://***@a//;amqp://***@b//"),
        ("amqp://u:hunter2@a//;b//", "amqp://***@a//;b//"),
        ("redis://host?password=hunter2&db=1", "redis://host?password=***&db=1"),
        ("rediss://host?ssl_keyfile_PASSWORD=hunter2", "rediss://host?ssl_keyfile_PASSWORD=***"),
        ("sqs://AKIA:hunter2@", "sqs://***@"),
    ],
)
def test_masked_url_has_no_secret(url: str, shown: str) -> None:
    assert Broker(url).masked_url == shown
    assert "ter2" not in repr(Broker(url))


@given(
    st.text(min_size=6, max_size=20).filter(lambda password: "://" not in password),
    st.sampled_from(["{p}@host/0", ":{p}@host/0", "user:{p}@host:5672//", "u:{p}@a//;amqp://u:{p}@b//"]),
    st.booleans(),
)
def test_no_password_gets_through_the_mask(password: str, form: str, quoted: bool) -> None:
    """Quoted as it must be, or as people write it."""
    written = quote(password, safe="") if quoted else password
    url = "amqp://" + form.format(p=written)
    shown = Broker(url).masked_url
    assert written not in shown.replace("amqp://***@a//;amqp://***@b//", "").replace("***@host", "")
    assert shown.startswith("amqp://***@")


@given(st.text(max_size=20), st.text(min_size=6, max_size=20))
def test_what_is_no_url_is_refused_without_its_password(scheme: str, password: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Broker(f"{scheme.replace('://', '')}:{password.replace('://', '')}@")
    # The mask, and the examples that every such message ends with.
    assert str(raised.value).startswith("--broker '***@' is not a broker URL: write for example ")


def test_errors_of_drivers_are_told_without_secrets() -> None:
    broker = Broker("redis://:hun%23ter2@host", transport_options={"sentinel_kwargs": {"password": "s3cret"}})
    error = ConnectionError("cannot log in to redis://:hun%23ter2@host with hun#ter2\nor s3cret")
    text = describe(broker, error)
    assert text.startswith("redis://***@host: cannot log in")
    for secret in ("hun%23ter2", "hun#ter2", "s3cret", "\n"):
        assert secret not in text


def test_an_error_without_words_is_told_by_its_class() -> None:
    assert describe(Broker("redis://host"), TimeoutError()) == "redis://host: TimeoutError"
