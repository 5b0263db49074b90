"""Every defect of the simulated NVIDIA fails exactly the check that it is about; without one, all is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.nvidia.evidence import Arch, Feature
from attestation.nvidia.policy import GpuPolicy
from attestation.nvidia.verify import verify_all
from attestation.roots import VENDOR
from attestation.simulator.nvidia import GpuDefect, Machine, SimulatedNvidia
from tests.attestation.nvidia.conftest import NONCE, NOW, ask, judge

_D = GpuDefect
MALFORMED = {
    _D.TRUNCATED: Check.GPU_FORMAT,
    _D.UNKNOWN_CHIP: Check.GPU_FORMAT,
    _D.UNKNOWN_FEATURE: Check.GPU_FORMAT,
    _D.UNKNOWN_OPAQUE_VERSION: Check.GPU_FORMAT,
    _D.UNKNOWN_OPAQUE_PROFILE: Check.GPU_FORMAT,
    _D.OCSP_MALFORMED: Check.GPU_OCSP,
    _D.RIM_NO_XML: Check.GPU_RIM_FORMAT,
    _D.RIM_WITH_DTD: Check.GPU_RIM_FORMAT,
}
REFUSED = {
    _D.OTHER_ROOT: Check.GPU_CHAIN,
    _D.CHAIN_FORGED: Check.GPU_CHAIN,
    _D.CHIP_IS_NO_CA: Check.GPU_CHAIN,
    _D.LEAF_EXPIRED: Check.GPU_CHAIN_VALIDITY,
    _D.REPORT_CHANGED: Check.GPU_SIGNATURE,
    _D.SIGNATURE_CHANGED: Check.GPU_SIGNATURE,
    _D.OTHER_NONCE: Check.GPU_NONCE,
    _D.OTHER_ARCH: Check.GPU_ARCH,
    _D.OTHER_CHIP: Check.GPU_ARCH,
    _D.OTHER_FIRMWARE: Check.GPU_FWID,
    _D.MEASUREMENT_CHANGED: Check.GPU_MEASUREMENT,
    _D.SVN_TOO_LOW: Check.GPU_MEASUREMENT,
    _D.OCSP_FORGED: Check.GPU_OCSP,
    _D.OCSP_RESPONDER_NOT_NAMED: Check.GPU_OCSP,
    _D.OCSP_RESPONDER_OF_OTHER_CA: Check.GPU_OCSP,
    _D.OCSP_EXPIRED: Check.GPU_OCSP_VALIDITY,
    _D.OCSP_NOT_YET_VALID: Check.GPU_OCSP_VALIDITY,
    _D.OCSP_WITHOUT_END: Check.GPU_OCSP_VALIDITY,
    _D.CHIP_REVOKED: Check.GPU_REVOKED,
    _D.RIM_SIGNER_REVOKED: Check.GPU_REVOKED,
    _D.CHIP_ON_HOLD: Check.GPU_HOLD,
    _D.RIM_CHANGED: Check.GPU_RIM_SIGNATURE,
    _D.RIM_OTHER_ROOT: Check.GPU_RIM_CHAIN,
    _D.RIM_FORGED: Check.GPU_RIM_CHAIN,
    _D.RIM_CHAIN_SHORT: Check.GPU_RIM_CHAIN,
    _D.RIM_EXPIRED: Check.GPU_RIM_VALIDITY,
    _D.RIM_CONFLICT: Check.GPU_RIM_CONFLICT,
}
UNACCEPTABLE = {
    _D.FWID_MISSING: Check.GPU_FWID,
    _D.OCSP_MISSING: Check.GPU_REVOCATION_UNKNOWN,
    _D.OCSP_UNKNOWN: Check.GPU_REVOCATION_UNKNOWN,
    _D.RIM_MISSING: Check.GPU_RIM_MISSING,
    _D.RIM_OF_OTHER_VERSION: Check.GPU_RIM_MISSING,
    _D.RIM_OF_OTHER_CHIP: Check.GPU_RIM_MISSING,
    _D.CONFIDENTIAL_OFF: Check.GPU_MODE,
    _D.DEVTOOLS: Check.GPU_MODE,
    _D.NOT_READY: Check.GPU_MODE,
    _D.STATE_MISSING: Check.GPU_MODE,
    _D.DUPLICATE: Check.GPU_DUPLICATE,
}
HGX = {  # these need a machine of several devices
    _D.MIXED_MODES: Check.GPU_MODE,
    _D.SWITCH_MISSING: Check.GPU_SWITCH,
    _D.GPU_MISSING: Check.GPU_SWITCH,
}


def test_every_defect_is_tested() -> None:
    """A new defect has to be put into one of the tables."""
    assert {*MALFORMED, *REFUSED, *UNACCEPTABLE, *HGX} == set(GpuDefect)


@pytest.mark.parametrize(
    "machine",
    [
        Machine(),
        Machine(arch=Arch.BLACKWELL, gpus=2),
        Machine(typed_opaque=True),
        Machine(gpus=2, feature=Feature.SPT),
    ],
    ids=["hopper", "blackwell", "typed-opaque", "two-gpus"],
)
def test_without_defect_the_default_policy_accepts(machine: Machine) -> None:
    """Evidence and collateral as NVIDIA makes them pass every check, on each architecture and layout."""
    assert judge(machine, GpuPolicy()) == []


@pytest.mark.parametrize("defect", MALFORMED, ids=str)
def test_malformed(nvidia: SimulatedNvidia, defect: GpuDefect) -> None:
    """What cannot be read is malformed, by the check of the part that cannot."""
    with pytest.raises(MalformedError) as error:
        ask(nvidia, defect)
    assert error.value.check is MALFORMED[defect]


@pytest.mark.parametrize("defect", REFUSED, ids=str)
def test_refused(nvidia: SimulatedNvidia, defect: GpuDefect) -> None:
    """What is not authentic, fresh, unrevoked or golden is refused by its own check."""
    with pytest.raises(VerificationError) as error:
        ask(nvidia, defect)
    assert error.value.check is REFUSED[defect]


@pytest.mark.parametrize("defect", UNACCEPTABLE, ids=str)
def test_unacceptable(nvidia: SimulatedNvidia, defect: GpuDefect) -> None:
    """What is authentic and not accepted is exactly one violation of the default policy."""
    violations = GpuPolicy().check(ask(nvidia, defect), NOW)
    assert [v.check for v in violations] == [UNACCEPTABLE[defect]]


@pytest.mark.parametrize("defect", HGX, ids=str)
def test_unacceptable_machines(defect: GpuDefect) -> None:
    """In protected PCIe mode the devices must be complete and of one mode."""
    machine = Machine(gpus=8, switches=4, feature=Feature.PPCIE)
    policy = GpuPolicy(allow_protected_pcie=True)
    assert judge(machine, policy) == []
    assert {v.check for v in judge(machine, policy, defect)} == {HGX[defect]}


def test_keys_are_kept(tmp_path: Path) -> None:
    """Two processes that load the same folder share roots and chips: one's collateral serves the other's evidence."""
    first, second = (SimulatedNvidia.load_or_create(tmp_path) for _ in range(2))
    claims = verify_all(first.evidence(NONCE), NONCE, second.collateral(NOW), second.trust(VENDOR), NOW)
    assert GpuPolicy().check(claims, NOW) == []


def test_no_default_root_accepts_it(nvidia: SimulatedNvidia) -> None:
    """NVIDIA's own roots refuse simulated chips."""
    with pytest.raises(VerificationError) as error:
        verify_all(nvidia.evidence(NONCE), NONCE, nvidia.collateral(NOW), VENDOR, NOW)
    assert error.value.check is Check.GPU_CHAIN
