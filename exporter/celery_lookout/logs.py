"""Log lines for machines that people read too: logfmt as Prometheus has it, or JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final

#: What every record has; anything else was given by the caller as ``extra`` and is shown.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f]+")


def set_up(level: str, form: str) -> None:
    """Send log records of *level* and above to standard error, as ``logfmt`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else LogfmtFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kombu and amqp log every reconnection with a traceback; we say it once ourselves.
    for name in ("kombu", "amqp", "redis", "aiohttp.access"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    # So does this one, with URLs and sometimes headers, which may be secrets.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a line says, in order: time, level, message, the caller's extras, and the error."""
    found: dict[str, Any] = {
        "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "msg": record.getMessage(),
    }
    found |= {key: value for key, value in vars(record).items() if key not in _STANDARD and value is not None}
    if record.exc_info:
        found["error"] = logging.Formatter().formatException(record.exc_info)
    return found


class LogfmtFormatter(logging.Formatter):
    """``ts=… level=… msg="…" key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields(record).items())


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        return json.dumps(fields(record), default=str)


def _quoted(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
