"""From GPU evidence and collateral to authentic claims: NVIDIA's chain, signature, freshness, revocation, golden values.

A report proves what one GPU or NVSwitch runs. That this GPU sits in this machine, only the nonce ties together: see
`docs/verification.md` on relayed GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hmac import compare_digest
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestation._x509 import check_validity, common_name, find_root, parse_chain, verify_issued_by
from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.devices import GpuState, parse_list
from attestation.nvidia.evidence import SIGNATURE_BYTES, Arch, Feature, GpuEvidence, parse_evidence
from attestation.nvidia.identity import DEVICE_CHAIN_LENGTH, Identity, read_identity
from attestation.nvidia.ocsp import check_revocation
from attestation.nvidia.rim import Rim, load_rim, verify_rim
from attestation.roots import Root, Roots

NVDEC0_INDEX = 35  # measures the NVDEC0 engine: means nothing where the chip reports it disabled


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClaims:
    """What is authentic about one GPU or NVSwitch. Whether it is acceptable, the policy says."""

    arch: Arch
    chip: str
    model: str
    ueid: str
    device: bytes
    driver: str  # empty for a switch
    vbios: str
    fwid: bytes | None  # None: the driver is too old to report it
    feature: Feature | None  # None: the driver is too old to report it
    protected_pcie: bool | None
    switch: bool
    pdis: tuple[bytes, ...]
    gpu_pdis: tuple[bytes, ...]
    state: GpuState | None  # what the driver inside the machine says; not signed by the GPU
    measured: tuple[int, ...]  # indexes that agree with NVIDIA's golden values
    missing_rims: tuple[str, ...]  # manifests that were not there to compare with
    unchecked: tuple[str, ...]  # certificates that no OCSP answer calls good
    root: Root
    rim_root: Root | None
    collateral_expires: datetime


def verify_all(
    data: bytes, nonce: bytes, collateral: NvidiaCollateral | None, roots: Roots, now: datetime
) -> tuple[GpuClaims, ...]:
    """The claims of every device in NVIDIA's JSON list (`parse_list`); none when there is no list."""
    devices = parse_list(data) if data else ()
    stapled = collateral or NvidiaCollateral()
    return tuple(
        verify(d.report, d.chain, nonce, stapled, roots, now, arch=d.arch, state=d.state) for d in devices
    )


def verify(
    gpu: GpuEvidence | bytes,
    chain: bytes,
    nonce: bytes,
    collateral: NvidiaCollateral,
    roots: Roots,
    now: datetime,
    *,
    arch: Arch | None = None,
    state: GpuState | None = None,
) -> GpuClaims:
    """Decide whether `gpu` is authentic, fresh, unrevoked and measures what NVIDIA published. No network, no clock.

    Collateral that is missing is named in the claims; the default policy refuses such claims.
    """
    evidence = gpu if isinstance(gpu, GpuEvidence) else parse_evidence(gpu)
    certs = parse_chain(chain, Check.GPU_FORMAT, "GPU certificate chain", length=DEVICE_CHAIN_LENGTH)
    # 1. NVIDIA made the chip: its chain leads to the pinned root, and is in date
    root = verify_chain(certs, roots.nvidia_device, now)
    # 2. that chip signed this report,
    verify_signature(evidence, certs[0])
    # 3. for this nonce,
    check_nonce(evidence, nonce)
    # 4. and is the kind of chip, running the firmware, that its certificates speak of
    identity = read_identity(certs)
    check_identity(evidence, identity, arch)
    # 5. NVIDIA signed the manifests for its driver and VBIOS
    rims, missing = find_rims(evidence, identity, collateral.rims)
    rim_roots = [verify_rim(rim, roots.nvidia_rim, now) for rim in rims]
    # 6. no certificate is revoked; NVIDIA's service does not know the leaf, which the chip makes itself
    chains = [certs[1:], *(rim.chain for rim in rims)]
    unknown, until = check_revocation(chains, collateral, now)
    # 7. and the chip measured what the manifests say
    measured = check_measurements(evidence, rims)
    return GpuClaims(
        arch=identity.arch,
        chip=identity.chip,
        model=identity.model,
        ueid=identity.ueid,
        device=identity.device,
        driver=evidence.driver,
        vbios=evidence.vbios,
        fwid=evidence.fwid,
        feature=evidence.feature,
        protected_pcie=evidence.protected_pcie,
        switch=evidence.switch,
        pdis=evidence.pdis,
        gpu_pdis=evidence.gpu_pdis,
        state=state,
        measured=measured,
        missing_rims=missing,
        unchecked=unknown,
        root=root,
        rim_root=rim_roots[0] if rim_roots else None,
        collateral_expires=min(
            *until, certs[0].not_valid_after_utc, *(c.not_valid_after_utc for chain in chains for c in chain)
        ),
    )


def verify_chain(certs: Sequence[x509.Certificate], roots: Sequence[Root], now: datetime) -> Root:
    """Leaf to NVIDIA's device identity root, which is pinned by key; every certificate in date."""
    root = find_root(certs[-1], roots, Check.GPU_CHAIN)
    for cert, issuer in pairwise(certs):
        verify_issued_by(cert, issuer, Check.GPU_CHAIN)
    for cert in certs:
        check_validity(cert, now, Check.GPU_CHAIN_VALIDITY)
    return root


def verify_signature(evidence: GpuEvidence, leaf: x509.Certificate) -> None:
    """ECDSA P-384 over request and response (DSP0274 1.1.3 §10.11.2), by the leaf's key."""
    if not _signed_by(evidence.signed, evidence.signature, leaf):
        raise VerificationError(
            Check.GPU_SIGNATURE, f"the report's signature is not that of {common_name(leaf.subject)!r}"
        )


@lru_cache(maxsize=64)
def _signed_by(signed: bytes, signature: bytes, leaf: x509.Certificate) -> bool:
    key, half = leaf.public_key(), SIGNATURE_BYTES // 2
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        return False
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True


def check_nonce(evidence: GpuEvidence, nonce: bytes) -> None:
    if not compare_digest(evidence.nonce, nonce):
        raise VerificationError(Check.GPU_NONCE, f"expected {nonce.hex()}, found {evidence.nonce.hex()}")


def check_identity(evidence: GpuEvidence, identity: Identity, arch: Arch | None) -> None:
    """The report, the list around it and the certificates speak of one kind of chip and one firmware."""
    if evidence.switch != (identity.arch is Arch.LS10) or arch not in {None, identity.arch}:
        claimed = arch or ("a switch" if evidence.switch else "a GPU")
        raise VerificationError(
            Check.GPU_ARCH,
            f"the certificates are those of a {identity.chip}, the evidence is said to be of {claimed}",
        )
    if evidence.chip not in {"", identity.chip}:
        raise VerificationError(
            Check.GPU_ARCH,
            f"the certificates are those of a {identity.chip}, the report is of a {evidence.chip}",
        )
    if evidence.fwid is not None and not compare_digest(evidence.fwid, identity.fwid):
        raise VerificationError(
            Check.GPU_FWID,
            f"the leaf certifies firmware {identity.fwid.hex()[:32]}…, the report is of {evidence.fwid.hex()[:32]}…",
        )


def find_rims(
    evidence: GpuEvidence, identity: Identity, rims: Sequence[bytes]
) -> tuple[list[Rim], tuple[str, ...]]:
    """The manifests for this chip's driver and VBIOS, and the names of those that are not among `rims`."""
    product = identity.chip.replace("_", "")
    loaded = [load_rim(rim) for rim in rims]
    found, missing = [], []
    for kind, version in (("driver", evidence.driver), ("VBIOS", evidence.vbios)):
        if kind == "driver" and evidence.switch:
            continue  # a switch's firmware is all in its BIOS manifest
        match [r for r in loaded if (r.product, r.version.upper()) == (product, version.upper())]:
            case []:
                missing.append(f"{product} {kind} {version}")
            case [rim, *_]:
                found.append(rim)
    return found, tuple(missing)


def check_measurements(evidence: GpuEvidence, rims: Sequence[Rim]) -> tuple[int, ...]:
    """Every active golden value is what the chip measured, in full length. Returns the indexes that were compared."""
    seen: set[int] = set()
    compared: list[int] = []
    wrong: list[str] = []
    for rim in rims:
        if conflict := sorted(seen.intersection(rim.golden)):
            raise VerificationError(
                Check.GPU_RIM_CONFLICT, f"driver and VBIOS manifests both claim indexes {conflict}"
            )
        seen.update(rim.golden)
        for index, accepted in rim.golden.items():
            if index == NVDEC0_INDEX and evidence.nvdec0 is False:
                continue
            if index < len(evidence.measurements) and evidence.measurements[index] in accepted:
                compared.append(index)
            else:
                wrong.append(str(index))
        wrong += [
            f"SVN {kind}" for kind, least in rim.min_svns.items() if evidence.svns.get(kind, -1) < least
        ]
    if wrong:
        raise VerificationError(
            Check.GPU_MEASUREMENT,
            f"measurements {', '.join(wrong)} are not among NVIDIA's golden values; {len(compared)} others are",
        )
    return tuple(sorted(compared))
