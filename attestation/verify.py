"""The whole decision: evidence in, verdict out. No network, no clock, one answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import assert_never

from attestation import nvidia, snp, tdx
from attestation.binding import check_binding, check_statement_time, gpu_nonce, parse_statement
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import MalformedError, UnavailableError, VerificationError
from attestation.evidence import CpuEvidence, Evidence, SnpEvidence, TdxEvidence
from attestation.measure import EventLogClaims, Registers, parse_log, verify_log
from attestation.nvidia.tokens import TokenClaims, verify_token
from attestation.nvidia.verify import GpuClaims
from attestation.policy import Policy
from attestation.roots import Roots
from attestation.serving import verify_seal
from attestation.snp.verify import SnpClaims
from attestation.tdx.verify import TdxClaims
from attestation.verdict import Verdict
from attestation.vtpm import AzureEvidence, VtpmClaims, parse_quote
from attestation.vtpm import verify as verify_vtpm

_RTMR3 = 4  # as a register of a log


def verify(
    evidence: Evidence, policy: Policy, *, nonce: bytes, now: datetime, collateral: Collateral | None = None
) -> Verdict:
    """Decide whether `evidence` proves a machine that `policy` accepts, at `now` and for this `nonce`.

    Collateral is the stapled one unless given. Raises an AttestationError that names the check; returns only
    what is safe to use.
    """
    collateral = collateral or evidence.collateral
    statement = parse_statement(evidence.statement)
    asked = gpu_nonce(nonce, evidence.statement)

    # 1. authentic: signed by keys that lead to pinned roots, nothing revoked, all collateral in date
    authentic = verify_cpu(evidence.cpu, collateral, policy.roots, now)
    vtpm = authentic if isinstance(authentic, VtpmClaims) else None
    cpu = hardware_of(authentic)
    gpus, token = verify_gpus(evidence, collateral, policy, asked, now)
    sealed = verify_seal(evidence.serving_seal, evidence.statement, cpu)
    boot = vtpm.event_log if vtpm else verify_boot(evidence.event_log, cpu, sealed=sealed)

    # 2. fresh, and all of one machine: the CPU signed this nonce, this statement and these GPUs
    signed = vtpm.nonce if vtpm else cpu.report_data
    gpu, token_bytes = evidence.gpu, evidence.gpu_token
    check_binding(signed, nonce, evidence.statement, gpu, token_bytes, tpm=vtpm is not None)
    check_statement_time(statement, now)

    # 3. the code, firmware, TCB, model and configuration that the policy accepts
    release_ends = policy.check(cpu, gpus, token, boot, statement, now, sealed=sealed, vtpm=vtpm)
    return Verdict(
        cpu=cpu,
        vtpm=vtpm,
        gpus=gpus,
        gpu_token=token,
        boot=boot,
        statement=statement,
        statement_digest=sha256(evidence.statement).digest(),
        verified_at=now,
        valid_until=min(
            statement.valid_until,
            cpu.collateral_expires,
            *(gpu.collateral_expires for gpu in gpus),
            *([token.expires] if token else []),
            *([release_ends] if release_ends else []),
        ),
        evidence=replace(evidence, collateral=collateral),
        nonce=nonce,
    )


def verify_cpu(
    evidence: CpuEvidence, collateral: Collateral, roots: Roots, now: datetime
) -> TdxClaims | SnpClaims | VtpmClaims:
    """The vendor's own verification: evidence and collateral become authentic claims, or an error. Not bound to anything yet."""
    match evidence:
        case TdxEvidence(quote):
            if collateral.intel is None:
                raise _missing("Intel TCB info, QE identity and CRLs")
            return tdx.verify(quote, collateral.intel, roots.intel, now)
        case SnpEvidence(report):
            if collateral.amd is None:
                raise _missing("AMD's VCEK or VLEK certificate chain and CRL")
            return snp.verify(report, collateral.amd, roots.amd, now)
        case AzureEvidence(quote=quote):
            return verify_vtpm(evidence, collateral, roots, now, nonce=parse_quote(quote).extra_data)
        case never:
            assert_never(never)


def hardware_of(claims: TdxClaims | SnpClaims | VtpmClaims) -> TdxClaims | SnpClaims:
    """What the CPU itself signed: of the VM, or of the paravisor under it."""
    return claims.hardware if isinstance(claims, VtpmClaims) else claims


def verify_gpus(
    evidence: Evidence, collateral: Collateral, policy: Policy, asked: bytes, now: datetime
) -> tuple[tuple[GpuClaims, ...], TokenClaims | None]:
    """The GPUs by their own evidence; by a service's token only where the policy allows it and there is nothing else to read."""
    usable = bool(evidence.gpu_token) and policy.gpu.allow_token
    gpus: tuple[GpuClaims, ...] = ()
    try:
        gpus = nvidia.verify_all(evidence.gpu, asked, collateral.nvidia, policy.roots, now)
    except MalformedError:  # a layout that is not known here; anything worse than that no token mends
        if not usable:
            raise
    if gpus or not usable:
        return gpus, None
    return (), verify_token(evidence.gpu_token, policy.gpu.token_jwks.encode(), asked, now)


def verify_boot(log: bytes, cpu: TdxClaims | SnpClaims, *, sealed: bool = False) -> EventLogClaims | None:
    """What was measured at boot, when a log came along and leads to exactly the registers that the CPU signed.

    RTMR3 is left to the serving seal where there is one: the seal explains it completely.
    """
    if not log:
        return None
    if isinstance(cpu, SnpClaims):
        raise VerificationError(
            Check.EVENTLOG_REPLAY,
            "an SEV-SNP report has no run-time registers that an event log could explain",
        )
    td = cpu.td
    registers = Registers.rtmrs((td.rtmr0, td.rtmr1, td.rtmr2, td.rtmr3))
    return verify_log(parse_log(log), registers, leave_out=(_RTMR3,) if sealed else ())


def _missing(what: str) -> UnavailableError:
    return UnavailableError(
        Check.COLLATERAL_MISSING,
        f"{what} came neither with the evidence nor from the caller",
        advice="Ask the operator to staple collateral, or fetch it with `attested collateral fetch`",
    )
