"""Bytes from a broker to validated snapshots. As in ``decode``, nothing here raises, unfolds or revives anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from ..probes.names import is_fit
from ..snapshots import VERSION, AnySnapshot, BeatSnapshot, Entry, Failure, Row, WorkerSnapshot
from .decode import JSON_TYPES, MAX_BODY_BYTES, NEWEST_SECONDS, OLDEST_SECONDS
from .snapshot_source import Message

REASONS: Final = (
    "too_large", "too_many", "compressed", "content_type", "malformed", "field", "version", "timestamp", "fault",
)  # fmt: skip

#: Bytes up to which a snapshot with a bad part in it is taken apart to keep the good ones.
SALVAGE_BYTES: Final = 512 * 1024


class _Version(Struct):
    v: int


class SnapshotDecoder:
    """Decodes message bodies; *refused* is called with the reason and how many for what cannot be used."""

    def __init__(self, refused: Callable[[str, int], None]) -> None:
        self._refused = refused
        self._version = msgspec.json.Decoder(_Version)
        self._snapshot: msgspec.json.Decoder[AnySnapshot] = msgspec.json.Decoder(WorkerSnapshot | BeatSnapshot)
        self._fields = msgspec.json.Decoder(dict[str, Raw])
        self._items = msgspec.json.Decoder(list[Raw])
        self._parts: dict[str, msgspec.json.Decoder[Any]] = {
            "rows": msgspec.json.Decoder(Row),
            "failures": msgspec.json.Decoder(Failure),
            "entries": msgspec.json.Decoder(Entry),
        }

    def message(self, message: Message, now: float) -> AnySnapshot | None:
        """Return the snapshot in a message, None after counting why there is none. *now* is Unix time."""
        if message.is_compressed:
            self._refused("compressed", 1)
            return None
        if message.content_type not in JSON_TYPES:
            self._refused("content_type", 1)
            return None
        return self.body(message.body, now)

    def body(self, body: bytes, now: float) -> AnySnapshot | None:
        """Return the snapshot in a bare *body*, without those of its rows that cannot be used."""
        found = self._snapshot_or_reason(body, now)
        if isinstance(found, str):
            self._refused(found, 1)
            return None
        return found

    def _snapshot_or_reason(self, body: bytes, now: float) -> AnySnapshot | str:
        if len(body) > MAX_BODY_BYTES:
            return "too_large"
        try:
            # By itself and first: another version may have any fields.
            if self._version.decode(body).v != VERSION:
                return "version"
            snapshot = self._decode(body)
        except msgspec.ValidationError:
            return "field"
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "malformed"
        if not is_fit(snapshot.node):
            return "field"
        return snapshot if now - OLDEST_SECONDS < snapshot.at < now + NEWEST_SECONDS else "timestamp"

    def _decode(self, body: bytes) -> AnySnapshot:
        try:
            return self._snapshot.decode(body)
        except msgspec.ValidationError:
            if len(body) > SALVAGE_BYTES:
                raise
        fields = self._fields.decode(body)
        for name in self._parts.keys() & fields.keys():
            fields[name] = Raw(msgspec.json.encode(self._good_ones(name, fields[name])))
        return self._snapshot.decode(msgspec.json.encode(fields))

    def _good_ones(self, name: str, items: Raw) -> list[Raw]:
        """Return the items that are what they should be, and count the others."""
        good = []
        for item in self._items.decode(items):
            try:
                self._parts[name].decode(item)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._refused("field", 1)
            else:
                good.append(item)
        return good
