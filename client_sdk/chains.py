"""The chain of trust of each kind of evidence, link by link, in the order in which the verifiers check it.

A test holds every name to `attestation.checks.Check`.
"""

from __future__ import annotations

from client_sdk.present import Link

_EVIDENCE = ("evidence.fetch", "evidence.format", "collateral.missing")
_FILES = (*_EVIDENCE, "policy.format")
REVOCATION = "nothing in the chain is revoked"

TDX = (
    Link("the files can be read", (*_FILES, "tdx.collateral_format")),
    Link("a TDX quote and nothing else", ("tdx.format", "tdx.kind")),
    Link(
        "platform certificate, to Intel's root",
        ("tdx.root", "tdx.pck_chain", "tdx.pck_role", "tdx.pck_validity"),
    ),
    Link(
        REVOCATION,
        (
            "tdx.root_crl",
            "tdx.root_crl_dates",
            "tdx.pck_crl",
            "tdx.pck_crl_dates",
            "tdx.ca_revoked",
            "tdx.pck_revoked",
            "tdx.pck_extension",
        ),
    ),
    Link(
        "Intel's TCB info and QE identity, in date",
        (
            "tdx.signer_chain",
            "tdx.signer_role",
            "tdx.signer_validity",
            "tdx.signer_revoked",
            "tdx.tcb_info_signature",
            "tdx.tcb_info_kind",
            "tdx.tcb_info_dates",
            "tdx.qe_identity_signature",
            "tdx.qe_identity_kind",
            "tdx.qe_identity_dates",
            "tdx.fmspc",
            "tdx.pce_id",
        ),
    ),
    Link(
        "Intel's quoting enclave on this platform",
        (
            "tdx.qe_vendor",
            "tdx.qe_report_signature",
            "tdx.ak_binding",
            "tdx.qe_debug",
            "tdx.qe_identity",
            "tdx.qe_level",
        ),
    ),
    Link("the quote's signature", ("tdx.quote_signature",)),
    Link(
        "a TCB level that Intel knows", ("tdx.module", "tdx.module_level", "tdx.tcb_level", "tdx.tcb_revoked")
    ),
)

SNP = (
    Link("the files can be read", _FILES),
    Link("an SEV-SNP report and an endorsement certificate", ("snp.report", "snp.vek")),
    Link(
        "endorsement certificate, to AMD's root, in date", ("snp.root", "snp.chain", "snp.certificate_dates")
    ),
    Link(REVOCATION, ("snp.crl_signature", "snp.crl_dates", "snp.revoked")),
    Link(
        "the certificate is for this product, chip and TCB",
        ("snp.signer_kind", "snp.product", "snp.tcb_binding", "snp.chip_binding"),
    ),
    Link("the report's signature", ("snp.signature",)),
)

NITRO = (
    Link("the files can be read", _FILES),
    Link("a Nitro attestation document", ("nitro.format",)),
    Link(
        "its certificate, to Amazon's root, in date", ("nitro.root", "nitro.chain", "nitro.certificate_dates")
    ),
    Link("the document's signature", ("nitro.signature",)),
)

EVENT_LOG = "the event log explains the PCRs"

AZURE = (
    Link("the files can be read", (*_FILES, "vtpm.format", "tdx.collateral_format")),
    Link("the hardware's report is genuine, and commits to the vTPM", ("tdx.", "snp.", "vtpm.runtime_data")),
    Link("the vTPM signed these PCRs for this nonce", ("vtpm.signature", "vtpm.nonce", "vtpm.pcr_digest")),
    Link(EVENT_LOG, ("eventlog.",)),
)

MANIFESTS = "NVIDIA's reference manifests"
GOLDEN = "measures what NVIDIA published"

GPU = (
    Link("the files can be read", (*_FILES, "gpu.format")),
    Link("device certificate, to NVIDIA's root, in date", ("gpu.chain", "gpu.chain_validity")),
    Link("the report's signature", ("gpu.signature",)),
    Link("made for this nonce", ("gpu.nonce",)),
    Link("the chip and firmware that were certified", ("gpu.arch", "gpu.fwid")),
    Link(
        MANIFESTS,
        ("gpu.rim_format", "gpu.rim_signature", "gpu.rim_chain", "gpu.rim_validity"),
    ),
    Link(
        REVOCATION,
        ("gpu.ocsp", "gpu.ocsp_validity", "gpu.ocsp_nonce", "gpu.revoked", "gpu.hold"),
    ),
    Link(GOLDEN, ("gpu.rim_conflict", "gpu.measurement")),
)

TOKEN = (
    Link("the files can be read", (*_FILES, "gpu.token_format")),
    Link(
        "signed by a pinned key of the service, in date, and every result in it is success",
        (
            "gpu.token_signature",
            "gpu.token_issuer",
            "gpu.token_time",
            "gpu.token_nonce",
            "gpu.token_result",
        ),
    ),
)

#: A whole evidence document, as a client verifies it (`attestation.verify`).
DOCUMENT = (
    Link("the evidence document and its statement", (*_EVIDENCE, "binding.nonce", "statement.format")),
    Link("the CPU's evidence is genuine and current", ("tdx.", "snp.", "eventlog.", "serving.")),
    Link("the GPUs' evidence is genuine and current", ("gpu.",)),
    Link("all of it is about this statement and this nonce", ("binding.report_data",)),
    Link("the statement is in date", ("statement.validity",)),
)
