"""Writes ``rules.yml``; ``python -m alerts.generate``. The rules themselves are in ``celery_lookout.assets``."""

from __future__ import annotations

from pathlib import Path

from celery_lookout.assets.rules import rule_file
from celery_lookout.assets.text import to_yaml

RULES = Path(__file__).parent / "rules.yml"

_HEAD = "# Made by python -m alerts.generate; do not edit. With other settings: celery-lookout assets --help\n"


def rules_text() -> str:
    """Return the text of ``rules.yml``."""
    return _HEAD + to_yaml(rule_file())


if __name__ == "__main__":
    RULES.write_text(rules_text())
