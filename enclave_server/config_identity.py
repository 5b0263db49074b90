"""The configuration that the machine was launched with: one rule for every TEE.

The SHA-256 of the configuration file stands on the measured kernel command line, `enclave.config=…`, and in HOST_DATA
(SEV-SNP) or, followed by 16 zero bytes, in MRCONFIGID (TDX), where the host set one. The file itself may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import assert_never

from attestation.checks import Check
from attestation.errors import UnavailableError, VerificationError
from attestation.evidence import CpuEvidence, SnpEvidence, TdxEvidence
from attestation.snp.report import parse_report
from attestation.tdx.quote import parse_quote
from attestation.vtpm import AzureEvidence
from enclave_server.settings import Settings

CMDLINE = Path("/proc/cmdline")
MARK = "enclave.config="
_HOST_DATA, _MR_CONFIG_ID = 32, 48


def mr_config_id(digest: bytes) -> bytes:
    """A configuration's digest as TDX has room for it."""
    return digest.ljust(_MR_CONFIG_ID, b"\0")


def configured(
    settings: Settings,
    content: bytes | None,
    origins: Mapping[str, str],
    evidence: Callable[[bytes], CpuEvidence],
) -> bytes | None:
    """The digest of the configuration file for the statement, where the settings demand that it was measured."""
    if not settings.config_identity_required:
        return None
    return check_config_identity(content, origins, evidence(bytes(64)))


def check_config_identity(
    content: bytes | None,
    origins: Mapping[str, str],
    cpu: CpuEvidence,
    *,
    cmdline: Path = CMDLINE,
) -> bytes:
    """The digest of the configuration file, which is the one that was measured. Raises `config.identity`."""
    if content is None:
        raise _refused("there is no configuration file", "Give it with --config")
    elsewhere = sorted(name for name, origin in origins.items() if origin not in ("file", "default"))
    if elsewhere:
        raise _refused(
            f"{', '.join(elsewhere)} come from options or ENCLAVE_* variables, which nothing measures",
            "Put every setting into the configuration file",
        )
    digest = sha256(content).digest()
    _check_cmdline(digest, cmdline)
    _check_platform(digest, cpu)
    return digest


def _check_cmdline(digest: bytes, cmdline: Path) -> None:
    try:
        words = cmdline.read_text().split()
    except OSError as exc:
        raise UnavailableError(Check.CONFIG_IDENTITY, f"cannot read {cmdline}: {exc.strerror}") from exc
    found = [word.removeprefix(MARK) for word in words if word.startswith(MARK)]
    if found != [digest.hex()]:
        raise _refused(
            f"the kernel command line has {MARK}{' and '.join(found) or 'nothing'}, the file's SHA-256 is {digest.hex()}",
            "Launch the VM with the digest of this file on its command line, or put back the file of that digest",
        )


def _check_platform(digest: bytes, cpu: CpuEvidence) -> None:
    match cpu:
        case TdxEvidence(quote):
            name, found = "MRCONFIGID", parse_quote(quote, padding=True).td.mr_config_id
            expected = mr_config_id(digest)
        case SnpEvidence(report):
            name, found = "HOST_DATA", parse_report(report).host_data
            expected = digest
        case AzureEvidence():  # HOST_DATA and MRCONFIGID are the paravisor's; the command line is in a PCR
            return
        case never:
            assert_never(never)
    if any(found) and found != expected:
        raise _refused(
            f"{name} is {found.hex()}, the file's digest makes {expected.hex()}",
            "Launch the VM with the digest of this file",
        )


def _refused(detail: str, advice: str) -> VerificationError:
    return VerificationError(Check.CONFIG_IDENTITY, detail, advice=advice)
