"""Every check has one name, used by errors, vectors, command-line output, docs and logs alike.

The names are the headings of docs/verification.md; tests hold the two together.
"""

from __future__ import annotations

from enum import StrEnum


class Check(StrEnum):
    """What can fail. The part before the dot says which link of the chain of trust it belongs to."""

    # the evidence document (a CMW collection) and the statement in it
    EVIDENCE_FORMAT = "evidence.format"
    EVIDENCE_FETCH = "evidence.fetch"
    COLLATERAL_MISSING = "collateral.missing"
    STATEMENT_FORMAT = "statement.format"
    STATEMENT_VALIDITY = "statement.validity"

    # what the hardware signed is about this statement, this nonce and these GPUs
    BINDING_NONCE = "binding.nonce"
    BINDING_REPORT_DATA = "binding.report_data"

    # policy over the statement, and the policy file itself
    POLICY_FORMAT = "policy.format"
    POLICY_PLATFORM = "policy.platform"
    POLICY_MODEL = "policy.model"
    POLICY_CONFIG = "policy.config"
    POLICY_MEASUREMENT = "policy.measurement"
    POLICY_GPU = "policy.gpu"

    # the channel to the enclave
    CHANNEL_UNPROTECTED = "channel.unprotected"
    CHANNEL_TLS_KEY = "channel.tls_key"

    # receipts
    RECEIPT_MISSING = "receipt.missing"
    RECEIPT_FORMAT = "receipt.format"
    RECEIPT_SIGNATURE = "receipt.signature"
    RECEIPT_STATEMENT = "receipt.statement"
    RECEIPT_REQUEST = "receipt.request"
    RECEIPT_RESPONSE = "receipt.response"
    RECEIPT_STATUS = "receipt.status"
    RECEIPT_OUTCOME = "receipt.outcome"
    RECEIPT_MODEL = "receipt.model"
    RECEIPT_TIME = "receipt.time"
    STREAM_TRUNCATED = "stream.truncated"

    # Intel TDX

    # AMD SEV-SNP

    # NVIDIA GPUs

    # AWS Nitro

    # vTPM (Azure, Google)

    # event logs
