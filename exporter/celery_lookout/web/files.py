"""Remembers the files that something was read from, to see when one of them changes."""

from __future__ import annotations

from pathlib import Path

#: What tells a file from its next version: time of change, inode, size. Links are followed, as a Secret's are.
Stamp = tuple[int, int, int] | None


class Files:
    """Files read together."""

    def __init__(self) -> None:
        self._stamps: dict[Path, Stamp] = {}

    def read(self, path: Path) -> bytes:
        """Return what is in the file at *path*. Raises OSError; ValueError for a path that there cannot be."""
        # Stamped before it is read: a change meanwhile shows later.
        self._stamps[path] = _stamp(path)
        return path.read_bytes()

    def changed(self) -> bool:
        """Say whether one of them is not what it was when it was read."""
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
