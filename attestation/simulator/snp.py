"""A simulated AMD machine: an ARK, ASK and ASVK of its own, VCEKs and VLEKs with AMD's extensions, real-format reports.

A development tool. Nothing but a policy that names its root accepts what it signs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from hashlib import sha384, sha512
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestation.collateral import AmdCollateral
from attestation.roots import Root
from attestation.simulator import pki
from attestation.snp.product import Product, Tcb
from attestation.snp.report import SigningKey

_FROM, _TO = datetime(2020, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)
_AMD = "1.3.6.1.4.1.3704.1."
_PARTS = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
_CPUID = {Product.MILAN: b"\x19\x01\x01", Product.GENOA: b"\x19\x11\x01", Product.TURIN: b"\x1a\x02\x01"}
_TCB = {
    Product.MILAN: Tcb(bootloader=4, snp=0x1D, microcode=0xDE),
    Product.GENOA: Tcb(bootloader=10, snp=0x1C, microcode=0x57),
    Product.TURIN: Tcb(fmc=1, bootloader=1, tee=1, snp=5, microcode=0x52),
}
_SERIALS = {"ARK": 0x10000, "SEV": 0x10001, "SEV-VLEK": 0x10101}
MEASUREMENT = sha384(b"simulated SNP guest").digest()


class SnpDefect(StrEnum):
    """What can be wrong with collateral. What can be wrong with a report is a field of `ReportFields`."""

    OTHER_ROOT = "the chain ends in another ARK"
    ASK_NOT_CA = "the ASK's BasicConstraints deny that it is a CA"
    ASK_REVOKED = "the CRL lists the ASK and the ASVK"
    CRL_MISSING = "no CRL"
    CRL_EXPIRED = "the CRL's nextUpdate is past"
    CRL_NOT_YET = "the CRL's thisUpdate is to come"
    CRL_OTHER_KEY = "the CRL is signed by another key under the ARK's name"
    VEK_EXPIRED = "the endorsement certificate is past its date"
    VEK_OTHER_KEY = "the endorsement certificate is for another key"
    VEK_OTHER_KIND = "a VLEK instead of a VCEK, or the reverse"
    VEK_OTHER_TCB = "the endorsement certificate is for another TCB"
    VEK_OTHER_CHIP = "the endorsement certificate is for another chip"
    VEK_OTHER_PRODUCT = "the endorsement certificate names another product line"
    VEK_WRONG_ISSUER = "a VCEK issued by the ASVK, or a VLEK by the ASK"
    VEK_FORGED = "the endorsement certificate is signed by a key that is not the ASK's"
    VEK_WITHOUT_TCB = "the endorsement certificate lacks AMD's TCB extensions"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFields:
    """Everything a report says besides report_data, as the bytes have it; None takes the machine's own value."""

    version: int = 3
    guest_svn: int = 1
    policy: int = 0x3_0000
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    vmpl: int = 0
    signature_algo: int = 1
    platform_info: int = 0x65  # SMT, ECC, memory alias check done, IOMMU write safe
    signer_info: int | None = None
    measurement: bytes = MEASUREMENT
    host_data: bytes = bytes(32)
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    reported_tcb: Tcb | None = None
    committed_tcb: Tcb | None = None
    current_tcb: Tcb | None = None
    launch_tcb: Tcb | None = None
    cpuid: bytes | None = None
    chip_id: bytes | None = None
    current_firmware: bytes = b"\x31\x37\x01"  # build, minor, major
    committed_firmware: bytes = b"\x31\x37\x01"
    launch_mitigations: int = 0x7  # in version 5
    current_mitigations: int = 0x7


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpKeys:
    """The private keys behind one simulated vendor and one chip. RSA-4096 as AMD's, so making them takes seconds."""

    ark: rsa.RSAPrivateKey
    ask: rsa.RSAPrivateKey
    asvk: rsa.RSAPrivateKey
    vcek: ec.EllipticCurvePrivateKey
    vlek: ec.EllipticCurvePrivateKey

    @classmethod
    def load_or_create(cls, folder: Path) -> SnpKeys:
        return cls._make(lambda name, make: pki.load_or_make_key(folder / f"{name}.pem", make))

    @classmethod
    def _make(cls, get: Callable[[str, Callable[[], pki.PrivateKey]], pki.PrivateKey]) -> SnpKeys:
        made = {name: get(name, pki.rsa_key) for name in ("ark", "ask", "asvk")}
        made |= {name: get(name, pki.p384_key) for name in ("vcek", "vlek")}
        return cls(**made)  # type: ignore[arg-type]  # each of the kind asked for just above


@cache
def process_keys() -> SnpKeys:
    """Keys made once in this process, for tests."""
    return SnpKeys._make(lambda _, make: make())


@cache
def _stranger() -> rsa.RSAPrivateKey:
    """A key that signed nothing we trust."""
    return pki.rsa_key()


class SimulatedSnp:
    """One simulated machine. `product` and `signer` choose what it pretends to be."""

    def __init__(
        self,
        keys: SnpKeys | None = None,
        *,
        product: Product = Product.GENOA,
        signer: SigningKey = SigningKey.VCEK,
        wrapped_hwid: bool = False,
    ) -> None:
        self.keys = keys or process_keys()
        self.product, self.signer, self.wrapped_hwid = product, signer, wrapped_hwid
        self.tcb = _TCB[product]
        self.hwid = sha512(b"simulated chip").digest()[: 8 if product is Product.TURIN else 64]
        self._ark = self._authority("ARK", self.keys.ark)

    @classmethod
    def load_or_create(
        cls, folder: Path, *, product: Product = Product.GENOA, signer: SigningKey = SigningKey.VCEK
    ) -> SimulatedSnp:
        """A machine whose keys lie in `folder`, made there at the first call, so that its root stays the same."""
        return cls(SnpKeys.load_or_create(folder), product=product, signer=signer)

    @property
    def root(self) -> Root:
        """The trust anchor that a policy has to name to accept this machine."""
        return pki.pin(self._ark)

    def report(self, report_data: bytes, **changes: Any) -> bytes:
        """A signed report over 64 bytes; `changes` are fields of `ReportFields`."""
        body = self._body(report_data, replace(ReportFields(), **changes))
        key = self.keys.vcek if self.signer is SigningKey.VCEK else self.keys.vlek
        r, s = decode_dss_signature(key.sign(body, ec.ECDSA(SHA384())))
        return body + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)

    def collateral(self, now: datetime | None = None, defect: SnpDefect | None = None) -> AmdCollateral:
        """What a key server would hand out at `now` (the present unless given), with `defect` when asked."""
        now = now or datetime.now(UTC)
        kind = self.signer
        if defect is SnpDefect.VEK_OTHER_KIND:
            kind = SigningKey.VLEK if kind is SigningKey.VCEK else SigningKey.VCEK
        ark = self._authority("ARK", _stranger()) if defect is SnpDefect.OTHER_ROOT else self._ark
        by_ask = (kind is SigningKey.VCEK) != (defect is SnpDefect.VEK_WRONG_ISSUER)
        prefix, key = ("SEV", self.keys.ask) if by_ask else ("SEV-VLEK", self.keys.asvk)
        issuer = self._authority(prefix, key, ark, ca=defect is not SnpDefect.ASK_NOT_CA)
        return AmdCollateral(
            vek=self._vek(kind, issuer, now, defect),
            chain=(issuer.pem + ark.pem).encode(),
            crl=b"" if defect is SnpDefect.CRL_MISSING else _crl(ark, now, defect),
        )

    def _authority(
        self, prefix: str, key: rsa.RSAPrivateKey, issuer: pki.Signer | None = None, *, ca: bool = True
    ) -> pki.Signer:
        return pki.issue(
            pki.name(f"{prefix}-{self.product}"),
            key,
            issuer,
            not_before=_FROM,
            not_after=_TO,
            ca=ca,
            path_length=0 if issuer and ca else None,
            serial=_SERIALS[prefix],
        )

    def _vek(self, kind: SigningKey, issuer: pki.Signer, now: datetime, defect: SnpDefect | None) -> bytes:
        key = self.keys.vcek if kind is SigningKey.VCEK else self.keys.vlek
        forged = defect is SnpDefect.VEK_FORGED
        days = -1 if defect is SnpDefect.VEK_EXPIRED else 2000
        made = pki.issue(
            pki.name(f"SEV-{kind}"),
            pki.p384_key() if defect is SnpDefect.VEK_OTHER_KEY else key,
            pki.Signer(issuer.cert, _stranger()) if forged else issuer,
            not_before=_FROM,
            not_after=now + timedelta(days=days),
            ca=None,
            extensions=self._extensions(kind, defect),
            serial=1,
        )
        signing = _stranger() if forged else issuer.key
        return _renumber(made.cert, cast(rsa.RSAPrivateKey, signing))

    def _extensions(self, kind: SigningKey, defect: SnpDefect | None) -> list[pki.Extension]:
        product, tcb, hwid = self.product, self.tcb, self.hwid
        if defect is SnpDefect.VEK_OTHER_PRODUCT:
            product = Product.GENOA if product is Product.MILAN else Product.MILAN
        if defect is SnpDefect.VEK_OTHER_TCB:
            tcb = replace(tcb, snp=tcb.snp + 1)
        if defect is SnpDefect.VEK_OTHER_CHIP:
            hwid = bytes([hwid[0] ^ 1]) + hwid[1:]
        turin = product is Product.TURIN
        values = {"1": _integer(int(turin)), "2": _tlv(22, product.encode())}
        if defect is not SnpDefect.VEK_WITHOUT_TCB:
            parts = _PARTS | ({"fmc": "3.9"} if turin else {})
            values |= {oid: _integer(getattr(tcb, part)) for part, oid in parts.items()}
        if kind is SigningKey.VCEK:
            values["4"] = _tlv(4, hwid) if self.wrapped_hwid else hwid
        else:
            values["5"] = _tlv(22, b"CN=simulated.cloud")
        oids = {x509.ObjectIdentifier(_AMD + name): value for name, value in values.items()}
        return [(x509.UnrecognizedExtension(oid, value), False) for oid, value in oids.items()]

    def _body(self, report_data: bytes, f: ReportFields) -> bytes:
        """The signed part, field by field in the order of AMD 56860, ATTESTATION_REPORT."""
        signer = {SigningKey.VCEK: 0, SigningKey.VLEK: 1 << 2}[self.signer]
        chip = bytes(64) if self.signer is SigningKey.VLEK else self.hwid.ljust(64, b"\0")
        cpuid = b"" if f.version == 2 else _CPUID[self.product]
        vectors = (f.launch_mitigations, f.current_mitigations) if f.version >= 4 else (0, 0)
        parts = (
            _le(f.version, 4) + _le(f.guest_svn, 4) + _le(f.policy, 8) + f.family_id + f.image_id,
            _le(f.vmpl, 4) + _le(f.signature_algo, 4),
            self._tcb_bytes(f.current_tcb) + _le(f.platform_info, 8),
            _le(signer if f.signer_info is None else f.signer_info, 8),
            report_data + f.measurement + f.host_data + f.id_key_digest + f.author_key_digest,
            sha384(report_data).digest()[:32] + b"\xff" * 32,
            self._tcb_bytes(f.reported_tcb) + (cpuid if f.cpuid is None else f.cpuid).ljust(24, b"\0"),
            (chip if f.chip_id is None else f.chip_id) + self._tcb_bytes(f.committed_tcb),
            f.current_firmware + b"\0" + f.committed_firmware + b"\0",
            self._tcb_bytes(f.launch_tcb) + _le(vectors[0], 8) + _le(vectors[1], 8) + bytes(152),
        )
        return b"".join(parts)

    def _tcb_bytes(self, tcb: Tcb | None) -> bytes:
        t = tcb or self.tcb
        if self.product is Product.TURIN:
            return bytes((t.fmc, t.bootloader, t.tee, t.snp, 0, 0, 0, t.microcode))
        return bytes((t.bootloader, t.tee, 0, 0, 0, 0, t.snp, t.microcode))


def _crl(ark: pki.Signer, now: datetime, defect: SnpDefect | None) -> bytes:
    day = timedelta(days=1)
    start, end = now - day, now + 30 * day
    if defect is SnpDefect.CRL_EXPIRED:
        start, end = now - 30 * day, now - day
    if defect is SnpDefect.CRL_NOT_YET:
        start = now + day
    signer = pki.Signer(ark.cert, _stranger()) if defect is SnpDefect.CRL_OTHER_KEY else ark
    revoked = [_SERIALS["SEV"], _SERIALS["SEV-VLEK"]] if defect is SnpDefect.ASK_REVOKED else []
    return pki.crl(signer, this_update=start, next_update=end, revoked=revoked)


def _le(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def _tlv(tag: int, value: bytes) -> bytes:
    return bytes((tag, len(value))) + value


def _integer(value: int) -> bytes:
    return _tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _renumber(cert: x509.Certificate, key: rsa.RSAPrivateKey) -> bytes:
    """The certificate with serial number 0, as AMD numbers all of them; the library makes no such certificate itself.

    Serial 1 becomes 0 in the signed part, which is then signed again; no length changes.
    """
    der, tbs = cert.public_bytes(serialization.Encoding.DER), cert.tbs_certificate_bytes
    numbered = tbs.replace(b"\x02\x01\x01", b"\x02\x01\x00", 1)
    signature = key.sign(numbered, padding.PSS(padding.MGF1(SHA384()), SHA384.digest_size), SHA384())
    return der.replace(tbs, numbered)[: -len(signature)] + signature
