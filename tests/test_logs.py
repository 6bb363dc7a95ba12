"""Log lines for machines that people read too."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_lookout import logs


def record(message: str = "broker is silent", **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"levelname": "WARNING", "levelno": logging.WARNING, "msg": message, **extra})
    made.created = 1_800_000_000.25
    return made


def test_logfmt_has_time_level_message_and_extras() -> None:
    line = logs.LogfmtFormatter().format(record(broker="shop", seconds=5.5))
    assert line == 'ts=2027-01-15T08:00:00.250Z level=warning msg="broker is silent" broker=shop seconds=5.5'


def test_json_has_the_same() -> None:
    assert json.loads(logs.JsonFormatter().format(record(broker="shop", seconds=5.5))) == {
        "ts": "2027-01-15T08:00:00.250Z",
        "level": "warning",
        "msg": "broker is silent",
        "broker": "shop",
        "seconds": 5.5,
    }


def test_extras_without_a_value_are_left_out() -> None:
    assert "broker=" not in logs.LogfmtFormatter().format(record(broker=None))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("a=b", '"a=b"'),
        ("back\\slash", '"back\\\\slash"'),
        ("two\nlines", '"two\\nlines"'),
        ("", '""'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("Grüße", "Grüße"),
    ],
)
def test_logfmt_quotes_what_would_tear_a_line(value: str, shown: str) -> None:
    assert logs.LogfmtFormatter().format(record("m", worker=value)).endswith(f"msg=m worker={shown}")


@given(st.text(max_size=40))
def test_any_text_stays_on_its_line(text: str) -> None:
    for formatter in (logs.LogfmtFormatter(), logs.JsonFormatter()):
        line = formatter.format(record(text.replace("%", "%%"), worker=text))
        assert not {"\n", "\r", "\x1b", "\0"} & set(line)


def test_json_shows_what_json_does_not_know() -> None:
    assert json.loads(logs.JsonFormatter().format(record(error=ValueError("x"))))["error"] == "x"


@pytest.mark.parametrize("formatter", [logs.LogfmtFormatter(), logs.JsonFormatter()])
def test_a_traceback_is_one_field_of_one_line(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        line = formatter.format(record(exc_info=sys.exc_info()))
    assert "ValueError: broken" in line
    assert "\n" not in line


@pytest.fixture
def restored() -> Iterator[None]:
    """The logging of the test run as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for name in ("kombu", "amqp", "redis", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_records_of_the_level_and_above_go_to_standard_error(
    form: str, restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("info", form)
    log = logging.getLogger("celery_lookout.somewhere")
    log.debug("hidden")
    log.info("serving", extra={"address": ":9808"})
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert ("msg=serving address=:9808" in line) if form == "logfmt" else json.loads(line)["address"] == ":9808"


@pytest.mark.parametrize(("level", "shown"), [("debug", logging.WARNING), ("error", logging.ERROR)])
def test_libraries_that_log_every_reconnection_are_kept_quiet(level: str, shown: int, restored: None) -> None:
    logs.set_up(level, "logfmt")
    assert logging.getLogger("kombu").level == shown
