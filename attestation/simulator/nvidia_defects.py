"""What can be wrong with simulated NVIDIA evidence. Each defect breaks one thing and leaves all else as NVIDIA makes it."""

from __future__ import annotations

from enum import StrEnum


class GpuDefect(StrEnum):
    """Ask for one in `evidence()` and in `collateral()`: those that only concern the other half are ignored."""

    # the report as bytes
    TRUNCATED = "truncated"
    UNKNOWN_CHIP = "unknown-chip"
    UNKNOWN_FEATURE = "unknown-feature"
    UNKNOWN_OPAQUE_VERSION = "unknown-opaque-version"
    UNKNOWN_OPAQUE_PROFILE = "unknown-opaque-profile"
    # the device's certificates
    OTHER_ROOT = "other-root"
    CHAIN_FORGED = "chain-forged"
    CHIP_IS_NO_CA = "chip-is-no-ca"
    LEAF_EXPIRED = "leaf-expired"
    # the report's signature and what it says of itself
    REPORT_CHANGED = "report-changed"
    SIGNATURE_CHANGED = "signature-changed"
    OTHER_NONCE = "other-nonce"
    OTHER_ARCH = "other-arch"
    OTHER_CHIP = "other-chip"
    OTHER_FIRMWARE = "other-firmware"
    FWID_MISSING = "fwid-missing"
    MEASUREMENT_CHANGED = "measurement-changed"
    SVN_TOO_LOW = "svn-too-low"
    # revocation
    OCSP_MALFORMED = "ocsp-malformed"
    OCSP_FORGED = "ocsp-forged"
    OCSP_RESPONDER_NOT_NAMED = "ocsp-responder-not-named"
    OCSP_RESPONDER_OF_OTHER_CA = "ocsp-responder-of-other-ca"
    OCSP_EXPIRED = "ocsp-expired"
    OCSP_NOT_YET_VALID = "ocsp-not-yet-valid"
    OCSP_WITHOUT_END = "ocsp-without-end"
    OCSP_MISSING = "ocsp-missing"
    OCSP_UNKNOWN = "ocsp-unknown"
    CHIP_REVOKED = "chip-revoked"
    CHIP_ON_HOLD = "chip-on-hold"
    RIM_SIGNER_REVOKED = "rim-signer-revoked"
    # manifests
    RIM_NO_XML = "rim-no-xml"
    RIM_WITH_DTD = "rim-with-dtd"
    RIM_CHANGED = "rim-changed"
    RIM_OTHER_ROOT = "rim-other-root"
    RIM_FORGED = "rim-forged"
    RIM_CHAIN_SHORT = "rim-chain-short"
    RIM_EXPIRED = "rim-expired"
    RIM_CONFLICT = "rim-conflict"
    RIM_MISSING = "rim-missing"
    RIM_OF_OTHER_VERSION = "rim-of-other-version"
    RIM_OF_OTHER_CHIP = "rim-of-other-chip"
    # what the driver says, and the machine as a whole
    CONFIDENTIAL_OFF = "confidential-off"
    DEVTOOLS = "devtools"
    NOT_READY = "not-ready"
    STATE_MISSING = "state-missing"
    DUPLICATE = "duplicate"
    MIXED_MODES = "mixed-modes"
    SWITCH_MISSING = "switch-missing"
    GPU_MISSING = "gpu-missing"
