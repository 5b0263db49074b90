"""Azure's evidence, from its file to an outcome: the vTPM's quote, and the hardware under it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from attestation import vtpm
from attestation.checks import Check
from attestation.collateral import AmdCollateral, Collateral, IntelCollateral
from attestation.errors import Violation
from attestation.vtpm import AzureEvidence, ReportType, VtpmClaims
from client_sdk import chains
from client_sdk.files import read_file, read_raw
from client_sdk.judge import AmdFiles, Judged, Terms, accept, beside, judge_one, missing
from client_sdk.present import walk


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureFiles:
    """Collateral of whichever hardware it is: Intel's or AMD's fetched file, or AMD's certificates one by one."""

    fetched: Path | None
    amd: AmdFiles

    def read(self, evidence: AzureEvidence) -> Collateral:
        if vtpm.parse_hcl_report(evidence.hcl_report).report_type is not ReportType.TDX:
            return Collateral(amd=self._amd(evidence))
        if self.fetched is None:
            raise missing("Intel's TCB info, QE identity and CRLs", "--collateral")
        return Collateral(intel=IntelCollateral.parse(read_raw(self.fetched), Check.TDX_COLLATERAL_FORMAT))

    def _amd(self, evidence: AzureEvidence) -> AmdCollateral:
        return replace(self.amd, fetched=self.fetched).read(stapled=evidence.vcek)


def judge_azure(terms: Terms, file: Path, nonce: bytes | None, files: AzureFiles) -> Judged:
    """Without a nonce, the quote's own is taken: then nothing is said of how fresh it is."""

    def verify() -> VtpmClaims:
        evidence = vtpm.parse_evidence(read_file(file))
        asked = nonce if nonce is not None else vtpm.parse_quote(evidence.quote).extra_data
        return vtpm.verify(evidence, files.read(evidence), terms.roots, terms.now, nonce=asked)

    def violations(c: VtpmClaims) -> list[Violation]:
        own = accept("azure", terms.policy.azure, lambda t: t.check(c, terms.now))
        return [*own, *beside(terms, c.hardware, c.event_log, c)]

    judged = judge_one(chains.AZURE, verify, violations)
    with_log = isinstance(judged.claims, VtpmClaims) and judged.claims.event_log is not None
    skipped = () if with_log else (chains.EVENT_LOG,)  # without a log there is nothing to replay
    return replace(judged, lines=walk(chains.AZURE, judged.error, skipped=skipped))
