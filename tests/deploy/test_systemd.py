"""The unit for systemd: its command works, and it takes every right away that the sidecar can do without."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import Broker
from tests.servers.process import need
from tests.servers.sidecar import Sidecar

UNIT = Path(__file__).parents[2] / "deploy" / "celery-lookout.service"
PROGRAM = "/opt/celery-lookout/bin/celery-lookout"


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = need(shutil.which("systemd-analyze"), "systemd-analyze", "apt-get install systemd")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


def test_systemd_understands_all_of_it(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # Only the program is not there.
    unit.write_text(UNIT.read_text().replace(PROGRAM, sys.executable))
    found = analyze("verify", "--man=no", unit)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=very"))
    assert "protect system" in analyze("verify", "--man=no", unit).stderr


def test_it_takes_rights_away() -> None:
    """The scale: 9.6 for a service without any measure, 0 for one that can do nothing."""
    assert analyze("security", "--offline=true", "--threshold=15", UNIT).returncode == 0
    assert analyze("security", "--offline=true", "--threshold=5", UNIT).returncode != 0


def test_its_command_runs_and_keeps_its_state(redis_broker: Broker, tmp_path: Path) -> None:
    [line] = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    credentials, state = tmp_path / "credentials", tmp_path / "state"
    credentials.mkdir()
    state.mkdir()
    (credentials / "broker").write_text(f"{redis_broker.url}\n")
    folders = {"${CREDENTIALS_DIRECTORY}": str(credentials), "${STATE_DIRECTORY}": str(state)}
    for variable, folder in folders.items():
        line = line.replace(variable, folder)
    program, subcommand, *options = shlex.split(line)
    assert (program, subcommand) == (PROGRAM, "serve")
    with Sidecar("", tmp_path, *options) as sidecar:
        assert sidecar.value("celery_exporter_broker_up") == 1
        sidecar.stop()
        assert sidecar.process is not None
        assert sidecar.process.returncode == 0
    assert (state / "state").exists()
