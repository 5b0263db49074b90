"""Collection through the real NVML binding, against a small library that stands in for the driver's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.checks import Check
from attestation.collect_nvidia import collect_gpus
from attestation.errors import UnavailableError
from attestation.nvidia.devices import parse_list
from attestation.nvidia.policy import GpuPolicy
from attestation.nvidia.verify import verify_all
from attestation.roots import VENDOR
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from tests.attestation.nvidia.conftest import NONCE, NOW

SOURCE = Path(__file__).with_name("fake_nvml.c")
ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
from attestation.collect_nvidia import collect_gpus
from attestation.errors import UnavailableError
try:
    sys.stdout.buffer.write(collect_gpus(bytes.fromhex(sys.argv[1])))
except UnavailableError as error:
    print(error, file=sys.stderr)
    sys.exit(5)
"""

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1, compiled for this test."""
    pytest.importorskip("pynvml", reason="the extra `gpu` (nvidia-ml-py) is not installed")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in with")
    folder = tmp_path_factory.mktemp("nvml")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", target, SOURCE], check=True)
    return folder


@pytest.fixture(scope="session")
def machine() -> SimulatedNvidia:
    return SimulatedNvidia.create(Machine(gpus=2))


@pytest.fixture
def run(library: Path, tmp_path: Path, machine: SimulatedNvidia) -> Run:
    """Collects in a process of its own, which loads the stand-in as the driver's library."""
    (tmp_path / "NONCE").write_bytes(NONCE)
    for number, device in enumerate(machine.devices(NONCE)):
        (tmp_path / f"report.{number}").write_bytes(device.report)
        (tmp_path / f"chain.{number}").write_bytes(device.chain)

    def call(nonce: bytes = NONCE, **env: str) -> subprocess.CompletedProcess[bytes]:
        paths = {"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "LD_LIBRARY_PATH": str(library)}
        variables = {**paths, "FAKE_FOLDER": str(tmp_path), "FAKE_GPUS": "2", **env}
        command = [sys.executable, "-c", SCRIPT, nonce.hex()]
        return subprocess.run(command, env=variables, capture_output=True, timeout=240, check=False)

    return call


def test_what_is_collected_verifies(run: Run, machine: SimulatedNvidia) -> None:
    """The list of both GPUs passes verification and the default policy."""
    done = run()
    assert done.returncode == 0, done.stderr
    assert [item["arch"] for item in json.loads(done.stdout)] == ["HOPPER", "HOPPER"]
    claims = verify_all(done.stdout, NONCE, machine.collateral(NOW), machine.trust(VENDOR), NOW)
    assert GpuPolicy(count=2).check(claims, NOW) == []


@pytest.mark.parametrize(
    ("env", "confidential", "devtools", "ready"),
    [
        ({}, True, False, True),
        ({"FAKE_CC": "0"}, False, False, True),
        ({"FAKE_CC": "0", "FAKE_MULTI": "1"}, True, False, True),
        ({"FAKE_DEVTOOLS": "1"}, True, True, True),
        ({"FAKE_READY": "0"}, True, False, False),
    ],
)
def test_the_state_is_told(
    run: Run, env: dict[str, str], confidential: bool, devtools: bool, ready: bool
) -> None:
    """What the driver says of its mode stands in the list as it is."""
    devices = parse_list(run(**env).stdout)
    assert devices
    for device in devices:
        assert device.state is not None
        found = (device.state.confidential, device.state.devtools, device.state.ready)
        assert found == (confidential, devtools, ready)


@pytest.mark.parametrize(
    ("env", "advice"),
    [
        ({"LD_LIBRARY_PATH": ""}, "libnvidia-ml.so.1"),
        ({"FAKE_ERROR": "init=9"}, "modprobe nvidia"),
        ({"FAKE_ERROR": "init=4"}, "/dev/nvidiactl"),
        ({"FAKE_ERROR": "settings=13"}, "driver 550 or newer"),
        ({"FAKE_ERROR": "report=3"}, "confidential-computing mode on"),
        ({"FAKE_ERROR": "certificate=15"}, "Reset the GPU"),
        ({"FAKE_ERROR": "report=999"}, "gave no GPU evidence"),
        ({"FAKE_GPUS": "0"}, "Pass a GPU through"),
        ({"FAKE_ARCH": "8"}, "architecture 8"),
    ],
    ids=lambda value: next(iter(value.items()), ("", ""))[1] if isinstance(value, dict) else "",
)
def test_errors_say_what_to_do(run: Run, env: dict[str, str], advice: str) -> None:
    """Every failure of the driver becomes one error that tells the operator what to do."""
    done = run(**env)
    assert done.returncode == 5, done.stderr
    assert f"[{Check.GPU_COLLECT}]" in done.stderr.decode()
    assert advice in done.stderr.decode()


def test_the_nonce_reaches_the_gpu(run: Run) -> None:
    """A GPU is asked with the nonce that was given, and with no other."""
    assert run(bytes(32)).returncode == 5
    with pytest.raises(ValueError, match="a GPU nonce has 32 bytes"):
        collect_gpus(b"short")


@pytest.mark.hardware
def test_real_gpus() -> None:
    """On a machine with GPUs in confidential mode: every GPU's evidence is authentic for the nonce."""
    claims = verify_all(collect_gpus(NONCE), NONCE, None, VENDOR, datetime.now(UTC))
    assert claims
    assert all(c.state is not None and c.state.confidential for c in claims)


def test_without_the_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error names it."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UnavailableError, match="Install the extra `gpu`") as error:
        collect_gpus(NONCE)
    assert error.value.check is Check.GPU_COLLECT
