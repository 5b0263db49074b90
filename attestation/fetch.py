"""Collateral over HTTP: from Intel's PCS (or a PCCS near you) for a TDX quote, from AMD's KDS for an SNP report, from
NVIDIA's RIM service and OCSP responder for GPU evidence.

One of the edges that touch the world; nothing that decides imports it. What it returns is untrusted:
`verify` checks every signature and date. The evidence says what to ask for, so a liar can at worst make us ask in vain.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import unquote

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation import _x509
from attestation._download import Answer, Download, Patience, Question
from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.collateral import MAX_COLLATERAL_BYTES, AmdCollateral, IntelCollateral
from attestation.errors import MalformedError, UnavailableError, VerificationError
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.needs import needed_ocsp, needed_rims
from attestation.nvidia.ocsp import parse_answer
from attestation.nvidia.rim import load_rim
from attestation.snp.product import Product, decode_tcb, product_of_cpuid
from attestation.snp.report import Report, SigningKey, parse_report
from attestation.snp.vek import parse_vek
from attestation.tdx.pck import parse_platform
from attestation.tdx.quote import parse_quote
from attestation.vtpm import AzureEvidence, ReportType, parse_hcl_report

_CHECK = Check.COLLATERAL_FETCH
_OCSP_REQUEST = "application/ocsp-request"
_CA_OF = {"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where to ask. The defaults are the vendors' own services."""

    intel_tdx: str = "https://api.trustedservices.intel.com/tdx/certification/v4"
    intel_sgx: str = "https://api.trustedservices.intel.com/sgx/certification/v4"
    intel_root_crl: str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
    amd: str = "https://kdsintf.amd.com"
    nvidia_rim: str = "https://rim.attestation.nvidia.com/v1/rim"
    nvidia_ocsp: str | None = None  # None: the responder that each certificate names

    @classmethod
    def pccs(cls, base: str, *, amd: str = "https://kdsintf.amd.com") -> Self:
        """A caching service for Intel's collateral (PCCS), which also serves the root CRL."""
        base = base.rstrip("/")
        sgx = f"{base}/sgx/certification/v4"
        return cls(
            intel_tdx=f"{base}/tdx/certification/v4",
            intel_sgx=sgx,
            intel_root_crl=f"{sgx}/rootcacrl",
            amd=amd,
        )


class Fetcher:
    """Fetches and remembers collateral. Give it a `cache` folder: AMD's service limits how often one may ask.

    Answers are asked for anew after `refresh`, so that a revocation is seen long before the vendor's own expiry; when
    the vendor cannot be reached, a kept answer serves until that expiry. With `offline`, only kept answers are used.
    """

    def __init__(
        self,
        *,
        sources: Sources | None = None,
        cache: Path | None = None,
        offline: bool = False,
        client: httpx.Client | None = None,
        patience: Patience | None = None,
        refresh: timedelta = timedelta(days=1),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sources = sources or Sources()
        self._download = Download(
            cache=cache,
            offline=offline,
            client=client,
            patience=patience or Patience(),
            refresh=refresh,
            now=now,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless the client was the caller's own."""
        self._download.close()

    def intel(self, quote: bytes) -> IntelCollateral:
        """Everything that verifying this TDX quote needs."""
        chain = _x509.parse_chain(
            parse_quote(quote, padding=True).pck_chain, Check.TDX_PCK_CHAIN, "PCK chain", length=3
        )
        issuer, fmspc = _x509.common_name(chain[1].subject), parse_platform(chain[0]).fmspc.hex().upper()
        if issuer not in _CA_OF:
            raise MalformedError(Check.TDX_PCK_ROLE, f"the PCK certificate's issuer is {issuer!r}")
        get, at = self._download.get, self._sources
        root_crl = get(at.intel_root_crl, _crl_expiry)
        pck_crl = get(f"{at.intel_sgx}/pckcrl?ca={_CA_OF[issuer]}&encoding=der", _crl_expiry)
        tcb = get(f"{at.intel_tdx}/tcb?fmspc={fmspc}", lambda a: _signed(a, "tcbInfo")[2])
        qe = get(f"{at.intel_tdx}/qe/identity", lambda a: _signed(a, "enclaveIdentity")[2])
        tcb_info, tcb_signature, _ = _signed(tcb, "tcbInfo")
        qe_identity, qe_signature, _ = _signed(qe, "enclaveIdentity")
        return IntelCollateral(
            pck_crl_issuer_chain=_issuer_chain(pck_crl, "sgx-pck-crl-issuer-chain"),
            root_ca_crl=_der(root_crl),
            pck_crl=_der(pck_crl),
            tcb_info_issuer_chain=_issuer_chain(tcb, "tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=_issuer_chain(qe, "sgx-enclave-identity-issuer-chain"),
            qe_identity=qe_identity,
            qe_identity_signature=qe_signature,
        )

    def amd(
        self, report: bytes, *, vek: bytes | None = None, product: Product | None = None
    ) -> AmdCollateral:
        """Everything that verifying this SNP report needs.

        `vek` is the certificate that came with the report, if one did: for a VLEK it has to, as AMD hands those to
        clouds alone. `product` is for version 2 reports without a certificate; they do not say what they come from.
        """
        parsed = parse_report(report)
        if vek is not None:
            product = parse_vek(vek).product
        elif parsed.cpuid is not None:
            product = product_of_cpuid(parsed.cpuid)
        if product is None:
            raise _unavailable(
                "the report does not tell its product line", "Name the product, or give the VCEK"
            )
        kind = (parsed.signer.signing_key or SigningKey.VCEK).lower()
        base, get = f"{self._sources.amd}/{kind}/v1/{product}", self._download.get
        if vek is None:
            vek = get(f"{self._sources.amd}{_vcek_path(parsed, product)}", _certificate_expiry).body
        return AmdCollateral(
            vek=vek,
            chain=get(f"{base}/cert_chain", _chain_expiry).body,
            crl=get(f"{base}/crl", _crl_expiry).body,
        )

    def azure(self, evidence: AzureEvidence) -> IntelCollateral | AmdCollateral:
        """Everything that verifying the hardware under an Azure VM needs."""
        hcl = parse_hcl_report(evidence.hcl_report)
        if hcl.report_type is ReportType.TDX:
            return self.intel(evidence.td_quote)
        vek = evidence.vcek
        if vek.startswith(b"-----BEGIN"):
            vek = _x509.parse_chain(vek, Check.SNP_VEK, "VCEK", length=1)[0].public_bytes(Encoding.DER)
        return self.amd(hcl.hardware_report, vek=vek or None)

    def nvidia(self, evidence: bytes) -> NvidiaCollateral:
        """Everything that verifying this list of GPU evidence needs: manifests, and answers about every certificate."""
        get, at = self._download.get, self._sources
        rims = tuple(_rim(get(f"{at.nvidia_rim}/{name}", _rim_expiry)) for name in needed_rims(evidence))
        answers = tuple(
            get(at.nvidia_ocsp or ask.url, _ocsp_expiry, question=Question(ask.request, _OCSP_REQUEST)).body
            for ask in needed_ocsp(evidence, rims)
        )
        return NvidiaCollateral(rims=rims, ocsp=answers)

    @property
    def not_kept(self) -> str | None:
        """Why the last answer could not be written to the cache; None when it could."""
        return self._download.not_kept


def _vcek_path(report: Report, product: Product) -> str:
    """AMD 57230, "VCEK Certificate Request": the chip, and the TCB that its key was derived for."""
    if report.signer.signing_key is not SigningKey.VCEK:
        raise _unavailable(
            f"the report was signed by {report.signer.signing_key or 'nobody'}",
            "AMD hands a VLEK certificate to its cloud only: take the one that comes with the report",
        )
    if not any(report.chip_id):
        raise _unavailable("the host masks the chip id", "Take the VCEK that comes with the report")
    tcb = decode_tcb(report.reported_tcb, product, "reported_tcb")
    chip, levels = report.chip_id, ""
    if product is Product.TURIN:
        chip, levels = report.chip_id[:8], f"fmcSPL={tcb.fmc:02}&"
    levels += f"blSPL={tcb.bootloader:02}&teeSPL={tcb.tee:02}&snpSPL={tcb.snp:02}&ucodeSPL={tcb.microcode:02}"
    return f"/vcek/v1/{product}/{chip.hex()}?{levels}"


# Reading answers: each of these raises MalformedError for what is not an answer, and the download tries again.


def _signed(answer: Answer, name: str) -> tuple[str, bytes, datetime]:
    """The exact text that Intel signed, its signature and its end: `{"<name>":{…},"signature":"<hex>"}`."""
    document = parse_json_object(answer.body, _CHECK, name, limit=MAX_COLLATERAL_BYTES)
    text = answer.body.decode()
    start = text.find("{", text.find(f'"{name}"') + len(name) + 2)
    try:
        inner, end = json.JSONDecoder().raw_decode(text, start)
        if inner != document[name]:
            raise ValueError(f"{name} is not where it should be")
        signature = bytes.fromhex(document["signature"])
        expires = datetime.fromisoformat(inner["nextUpdate"]).astimezone(UTC)
    except (ValueError, KeyError, TypeError) as exc:
        raise MalformedError(_CHECK, f"{name}: not Intel's answer ({exc!r})") from exc
    return text[start:end], signature, expires


def _issuer_chain(answer: Answer, *names: str) -> str:
    """Intel sends certificate chains as URL-encoded PEM in a header; PCCS versions differ in its name."""
    for name in names:
        if name in answer.headers:
            return unquote(answer.headers[name])
    raise _unavailable(
        f"the answer lacks the header {names[0]}", "Is this Intel's service, or a proxy that drops headers?"
    )


def _der(answer: Answer) -> bytes:
    """PCCS serves the root CRL in hex."""
    body = answer.body.strip()
    try:
        return bytes.fromhex(body.decode("ascii"))
    except ValueError:
        return answer.body


def _crl_expiry(answer: Answer) -> datetime:
    until = _x509.parse_crl(_der(answer), _CHECK, "CRL").next_update_utc
    if until is None:
        raise MalformedError(_CHECK, "the CRL has no nextUpdate")
    return until


def _certificate_expiry(answer: Answer) -> datetime:
    return _x509.parse_certificate(answer.body, _CHECK, "certificate").not_valid_after_utc


def _chain_expiry(answer: Answer) -> datetime:
    chain: tuple[x509.Certificate, ...] = _x509.parse_chain(answer.body, _CHECK, "AMD chain", length=2)
    return min(cert.not_valid_after_utc for cert in chain)


def _rim(answer: Answer) -> bytes:
    """NVIDIA's service wraps the manifest: `{"id": …, "rim": base64, …}`."""
    document = parse_json_object(answer.body, _CHECK, "RIM", limit=MAX_COLLATERAL_BYTES)
    try:
        return b64decode(str(document["rim"]), validate=True)
    except (KeyError, ValueError) as exc:
        raise MalformedError(_CHECK, f"not an answer of the RIM service ({exc!r})") from exc


def _rim_expiry(answer: Answer) -> datetime:
    try:
        return min(cert.not_valid_after_utc for cert in load_rim(_rim(answer)).chain)
    except VerificationError as exc:  # its signature: what did not arrive as it was sent
        raise MalformedError(_CHECK, str(exc)) from exc


def _ocsp_expiry(answer: Answer) -> datetime:
    ends = [single.next_update for single in parse_answer(answer.body).singles]
    if not ends or None in ends:
        raise MalformedError(_CHECK, "the OCSP answer has no nextUpdate")
    return min(end for end in ends if end is not None)


def _unavailable(detail: str, advice: str) -> UnavailableError:
    return UnavailableError(_CHECK, detail, advice=advice)
