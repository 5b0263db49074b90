"""What operators deploy agrees with the code, with the image, and with the schemas of those who read it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from enclave_server.settings import Settings
from tools import container_root, container_sh

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile.enclave").read_text()
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes/enclave.yaml").read_text()))


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (m for m in MANIFESTS if m["kind"] == kind)
    return found


def test_the_example_configurations_are_settings() -> None:
    """The file that operators start from, and the one in the ConfigMap, are accepted as they are."""
    settings = Settings.load(DEPLOY / "enclave.toml")
    inner = Settings.load(manifest("ConfigMap")["data"]["enclave.toml"].encode())
    for each in (settings, inner):
        assert str(each.engine_python) == "/opt/engine/bin/python"
        assert str(each.runtime_dir) == "/run/enclave"
        assert each.port == 8443
    assert settings.engine_user == "engine"
    assert inner.engine_user is None  # it runs as one user there


def test_every_setting_is_in_the_operators_table() -> None:
    """docs/operate.md names each setting once, and none that does not exist."""
    table = (ROOT / "docs/operate.md").read_text().partition("## Every setting")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(Settings.model_fields)


def test_the_image_sets_no_setting() -> None:
    """Variables are measured by nobody, so on a real TEE the gateway would refuse to start with one."""
    assert not re.search(r"^\s*(ENV|ARG)?\s*ENCLAVE_", DOCKERFILE, re.MULTILINE)


def test_the_image_and_its_users_agree_with_what_runs_it() -> None:
    """Numbers and paths that stand in several files are the same everywhere."""
    users = (DEPLOY / "systemd/enclave.sysusers.conf").read_text()
    for name, number in (("gateway", "10001"), ("engine", "10002")):
        assert f"--uid {number} --gid {name}" in DOCKERFILE
        assert re.search(rf"^u {name} {number}", users, re.MULTILINE)
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 10001
    compose = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]["enclave"]
    assert sorted(compose["cap_add"]) == ["SETGID", "SETUID"]
    assert compose["read_only"] is True
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"/etc/enclave", "/models", "/var/lib/enclave", "/run/enclave", "/tmp", "/dev/shm"}  # noqa: S108
    assert {Path("/", name) for name in container_root.EMPTY} >= {Path("/models"), Path("/run/enclave")}


def test_the_pod_is_confidential_and_can_do_nothing_else() -> None:
    """A runtime class of its own, no capability, no writable root, an image by digest, a claim that exists once."""
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["runtimeClassName"].startswith("kata-qemu-")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == names


def test_kubernetes_schemas_accept_the_manifests() -> None:
    """Kubernetes' own published schemas, strictly: no unknown field, no wrong type."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for each in MANIFESTS:
        validate.validate(each, "1.37", strict=True)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """No directive that systemd does not know."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    unit = (DEPLOY / "systemd/enclave.service").read_text()
    program = "/opt/gateway/bin/enclave-server"
    assert f"ExecStart={program} serve --config /etc/enclave/enclave.toml" in unit
    copy = tmp_path / "enclave.service"
    copy.write_text(unit.replace(program, "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", copy], capture_output=True, text=True, check=False, timeout=240
    )
    assert [line for line in done.stderr.splitlines() if "enclave.service" in line] == []


def test_the_linter_accepts_the_dockerfile() -> None:
    """hadolint, where it is installed."""
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("no hadolint")
    subprocess.run([hadolint, ROOT / "Dockerfile.enclave"], check=True, timeout=240)


def test_the_stand_in_for_a_shell_answers_one_question(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the processors as lscpu does, and is a shell to nobody else."""
    assert container_sh.main(container_sh.QUESTION) == 0
    answer = json.loads(capsys.readouterr().out)["cpus"]
    assert [cpu["cpu"] for cpu in answer] == container_sh.online()
    assert all(set(cpu) == {"cpu", "core", "node"} for cpu in answer)
    for command in (["-c", "id"], [], ["-i"], [*container_sh.QUESTION, "; id"]):
        assert container_sh.main(command) == 127


def test_what_a_compiled_file_needs_comes_along() -> None:
    """The C library of this very Python is found, and what lies in the environment itself is not copied twice."""
    found = container_root.needed([Path(sys.executable).resolve()], within=[])
    assert any(path.name == "libc.so.6" for path in found)
    assert all(path.exists() for path in found)


def test_the_example_names_no_secret() -> None:
    """A configuration is shown to clients by its digest, and by operators to each other."""
    assert not any("secret" in name for name in tomllib.loads((DEPLOY / "enclave.toml").read_text()))
