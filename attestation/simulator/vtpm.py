"""A simulated Azure confidential VM: HCL report, runtime data and vTPM on simulated SEV-SNP, any defect on request.

A development tool. Nothing but a policy that names its hardware's root accepts what it signs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from attestation._b64 import b64url_encode
from attestation.collateral import Collateral
from attestation.roots import Roots
from attestation.simulator import pki
from attestation.simulator.snp import SimulatedSnp
from attestation.vtpm.evidence import AzureEvidence
from attestation.vtpm.hcl import ReportType

PCRS = tuple(sha256(b"simulated PCR %d" % i).digest() if i < 16 else bytes(32) for i in range(24))
NV_INDEX_BYTES = 2600


class VtpmDefect(StrEnum):
    """What can be wrong between the hardware's report and the quote."""

    RUNTIME_DATA_ALTERED = "the runtime data says what the hardware did not sign"
    REPORT_DATA_LONGER = "REPORT_DATA has more in it than the digest"
    KEY_REPLACED = "the runtime data names another key, and the hardware did not sign that"
    OTHER_KEY = "the quote is signed by another key"
    QUOTE_ALTERED = "one bit of the quote differs from what was signed"
    PCR_ALTERED = "a PCR is not the one that was quoted"
    NO_PCR = "the quote selects no PCR"
    REPORT_TYPE = "the HCL report says that it is of a TD"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFields:
    """What a quote says besides the nonce."""

    magic: bytes = b"\xffTCG\x80\x18"
    signer: bytes = b"\x00\x0b" + bytes(32)
    safe: int = 1
    count: int = 1
    bank: int = 0x0B
    size: int = 3
    selected: tuple[int, ...] = tuple(range(24))


@cache
def process_keys() -> tuple[rsa.RSAPrivateKey, rsa.RSAPrivateKey]:
    """A VM's attestation key and a stranger's, made once in this process."""
    return pki.rsa_key(2048), pki.rsa_key(2048)


class SimulatedVtpm:
    """One simulated VM on one simulated machine."""

    def __init__(self, machine: SimulatedSnp | None = None) -> None:
        self.machine = machine or SimulatedSnp()
        self.key, self._stranger = process_keys()

    @property
    def roots(self) -> Roots:
        """Trust in this machine, and in nothing else."""
        return Roots(intel=(), amd=(self.machine.root,), nvidia_device=(), nvidia_rim=(), aws=())

    def collateral(self, now: datetime) -> Collateral:
        return Collateral(amd=self.machine.collateral(now))

    def evidence(
        self,
        nonce: bytes,
        defect: VtpmDefect | None = None,
        *,
        pcrs: tuple[bytes, ...] = PCRS,
        event_log: bytes = b"",
        runtime_data: Mapping[str, Any] | None = None,
    ) -> AzureEvidence:
        """One answer to `nonce`; members of `runtime_data` replace those of the JSON, `...` leaves one out."""
        fields = QuoteFields(selected=()) if defect is VtpmDefect.NO_PCR else QuoteFields()
        quote = make_quote(nonce, pcrs, fields)
        signature = self.sign(quote, self._stranger if defect is VtpmDefect.OTHER_KEY else self.key)
        if defect is VtpmDefect.QUOTE_ALTERED:
            quote = quote[:-1] + bytes([quote[-1] ^ 1])
        if defect is VtpmDefect.PCR_ALTERED:
            pcrs = (*pcrs[:11], bytes(32), *pcrs[12:])
        return AzureEvidence(
            quote=quote,
            signature=signature,
            pcrs=pcrs,
            hcl_report=self.hcl_report(runtime_data or {}, defect),
            event_log=event_log,
        )

    def hcl_report(self, runtime_data: Mapping[str, Any], defect: VtpmDefect | None = None) -> bytes:
        """Header, a signed hardware report over the runtime data, the runtime data, and zeros."""
        raw = self.runtime_data(runtime_data)
        digest = sha256(raw).digest()
        report_data = digest * 2 if defect is VtpmDefect.REPORT_DATA_LONGER else digest.ljust(64, b"\0")
        report = self.machine.report(report_data)
        if defect is VtpmDefect.RUNTIME_DATA_ALTERED:
            raw = raw.replace(b'"console-enabled":false', b'"console-enabled":true')
        if defect is VtpmDefect.KEY_REPLACED:
            raw = self.runtime_data({"keys": [jwk(self._stranger.public_key())]})
        kind = ReportType.TDX if defect is VtpmDefect.REPORT_TYPE else ReportType.SNP
        return make_hcl_report(report, raw, kind)

    def runtime_data(self, changes: Mapping[str, Any]) -> bytes:
        content: dict[str, Any] = {
            "keys": [jwk(self.key.public_key())],
            "vm-configuration": {"console-enabled": False, "secure-boot": True, "tpm-enabled": True},
            "user-data": "00" * 64,
            **changes,
        }
        kept = {name: value for name, value in content.items() if value is not ...}
        return json.dumps(kept, separators=(",", ":")).encode()

    def sign(self, quote: bytes, key: rsa.RSAPrivateKey | None = None) -> bytes:
        return (key or self.key).sign(quote, padding.PKCS1v15(), SHA256())


def make_quote(nonce: bytes, pcrs: tuple[bytes, ...], fields: QuoteFields | None = None) -> bytes:
    """TPMS_ATTEST over the selected PCRs."""
    f = fields or QuoteFields()
    digest = sha256(b"".join(pcrs[i] for i in f.selected)).digest()
    selection = sum(1 << i for i in f.selected).to_bytes(3, "little")
    clock = struct.pack(">QIIBQ", 123456, 7, 0, f.safe, 0x2020)
    info = struct.pack(">IHB", f.count, f.bank, f.size) + selection + _sized(digest)
    return f.magic + _sized(f.signer) + _sized(nonce) + clock + info


def make_hcl_report(report: bytes, raw: bytes, kind: int = ReportType.SNP, **header: int) -> bytes:
    """The report as its NV index has it; `header` replaces single numbers."""
    h = {
        "version": 2,
        "size": 32 + 1184 + 20 + len(raw),
        "status": 0,
        "block": 20 + len(raw),
        "format": 1,
        "hash": 1,
    }
    h |= header
    head = struct.pack("<4sIIIIIII", b"HCLA", h["version"], h["size"], 2, h["status"], 0, 0, 0)
    runtime = struct.pack("<IIIII", h["block"], h["format"], kind, h["hash"], len(raw)) + raw
    return (head + report + runtime).ljust(NV_INDEX_BYTES, b"\0")


def jwk(key: rsa.RSAPublicKey) -> dict[str, Any]:
    """The attestation key as the runtime data names it."""
    numbers = key.public_numbers()
    n = b64url_encode(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8))
    return {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": n}


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data
