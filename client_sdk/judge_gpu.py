"""NVIDIA's evidence and tokens, from their files to an outcome. Devices are judged one by one, the policy at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attestation import nvidia
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, PolicyError
from attestation.evidence import parse_evidence
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.devices import GpuDevice, parse_list
from attestation.nvidia.tokens import TokenClaims, verify_token
from attestation.nvidia.verify import GpuClaims
from client_sdk import chains
from client_sdk.files import read_file, read_raw
from client_sdk.judge import Judged, Terms
from client_sdk.present import POLICY, Line, State, plain, walk


def judge_nvidia(
    terms: Terms, evidence: Path, nonce: bytes, rims: Sequence[Path], ocsp: Sequence[Path]
) -> Judged:
    """A device after the first refused one has not been looked at, and is shown so."""
    try:
        devices = parse_list(_gpu_list(read_file(evidence)))
        collateral = NvidiaCollateral(rims=tuple(map(read_raw, rims)), ocsp=tuple(map(read_file, ocsp)))
    except AttestationError as exc:
        return Judged(error=exc, lines=walk(chains.GPU, exc))
    claims: list[GpuClaims] = []
    seen: list[list[Line]] = []
    error: AttestationError | None = None
    for device in devices:
        try:
            claims.append(_verify(device, nonce, collateral, terms))
            seen.append(walk(chains.GPU, None, skipped=left_out(claims[-1])))
        except AttestationError as exc:
            error = exc
            seen.append(walk(chains.GPU, exc, skipped=(chains.MANIFESTS, chains.REVOCATION)))
            break
    policy = terms.policy
    violations = [*policy.gpu.check(claims, terms.now), *policy.release.check_end(terms.now)]
    if error is None and violations:
        error = PolicyError(violations)
    return Judged(
        error=error,
        lines=_together(seen, error, all_seen=len(seen) == len(devices)),
        claims={"devices": plain(claims)} if len(claims) == len(devices) else None,
        roots=[root for c in claims for root in (c.root, c.rim_root) if root is not None],
        expires=min((c.collateral_expires for c in claims), default=None),
    )


def judge_token(terms: Terms, token: Path, jwks: Path, nonce: bytes) -> Judged:
    """NVIDIA's detached EAT (a JSON list), or a token of Intel Trust Authority with claims about a GPU (a JWT)."""
    try:
        claims: TokenClaims = verify_token(read_raw(token), read_raw(jwks), nonce, terms.now)
    except AttestationError as exc:
        return Judged(error=exc, lines=walk(chains.TOKEN, exc)[:-1])
    return Judged(error=None, lines=walk(chains.TOKEN, None)[:-1], claims=claims, expires=claims.expires)


def _verify(device: GpuDevice, nonce: bytes, collateral: NvidiaCollateral, terms: Terms) -> GpuClaims:
    return nvidia.verify(
        device.report,
        device.chain,
        nonce,
        collateral,
        terms.roots,
        terms.now,
        arch=device.arch,
        state=device.state,
    )


def _together(
    seen: Sequence[Sequence[Line]], error: AttestationError | None, *, all_seen: bool
) -> list[Line]:
    """One chain for all devices: a link has passed when it has for every one of them."""
    lines = []
    for column in zip(*seen, strict=True):
        states = {line.state for line in column} | (set() if all_seen else {State.NOT_REACHED})
        worst = next(
            s for s in (State.REFUSED, State.UNDECIDED, State.NOT_REACHED, State.PASSED) if s in states
        )
        lines.append(Line(column[0].title, worst))
    if isinstance(error, PolicyError):
        lines[-1] = Line(POLICY, State.REFUSED)
    return lines


def left_out(claims: GpuClaims) -> tuple[str, ...]:
    """The links that were not judged for want of collateral; a policy may or may not accept that."""
    manifests = (chains.MANIFESTS, chains.GOLDEN) if claims.missing_rims else ()
    return manifests + ((chains.REVOCATION,) if claims.unchecked else ())


def _gpu_list(data: bytes) -> bytes:
    """NVIDIA's list itself, or the one inside an evidence document of ours."""
    if data.lstrip()[:1] != b"{":
        return data
    if gpu := parse_evidence(data).gpu:
        return gpu
    raise MalformedError(Check.GPU_FORMAT, "this evidence document has no GPU in it")
