"""
What the tests make for themselves, once, and keep under ``.cache``: Python environments, a migrated database.

Each is made on demand, under a lock because two test runs may want it at once, and made again when what it was made
from has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.servers.process import need

ROOT = Path(__file__).resolve().parents[2]


def make_once(name: str, made_from: str, make: Callable[[Path], None]) -> Path:
    """
    Return the folder *name*, filled by *make* unless it was already, from the same *made_from*.

    *make* gets a path where nothing is. When it raises, the next one who asks tries again.
    """
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    folder = cache / name
    stamp = folder / "made-from"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != made_from:
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            stamp.write_text(made_from)
    return folder


def made_from(requirements: Path) -> str:
    """Say what an environment with these requirements is made from."""
    return f"{sys.version}\n{hashlib.sha256(requirements.read_bytes()).hexdigest()}\n"


def python_with(name: str, requirements: Path) -> Path:
    """Return the interpreter of environment *name*; skip the test when it cannot be made (no package index)."""
    folder = make_once(name, made_from(requirements), lambda folder: _install(folder, requirements))
    return folder / "bin" / "python"


def _install(folder: Path, requirements: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    installed = subprocess.run(
        [*pip, "--require-hashes", "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        need(None, folder.name, f"pip install -r requirements/{requirements.name} failed:\n{installed.stderr[-2000:]}")
