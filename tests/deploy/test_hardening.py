"""What runs in a container has no more rights than it needs: in Docker, in Kubernetes, and from the image itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
#: Those whose image we make; the others' images are what their makers made of them.
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)

PODS = {
    file.name: document["spec"]["template"]["spec"]
    for file in sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
    if "template" in document.get("spec", {})
}


def test_there_is_something_to_look_at() -> None:
    assert OURS == ["beat", "lookout", "visitors", "worker"]
    assert "worker.yaml" in PODS


@pytest.mark.parametrize("name", OURS)
def test_compose_gives_what_is_ours_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"cap_add", "privileged", "user", "devices", "pid", "network_mode"}


@pytest.mark.parametrize("name", SERVICES)
def test_compose_gives_others_no_more_than_docker_does(name: str) -> None:
    assert "no-new-privileges:true" in SERVICES[name]["security_opt"]
    assert not SERVICES[name].keys() & {"cap_add", "privileged", "devices", "pid", "network_mode"}
    for mount in SERVICES[name].get("volumes", ()):
        # Of this machine's files nothing can be changed; a named volume is the container's own.
        assert mount.endswith(":ro") or mount[0] not in "./~", mount


@pytest.mark.parametrize("name", PODS)
def test_kubernetes_gives_a_pod_no_rights(name: str) -> None:
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all("hostPath" not in volume for volume in pod["volumes"])
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("stage", ["demo", "the last"])
def test_the_image_runs_as_a_number_that_is_not_root(stage: str) -> None:
    """A number, since Kubernetes cannot tell whether a name is root; and nothing is made its property."""
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    [text] = [one for one in stages if " AS demo" in one] if stage == "demo" else [stages[-1]]
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["65532:65532"]
    assert not re.search(r"--chown|chown |chmod |VOLUME", text)
