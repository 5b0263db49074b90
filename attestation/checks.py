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

    # Intel TDX: the quote and its collateral as bytes
    TDX_FORMAT = "tdx.format"
    TDX_KIND = "tdx.kind"
    TDX_COLLATERAL_FORMAT = "tdx.collateral_format"
    TDX_PCK_EXTENSION = "tdx.pck_extension"
    # … the platform's certificate
    TDX_ROOT = "tdx.root"
    TDX_PCK_CHAIN = "tdx.pck_chain"
    TDX_PCK_ROLE = "tdx.pck_role"
    TDX_PCK_VALIDITY = "tdx.pck_validity"
    TDX_ROOT_CRL = "tdx.root_crl"
    TDX_ROOT_CRL_DATES = "tdx.root_crl_dates"
    TDX_PCK_CRL = "tdx.pck_crl"
    TDX_PCK_CRL_DATES = "tdx.pck_crl_dates"
    TDX_CA_REVOKED = "tdx.ca_revoked"
    TDX_PCK_REVOKED = "tdx.pck_revoked"
    # … Intel's statements about platforms and quoting enclaves
    TDX_SIGNER_CHAIN = "tdx.signer_chain"
    TDX_SIGNER_ROLE = "tdx.signer_role"
    TDX_SIGNER_VALIDITY = "tdx.signer_validity"
    TDX_SIGNER_REVOKED = "tdx.signer_revoked"
    TDX_TCB_INFO_SIGNATURE = "tdx.tcb_info_signature"
    TDX_TCB_INFO_KIND = "tdx.tcb_info_kind"
    TDX_TCB_INFO_DATES = "tdx.tcb_info_dates"
    TDX_QE_IDENTITY_SIGNATURE = "tdx.qe_identity_signature"
    TDX_QE_IDENTITY_KIND = "tdx.qe_identity_kind"
    TDX_QE_IDENTITY_DATES = "tdx.qe_identity_dates"
    TDX_FMSPC = "tdx.fmspc"
    TDX_PCE_ID = "tdx.pce_id"
    # … the quoting enclave and the quote itself
    TDX_QE_VENDOR = "tdx.qe_vendor"
    TDX_QE_REPORT_SIGNATURE = "tdx.qe_report_signature"
    TDX_AK_BINDING = "tdx.ak_binding"
    TDX_QE_DEBUG = "tdx.qe_debug"
    TDX_QE_IDENTITY = "tdx.qe_identity"
    TDX_QE_LEVEL = "tdx.qe_level"
    TDX_QUOTE_SIGNATURE = "tdx.quote_signature"
    # … how up to date the platform is
    TDX_MODULE = "tdx.module"
    TDX_MODULE_LEVEL = "tdx.module_level"
    TDX_TCB_LEVEL = "tdx.tcb_level"
    TDX_TCB_REVOKED = "tdx.tcb_revoked"
    # … what the policy says
    TDX_TCB_STATUS = "tdx.tcb_status"
    TDX_ADVISORIES = "tdx.advisories"
    TDX_TCB_EVALUATION = "tdx.tcb_evaluation"
    TDX_COLLATERAL_AGE = "tdx.collateral_age"
    TDX_TEE_TCB_SVN = "tdx.tee_tcb_svn"
    TDX_PLATFORM = "tdx.platform"
    TDX_MR_SEAM = "tdx.mr_seam"
    TDX_MR_SIGNER_SEAM = "tdx.mr_signer_seam"
    TDX_DEBUG = "tdx.debug"
    TDX_SEPT_VE = "tdx.sept_ve"
    TDX_MIGRATABLE = "tdx.migratable"
    TDX_PERFMON = "tdx.perfmon"
    TDX_PKS = "tdx.pks"
    TDX_RESERVED_ATTRIBUTES = "tdx.reserved_attributes"
    TDX_XFAM = "tdx.xfam"
    TDX_SERVICE_TD = "tdx.service_td"
    TDX_MEASUREMENT = "tdx.measurement"
    TDX_MR_CONFIG_ID = "tdx.mr_config_id"
    TDX_MR_OWNER = "tdx.mr_owner"
    TDX_MR_OWNER_CONFIG = "tdx.mr_owner_config"
    TDX_PADDING = "tdx.padding"

    # AMD SEV-SNP

    # NVIDIA GPUs

    # AWS Nitro

    # vTPM (Azure, Google)

    # event logs
