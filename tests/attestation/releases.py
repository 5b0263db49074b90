"""Releases, the machines that run them, and the policy that references make of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from attestation.policy import Policy
from attestation.references import References
from attestation.release import Artifact, Build, Expected, ExpectedEvent, LeftOut, Machines, Release
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.vtpm import PCRS, SimulatedVtpm
from attestation.snp import SnpClaims
from attestation.snp import verify as verify_snp
from attestation.snp.report import SigningKey
from attestation.tdx.policy import TdxMeasurement
from attestation.tdx.verify import TdxClaims
from attestation.verify import verify_cpu
from attestation.vtpm import VtpmClaims, VtpmMeasurement
from tests.client_sdk.pretend import NOW, POLICY, PretendEnclave

VM = SimulatedVtpm()
MEASURED = VtpmMeasurement(pcr4=PCRS[4], pcr11=PCRS[11])
OTHER = VtpmMeasurement(pcr4=PCRS[4], pcr11=b"\x11" * 32)
EVENT = ExpectedEvent(register="RTMR1", what="the kernel", source="vmlinuz", sha384=b"\x03" * 48)
RELEASE = Release(
    id="1.4.0",
    tdx=(TdxMeasurement(mrtd=b"\x01" * 48),),
    snp=frozenset({b"\x02" * 48}),
    vtpm=(MEASURED,),
    machines=Machines(chip_ids=frozenset({bytes(64), b"\x01" * 8}), ppids=frozenset({b"\x04" * 16})),
    build=Build(
        id=b"\x05" * 32,
        source="abc",
        source_date_epoch=1,
        target="gateway",
        versions=("kernel 6.12",),
        files=(Artifact(name="vmlinuz", sha256=b"\x06" * 32),),
        firmware=(Artifact(name="OVMF.fd", sha256=b"\x07" * 32, version="2026.08"),),
    ),
    expected=(
        Expected(
            platform="tdx",
            profile="qemu10-edk2-2026.08",
            shape="h200x8",
            boot="direct",
            events=(EVENT, replace(EVENT, sha384=None, sha256=b"\x08" * 32)),
            left_out=(LeftOut(register="RTMR0", reason="the TD HOB is not known"),),
        ),
    ),
)
REFERENCES = References(name="acme", epoch=1, issued=0, expires=2**31, releases=(RELEASE,))


def claims_of(vm: SimulatedVtpm = VM) -> VtpmClaims:
    now = datetime.now(UTC)
    found = verify_cpu(vm.evidence(bytes(32)), vm.collateral(now), vm.roots, now)
    assert isinstance(found, VtpmClaims)
    return found


def snp_claims(signer: SigningKey = SigningKey.VCEK) -> SnpClaims:
    now, machine = datetime.now(UTC), SimulatedSnp(signer=signer)
    report = machine.report(bytes(64))
    return verify_snp(report, machine.collateral(now), (machine.root,), now)


def tdx_claims() -> TdxClaims:
    evidence = PretendEnclave().evidence(bytes(32))
    found = verify_cpu(evidence.cpu, evidence.collateral, POLICY.roots, NOW)
    assert isinstance(found, TdxClaims)
    return found


def taken(policy: Policy) -> Policy:
    """As it judges a machine that is all of the releases at once."""
    return policy.taking(*policy.release.accepted)
