"""
Install the servers that the tests need and pip cannot bring: Redis, RabbitMQ, Prometheus, Alertmanager.

As root on Debian and its children it does so with apt; elsewhere it prints the command that would. What is there is not
touched, and what is installed is not started: the tests run private servers of their own. Only the standard library is
used here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

#: Debian package and the programs that show it is there; any one of them will do.
PACKAGES: dict[str, tuple[str, ...]] = {
    "redis-server": ("redis-server", "valkey-server"),
    # The one on PATH is a wrapper for root; the tests use the script behind it.
    "rabbitmq-server": ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server"),
    # Brings promtool.
    "prometheus": ("promtool",),
    # Brings amtool.
    "prometheus-alertmanager": ("amtool",),
    # Checks the unit; it is not started.
    "systemd": ("systemd-analyze",),
}

#: Debian asks this program before a package starts its service; 101 means no.
POLICY = Path("/usr/sbin/policy-rc.d")
REFUSE = "#!/bin/sh\nexit 101\n"


def missing() -> list[str]:
    """Return the packages of which no program is found. Debian keeps servers out of a user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return [
        package for package, programs in PACKAGES.items() if not any(shutil.which(one, path=path) for one in programs)
    ]


@contextlib.contextmanager
def no_service_starts() -> Iterator[None]:
    """Refuse every service start for a while, and put back what was there before, whatever happens."""
    before = (POLICY.read_bytes(), POLICY.stat().st_mode & 0o777) if POLICY.exists() else None
    # Turns a polite kill into an exception, so that the file does not stay behind.
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    POLICY.write_text(REFUSE)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        if before:
            POLICY.write_bytes(before[0])
            POLICY.chmod(before[1])
        signal.signal(signal.SIGTERM, handler)


def install(packages: list[str]) -> bool:
    """Install with apt; return whether it worked."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Another installation may hold the lock for a moment.
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    update = [*apt, "update"]
    with no_service_starts():
        # A mirror of which one part fails may still have the packages.
        subprocess.run(update, env=env, check=False)
        return (
            subprocess.run([*apt, "install", "--no-install-recommends", *packages], env=env, check=False).returncode
            == 0
        )


def main() -> int:
    packages = missing()
    if not packages:
        return 0
    command = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if shutil.which("apt-get") and os.geteuid() == 0:
        print(f"{command}  (their services are not started)", flush=True)
        if install(packages):
            return 0
        print(f"failed: {command}", file=sys.stderr)
    elif shutil.which("apt-get"):
        print(f"Some tests need programs that are missing. Get them with:\n\n    sudo {command}\n")
    else:
        names = " ".join(package.removesuffix("-server").removeprefix("prometheus-") for package in packages)
        print(f"Some tests need programs that are missing. Get them with, for example:\n\n    brew install {names}\n")
    # Where everything is required there is no use in going on.
    return 1 if os.environ.get("REQUIRE_REAL") else 0


if __name__ == "__main__":
    sys.exit(main())
