"""The whole decision: evidence in, verdict out. No network, no clock, one answer."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import assert_never

from attestation import nvidia, snp, tdx
from attestation.binding import check_binding, check_statement_time, gpu_nonce, parse_statement
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import UnavailableError
from attestation.evidence import Evidence, SnpEvidence, TdxEvidence
from attestation.policy import Policy
from attestation.roots import Roots
from attestation.snp.verify import SnpClaims
from attestation.tdx.verify import TdxClaims
from attestation.verdict import Verdict


def verify(
    evidence: Evidence, policy: Policy, *, nonce: bytes, now: datetime, collateral: Collateral | None = None
) -> Verdict:
    """Decide whether `evidence` proves a machine that `policy` accepts, at `now` and for this `nonce`.

    Collateral is the stapled one unless given. Raises an AttestationError that names the check; returns only
    what is safe to use.
    """
    collateral = collateral or evidence.collateral
    statement = parse_statement(evidence.statement)
    cpu = verify_cpu(
        evidence.cpu, collateral, policy.roots, now
    )  # 1. authentic: pinned roots, unrevoked, in date
    gpus = nvidia.verify_all(  #                                     2. the GPUs too, asked for this statement
        evidence.gpu, gpu_nonce(nonce, evidence.statement), collateral.nvidia, policy.roots, now
    )
    check_binding(
        cpu.report_data, nonce, evidence.statement, evidence.gpu
    )  # 3. fresh, and all of one machine
    check_statement_time(statement, now)
    policy.check(
        cpu, gpus, statement, now
    )  #                               4. the code, firmware and TCB we accept
    return Verdict(
        cpu=cpu,
        gpus=gpus,
        statement=statement,
        statement_digest=sha256(evidence.statement).digest(),
        verified_at=now,
        valid_until=min(statement.valid_until, cpu.collateral_expires, *(g.collateral_expires for g in gpus)),
    )


def verify_cpu(
    evidence: TdxEvidence | SnpEvidence, collateral: Collateral, roots: Roots, now: datetime
) -> TdxClaims | SnpClaims:
    """The vendor's own verification: evidence and collateral become authentic claims, or an error."""
    match evidence:
        case TdxEvidence(quote):
            if collateral.intel is None:
                raise _missing("Intel TCB info, QE identity and CRLs")
            return tdx.verify(quote, collateral.intel, roots.intel, now)
        case SnpEvidence(report):
            if collateral.amd is None:
                raise _missing("AMD's VCEK or VLEK certificate chain and CRL")
            return snp.verify(report, collateral.amd, roots.amd, now)
        case never:
            assert_never(never)


def _missing(what: str) -> UnavailableError:
    return UnavailableError(
        Check.COLLATERAL_MISSING,
        f"{what} came neither with the evidence nor from the caller",
        advice="Ask the operator to staple collateral, or fetch it with `attested collateral fetch`",
    )
