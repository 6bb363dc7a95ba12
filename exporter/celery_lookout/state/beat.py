"""Beat: whether it lives, and what its schedule did and will do, from its snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ..metrics.beat import BeatMetrics
from ..metrics.limits import LabelBudget
from ..metrics.registry import readable
from ..snapshots import BeatSnapshot
from .workers import KEEP_SECONDS

#: Beats followed. There should be one, of which a snapshot tells up to 1,000 entries.
BEATS_LIMIT: Final = 10

_Labels: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Beat:
    """One beat. ``told`` orders its snapshots."""

    heard_at: float = 0.0
    told: tuple[float, int] = (0.0, 0)
    entries: set[_Labels] = field(default_factory=set)


class Beats:
    """All beats of one broker. One that fell silent keeps its series for a while, for somebody to notice."""

    def __init__(self, metrics: BeatMetrics, *, names: LabelBudget) -> None:
        self._metrics = metrics
        self._names = names
        self._beats: dict[str, _Beat] = {}

    def take(self, snapshot: BeatSnapshot, now: float) -> None:
        """Take in a snapshot; an older one than what is known changes nothing."""
        beat = self._beats.get(snapshot.node)
        if beat is None:
            if len(self._beats) >= BEATS_LIMIT:
                self._metrics.last_heartbeat.drop()
                return
            beat = self._beats[snapshot.node] = _Beat()
        order = (snapshot.started_at, snapshot.seq)
        if order <= beat.told:
            return
        beat.told = order
        beat.heard_at = max(beat.heard_at, min(now, snapshot.at))
        self._metrics.last_heartbeat.child(snapshot.node).set(round(beat.heard_at, 3))
        before, beat.entries = beat.entries, set()
        for entry in snapshot.entries:
            labels = (readable(entry.entry), self._names.admit(entry.task))
            beat.entries.add(labels)
            self._show(labels, entry.last_sent_at, entry.next_due_at)
        self._remove(before - beat.entries)

    def shift(self, now: float) -> None:
        """Our own clock was set: nothing was heard later than *now*."""
        for name, beat in self._beats.items():
            if beat.heard_at > now:
                beat.heard_at = now
                self._metrics.last_heartbeat.child(name).set(round(now, 3))

    def refresh(self, now: float) -> None:
        """Forget beats that have been silent for long."""
        for name, beat in list(self._beats.items()):
            if now - beat.heard_at > KEEP_SECONDS:
                del self._beats[name]
                self._metrics.last_heartbeat.remove(name)
                self._remove(beat.entries)

    def _show(self, labels: _Labels, last_sent_at: float | None, next_due_at: float | None) -> None:
        for bound, value in ((self._metrics.last_sent, last_sent_at), (self._metrics.next_due, next_due_at)):
            if value is None:
                bound.remove(*labels)
            else:
                bound.child(*labels).set(value)

    def _remove(self, entries: set[_Labels]) -> None:
        """Remove the series of *entries*, except those that another beat has as well."""
        for labels in entries:
            if not any(labels in beat.entries for beat in self._beats.values()):
                self._metrics.last_sent.remove(*labels)
                self._metrics.next_due.remove(*labels)
