"""
Python interpreters with a given Celery version.

The newest version is the test environment itself. The others get environments of their own under ``.cache``, made on
demand from hashed requirements and made again when those change.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers.process import need

ROOT = Path(__file__).resolve().parents[2]

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
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with (cache / f"celery-{version}.lock").open("w") as lock:
        # Two test runs may want it at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _environment(cache / f"celery-{version}", requirements)


def _environment(folder: Path, requirements: Path) -> Path:
    python = folder / "bin" / "python"
    stamp = folder / "made-from"
    wanted = f"{sys.version}\n{hashlib.sha256(requirements.read_bytes()).hexdigest()}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    installed = subprocess.run(
        [*pip, "--require-hashes", "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        need(None, folder.name, f"pip install -r requirements/{requirements.name} failed:\n{installed.stderr[-2000:]}")
    stamp.write_text(wanted)
    return python
