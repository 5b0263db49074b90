"""Is this TPM quote of a genuine Azure confidential VM? Hardware report → runtime data → attestation key → quote.

Promised: the hardware's own verification, that the report commits to the attestation key, and that this key signed
the nonce and these PCRs. Not promised: that the paravisor (Microsoft's, in the hardware's measurement) or the PCRs
are acceptable; that is `VtpmPolicy`. The SEV-SNP report is made at boot: only the quote is fresh.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256

from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import UnavailableError, VerificationError
from attestation.measure import EventLogClaims, Registers, parse_log, verify_log
from attestation.roots import Root, Roots
from attestation.snp import SnpClaims
from attestation.snp import verify as verify_snp
from attestation.tdx import TdxClaims
from attestation.tdx import verify as verify_tdx
from attestation.vtpm.evidence import AzureEvidence
from attestation.vtpm.hcl import HclReport, ReportType, VmConfiguration, parse_hcl_report
from attestation.vtpm.quote import TpmQuote, parse_quote

_REPORT_DATA_BYTES = 64
_IMA = 10  # Linux' Integrity Measurement Architecture begins with a digest of PCR 0 to 9 (security/integrity/ima, boot_aggregate)


@dataclass(frozen=True, slots=True, kw_only=True)
class VtpmClaims:
    """An authentic vTPM quote, and the authentic hardware under it. A policy has to judge both."""

    hardware: SnpClaims | TdxClaims
    pcrs: Mapping[int, bytes]  # SHA-256, those that the quote selects
    nonce: bytes
    configuration: VmConfiguration
    user_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    firmware_version: int
    event_log: EventLogClaims | None

    @property
    def root(self) -> Root:
        return self.hardware.root

    @property
    def collateral_expires(self) -> datetime:
        return self.hardware.collateral_expires


def verify(
    evidence: AzureEvidence,
    collateral: Collateral,
    roots: Roots,
    now: datetime,
    *,
    nonce: bytes,
    leave_out: Collection[int] = (),
) -> VtpmClaims:
    """Verify one answer of an Azure CVM for `nonce`. No network, no clock; the first failure is raised.

    `leave_out` names PCRs that the event log does not explain because the operating system extends them.
    """
    hcl, quote = parse_hcl_report(evidence.hcl_report), parse_quote(evidence.quote)
    hardware = _verify_hardware(evidence, hcl, collateral, roots, now)  # 1. a genuine report of the hardware
    _check_runtime_data(hcl, hardware.report_data)  #                     2. that commits to the runtime data
    _verify_signature(evidence, hcl)  #                                   3. whose key signed the quote
    _check_nonce(quote, nonce)  #                                         4. for this nonce
    pcrs = _check_pcrs(quote, evidence.pcrs)  #                           5. over these PCRs
    event_log = None
    if evidence.event_log:  #                                             6. which the log explains
        event_log = verify_boot_log(evidence.event_log, pcrs, leave_out=leave_out)
    return VtpmClaims(
        hardware=hardware,
        pcrs=pcrs,
        nonce=nonce,
        configuration=hcl.runtime_data.configuration,
        user_data=hcl.runtime_data.user_data,
        clock=quote.clock,
        reset_count=quote.reset_count,
        restart_count=quote.restart_count,
        firmware_version=quote.firmware_version,
        event_log=event_log,
    )


def verify_boot_log(
    content: bytes, pcrs: Mapping[int, bytes], *, leave_out: Collection[int] = ()
) -> EventLogClaims:
    """Claims from the firmware's log of a boot. Linux measures into PCR 10 by itself, always, and tells no firmware."""
    log = parse_log(content)
    by_kernel = {_IMA} if any(pcrs.get(_IMA, b"")) else set()
    by_kernel -= {event.register for event in log.events}
    return verify_log(log, Registers.pcrs(pcrs), leave_out={*leave_out, *by_kernel})


def _verify_hardware(
    evidence: AzureEvidence, hcl: HclReport, collateral: Collateral, roots: Roots, now: datetime
) -> SnpClaims | TdxClaims:
    """By the vendor's own verifier. On TDX the HCL report has a TDREPORT, which only its own machine can check."""
    if hcl.report_type is ReportType.TDX:
        if not evidence.td_quote:
            raise VerificationError(
                Check.VTPM_RUNTIME_DATA, "the HCL report is of a TD, and no TD quote came with it"
            )
        if collateral.intel is None:
            raise UnavailableError(Check.COLLATERAL_MISSING, "no Intel TCB info, QE identity and CRLs")
        return verify_tdx(evidence.td_quote, collateral.intel, roots.intel, now)
    if collateral.amd is None:
        raise UnavailableError(Check.COLLATERAL_MISSING, "no AMD certificate chain")
    amd = collateral.amd if collateral.amd.vek else replace(collateral.amd, vek=evidence.vcek)
    return verify_snp(hcl.hardware_report, amd, roots.amd, now)


def _check_runtime_data(hcl: HclReport, report_data: bytes) -> None:
    expected = sha256(hcl.runtime_data.raw).digest().ljust(_REPORT_DATA_BYTES, b"\0")
    if report_data != expected:
        raise VerificationError(
            Check.VTPM_RUNTIME_DATA,
            f"REPORT_DATA is {report_data.hex()}, the runtime data's SHA-256 is {expected.hex()}",
        )


def _verify_signature(evidence: AzureEvidence, hcl: HclReport) -> None:
    try:
        hcl.runtime_data.attestation_key.verify(
            evidence.signature, evidence.quote, padding.PKCS1v15(), SHA256()
        )
    except InvalidSignature as exc:
        raise VerificationError(
            Check.VTPM_SIGNATURE, "the quote was not signed by the attestation key in the runtime data"
        ) from exc


def _check_nonce(quote: TpmQuote, nonce: bytes) -> None:
    if not nonce or quote.extra_data != nonce:
        raise VerificationError(
            Check.VTPM_NONCE,
            f"expected {nonce.hex() or 'a nonce of at least one byte'}, found {quote.extra_data.hex()}",
        )


def _check_pcrs(quote: TpmQuote, values: tuple[bytes, ...]) -> Mapping[int, bytes]:
    pcrs = {index: values[index] for index in quote.selected}
    found = sha256(b"".join(pcrs.values())).digest()
    if not pcrs or quote.pcr_digest != found:
        raise VerificationError(
            Check.VTPM_PCR_DIGEST,
            f"the quote is over PCRs {list(pcrs)} with digest {quote.pcr_digest.hex()}, those given have {found.hex()}",
        )
    return pcrs
