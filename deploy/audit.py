"""
Run pip-audit over a file of requirements, and tell "nothing known" from "could not ask".

    python deploy/audit.py requirements/runtime.txt

Exit code 1 when a vulnerability is known; 0 when none is, or when the database could not be asked, which is said.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main(requirements: str) -> int:
    """Audit the packages in the file *requirements*, which has hashes."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--require-hashes", "--disable-pip"]
    done = subprocess.run([*command, "-r", requirements], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"{requirements}: not checked: {done.stderr.strip().splitlines()[-1:]}")
        return 0
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    for package in packages:
        for found in package.get("vulns", ()):
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {found['fix_versions'] or 'none'}")
    if unknown:
        print(f"{requirements}: not checked, the database does not answer for them: {', '.join(unknown)}")
    known = sum(len(package.get("vulns", ())) for package in packages)
    print(f"{requirements}: {len(packages) - len(unknown)} packages checked, {known} vulnerabilities")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
