"""How many events may go out: token buckets, one for all and one for each kind of failure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

#: Kinds of failure that have a bucket. Past that the one used longest ago starts anew; the bucket for all still holds.
KINDS_LIMIT: Final = 10_000


class TokenBucket:
    """Lets *per_minute* through at once, and as many in each minute from then on."""

    __slots__ = ("_filled_at", "_per_minute", "_tokens")

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._tokens = float(per_minute)
        self._filled_at = now

    def has_token(self, now: float) -> bool:
        """Say whether there is a token at *now*, in seconds by a clock that is never set back."""
        refill = (now - self._filled_at) * self._per_minute / 60
        self._tokens = min(self._tokens + refill, float(self._per_minute))
        self._filled_at = now
        return self._tokens >= 1

    def take(self) -> None:
        """Take the token that is there."""
        self._tokens -= 1


class Limits:
    """A bucket for everything, and one for each (task, class of exception)."""

    def __init__(self, per_minute: int, per_minute_and_kind: int, now: float) -> None:
        self._all = TokenBucket(per_minute, now)
        self._per_minute_and_kind = per_minute_and_kind
        self._kinds: OrderedDict[tuple[str, str], TokenBucket] = OrderedDict()

    def admit(self, kind: tuple[str, str], now: float) -> bool:
        """Say whether one more of *kind* may go out. One that may not costs the others nothing."""
        bucket = self._kinds.get(kind)
        if bucket is None:
            if len(self._kinds) >= KINDS_LIMIT:
                self._kinds.popitem(last=False)
            bucket = self._kinds[kind] = TokenBucket(self._per_minute_and_kind, now)
        self._kinds.move_to_end(kind)
        if not (bucket.has_token(now) and self._all.has_token(now)):
            return False
        bucket.take()
        self._all.take()
        return True
