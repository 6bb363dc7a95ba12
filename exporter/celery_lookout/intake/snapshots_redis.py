"""
Snapshots from Redis and Valkey: a stream, read as a consumer group, so that Redis remembers how far.

A database in which no worker writes snapshots stays as it is.
"""

from __future__ import annotations

from typing import Any, Final

import redis

from ..broker import Broker
from ..probes.session import Session
from .snapshot_source import CHUNK, NAME, SHOWN_AGAIN_SECONDS, Message

_NEEDS: Final = f"The Redis user needs +exists +xgroup|create +xreadgroup +xrevrange, and to read and write {NAME}"


class RedisSnapshots:
    """The stream of one database. A second sidecar needs a group of its own, which *replica* names."""

    def __init__(self, broker: Broker, *, replica: str = "") -> None:
        self._session = Session(broker, needs=_NEEDS)
        # The consumer needs no name of its own: nothing is ever left to it.
        self._group = f"celery-lookout.{replica}" if replica else "celery-lookout"
        self._is_joined = False
        self._has_looked_back = False

    def read(self) -> list[Message]:
        """Return the entries that nobody in the group has read; none while there is no stream."""
        return self._session.call(self._read)

    def _read(self, channel: Any) -> list[Message]:
        # By hand: kombu's own client prefixes some commands and not others.
        return self._read_from(redis.Redis(connection_pool=channel.pool), f"{channel.global_keyprefix}{NAME}")

    def _read_from(self, client: Any, key: str) -> list[Message]:
        if not self._is_joined:
            if not client.exists(key):
                return []
            self._join(client, key)
        if not self._has_looked_back:
            self._has_looked_back = True
            return self._look_back(client, key)
        return self._unread(client, key)

    def _join(self, client: Any, key: str) -> None:
        try:
            client.xgroup_create(key, self._group, id="0")
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        else:
            self._has_looked_back = True  # nobody was here before
        self._is_joined = True

    def _look_back(self, client: Any, key: str) -> list[Message]:
        """Return the last entries as old ones. Those that nobody has read yet come again, as new ones."""
        entries = client.xrevrange(key, count=CHUNK)
        while entries and _age(entries) < SHOWN_AGAIN_SECONDS:
            more = client.xrevrange(key, max=f"({entries[-1][0].decode()}", count=CHUNK)
            if not more:
                break
            entries += more
        return [_of_entry(fields, is_old=True) for _, fields in reversed(entries)]

    def _unread(self, client: Any, key: str) -> list[Message]:
        try:
            answer = client.xreadgroup(self._group, self._group, {key: ">"}, count=CHUNK, noack=True)
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._is_joined = False  # the stream expired, or somebody deleted it or the group
            return self._read_from(client, key)
        return [_of_entry(fields) for _, entries in answer for _, fields in entries]

    def settle(self) -> None:
        """Nothing to do: what is read is read."""

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


def _age(entries: list[tuple[bytes, Any]]) -> float:
    """Return the seconds between the newest and the oldest of *entries*, which come newest first."""
    newest, oldest = (int(entries[index][0].partition(b"-")[0]) for index in (0, -1))
    return (newest - oldest) / 1000


def _of_entry(fields: Any, *, is_old: bool = False) -> Message:
    return Message(fields.get(b"body", b""), is_old=is_old)
