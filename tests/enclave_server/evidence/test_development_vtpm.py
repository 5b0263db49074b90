"""The gateway on a real (software) TPM that a simulated machine vouches for: what the image's self-test boots."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from attestation.checks import Check
from attestation.errors import PolicyError, UnavailableError, VerificationError
from attestation.measure import Algorithm, Role, parse_log, replay
from attestation.measure.eventlog import EV_NO_ACTION
from attestation.simulator.snp import SimulatedSnp
from enclave_server.evidence import tee as module
from enclave_server.evidence.development_vtpm import DevelopmentVtpm
from tests.caller import Caller
from tests.servers import FakeEngine, LiveGateway, gateway_settings, live_gateway
from tests.tpm import Tpm, needs_tpm, running_tpm
from tests.vectors import read

pytestmark = needs_tpm
LOG = "eventlog/boot-disk-uki-qemu10.evlog"
KIND = "simulated-azure-snp"
NAMED = """
[azure]
allow_no_secure_boot = true
allow_console = true
[azure.snp]
any_measurement = true
[gpu]
required = false
[statement]
any_model = true
any_config = true
"""


@pytest.fixture(scope="module")
def log() -> bytes:
    return read(LOG)


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory, log: bytes) -> Iterator[Tpm]:
    """A TPM into which a boot measured what its log says."""
    with running_tpm(tmp_path_factory.mktemp("tpm")) as made:
        (made.folder / "log").write_bytes(log)
        for event in parse_log(log).events:
            if event.type != EV_NO_ACTION:
                digest = event.digests[Algorithm.SHA256].hex()
                made.tool("tpm2_pcrextend", f"{event.register}:sha256={digest}")
        yield made


@pytest.fixture
def gateway(
    tmp_path: Path, engine: FakeEngine, tpm: Tpm, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LiveGateway]:
    """The gateway of that machine."""
    here = partial(DevelopmentVtpm, tpm=tpm.environment["TPM2TOOLS_TCTI"], boot_log=tpm.folder / "log")
    monkeypatch.setattr(module, "DevelopmentVtpm", here)
    with live_gateway(tmp_path, engine=engine, tee=KIND, simulator_dir=tpm.folder / "keys") as made:
        yield made


def policy(gateway: LiveGateway, pcrs: dict[int, bytes]) -> str:
    """A development policy that names the simulated root, and what these PCRs must be."""
    root = gateway.tee.simulated_roots["amd"]
    lines = [f'[[azure.pcrs]]\nindex = {i}\nvalues = ["{value.hex()}"]' for i, value in pcrs.items()]
    named = f'[[roots.amd]]\nname = "{root.name}"\nspki_sha256 = "{root.spki_sha256.hex()}"\n'
    return "\n".join([NAMED, *lines, named])


def test_predicted_registers_are_accepted(gateway: LiveGateway, log: bytes) -> None:
    """PCR 4, 9 and 11 of the log, the root named: a verified answer, and the events of the boot in the verdict."""
    predicted = replay(parse_log(log), Algorithm.SHA256)
    with Caller(gateway.origin, policy(gateway, {i: predicted[i] for i in (4, 9, 11)})) as caller:
        assert caller.chat("hello").body
        found = caller.verdict.vtpm
        assert found is not None
        assert {i: found.pcrs[i] for i in predicted} == predicted
        assert found.event_log is not None
        assert found.event_log.digests(Role.KERNEL)
        caller.verify(gateway.policy_text)  # what `enclave-server policy` prints


@pytest.mark.parametrize("index", [4, 9, 11])
def test_another_register_is_refused(gateway: LiveGateway, index: int) -> None:
    """One PCR that is not the predicted one."""
    with Caller(gateway.origin, gateway.policy_text) as caller, pytest.raises(PolicyError) as caught:
        caller.verify(policy(gateway, {index: bytes(32)}))
    assert [violation.check for violation in caught.value.violations] == [Check.VTPM_PCR]


def test_a_production_policy_refuses_it(gateway: LiveGateway, log: bytes) -> None:
    """Without the simulated root nothing is believed; with it, the open console and the missing Secure Boot are refused by name."""
    right = policy(gateway, {4: replay(parse_log(log), Algorithm.SHA256)[4]})
    strict = right.replace("allow_no_secure_boot = true\nallow_console = true\n", "")
    with Caller(gateway.origin, right) as caller:
        with pytest.raises(VerificationError, match=Check.SNP_ROOT):
            caller.verify(right.partition("[[roots")[0])
        with pytest.raises(PolicyError) as caught:
            caller.verify(strict)
    found = {violation.check for violation in caught.value.violations}
    assert found == {Check.VTPM_SECURE_BOOT, Check.VTPM_CONSOLE}


def test_the_key_is_made_once(tpm: Tpm) -> None:
    """A second start finds the first one's key in the TPM."""
    machine, where = SimulatedSnp(), tpm.environment["TPM2TOOLS_TCTI"]
    first, second = (DevelopmentVtpm(machine, seconds=30, tpm=where) for _ in range(2))
    assert first.evidence(b"1").hcl_report[1216:] == second.evidence(b"1").hcl_report[1216:]


def test_a_log_of_another_boot_is_left_out(tpm: Tpm, tmp_path: Path) -> None:
    """A client would refuse it."""
    other = tmp_path / "log"
    other.write_bytes(read("eventlog/boot-direct-qemu7.2-edk2-2022.11.evlog"))
    for file in (other, tmp_path / "none"):
        made = DevelopmentVtpm(
            SimulatedSnp(), seconds=30, tpm=tpm.environment["TPM2TOOLS_TCTI"], boot_log=file
        )
        assert made.evidence(b"1").event_log == b""


def test_a_machine_without_a_tpm(tmp_path: Path) -> None:
    """It says what is missing."""
    with pytest.raises(UnavailableError, match="tpm2_getcap failed"):
        DevelopmentVtpm(SimulatedSnp(), seconds=30, tpm=f"swtpm:path={tmp_path}/none")


def test_only_its_engine_may_be_outside(tmp_path: Path) -> None:
    """The self-test's engine is; every other machine's is on its loopback."""
    assert gateway_settings(tmp_path, tee=KIND, engine="http://10.0.2.2:8000").engine
    for tee in ("simulated-snp", "azure-snp", "snp"):
        with pytest.raises(ValueError, match="loopback"):
            gateway_settings(tmp_path, tee=tee, engine="http://10.0.2.2:8000")
    with pytest.raises(ValueError, match="loopback"):
        gateway_settings(tmp_path, tee=KIND, engine="http://engine:8000")
