"""What AMD's endorsement certificates (VCEK and VLEK) say in their extensions. Judges nothing.

Layout: AMD 57230 "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import _x509
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.snp.product import Product, Tcb
from attestation.snp.report import SigningKey

_AMD = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _HWID, _CSP_ID = _AMD + "2", _AMD + "4", _AMD + "5"
_TCB = {"bootloader": _AMD + "3.1", "tee": _AMD + "3.2", "snp": _AMD + "3.3", "microcode": _AMD + "3.8"}
_TCB_TURIN = _TCB | {"fmc": _AMD + "3.9"}
_INTEGER, _OCTET_STRING, _IA5_STRING = 2, 4, 22
_NAMES = {  # certificates name the line, sometimes with a stepping: "Milan-B0"
    "Milan": Product.MILAN,
    "Genoa": Product.GENOA,
    "Bergamo": Product.GENOA,
    "Siena": Product.GENOA,
    "Turin": Product.TURIN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vek:
    """A VCEK or VLEK: its kind, the machine it stands for and the TCB its key was derived for."""

    cert: x509.Certificate
    key: ec.EllipticCurvePublicKey
    kind: SigningKey
    product: Product
    product_name: str
    tcb: Tcb
    hwid: bytes | None  # VCEK only: 64 bytes, 8 on Turin
    csp_id: str | None  # VLEK only: the cloud it was given to


def parse_vek(der: bytes) -> Vek:
    """Read an endorsement certificate (DER or PEM). Its signature is not looked at."""
    return _parse(_x509.parse_certificate(der, Check.SNP_VEK, "VEK certificate"))


@lru_cache(maxsize=512)
def _parse(cert: x509.Certificate) -> Vek:
    key = cert.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _malformed("the key is not on P-384")
    values = _extensions(cert)
    name = _text(values, _PRODUCT_NAME)
    product = _NAMES.get(name.partition("-")[0])
    if product is None:
        raise _malformed(f"product {name!r} is none of {sorted(_NAMES)}")
    layout = _TCB_TURIN if product is Product.TURIN else _TCB
    kind = {"SEV-VCEK": SigningKey.VCEK, "SEV-VLEK": SigningKey.VLEK}.get(_x509.common_name(cert.subject))
    if kind is None:
        raise _malformed(f"common name {_x509.common_name(cert.subject)!r} is neither SEV-VCEK nor SEV-VLEK")
    return Vek(
        cert=cert,
        key=key,
        kind=kind,
        product=product,
        product_name=name,
        tcb=Tcb(**{part: _patch_level(values, oid) for part, oid in layout.items()}),
        hwid=_hwid(values, product) if kind is SigningKey.VCEK else None,
        csp_id=_text(values, _CSP_ID) if kind is SigningKey.VLEK else None,
    )


def _extensions(cert: x509.Certificate) -> dict[str, bytes]:
    return {
        e.oid.dotted_string: e.value.value
        for e in cert.extensions
        if isinstance(e.value, x509.UnrecognizedExtension)
    }


def _patch_level(values: dict[str, bytes], oid: str) -> int:
    body = _primitive(values, oid, _INTEGER)
    number = int.from_bytes(body, "big", signed=True)
    minimal = bytes([number]) if 0 <= number < 128 else b"\0" + bytes([number & 0xFF])
    if not 0 <= number <= 255 or body != minimal:
        raise _malformed(f"extension {oid} must be a DER INTEGER of 0 to 255, found {values[oid].hex()}")
    return number


def _text(values: dict[str, bytes], oid: str) -> str:
    try:
        return _primitive(values, oid, _IA5_STRING).decode("ascii")
    except UnicodeDecodeError as exc:
        raise _malformed(f"extension {oid} is not ASCII") from exc


def _hwid(values: dict[str, bytes], product: Product) -> bytes:
    """AMD writes the bytes bare; newer certificates wrap them in an OCTET STRING."""
    size = 8 if product is Product.TURIN else 64
    raw = values.get(_HWID, b"")
    hwid = raw if len(raw) == size else _primitive(values, _HWID, _OCTET_STRING)
    if len(hwid) != size:
        raise _malformed(f"the hardware id must have {size} bytes on {product}, found {len(hwid)}")
    return hwid


def _primitive(values: dict[str, bytes], oid: str, tag: int) -> bytes:
    """The content of one short DER value; all of AMD's are under 128 bytes."""
    raw = values.get(oid)
    if raw is None:
        raise _malformed(f"extension {oid} is missing")
    if len(raw) < 2 or raw[0] != tag or raw[1] != len(raw) - 2 or raw[1] > 127:
        raise _malformed(f"extension {oid} must be one DER value of tag {tag}, found {raw[:80].hex()}")
    return raw[2:]


def _malformed(detail: str) -> MalformedError:
    return MalformedError(Check.SNP_VEK, f"VEK certificate: {detail}")
