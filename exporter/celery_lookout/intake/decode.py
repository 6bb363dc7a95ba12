"""
Bytes from a broker to validated events.

The only place that reads what anybody with access to the broker may have written. Nothing here raises: what cannot
be used is reported by reason. kombu's decoders are not used, since they decompress and revive objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from ..events import Event

#: Bytes of one message; a full batch of Celery's own (24 events) has about 20 KB, tracebacks included.
MAX_BODY_BYTES: Final = 4 * 2**20

#: Events in one message. Celery sends at most 24.
MAX_BATCH: Final = 1000

#: Bytes up to which a batch with a bad event in it is taken apart to keep the good ones.
SALVAGE_BYTES: Final = 512 * 1024

#: Surrogates that are looked at in one message, whole pairs as well; a message with more is no JSON.
SURROGATES_LIMIT: Final = 10_000

#: How far an event's timestamp may be from our clock, in seconds. A worker that was cut off sends its events late.
OLDEST_SECONDS: Final = 86_400.0
NEWEST_SECONDS: Final = 3_600.0

JSON_TYPES: Final = frozenset({"application/json", "application/x-json", "text/json"})
MSGPACK_TYPES: Final = frozenset({"application/x-msgpack", "application/msgpack"})
_UTF8: Final = frozenset({"utf-8", "utf8", "UTF-8", "us-ascii", "binary"})

REASONS: Final = (
    "too_large", "too_many", "compressed", "content_type", "content_encoding", "envelope", "malformed", "field",
    "timestamp", "fault", "reply",
)  # fmt: skip

#: Half of a surrogate pair as JSON escapes it, or a whole one; behind an even number of backslashes.
_SURROGATE: Final = re.compile(
    rb"(?<!\\)(?P<before>(?:\\\\)*+)\\u[dD](?:[89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]|(?P<half>[89a-fA-F]))[0-9a-fA-F]{2}"
)

_Batch = Annotated[list[Event], Meta(max_length=MAX_BATCH)]


class _Headers(Struct):
    compression: str | None = None


class Envelope(Struct):
    """kombu's message on Redis: the body is base64, which msgspec decodes on the way."""

    body: bytes
    content_type: str | None = msgspec.field(name="content-type", default=None)
    content_encoding: str | None = msgspec.field(name="content-encoding", default=None)
    headers: _Headers | None = None


class EventDecoder:
    """
    Decodes message bodies, and counts what it had to refuse.

    *refused* is called with the reason and how many; *accept_msgpack* as the application's ``event_serializer`` says.
    """

    def __init__(self, refused: Callable[[str, int], None], *, accept_msgpack: bool = False) -> None:
        self._refused = refused
        self._content_types = JSON_TYPES | (MSGPACK_TYPES if accept_msgpack else frozenset())
        self._envelope = msgspec.json.Decoder(Envelope)
        self._json = (
            msgspec.json.Decoder(Event | _Batch),
            msgspec.json.Decoder(Event),
            msgspec.json.Decoder(list[msgspec.Raw]),
        )
        self._msgpack = (
            msgspec.msgpack.Decoder(Event | _Batch),
            msgspec.msgpack.Decoder(Event),
            msgspec.msgpack.Decoder(list[msgspec.Raw]),
        )

    def refuse(self, reason: str, count: int = 1) -> None:
        """Count a message that its reader refused before it had a body: *reason* is one of ``REASONS``."""
        self._refused(reason, count)

    def redis_message(self, data: bytes, now: float) -> list[Event]:
        """Return the events in one pub/sub message, which is a kombu envelope around the body."""
        if len(data) > MAX_BODY_BYTES * 3 // 2:  # base64 makes 4/3 of it, the envelope has a few hundred bytes
            return self._nothing("too_large")
        try:
            envelope = self._envelope.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._nothing("envelope")
        headers = envelope.headers
        if headers is not None and headers.compression is not None:
            return self._nothing("compressed")
        reason = self.objection(envelope.content_type, envelope.content_encoding)
        if reason is not None:
            return self._nothing(reason)
        return self.body(envelope.body, now, msgpack=envelope.content_type in MSGPACK_TYPES)

    def objection(self, content_type: str | None, content_encoding: str | None) -> str | None:
        """Return why a message with these properties is not for us, or None."""
        if content_type not in self._content_types:
            return "content_type"
        if content_encoding is not None and content_encoding not in _UTF8:
            return "content_encoding"
        return None

    def body(self, body: bytes, now: float, *, msgpack: bool = False) -> list[Event]:
        """Return the usable events of a bare *body*: one event or a batch. *now* is Unix time."""
        if len(body) > MAX_BODY_BYTES:
            return self._nothing("too_large")
        both, single, raw = self._msgpack if msgpack else self._json
        try:
            decoded = both.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            decoded = self._one_by_one(body if msgpack else _without_halves(body), single, raw)
        events = decoded if isinstance(decoded, list) else [decoded]
        oldest, newest = now - OLDEST_SECONDS, now + NEWEST_SECONDS
        usable = [
            event
            for event in events
            if oldest < event.timestamp < newest and ((event.uuid and event.hostname) or _has_subject(event))
        ]
        if len(usable) < len(events):
            outside = sum(1 for event in events if not oldest < event.timestamp < newest)
            self._refused("timestamp", outside)
            self._refused("field", len(events) - len(usable) - outside)
        return usable

    def _one_by_one(self, body: bytes, single: Any, raw: Any) -> list[Event]:
        """Keep the good events of a batch that has a bad one."""
        if len(body) > SALVAGE_BYTES:
            return self._nothing(self._why_not(body, single))
        try:
            items = raw.decode(body)
        except msgspec.ValidationError:  # no batch
            items = [body]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._nothing("malformed")
        if len(items) > MAX_BATCH:
            return self._nothing("too_many")
        events: list[Event] = []
        for item in items:
            try:
                events.append(single.decode(item))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._refused(self._why_not(item, single), 1)
        return events

    @staticmethod
    def _why_not(item: Any, single: Any) -> str:
        """Tell text that is not JSON from JSON that is not an event."""
        try:
            single.decode(item)
        except msgspec.ValidationError:
            return "field"
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "malformed"
        return "field"

    def _nothing(self, reason: str) -> list[Event]:
        self._refused(reason, 1)
        return []


def _without_halves(body: bytes) -> bytes:
    """
    Return JSON without half surrogates, which Python's own writer lets pass and no other reader takes.

    An exception's message has some when it quotes the name of a file that is not UTF-8.
    """
    if len(body) > SALVAGE_BYTES:
        return body
    return _SURROGATE.sub(
        lambda found: found["before"] + rb"\ufffd" if found["half"] else found[0], body, SURROGATES_LIMIT
    )


def _has_subject(event: Event) -> bool:
    """Say whether the event tells of which task, or of which worker, it is."""
    return bool(event.uuid if event.type.startswith("task-") else event.hostname)
