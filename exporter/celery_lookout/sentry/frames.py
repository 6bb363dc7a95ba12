"""Whose code a file is, and by which name it is known whatever folder it lies in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

#: After these a path is that of an installed package.
_PACKAGES: Final = ("/site-packages/", "/dist-packages/")
#: The standard library's folder: on Unix, on Windows.
_STANDARD = re.compile(r"/lib(?:64)?/(?:python|pypy)\d\.\d{1,2}t?/|/python\d*/lib/", re.IGNORECASE)
#: What runs tasks, from a checkout too. An application's folder may be called celery: only files that it has not.
_RUNNER = re.compile(
    r"(?:^|/)(?:celery/(?:local|app/(?:trace|autoretry|builtins)|worker/(?:request|strategy))"
    r"|(?:billiard|kombu)/[^/]+)\.py$"
)
_RUNNERS: Final = frozenset({"celery", "billiard", "kombu"})
#: Compiled from what lies on another machine.
_COMPILED: Final = (".pyx", ".pxd", ".pxi", "stringsource")


class Place(Struct, frozen=True, gc=False):
    """What is shown of a frame's file."""

    filename: str
    is_app: bool
    module: str = ""


class Places:
    """
    Judges the files of one traceback.

    *strip_prefixes* are folders without which paths are shown. The folder in which the application lies is another:
    it is known when one of *files* ends in the task's module. By it the files of the task's package have modules, too.
    That package is the application's even where it is installed beside others.
    """

    def __init__(self, task: str, files: Iterable[str], strip_prefixes: Sequence[str] = ()) -> None:
        module = task.rpartition(".")[0]
        self._package = module.partition(".")[0]
        self._home = _home(module.replace(".", "/"), files)
        folders = [_slashes(prefix).rstrip("/") + "/" for prefix in strip_prefixes if prefix]
        self._folders = (*sorted(folders, key=len, reverse=True), self._home)

    def of(self, file: str) -> Place:
        """Return what to show of *file*, a path as Python prints it."""
        path = _slashes(file)
        if path.startswith("<") or path == "...":
            # Generated code, frozen modules, a string: the frame before tells who called it. "..." is billiard's.
            return Place(path, is_app=False)
        for packages in _PACKAGES:
            _, found, rest = path.rpartition(packages)
            if found:
                # Many install their application as a package.
                is_app = rest.startswith(f"{self._package}/") and self._package not in _RUNNERS
                return Place(rest, is_app, self._module(rest) if is_app else "")
        standard = _STANDARD.search(path)
        if standard:
            return Place(path[standard.end() :], is_app=False)
        is_app = not (_RUNNER.search(path) or path.endswith(_COMPILED))
        folder = next((folder for folder in self._folders if folder and path.startswith(folder)), "")
        below = path[len(self._home) :] if self._home and path.startswith(self._home) else ""
        return Place(path[len(folder) :] or path, is_app, self._module(below) if is_app else "")

    def _module(self, below: str) -> str:
        """Return the module of a file of the task's package; *below* is its path from the application's folder."""
        if not below.endswith(".py"):
            return ""
        parts = below.removesuffix(".py").removesuffix("/__init__").split("/")
        return ".".join(parts) if parts[0] == self._package else ""


def _home(module: str, files: Iterable[str]) -> str:
    """Return the folder below which *module*, a path without ending, is one of *files*; empty if none is."""
    ends = (f"/{module}.py", f"/{module}/__init__.py") if module else ()
    for path in map(_slashes, files):
        for end in ends:
            if path.endswith(end) and not any(packages in path for packages in _PACKAGES):
                return path.removesuffix(end) + "/"
    return ""


def _slashes(path: str) -> str:
    return path.replace("\\", "/")
