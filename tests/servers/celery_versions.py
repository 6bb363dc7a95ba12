"""
Python interpreters with a given Celery version.

The newest version is the test environment itself. The others get environments of their own, from hashed requirements.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from tests.servers import environments

ROOT = environments.ROOT

#: Celery version and the file that pins it; None is the environment that runs the tests.
REQUIREMENTS: dict[str, Path | None] = {
    "5.3.6": ROOT / "requirements" / "celery-5.3.txt",
    "5.5.3": ROOT / "requirements" / "celery-5.5.txt",
    importlib.metadata.version("celery"): None,
}
NEWEST = importlib.metadata.version("celery")
VERSIONS = tuple(REQUIREMENTS)


def python_with_celery(version: str) -> Path:
    """Return an interpreter that has Celery *version*; skip the test when it cannot be made (no package index)."""
    requirements = REQUIREMENTS[version]
    if requirements is None:
        return Path(sys.executable)
    return environments.python_with(f"celery-{version}", requirements)
