"""Confidential VMs whose image is measured by a vTPM (Azure): evidence, verification and policy. Start at `verify`."""

from attestation.vtpm.evidence import AzureEvidence, dump_evidence, parse_evidence
from attestation.vtpm.hcl import HclReport, ReportType, VmConfiguration, parse_hcl_report
from attestation.vtpm.policy import PcrPolicy, VtpmMeasurement, VtpmPolicy
from attestation.vtpm.quote import TpmQuote, parse_quote
from attestation.vtpm.verify import VtpmClaims, verify

__all__ = [
    "AzureEvidence",
    "HclReport",
    "PcrPolicy",
    "ReportType",
    "TpmQuote",
    "VmConfiguration",
    "VtpmClaims",
    "VtpmMeasurement",
    "VtpmPolicy",
    "dump_evidence",
    "parse_evidence",
    "parse_hcl_report",
    "parse_quote",
    "verify",
]
