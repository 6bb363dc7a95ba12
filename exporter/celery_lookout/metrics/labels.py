"""
What users say about the values of a label: which ones are shown by name, and as what.

Renaming comes first; the lists see the new name. Values come from whoever may publish to the broker, so a pattern that
a value could keep busy for ever is refused, and long values are not looked at.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, get_args

from ..errors import SettingsError

#: Labels that have options of these.
LabelName = Literal["task", "queue", "worker"]
LABELS: Final[tuple[LabelName, ...]] = get_args(LabelName)

#: Longest value that is renamed, in characters: what a pattern costs grows with some power of it.
LONGEST_RENAMED: Final = 200

#: Escapes and sets of characters: nothing in them repeats or groups.
_ATOMS: Final = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)
#: A group without another one in it, and whether it is repeated without a limit.
_GROUP: Final = re.compile(r"\((?:\?(?:P?<\w+>|[:>=!]|<[=!]|[aiLmsux-]+:?))?([^()]*)\)(\*|\+|\{\d*,\d*\})?")
_REPEATS: Final = re.compile(r"[*+|]|\{\d*,\d*\}")

#: A reference to a group in a replacement, or a dollar sign.
_REFERENCE: Final = re.compile(r"\$(?:(\$)|(\d+)|\{(\w+)\})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rename:
    """Values that match the whole *pattern* are shown as *template*, in the form of :meth:`re.Match.expand`."""

    pattern: re.Pattern[str]
    template: str

    @classmethod
    def parse(cls, text: str, option: str) -> Rename:
        """Read ``PATTERN=REPLACEMENT`` with ``$1`` or ``${name}`` for groups. Raises SettingsError, with *option*."""
        source, equals, replacement = text.rpartition("=")
        try:
            if not equals or not source:
                raise ValueError("write for example celery@(.+)-[a-z0-9]+-[a-z0-9]+=$1")
            with warnings.catch_warnings():
                # Of sets in sets, which another Python may read otherwise.
                warnings.simplefilter("error", FutureWarning)
                pattern = re.compile(source)
            if _can_explode(source):
                raise ValueError("what is repeated must not hold a repetition or alternatives itself")
            return cls(pattern, _template(replacement, pattern))
        except (re.error, ValueError, RecursionError, OverflowError, FutureWarning) as error:
            raise SettingsError(f"--{option} {text!r} is not PATTERN=REPLACEMENT: {error}") from None

    def apply(self, value: str) -> str:
        """Return the new name, or *value* where the pattern does not match or nothing would be left."""
        match = self.pattern.fullmatch(value)
        return value if match is None else match.expand(self.template) or value


@dataclass(frozen=True, slots=True)
class LabelRules:
    """The rules for one label. No ``allow`` at all allows everything; ``deny`` wins. Both are globs."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    renames: tuple[Rename, ...] = ()

    @property
    def are_none(self) -> bool:
        """Whether every value is shown as it is."""
        return not (self.allow or self.deny or self.renames)

    def shown(self, value: str) -> str | None:
        """Return what *value* is shown as, None when the lists keep it out."""
        if len(value) <= LONGEST_RENAMED:
            for rename in self.renames:
                value = rename.apply(value)
        return value if self.lets_through(value) else None

    def lets_through(self, name: str) -> bool:
        """Say whether the lists let *name* be shown, which is not renamed any more."""
        return (not self.allow or _matches(self.allow, name)) and not _matches(self.deny, name)


@dataclass(frozen=True, slots=True)
class Labels:
    """The rules for all labels that have some."""

    task: LabelRules = field(default_factory=LabelRules)
    queue: LabelRules = field(default_factory=LabelRules)
    worker: LabelRules = field(default_factory=LabelRules)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Labels:
        """Make them of the options' values by ``Option.key``. Raises SettingsError for the first that is wrong."""
        return cls(
            **{
                label: LabelRules(
                    tuple(given[f"label_{label}_allow"]),
                    tuple(given[f"label_{label}_deny"]),
                    tuple(Rename.parse(text, f"label.{label}-rename") for text in given[f"label_{label}_rename"]),
                )
                for label in LABELS
            }
        )


def _matches(globs: Iterable[str], value: str) -> bool:
    return any(fnmatchcase(value, glob) for glob in globs)


def _template(replacement: str, pattern: re.Pattern[str]) -> str:
    def reference(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        group = match[2] or match[3]
        if group is None:
            raise ValueError("a $ stands for a group, as $1 or ${name}; write $$ for the sign itself")
        if int(group) > pattern.groups if group.isdigit() else group not in pattern.groupindex:
            raise ValueError(f"the pattern has no group {group}")
        return rf"\g<{group}>"

    return _REFERENCE.sub(reference, replacement.replace("\\", r"\\"))


def _can_explode(source: str) -> bool:
    """
    Say whether a value made for it could keep the pattern busy for ever, as ``(a+)+`` and ``(a|a)*`` can be kept.

    A repetition of what holds neither repetition nor alternatives takes at worst a power of the value's length.
    """
    text = _ATOMS.sub("x", source)
    while (group := _GROUP.search(text)) is not None:
        inner, repeated = group[1], group[2]
        holds = _REPEATS.search(inner) is not None
        if repeated and holds:
            return True
        text = f"{text[: group.start()]}x{'*' if repeated or holds else ''}{text[group.end() :]}"
    return False
