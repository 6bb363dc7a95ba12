"""How many values a label may take. What comes after the limit shares the value ``_other``."""

from __future__ import annotations

from .registry import OTHER


class LabelBudget:
    """Admits the first *limit* values of one label, and keeps one copy of each string."""

    __slots__ = ("_known", "_limit", "refused")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}
        #: How often a value was answered with ``_other``.
        self.refused = 0

    def admit(self, value: str) -> str:
        """Return *value*, or ``_other`` when the label is full."""
        known = self._known.get(value)
        if known is not None:
            return known
        if len(self._known) >= self._limit:
            self.refused += 1
            return OTHER
        self._known[value] = value
        return value
