"""How many values a label may take. What may not be shown by its name shares the value ``_other``."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, Literal, get_args

from .labels import LabelRules
from .registry import OTHER, readable

#: Why a value is not shown by name: the user's lists keep it out, or the label is full.
DropReason = Literal["denied", "limit"]
DROP_REASONS: Final[tuple[DropReason, ...]] = get_args(DropReason)

#: The label value for what could not be found out. It needs no place, and no list keeps it out: it is no name.
UNKNOWN: Final = "unknown"

#: Values of which it is remembered what they are shown as. Renaming may lead any number of them to one name.
REMEMBERED: Final = 10_000


class LabelBudget:
    """
    Admits the first *limit* names of one label that *rules* let through, and keeps one copy of each string.

    *dropped* is told each time that a value is answered with ``_other``.
    """

    __slots__ = ("_dropped", "_known", "_limit", "_names", "_rename", "_rules", "is_plain")

    def __init__(
        self, limit: int, rules: LabelRules | None = None, dropped: Callable[[DropReason], None] | None = None
    ) -> None:
        self._rules = rules = rules or LabelRules()
        #: Whether a value is either shown as it is or as ``_other``.
        self.is_plain = rules.are_none
        self._rename = lru_cache(maxsize=REMEMBERED)(rules.shown)
        self._dropped = dropped
        self._limit = limit
        #: What values are shown as, of those that the limit did not keep out.
        self._known: dict[str, str] = {}
        #: The names that have a place.
        self._names: dict[str, str] = {}

    def admit(self, value: str) -> str:
        """Return the name that *value* is shown as, ``_other`` when it may not be shown."""
        known = self._known.get(value)
        if known is None:
            return self._judge(value)
        if known is OTHER:
            self._drop("denied")
        return known

    def _judge(self, value: str) -> str:
        if value in (OTHER, UNKNOWN):
            return value
        name = readable(value) if self.is_plain else self._rename(readable(value))
        if name is None or name == OTHER:
            self._drop("denied")
            name = OTHER
        elif name != UNKNOWN:
            name = self._place(name)
            if name is OTHER:
                return OTHER
        if len(self._known) >= self._limit + REMEMBERED:
            self._known.clear()
        self._known[value] = name
        return name

    def keep(self, name: str) -> str:
        """Return the name that something is shown as which an earlier process showed as *name*: it is not renamed."""
        if name in (OTHER, UNKNOWN):
            return name
        if not self._rules.lets_through(name):
            self._drop("denied")
            return OTHER
        return self._place(name)

    def _place(self, name: str) -> str:
        """Return our copy of *name*, which has a place from now on; ``_other`` when there is none left."""
        if name not in self._names:
            if len(self._names) >= self._limit:
                self._drop("limit")
                return OTHER
            self._names[name] = name
        return self._names[name]

    def _drop(self, reason: DropReason) -> None:
        if self._dropped is not None:
            self._dropped(reason)
