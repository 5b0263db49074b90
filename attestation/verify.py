"""The whole decision: evidence in, verdict out. No network, no clock, one answer."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import assert_never

from attestation import nvidia, snp, tdx
from attestation.binding import check_binding, check_statement_time, gpu_nonce, parse_statement
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import UnavailableError, VerificationError
from attestation.evidence import Evidence, SnpEvidence, TdxEvidence
from attestation.measure import EventLogClaims, Registers, parse_log, verify_log
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
    asked = gpu_nonce(nonce, evidence.statement)

    # 1. authentic: signed by keys that lead to pinned roots, nothing revoked, all collateral in date
    cpu = verify_cpu(evidence.cpu, collateral, policy.roots, now)
    gpus = nvidia.verify_all(evidence.gpu, asked, collateral.nvidia, policy.roots, now)
    boot = verify_boot(evidence.event_log, cpu)

    # 2. fresh, and all of one machine: the CPU signed this nonce, this statement and these GPUs
    check_binding(cpu.report_data, nonce, evidence.statement, evidence.gpu)
    check_statement_time(statement, now)

    # 3. the code, firmware, TCB, model and configuration that the policy accepts
    policy.check(cpu, gpus, boot, statement, now)
    return Verdict(
        cpu=cpu,
        gpus=gpus,
        boot=boot,
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


def verify_boot(log: bytes, cpu: TdxClaims | SnpClaims) -> EventLogClaims | None:
    """What was measured at boot, when a log came along and leads to exactly the registers that the CPU signed."""
    if not log:
        return None
    if isinstance(cpu, SnpClaims):
        raise VerificationError(
            Check.EVENTLOG_REPLAY,
            "an SEV-SNP report has no run-time registers that an event log could explain",
        )
    td = cpu.td
    return verify_log(parse_log(log), Registers.rtmrs((td.rtmr0, td.rtmr1, td.rtmr2, td.rtmr3)))


def _missing(what: str) -> UnavailableError:
    return UnavailableError(
        Check.COLLATERAL_MISSING,
        f"{what} came neither with the evidence nor from the caller",
        advice="Ask the operator to staple collateral, or fetch it with `attested collateral fetch`",
    )
