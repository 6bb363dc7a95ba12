"""
Strict reading of YAML: each key is asked for by name and type, and an unknown one is an error.

Errors name file, line and key. They show a value only where it is one of a list of words: others may be secrets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import yaml

from ..errors import SettingsError

_BOOL: Final = "tag:yaml.org,2002:bool"
_NULL: Final = "tag:yaml.org,2002:null"
#: What YAML 1.1, and so Prometheus, takes for true.
_TRUE: Final = frozenset({"true", "yes", "on", "y"})


class Section:
    """A mapping, named *name*, in *file*, a name for errors. A key whose value is null is as good as absent."""

    def __init__(self, file: str, name: str = "", node: yaml.MappingNode | None = None) -> None:
        self._file = file
        self._name = name
        self._nodes: dict[str, yaml.Node] = {}
        self._lines: dict[str, int] = {}
        for key, value in node.value if node is not None else ():
            if not isinstance(key, yaml.ScalarNode):
                raise self.wrong("", "has a key that is no plain word")
            self._lines[key.value] = key.start_mark.line + 1
            if key.value in self._nodes:
                raise self.wrong(key.value, "is there twice: leave only one")
            self._nodes[key.value] = value

    @classmethod
    def parse(cls, file: str, text: str) -> Section:
        """Read a whole document. Raises SettingsError when it is no YAML or no mapping."""
        try:
            node = yaml.compose(text, yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            # Its own text quotes the file, secrets and all.
            mark = getattr(error, "problem_mark", None)
            line = f" in line {mark.line + 1}" if mark is not None else ""
            raise SettingsError(f"{file} cannot be read: it is not YAML{line}") from None
        if node is not None and node.tag != _NULL and not isinstance(node, yaml.MappingNode):
            raise SettingsError(f"{file} must be a mapping of names to values")
        return cls(file, "", node if isinstance(node, yaml.MappingNode) else None)

    def wrong(self, key: str, what: str) -> SettingsError:
        """Return an error that says *what* is wrong with *key*; the empty key is the section itself."""
        line = f", line {self._lines[key]}" if key in self._lines else ""
        return SettingsError(f"{self._file}{line}: {self._path(key)[:100] or 'it'} {what}")

    def only(self, *known: str) -> None:
        """Raise SettingsError if there is a key besides *known*."""
        for key in self._nodes:
            if key not in known:
                raise self.wrong(key, f"is not known here; known are {', '.join(known)}")

    def text(self, key: str) -> str:
        """Return the text at *key*, empty when there is none."""
        node = self._find(key)
        return "" if node is None else self._text(key, node)

    def choice(self, key: str, choices: Collection[str], default: str) -> str:
        """Return the text at *key*, which is one of *choices*."""
        value = self.text(key) or default
        if value not in choices:
            raise self.wrong(key, f"is {value[:64]!r}: write {_one_of(choices)}")
        return value

    def texts(self, key: str) -> list[str]:
        """Return the list of texts at *key*, empty when there is none."""
        node = self._find(key)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self.wrong(key, "must be a list")
        return [self._text(key, item) for item in node.value]

    def flag(self, key: str, *, default: bool) -> bool:
        """Return the truth at *key*."""
        node = self._find(key)
        if node is None:
            return default
        if node.tag != _BOOL:
            raise self.wrong(key, "must be true or false, without quotes")
        return str(node.value).lower() in _TRUE

    def section(self, key: str) -> Section:
        """Return the mapping at *key*, empty when there is none."""
        node = self._find(key)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise self.wrong(key, "must be a mapping of names to values")
        return Section(self._file, self._path(key), node)

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def _find(self, key: str) -> yaml.Node | None:
        node = self._nodes.get(key)
        return None if node is None or node.tag == _NULL else node

    def _text(self, key: str, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.wrong(key, "must be a text")
        return str(node.value)

    def _path(self, key: str) -> str:
        return ".".join(filter(None, (self._name, key)))


def _one_of(choices: Collection[str]) -> str:
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last
