"""The Helm chart, rendered by Helm: Kubernetes' schemas accept it, and it says what the launch has to measure."""

from __future__ import annotations

import gzip
import json
import subprocess
from base64 import b64encode
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from enclave_server.settings import Settings
from tools import helm

yaml = pytest.importorskip("yaml")

KERNEL = "io.katacontainers.config.hypervisor.kernel_params"
INITDATA = "io.katacontainers.config.hypervisor.cc_init_data"

pytestmark = pytest.mark.skipif(not helm.PROGRAM.is_file(), reason="no Helm: `make helm` fetches it")


def rendered(*options: str, release: str = "enclave") -> dict[str, dict[str, Any]]:
    """By kind."""
    done = helm.render(*options, release=release)
    assert done.returncode == 0, done.stderr
    found = [each for each in yaml.safe_load_all(done.stdout) if each]
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


def refused(*options: str) -> str:
    done = helm.render(*options)
    assert done.returncode != 0
    return done.stderr


def pod(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = manifests["Deployment"]["spec"]["template"]
    return found


def test_the_manifests_are_the_chart() -> None:
    """deploy/kubernetes is what the chart gives with its defaults."""
    assert helm.RENDERED.read_text() == helm.text()


def test_helm_accepts_the_chart() -> None:
    """Its own linter, strictly."""
    repository, digest = helm.PLACEHOLDERS
    image = f"image.repository={repository},image.digest={digest}"
    command: list[str | Path] = [helm.PROGRAM, "lint", "--strict", helm.CHART, "--set-string", image]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--set", "runtimeClassName=kata-qemu-snp,replicas=3,service.type=LoadBalancer"),
        ("--set-json", 'resources={"limits":{"nvidia.com/pgpu":1}}'),
        ("--set-string", "memory.run=200Gi"),
    ],
)
def test_kubernetes_schemas_accept_what_it_renders(options: tuple[str, ...]) -> None:
    """Kubernetes' own published schemas, strictly, for other values too."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for each in rendered(*options).values():
        validate.validate(each, "1.37", strict=True)


def test_the_configurations_digest_goes_to_the_measured_command_line(tmp_path: Path) -> None:
    """The annotation has the SHA-256 of exactly the file that the gateway will read, whatever is in it."""
    config = tmp_path / "enclave.toml"
    config.write_text(rendered()["ConfigMap"]["data"]["enclave.toml"] + '# größe "x" {{ y }}\\\n\n')
    manifests = rendered("--set-file", f"config={config}")
    content = manifests["ConfigMap"]["data"]["enclave.toml"].encode()
    assert content == config.read_bytes()
    assert pod(manifests)["metadata"]["annotations"] == {
        KERNEL: f"enclave.config={sha256(content).hexdigest()}"
    }
    assert Settings.load(content).config_identity_required


def test_initdata(tmp_path: Path) -> None:
    """It goes into its annotation, and only with a configuration that is not held against HOST_DATA."""
    data = b64encode(gzip.compress(b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n')).decode()
    assert "config_identity" in refused("--set-string", f"initdata={data}")
    config = tmp_path / "enclave.toml"
    config.write_text('config_identity = "off"\n' + rendered()["ConfigMap"]["data"]["enclave.toml"])
    manifests = rendered("--set-string", f"initdata={data}", "--set-file", f"config={config}")
    assert pod(manifests)["metadata"]["annotations"][INITDATA] == data
    assert not Settings.load(config).config_identity_required


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--set-string", "image.digest=latest"),
        ("--set-string", "image.repository="),
        ("--set", "replicas=0"),
        ("--set", "unknown=1"),
        ("--set", "memory.run=all"),
        ("--set", "config="),
    ],
)
def test_wrong_values_are_refused(option: str, value: str) -> None:
    """An image that is not named by its digest, and what no value is, do not render."""
    assert "values don't meet the specifications of the schema" in refused(option, value)


def test_two_releases_are_apart() -> None:
    """Names and selectors are the release's own."""
    manifests = rendered(release="other")
    assert all(each["metadata"]["name"] == "other" for each in manifests.values())
    labels = {"app.kubernetes.io/name": "enclave", "app.kubernetes.io/instance": "other"}
    assert manifests["Service"]["spec"]["selector"] == labels
    assert pod(manifests)["metadata"]["labels"] == labels


def test_the_chart_has_the_projects_version() -> None:
    """What it deploys is what this source is."""
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version("attested-inference")
    schema = json.loads((helm.CHART / "values.schema.json").read_text())
    values = yaml.safe_load((helm.CHART / "values.yaml").read_text())
    assert values.keys() | {"global"} == schema["properties"].keys()
