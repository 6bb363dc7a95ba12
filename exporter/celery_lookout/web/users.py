"""
Says whether a password is right, and takes the same time to say no, whether there is such a user or not.

A bcrypt comparison takes a tenth of a second or more by design. So one at a time runs in a thread, a few may wait, and
answers are remembered by a keyed hash of what was asked: never the password itself.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

#: Comparisons that run or wait: at a tenth of a second each, the last one waits for less than two.
MOST_WAITING: Final = 16
#: Right and wrong answers that are remembered, of each so many: wrong ones must not push out right ones.
MOST_REMEMBERED: Final = 100
#: What bcrypt takes of a password; Go's leaves the rest away, Python's refuses.
_LONGEST: Final = 72


class TooManyLogins(Exception):
    """So many comparisons wait that another one would wait too long."""


class Passwords:
    """Compares passwords with *matches*, of a password and a hash."""

    def __init__(self, matches: Callable[[bytes, bytes], bool]) -> None:
        self._matches = matches
        self._secret = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._waiting = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="bcrypt")

    async def allow(self, users: Mapping[bytes, bytes], name: bytes, password: bytes) -> bool:
        """Say whether *users*, names and bcrypt hashes, has *name* with *password*. Raises TooManyLogins."""
        wanted = users.get(name)
        # The same for unknown names: somebody's hash, so that it costs what it costs for users.
        compared = wanted if wanted is not None else self._somebodys(users, name)
        asked = self._digest(b"stranger" if wanted is None else b"user", name, compared, password)
        for remembered in (self._right, self._wrong):
            if asked in remembered:
                remembered.move_to_end(asked)
                return remembered is self._right
        allowed = await self._compare(password[:_LONGEST], compared) and wanted is not None
        remembered = self._right if allowed else self._wrong
        remembered[asked] = None
        if len(remembered) > MOST_REMEMBERED:
            remembered.popitem(last=False)
        return allowed

    def close(self) -> None:
        """Check no more; who waits is forgotten."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _compare(self, password: bytes, compared: bytes) -> bool:
        if self._waiting >= MOST_WAITING:
            raise TooManyLogins
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._matches, password, compared)
        finally:
            self._waiting -= 1

    def _somebodys(self, users: Mapping[bytes, bytes], name: bytes) -> bytes:
        """Return the hash of one of *users*, always the same for the same name."""
        hashes = list(users.values())
        return hashes[int.from_bytes(self._digest(name)) % len(hashes)]

    def _digest(self, *parts: bytes) -> bytes:
        framed = b"".join(len(part).to_bytes(4) + part for part in parts)
        return hmac.digest(self._secret, framed, "sha256")


def bcrypt_matches(password: bytes, compared: bytes) -> bool:
    """Say whether *password* is that of the bcrypt hash *compared*."""
    import bcrypt  # only where there are users

    return bcrypt.checkpw(password, compared)
