"""Evidence of an Azure confidential VM: its vTPM through tpm2-tools, and its metadata service for what the hardware's vendor signed.

The paravisor made the hardware report at boot; the vTPM's quote, by the key that this report vouches for, is what is fresh.
The firmware's log of the boot comes along where it leads to exactly the PCRs that are quoted.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx

from attestation._b64 import b64url_decode, b64url_encode
from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.collect._errors import unavailable
from attestation.collect.tdx_guest import TDREPORT_BYTES
from attestation.errors import AttestationError
from attestation.measure.eventlog import MAX_LOG_BYTES
from attestation.vtpm import AzureEvidence, ReportType, parse_hcl_report, parse_quote
from attestation.vtpm.quote import PCR_COUNT
from attestation.vtpm.verify import verify_boot_log

HCL_REPORT, ATTESTATION_KEY = "0x01400001", "0x81000003"  # where the paravisor keeps them
METADATA = "http://169.254.169.254"
BOOT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
MAX_NONCE_BYTES = 32  # TPM2B_DATA: what every TPM with a SHA-256 bank takes
_PCRS = "sha256:" + ",".join(map(str, range(PCR_COUNT)))
_PCR_BYTES = 32
_ATTEMPTS = 3
_MAX_ANSWER = 64 * 1024


def collect_azure(
    nonce: bytes,
    *,
    environment: Mapping[str, str] | None = None,
    metadata: str = METADATA,
    boot_log: Path = BOOT_LOG,
    seconds: float = 30.0,
) -> AzureEvidence:
    """Evidence for `nonce`. `environment` is for the tools, such as TPM2TOOLS_TCTI."""
    if not 0 < len(nonce) <= MAX_NONCE_BYTES:
        raise ValueError(f"a nonce for a TPM has 1 to {MAX_NONCE_BYTES} bytes, not {len(nonce)}")
    tools = Tools(environment or {}, seconds)
    hcl_report = tools.run("tpm2_nvread", "-C", "o", HCL_REPORT)
    kind, hardware = parse_hcl_report(hcl_report), b""
    quote, signature, pcrs = quoted(tools, nonce)
    if kind.report_type is ReportType.TDX:
        hardware = _td_quote(kind.hardware_report[:TDREPORT_BYTES], metadata, seconds)
    vcek = _vcek(metadata, seconds) if kind.report_type is ReportType.SNP else b""
    evidence = AzureEvidence(
        quote=quote, signature=signature, pcrs=pcrs, hcl_report=hcl_report, vcek=vcek, td_quote=hardware
    )
    return with_boot_log(evidence, boot_log)


def with_boot_log(evidence: AzureEvidence, file: Path) -> AzureEvidence:
    """With the log of the boot, where there is one that leads to these PCRs; another would only be refused."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_LOG_BYTES + 1)
        verify_boot_log(content, dict(enumerate(evidence.pcrs)))
    except (OSError, AttestationError):
        return evidence
    return replace(evidence, event_log=content)


def quoted(tools: Tools, nonce: bytes) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """A quote by the attestation key, and the PCRs that it is about: read apart, so somebody may extend one in between."""
    for _ in range(_ATTEMPTS):
        with tempfile.TemporaryDirectory() as folder:
            files = [f"{folder}/{name}" for name in ("message", "signature", "pcrs")]
            message, signature, pcrs = files
            options = [
                "-l",
                _PCRS,
                "-q",
                nonce.hex(),
                "-g",
                "sha256",
                "-f",
                "plain",
                "-m",
                message,
                "-s",
                signature,
            ]
            tools.run("tpm2_quote", "-Q", "-c", ATTESTATION_KEY, *options)
            tools.run("tpm2_pcrread", "-Q", _PCRS, "-o", pcrs)
            quote, signed, values = (Path(file).read_bytes() for file in files)
        if parse_quote(quote).pcr_digest == sha256(values).digest():
            cut = range(0, len(values), _PCR_BYTES)
            return quote, signed, tuple(values[at : at + _PCR_BYTES] for at in cut)
    raise unavailable(f"the PCRs changed between quote and reading, {_ATTEMPTS} times")


class Tools:
    """tpm2-tools, with `environment` added to this process's own."""

    def __init__(self, environment: Mapping[str, str], seconds: float) -> None:
        self._environment, self._seconds = {**os.environ, **environment}, seconds

    def run(self, *command: str) -> bytes:
        try:
            done = subprocess.run(  # noqa: S603 - fixed names and hex
                command, env=self._environment, capture_output=True, timeout=self._seconds, check=False
            )
        except FileNotFoundError as exc:
            raise unavailable(f"there is no {command[0]}", "Install tpm2-tools in the image") from exc
        except subprocess.TimeoutExpired as exc:
            raise unavailable(f"{command[0]} did not end within {self._seconds:g} s") from exc
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            raise unavailable(
                f"{command[0]} failed: {_last(words)}",
                "Is this an Azure confidential VM, and may the gateway's user open /dev/tpmrm0?",
            )
        return done.stdout


def _last(lines: Sequence[str]) -> str:
    return next((line[:200] for line in reversed(lines) if "ERROR" in line), lines[-1][:200] if lines else "")


def _td_quote(report: bytes, metadata: str, seconds: float) -> bytes:
    """The host's quoting service, which Azure has behind its metadata service."""
    answer = _ask("POST", f"{metadata}/acc/tdquote", seconds, {"report": b64url_encode(report)})
    return b64url_decode(str(answer.get("quote", "")).rstrip("="), Check.TEE_COLLECT, "quote")


def _vcek(metadata: str, seconds: float) -> bytes:
    answer = _ask("GET", f"{metadata}/metadata/THIM/amd/certification", seconds)
    return str(answer.get("vcekCert", "")).encode()


def _ask(method: str, url: str, seconds: float, body: Mapping[str, str] | None = None) -> dict[str, Any]:
    try:
        answer = httpx.request(
            method, url, json=body, headers={"Metadata": "true"}, timeout=seconds, trust_env=False
        )
    except httpx.HTTPError as exc:
        raise unavailable(f"{url}: {type(exc).__name__}", "Azure's metadata service does not answer") from exc
    if answer.status_code != httpx.codes.OK:
        raise unavailable(f"{url}: status {answer.status_code}", "Azure's metadata service refused")
    return parse_json_object(answer.content, Check.TEE_COLLECT, "Azure's answer", limit=_MAX_ANSWER)
