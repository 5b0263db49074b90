"""AWS Nitro Enclaves: attestation documents, verification and policy. Start at `verify`."""

from attestation.nitro.document import Document, Missing, parse_document
from attestation.nitro.policy import NitroMeasurement, NitroPolicy
from attestation.nitro.verify import NitroClaims, verify

__all__ = [
    "Document",
    "Missing",
    "NitroClaims",
    "NitroMeasurement",
    "NitroPolicy",
    "parse_document",
    "verify",
]
