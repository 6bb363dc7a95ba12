"""The two distributions: what they contain, and what they drag in."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import celery_lookout
import celery_lookout_signals
from tests.servers.celery_versions import ROOT


def test_all_versions_agree() -> None:
    declared = [
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["version"]
        for folder in ("", "signals")
    ]
    assert {*declared, celery_lookout.__version__, celery_lookout_signals.__version__} == {declared[0]}


def test_worker_package_declares_no_dependency() -> None:
    project = tomllib.loads((ROOT / "signals" / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == []
    assert "optional-dependencies" not in project


_FOREIGN_MODULES = """
import sys
try:
    # The worker has it already; whatever it loads is not ours to answer for.
    import celery.signals
except ImportError:
    pass
before = set(sys.modules)
import celery_lookout_signals
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(tops - sys.stdlib_module_names - {"celery_lookout_signals"}))
"""


@pytest.mark.parametrize("isolated", [True, False], ids=["without Celery", "with Celery"])
def test_importing_the_worker_package_loads_nothing_foreign(isolated: bool) -> None:
    # -S keeps site-packages away: then there is nothing but the standard library to import.
    flags = ["-S"] if isolated else []
    loaded = subprocess.run(
        [
            sys.executable,
            "-E",
            *flags,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT / 'signals')!r})\n{_FOREIGN_MODULES}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.split() == []


def _installed(project: Path, folder: Path) -> Path:
    """Build a wheel and return where what it would install lies."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=project,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


@pytest.mark.parametrize(
    ("folder", "package"), [("", "celery_lookout"), ("signals", "celery_lookout_signals")], ids=["sidecar", "signals"]
)
def test_wheel_installs_only_our_own_name(folder: str, package: str, tmp_path: Path) -> None:
    names = {path.name for path in _installed(ROOT / folder, tmp_path).iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {package}


def test_the_wheel_has_all_that_the_assets_are_made_of(tmp_path: Path) -> None:
    def written(search_path: Path, name: str) -> dict[str, str]:
        subprocess.run(
            [sys.executable, "-m", "celery_lookout", "assets", "--out", name],
            cwd=tmp_path,
            env={"PYTHONPATH": str(search_path)},
            check=True,
            capture_output=True,
        )
        folder = tmp_path / name
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}

    installed = _installed(ROOT, tmp_path)
    assert (installed / "celery_lookout" / "assets" / "files").is_dir()
    assert written(installed, "from-wheel") == written(ROOT / "exporter", "from-checkout")


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    """Written so that this file does not either."""
    pattern = rb"/(?:work|root|home/[a-z]+)/"
    # What begins with a dot was made by tools, but for the one that CI runs.
    files = [file for top in ROOT.glob("[!.]*") for file in (top, *top.rglob("*")) if file.is_file()]
    files = [ROOT / ".ci" / "run", *(file for file in files if "__pycache__" not in file.parts)]
    assert len(files) > 100
    assert [file for file in files if re.search(pattern, file.read_bytes())] == []


def test_requirements_record_no_address() -> None:
    """They hold for any mirror, and tell nothing of the machine that made them."""
    for file in (ROOT / "requirements").glob("*.txt"):
        lines = file.read_text().splitlines()
        suspicious = [line for line in lines if "://" in line or line.startswith(("-i", "--index", "--extra-index"))]
        assert suspicious == [], file.name
