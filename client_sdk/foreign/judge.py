"""What somebody else's evidence proves, link by link, by the same verifiers and policies as our own.

No network and no clock: collateral, nonce, certificate and time are arguments. What a format leaves out is never
"passed": its links are shown as not reached, and its words say what is not covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from hmac import compare_digest
from typing import Any

from attestation import nitro, nvidia, snp, tdx
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import AttestationError, PolicyError, UnavailableError, VerificationError, Violation
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.measure import EventLogClaims, Registers, parse_dstack_log, verify_log
from attestation.nitro import NitroClaims
from attestation.nvidia.verify import GpuClaims
from attestation.snp import SnpClaims
from attestation.tdx import TdxClaims
from client_sdk import chains
from client_sdk.foreign.document import Foreign, NitroEvidence, Seen
from client_sdk.judge import Judged, Terms, accept
from client_sdk.judge_gpu import left_out
from client_sdk.present import Link, walk
from client_sdk.tls import spki_digest

BOUND = "the hardware signed what this document says"
FRESH = "made for this nonce"
BOOT = "the event log explains the registers"
CHANNEL = "the connection ends at a key that the hardware signed"
_HEAD = (
    Link("a published format", ("evidence.", "policy.format", "foreign.fetch", "foreign.format")),
    Link("the vendors' collateral is at hand", ("collateral.", "tdx.collateral_format")),
)
_GPUS = (
    Link("GPUs: evidence that can be read", ("gpu.format",)),
    *(replace(link, title=f"GPUs: {link.title}") for link in chains.GPU[1:]),
)
_RTMR3 = 4  # as a register of a log
_CPU = {TdxEvidence: chains.TDX, SnpEvidence: chains.SNP, NitroEvidence: chains.NITRO}


@dataclass(slots=True)
class _Found:
    """What was reached so far; authentic."""

    cpu: TdxClaims | SnpClaims | NitroClaims | None = None
    boot: EventLogClaims | None = None
    gpus: Sequence[GpuClaims] = ()


def links(foreign: Foreign | None) -> Sequence[Link]:
    """The chain of one document, in the order of the checks; without one, what comes before any."""
    if foreign is None:
        return _HEAD
    return (
        *_HEAD,
        *_CPU[type(foreign.cpu)][1:],
        Link(BOUND, ("foreign.binding",)),
        Link(FRESH, ("foreign.nonce",)),
        Link(BOOT, ("eventlog.",)),
        *(_GPUS if foreign.gpus else (Link("GPUs", ()),)),
        Link(CHANNEL, ("foreign.tls_key",)),
    )


def judge_foreign(terms: Terms, foreign: Foreign, collateral: Collateral, seen: Seen) -> Judged:
    """Verify everything that the document has, in order; then hold it against the policy."""
    found = _Found()
    try:
        _verify(terms, foreign, collateral, seen, found)
    except AttestationError as exc:
        return _judged(foreign, seen, found, exc)
    violations = _violations(terms, found)
    return _judged(foreign, seen, found, PolicyError(violations) if violations else None)


def _verify(terms: Terms, foreign: Foreign, collateral: Collateral, seen: Seen, found: _Found) -> None:
    found.cpu = _verify_cpu(
        terms, foreign, collateral
    )  #             1. the vendor vouches for what was signed
    if not isinstance(found.cpu, NitroClaims):
        check_bound(foreign, found.cpu.report_data)  #                 2. which commits to this document
    check_nonce(foreign, seen)  #                                      3. made for our nonce
    if foreign.events is not None and isinstance(found.cpu, TdxClaims):
        found.boot = _verify_boot(foreign, found.cpu)  #               4. by what this log says was started
    if (
        foreign.gpus
    ):  #                                                5. with these GPUs, asked with that nonce
        nonce = foreign.nonce or b""
        found.gpus = nvidia.verify_all(foreign.gpus, nonce, collateral.nvidia, terms.roots, terms.now)
    check_tls_key(foreign, seen)  #                                    6. at the end of our connection


def _verify_cpu(
    terms: Terms, foreign: Foreign, collateral: Collateral
) -> TdxClaims | SnpClaims | NitroClaims:
    match foreign.cpu:
        case NitroEvidence(document):
            return nitro.verify(document, terms.roots.aws, terms.now)
        case SnpEvidence(report):
            if (amd := collateral.amd or foreign.amd) is None:
                raise _missing("AMD's certificates")
            return snp.verify(report, amd, terms.roots.amd, terms.now)
        case TdxEvidence(quote):
            if collateral.intel is None:
                raise _missing("Intel's TCB info, QE identity and CRLs")
            return tdx.verify(quote, collateral.intel, terms.roots.intel, terms.now)


def _missing(what: str) -> UnavailableError:
    return UnavailableError(
        Check.COLLATERAL_MISSING, f"{what} are not there", advice="Give them with --collateral, or fetch them"
    )


def check_bound(foreign: Foreign, report_data: bytes) -> None:
    """What the hardware signed is what the rest of the document asks for."""
    if not any(report_data):
        raise VerificationError(Check.FOREIGN_BINDING, "the report data is all zero: it commits to nothing")
    if foreign.report_data is None or report_data in foreign.report_data:
        return
    expected = " or ".join(value.hex() for value in foreign.report_data) or "a quote about this key"
    raise VerificationError(
        Check.FOREIGN_BINDING, f"the report data: expected {expected}, found {report_data.hex()}"
    )


def check_nonce(foreign: Foreign, seen: Seen) -> None:
    """Where the format has a nonce and one was asked with, it is that one."""
    if seen.nonce is None or not has_nonce(foreign):
        return
    found = foreign.nonce or b""
    if not compare_digest(found, seen.nonce):
        raise VerificationError(
            Check.FOREIGN_NONCE,
            f"asked with {seen.nonce.hex()}, the evidence is for {found.hex() or 'none'}",
            advice="It was made for somebody else, or kept from an earlier time",
        )


def has_nonce(foreign: Foreign) -> bool:
    """Nitro documents have a place for a nonce, whether or not there is one in it."""
    return foreign.nonce is not None or isinstance(foreign.cpu, NitroEvidence)


def check_tls_key(foreign: Foreign, seen: Seen) -> None:
    """Where the format names a TLS key, and there was a connection, it ended there."""
    if foreign.tls is None or seen.certificate is None:
        return
    certificate = seen.certificate
    found = sha256(certificate).digest() if foreign.tls.certificate else spki_digest(certificate)
    if not compare_digest(found, foreign.tls.sha256):
        what = "certificate" if foreign.tls.certificate else "key"
        raise VerificationError(
            Check.FOREIGN_TLS_KEY,
            f"the attested TLS {what} is {foreign.tls.sha256.hex()[:16]}…, the peer's is {found.hex()[:16]}…",
            advice="Something ends TLS before the enclave, or the evidence is another machine's",
        )


def _verify_boot(foreign: Foreign, cpu: TdxClaims) -> EventLogClaims:
    """RTMR3 always, and the other registers that the log speaks of. The compose file shown is the measured one."""
    log = parse_dstack_log(foreign.events or b"")
    spoken = {event.register for event in log.events} | {_RTMR3}
    td = cpu.td
    registers = Registers.rtmrs((td.rtmr0, td.rtmr1, td.rtmr2, td.rtmr3))
    boot = verify_log(log, registers, leave_out=set(registers.values) - spoken)
    measured = boot.dstack.compose_hash if boot.dstack else None
    if foreign.compose is not None and (digest := sha256(foreign.compose).digest()) != measured:
        said = measured.hex() if measured else "none"
        raise VerificationError(
            Check.FOREIGN_BINDING, f"the compose file has {digest.hex()}, the measured compose-hash is {said}"
        )
    return boot


def _violations(terms: Terms, found: _Found) -> list[Violation]:
    """Every table of the policy that has something to say about what is there."""
    policy, now = terms.policy, terms.now
    if isinstance(found.cpu, NitroClaims):
        claims, table = found.cpu, policy.nitro
        if table is not None:  # these three were compared, with what the format puts there
            table = replace(table, any_nonce=True, any_user_data=True, any_public_key=True)
        return [*accept("nitro", table, lambda t: t.check(claims, now)), *policy.release.check_end(now)]
    violations = _check_cpu(terms, found.cpu)
    if found.gpus or terms.policy_given:
        violations += policy.gpu.check(found.gpus, now)
    if policy.event_log is not None:
        missing = Violation(Check.EVENTLOG_MISSING, "an event log of the boot", "none")
        violations += policy.event_log.check(found.boot) if found.boot else [missing]
    if policy.references is not None:
        detail = f"the references in {policy.references.file!r}"
        violations.append(
            Violation(Check.REFERENCES_MISSING, detail, "not read for other providers' evidence")
        )
    return violations


def _check_cpu(terms: Terms, cpu: TdxClaims | SnpClaims | None) -> list[Violation]:
    policy, now = terms.policy, terms.now
    if isinstance(cpu, TdxClaims):
        quote = cpu
        return [*accept("tdx", policy.tdx, lambda t: t.check(quote, now)), *policy.release.check(quote, now)]
    if isinstance(cpu, SnpClaims):
        report = cpu
        return [
            *accept("snp", policy.snp, lambda t: t.check(report, now)),
            *policy.release.check(report, now),
        ]
    return []


def _judged(foreign: Foreign, seen: Seen, found: _Found, error: AttestationError | None) -> Judged:
    lines = walk(links(foreign), error, skipped=_skipped(foreign, seen, found))
    cpu = found.cpu
    if cpu is None:
        return Judged(error=error, lines=lines)
    expiries = [cpu.collateral_expires, *(gpu.collateral_expires for gpu in found.gpus)]
    roots = [cpu.root, *(root for gpu in found.gpus for root in (gpu.root, gpu.rim_root) if root)]
    return Judged(
        error=error, lines=lines, claims=_claims(foreign, found), roots=roots, expires=min(expiries)
    )


def _claims(foreign: Foreign, found: _Found) -> dict[str, Any]:
    return {
        "format": str(foreign.format),
        "cpu": found.cpu,
        "gpus": list(found.gpus),
        "event_log": found.boot,
        "tls_sha256": foreign.tls.sha256 if foreign.tls else None,
        "keys": dict(foreign.keys),
        "not_covered": list(foreign.uncovered),
    }


def _skipped(foreign: Foreign, seen: Seen, found: _Found) -> set[str]:
    """The links about which nothing was asked or answered."""
    skipped = set()
    if isinstance(found.cpu, SnpClaims) and not found.cpu.revocation_checked:
        skipped.add(chains.REVOCATION)
    if seen.nonce is None or not has_nonce(foreign):
        skipped.add(FRESH)
    if foreign.events is None:
        skipped.add(BOOT)
    if not foreign.gpus:
        skipped.add("GPUs")
    if foreign.tls is None or seen.certificate is None:
        skipped.add(CHANNEL)
    return skipped | {f"GPUs: {title}" for gpu in found.gpus for title in left_out(gpu)}
