"""`enclave-server doctor` and `collect`: what stands in the way is named, with what to do about it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attestation.checks import Check
from attestation.nvidia.devices import GpuState, dump_list
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.tdx import DEFAULT_TD
from attestation.tdx.policy import DEBUG, PKS
from enclave_server import doctor as module
from enclave_server.__main__ import cli
from enclave_server.choices import ConfigIdentity
from enclave_server.doctor import Doctor, Finding, Health
from enclave_server.engine.installed import Installed
from enclave_server.evidence import hardware
from tests.enclave_server.fake_vllm import fake_python
from tests.enclave_server.machine import Box, intel, machine
from tests.served import model_settings
from tests.vendor import responder, rim_pages


def examine(box: Box, **changes: Any) -> dict[str, Finding]:
    """What the doctor finds on this machine, by step."""
    settings = box.settings.model_copy(update={"config_identity": ConfigIdentity.OFF, **changes})
    found = Doctor(settings, None, {}, open_=lambda s: box.open(**dict(s))).examine()
    return {finding.step: finding for finding in found}


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return fake_python(tmp_path / "python")


def test_a_machine_that_is_well(tmp_path: Path, python: Path) -> None:
    """Nothing failed, and every step has words."""
    with machine(tmp_path, engine_python=python, collateral_dir=tmp_path / "kept") as box:
        found = examine(box)
    assert not [finding for finding in found.values() if finding.health is Health.FAILED]
    assert found["TEE"].health is found["collateral"].health is found["disk"].health is Health.OK
    assert all(finding.found for finding in found.values())
    assert all(finding.advice for finding in found.values() if finding.health is Health.WARNING)


def test_no_tee(tmp_path: Path, python: Path) -> None:
    """The check's name and the advice; what needs the TEE is not reached, the rest is looked at."""
    with machine(tmp_path, engine_python=python) as box:
        box.kernel.folder = tmp_path / "none"
        found = examine(box)
    assert found["TEE"].health is Health.FAILED
    assert found["TEE"].found.startswith("[tee.collect]")
    assert "configfs" in found["TEE"].advice
    for step in ("configuration", "GPUs", "GPU driver", "collateral"):
        assert found[step].health is Health.NOT_REACHED
    assert found["clock"].health is not Health.NOT_REACHED


def test_debug(tmp_path: Path, python: Path) -> None:
    """A TD whose memory the host can read is a failure before any client says so."""
    debug = replace(DEFAULT_TD, td_attributes=DEFAULT_TD.td_attributes | DEBUG)
    with machine(tmp_path, engine_python=python) as box:
        box.kernel.sign = lambda data: intel().quote(data, td=debug)
        assert "debug" in examine(box)["TEE"].found


def test_what_clients_would_refuse(tmp_path: Path, python: Path) -> None:
    """A machine that verifies and that a strict policy would still refuse is told before clients tell."""
    pks = replace(DEFAULT_TD, td_attributes=DEFAULT_TD.td_attributes | PKS)
    with machine(tmp_path, engine_python=python) as box:
        assert examine(box)["clients"].health is Health.OK
        box.kernel.sign = lambda data: intel().quote(data, td=pks)
        found = examine(box)["clients"]
    assert found.health is Health.WARNING
    assert Check.TDX_PKS in found.found


def test_another_configuration(tmp_path: Path, python: Path) -> None:
    """The configuration is held against the launch."""
    with machine(tmp_path, engine_python=python) as box:
        found = examine(box, config_identity=ConfigIdentity.REQUIRED)
    assert found["configuration"].found.startswith("[config.identity]")


def test_vendors_out_of_reach(tmp_path: Path, python: Path) -> None:
    """Collateral is fetched while one waits, and what stands in the way is named."""
    with machine(
        tmp_path, engine_python=python, collateral_offline=True, collateral_dir=tmp_path / "k"
    ) as box:
        found = examine(box)["collateral"]
    assert found.health is Health.FAILED
    assert found.found.startswith("[collateral.fetch]")
    assert found.advice


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "2, confidential"),
        ({"confidential": False}, "not in confidential-computing mode"),
        ({"devtools": True}, "developer tools"),
        ({"ready": False}, "accepts no work"),
    ],
)
def test_gpus(
    tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, bool], words: str
) -> None:
    """Mode, developer tools and readiness of each GPU."""
    nvidia, now = SimulatedNvidia.create(Machine(gpus=2)), datetime.now(UTC)
    good = GpuState(confidential=True, devtools=False, ready=True)
    monkeypatch.setattr(
        hardware,
        "collect_gpus",
        lambda nonce: dump_list(
            [replace(device, state=replace(good, **state)) for device in nvidia.devices(nonce)]
        ),
    )
    with machine(tmp_path, engine_python=python, nvidia_gpus=2) as box:
        box.vendor.pages |= rim_pages(nvidia.evidence(bytes(32)), nvidia.collateral(now))
        box.vendor.answer = responder(nvidia.collateral(now))
        box.roots = nvidia.trust(box.roots)
        found = examine(box, engine_flags=("--swap-space=4",))
    assert words in found["GPUs"].found
    assert found["GPUs"].health is (Health.FAILED if state else Health.OK)
    assert found["GPU driver"].found == "580.95.05"


@pytest.mark.parametrize(
    ("version", "gpus", "flags", "health"),
    [
        ("0.33.1", None, (), Health.OK),
        ("0.33.1", ("580",), (), Health.WARNING),
        ("0.33.1", ("580",), ("--swap-space=4",), Health.FAILED),
        ("0.29.0", None, (), Health.WARNING),
        ("1.32.0", None, (), Health.WARNING),
    ],
)
def test_engine_versions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    gpus: tuple[str, ...] | None,
    flags: tuple[str, ...],
    health: Health,
) -> None:
    """Versions that were tested, and combinations that are known to fail or to be slow in confidential mode."""
    monkeypatch.setattr(module, "find_engine", lambda _: Installed(version, frozenset()))
    with machine(tmp_path) as box:
        doctor = Doctor(box.settings.model_copy(update={"engine_flags": flags}), None, {})
        doctor._gpus = gpus
        assert doctor._engine()[0] is health


def test_an_engine_that_should_run_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the gateway starts none, the one at its address is asked; nobody there is a failure."""
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    with machine(tmp_path, engine=f"http+unix://{tmp_path}/none.sock") as box:
        assert examine(box)["engine"].health is Health.FAILED


@pytest.mark.parametrize(
    ("drivers", "health"),
    [((), Health.OK), (("580.1", "580.1"), Health.OK), (("580.1", "570.1"), Health.FAILED), (("535.1",), Health.FAILED)],
)  # fmt: skip
def test_drivers(tmp_path: Path, drivers: tuple[str, ...], health: Health) -> None:
    """One driver, and one that knows confidential computing."""
    with machine(tmp_path) as box:
        doctor = Doctor(box.settings, None, {})
        doctor._gpus = drivers
        assert doctor._driver()[0] is health


def test_clock_kernel_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that nobody sets, an old kernel and a full disk are warnings, with advice."""
    with machine(tmp_path, collateral_dir=tmp_path / "not" / "yet") as box:
        doctor = Doctor(box.settings, None, {})
        assert doctor._disk()[0] is Health.OK
        monkeypatch.setattr(module, "_clock_state", lambda: 5)
        monkeypatch.setattr(module, "_LEAST_FREE", 2**62)
        monkeypatch.setattr(module, "_LEAST_KERNEL", (999, 0))
        for health, found, advice in (doctor._clock(), doctor._disk(), doctor._kernel()):
            assert health is Health.WARNING
            assert found
            assert advice


def test_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swap in memory or on dm-crypt is fine; on a plain partition or file it is a warning that names it."""
    swaps, devices = tmp_path / "swaps", tmp_path / "block"
    monkeypatch.setattr(module, "_SWAPS", swaps)
    monkeypatch.setattr(module, "_DEVICES", devices)
    for name, uuid in (("dm-0", "CRYPT-PLAIN-swap"), ("dm-1", "LVM-abc")):
        (devices / name / "dm").mkdir(parents=True)
        (devices / name / "dm/uuid").write_text(uuid)
    with machine(tmp_path) as box:
        doctor = Doctor(box.settings, None, {})
        head = "Filename Type Size Used Priority\n"
        for good in ("", "/dev/zram0 partition 1 0 5\n", "/dev/dm-0 partition 1 0 5\n"):
            swaps.write_text(head + good)
            assert doctor._memory()[0] is Health.OK
        for bad in ("/dev/vda2", "/dev/dm-1", "/swapfile"):
            swaps.write_text(f"{head}/dev/zram0 partition 1 0 5\n{bad} file 1 0 -2\n")
            health, found, advice = doctor._memory()
            assert (health, bad in found, "zram" in found, bool(advice)) == (
                Health.WARNING,
                True,
                False,
                True,
            )


def test_command(tmp_path: Path, python: Path) -> None:
    """In words and in JSON; exit status 1 when something failed."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    values = {**model_settings(model, "m"), "tee": "simulated-tdx", "engine_python": str(python), "simulator_dir": f"{tmp_path}/sim"}  # fmt: skip
    file = tmp_path / "enclave.toml"
    file.write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))
    done = CliRunner().invoke(cli, ["doctor", "--config", str(file)])
    assert done.exit_code == 0, done.output
    assert "A simulated TEE proves nothing" in done.output
    file.write_text(file.read_text().replace(str(python), "/nonexistent"))
    done = CliRunner().invoke(cli, ["doctor", "--config", str(file), "--json"])
    assert done.exit_code == 1
    findings = {finding["step"]: finding for finding in json.loads(done.output)["findings"]}
    assert findings["engine"]["health"] == "failed"
    assert "/nonexistent" in findings["engine"]["found"]


def test_collect_says_what_is_missing(tmp_path: Path) -> None:
    """Raw evidence of hardware that is not here is a named error, and no file is written."""
    out = tmp_path / "evidence"
    for kind in ("tdx", "snp", "nitro", "azure", "gpus"):
        done = CliRunner().invoke(cli, ["collect", kind, "-o", str(out)])
        assert "collect]" in str(done.exception)
        assert not out.exists()
    done = CliRunner().invoke(cli, ["collect", "tdx", "-o", str(out), "--nonce", "ab"])
    assert "64 bytes" in str(done.exception)
