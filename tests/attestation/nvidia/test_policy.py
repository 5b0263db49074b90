"""The GPU policy: strict by default, each loosening by its name and for its own check only."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from attestation._table import load_table
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.nvidia.devices import GpuState
from attestation.nvidia.evidence import Arch, Feature
from attestation.nvidia.policy import GpuPolicy
from attestation.nvidia.tokens import TokenClaims, TokenDevice
from attestation.nvidia.verify import GpuClaims
from attestation.simulator.nvidia import GpuDefect, SimulatedNvidia
from tests.attestation.nvidia.conftest import NOW, ask

TOKEN = TokenClaims(
    issuer="https://nras.attestation.nvidia.com",
    devices=(
        TokenDevice(name="GPU-0", switch=False, model="GH100", ueid="1", driver="580", vbios="96"),
        TokenDevice(name="SWITCH-0", switch=True, model="LS_10", ueid="2", driver="", vbios="96"),
    ),
    expires=datetime(2030, 1, 1, tzinfo=UTC),
    claims={},
)


@pytest.fixture
def gpu(nvidia: SimulatedNvidia) -> GpuClaims:
    return ask(nvidia)[0]


def checks(policy: GpuPolicy, *claims: GpuClaims, token: TokenClaims | None = None) -> list[Check]:
    return [v.check for v in policy.check(claims, NOW, token)]


def test_a_gpu_is_required() -> None:
    """Without a GPU the default policy refuses; `required = false` is the name for not caring."""
    assert checks(GpuPolicy()) == [Check.POLICY_GPU]
    assert checks(GpuPolicy(required=False)) == []


def test_a_switch_is_no_gpu(gpu: GpuClaims) -> None:
    """NVSwitches alone do not fulfil the demand for a GPU."""
    assert checks(GpuPolicy(), replace(gpu, switch=True, state=None)) == [Check.POLICY_GPU]


def test_gpus_that_are_there_must_pass(gpu: GpuClaims) -> None:
    """`required = false` accepts no bad GPU."""
    off = GpuState(confidential=False, devtools=False, ready=True)
    assert checks(GpuPolicy(required=False), replace(gpu, state=off)) == [Check.GPU_MODE]


def test_count(gpu: GpuClaims) -> None:
    """Exactly as many GPUs as are asked for, with or without evidence of each."""
    other = replace(gpu, device=b"another chip")
    assert checks(GpuPolicy(count=2), gpu, other) == []
    assert checks(GpuPolicy(count=2), gpu) == checks(GpuPolicy(count=1), gpu, other) == [Check.POLICY_GPU]
    assert checks(GpuPolicy(count=0, required=False)) == []


def test_a_gpu_counts_once(gpu: GpuClaims) -> None:
    """The same chip twice is a duplicate, also when its reports differ."""
    assert checks(GpuPolicy(count=2), gpu, replace(gpu, ueid="other")) == [Check.GPU_DUPLICATE]


@pytest.mark.parametrize(
    ("policy", "check"),
    [
        (GpuPolicy(archs=frozenset({Arch.BLACKWELL})), Check.GPU_ARCH),
        (GpuPolicy(archs=frozenset()), Check.GPU_ARCH),
        (GpuPolicy(min_driver="580.95.06"), Check.GPU_DRIVER),
        (GpuPolicy(min_driver="590"), Check.GPU_DRIVER),
        (GpuPolicy(min_vbios="96.00.74.00.1B"), Check.GPU_VBIOS),
        (GpuPolicy(min_vbios="97"), Check.GPU_VBIOS),
    ],
)
def test_demands(gpu: GpuClaims, policy: GpuPolicy, check: Check) -> None:
    """Architecture and versions are held to what the policy demands."""
    assert checks(policy, gpu) == [check]


def test_versions_are_numbers(gpu: GpuClaims) -> None:
    """Versions compare by number, not by text: 580.95.05 is newer than 580.9, and hexadecimal 1A newer than 09."""
    assert checks(GpuPolicy(min_driver="580.9", min_vbios="96.00.74.00.09"), gpu) == []
    assert checks(GpuPolicy(min_driver="580.95.05", min_vbios="96.00.74.00.1A"), gpu) == []


@pytest.mark.parametrize(
    ("defect", "policy"),
    [
        (GpuDefect.RIM_MISSING, GpuPolicy(allow_missing_rim=True)),
        (GpuDefect.OCSP_MISSING, GpuPolicy(allow_unknown_revocation=True)),
        (GpuDefect.OCSP_UNKNOWN, GpuPolicy(allow_unknown_revocation=True)),
        (GpuDefect.FWID_MISSING, GpuPolicy(allow_missing_fwid=True)),
        (GpuDefect.STATE_MISSING, GpuPolicy(allow_unreported_state=True)),
        (GpuDefect.DEVTOOLS, GpuPolicy(allow_devtools=True)),
    ],
    ids=lambda value: str(value) if isinstance(value, GpuDefect) else "",
)
def test_loosening_by_name(nvidia: SimulatedNvidia, defect: GpuDefect, policy: GpuPolicy) -> None:
    """Each loosening accepts its own defect, and no other."""
    assert policy.check(ask(nvidia, defect), NOW) == []
    for other in (GpuDefect.NOT_READY, GpuDefect.CONFIDENTIAL_OFF):
        assert {v.check for v in policy.check(ask(nvidia, other), NOW)} == {Check.GPU_MODE}


def test_protected_pcie_needs_its_name(gpu: GpuClaims) -> None:
    """Unencrypted PCIe traffic is accepted by name only, and then only with every switch attested."""
    ppcie = replace(gpu, feature=Feature.PPCIE, pdis=(b"switch-0",))
    switch = replace(
        gpu, switch=True, pdis=(b"switch-0",), gpu_pdis=(b"gpu-0000",), device=b"s", feature=None, state=None
    )
    assert checks(GpuPolicy(), ppcie, switch) == [Check.GPU_MODE]
    allowed = GpuPolicy(allow_protected_pcie=True)
    assert checks(allowed, ppcie, switch) == []
    assert checks(allowed, ppcie) == [Check.GPU_SWITCH]
    assert checks(allowed, replace(ppcie, pdis=())) == [Check.GPU_SWITCH]
    assert checks(allowed, ppcie, switch, replace(switch, device=b"t", pdis=(b"switch-1",))) == [
        Check.GPU_SWITCH
    ]
    assert checks(replace(allowed, allow_unattested_switches=True), ppcie) == []
    by_status = replace(gpu, feature=None, protected_pcie=True, pdis=(b"switch-0",))
    assert checks(GpuPolicy(), by_status, switch) == [Check.GPU_MODE]


def test_a_token_that_names_one_gpu_twice() -> None:
    """The same GPU's evidence, handed in under two names, is one GPU; a switch is another device than a GPU."""
    device, switch = TOKEN.devices
    allowed = GpuPolicy(allow_token=True, count=2)
    twice = replace(TOKEN, devices=(device, replace(device, name="GPU-1")))
    assert checks(allowed, token=twice) == [Check.GPU_DUPLICATE]
    other = replace(device, name="GPU-1", ueid=device.ueid + "1")
    assert (
        checks(allowed, token=replace(TOKEN, devices=(device, other, replace(switch, ueid=device.ueid))))
        == []
    )


def test_tokens_stand_in_by_name_only(gpu: GpuClaims) -> None:
    """A service's token counts for GPUs only where the policy says so, and never beside the GPUs' own evidence."""
    assert checks(GpuPolicy(), token=TOKEN) == [Check.GPU_TOKEN]
    allowed = GpuPolicy(allow_token=True)
    assert checks(allowed, token=TOKEN) == checks(replace(allowed, count=1), token=TOKEN) == []
    assert checks(replace(allowed, count=2), token=TOKEN) == [Check.POLICY_GPU]
    assert checks(allowed, token=replace(TOKEN, devices=())) == [Check.POLICY_GPU]
    assert checks(GpuPolicy(), gpu, token=TOKEN) == []
    assert checks(replace(allowed, count=2), gpu, token=TOKEN) == [Check.POLICY_GPU]


def test_violations_do_not_repeat(gpu: GpuClaims) -> None:
    """What is wrong with several GPUs in the same way is said once."""
    off = GpuState(confidential=False, devtools=False, ready=True)
    gpus = [replace(gpu, state=off, device=bytes([i])) for i in range(8)]
    assert checks(GpuPolicy(), *gpus) == [Check.GPU_MODE]


def test_from_toml() -> None:
    """The policy is a TOML table; unknown keys and architectures are errors."""
    table = {"count": 8, "archs": ["HOPPER"], "min_driver": "580", "allow_missing_rim": True}
    assert load_table(GpuPolicy, table, "gpu") == GpuPolicy(
        count=8, archs=frozenset({Arch.HOPPER}), min_driver="580", allow_missing_rim=True
    )
    for bad in ({"archs": ["RUBIN"]}, {"allow_everything": True}, {"count": True}):
        with pytest.raises(MalformedError):
            load_table(GpuPolicy, bad, "gpu")
