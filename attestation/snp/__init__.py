"""AMD SEV-SNP: reports, endorsement certificates, verification and policy. Start at `verify`."""

from attestation.snp.policy import SnpPolicy
from attestation.snp.report import Product, Report, SigningKey, Tcb, parse_report
from attestation.snp.verify import SnpClaims, verify

__all__ = ["Product", "Report", "SigningKey", "SnpClaims", "SnpPolicy", "Tcb", "parse_report", "verify"]
