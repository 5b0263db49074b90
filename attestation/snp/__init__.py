"""AMD SEV-SNP: reports, endorsement certificates, verification and policy. Start at `verify`."""

from attestation.snp.policy import SnpPolicy
from attestation.snp.product import Product, Tcb
from attestation.snp.report import Report, SigningKey, parse_report
from attestation.snp.verify import SnpClaims, verify

__all__ = ["Product", "Report", "SigningKey", "SnpClaims", "SnpPolicy", "Tcb", "parse_report", "verify"]
