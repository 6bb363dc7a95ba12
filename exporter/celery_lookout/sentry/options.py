"""What the settings say about forwarding, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal
from urllib.parse import urlsplit

from ..errors import SettingsError

#: The number of the project; a path in front of it is allowed.
_PROJECT: Final = re.compile(r"/(?:.+/)?[0-9]+")


@dataclass(frozen=True, slots=True)
class SentryOptions:
    """Where failures go, and which. There are none of these with mode ``off``."""

    dsn: str = field(repr=False)
    mode: Literal["all", "infra"]
    environment: str | None = None
    release: str | None = None
    #: Part of the failures that is sent, above 0 and up to 1.
    sample_rate: float = 1.0
    #: Globs of task names, or of TASK:EXCEPTION. No ``allow`` at all allows everything; ``deny`` wins.
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    #: Events that may go out at once, and in each minute from then on: all together, and of one (task, exception).
    limit: int = 60
    limit_per_fault: int = 10
    #: Folders left away from the paths of source files.
    strip_prefixes: tuple[str, ...] = ()
    #: Seconds without a start after which a queue with tasks in it counts as stuck.
    stuck_after: float = 900.0
    crons: bool = False

    def __post_init__(self) -> None:
        if not _is_dsn(self.dsn):
            # Not quoted: it is a password of sorts.
            raise SettingsError(
                "--sentry.dsn is no DSN: write https://KEY@HOST/PROJECT, as the project's settings have it"
            )
        if self.sample_rate > 1:
            raise SettingsError(
                f"--sentry.sample-rate {self.sample_rate!r} must not be above 1, which sends everything"
            )

    def wants(self, task: str, exception: str) -> bool:
        """Say whether the lists let failures of *task* by this class of exception through."""
        names = (task, f"{task}:{exception}")
        return (not self.allow or _matches(self.allow, names)) and not _matches(self.deny, names)


def _is_dsn(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # read only now, and refused if it is no number
    except ValueError:
        return False
    named = parts.scheme in ("http", "https") and parts.username and parts.hostname and not re.search(r"\s", text)
    return bool(named and _PROJECT.fullmatch(parts.path))


def _matches(patterns: Sequence[str], names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)
