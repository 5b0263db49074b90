"""The simulated Intel's certificates and revocation lists, right or wrong on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.simulator import tdx_collateral as intel
from attestation.simulator.pki import Extension, PrivateKey, Signer, crl, issue, name
from attestation.simulator.tdx_defects import TdxDefect as D

ROLES = ("root", "platform-ca", "processor-ca", "pck", "tcb-signing", "attestation", "stranger")
ROOT_CA, PLATFORM_CA = "Intel SGX Root CA", "Intel SGX PCK Platform CA"
_SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_UNKNOWN_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
_CRL_URL = "https://simulated.invalid/intel.crl"
_BORN, _DIES = datetime(2025, 1, 1, tzinfo=UTC), datetime(2049, 12, 31, tzinfo=UTC)
_FAR = datetime(2048, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)


class IntelPki:
    """Root, Platform and Processor CA, TCB Signing and one PCK certificate over fixed keys."""

    def __init__(self, keys: Mapping[str, PrivateKey]) -> None:
        self.keys = keys

    @cached_property
    def root(self) -> Signer:
        return self._issue("root", ROOT_CA, None, ca=True, path_length=1)

    @cached_property
    def platform_ca(self) -> Signer:
        return self._issue("platform-ca", PLATFORM_CA, self.root, ca=True, path_length=0)

    @cached_property
    def processor_ca(self) -> Signer:
        return self._issue("processor-ca", "Intel SGX PCK Processor CA", self.root, ca=True, path_length=0)

    @cached_property
    def pck(self) -> Signer:
        return self._pck(self.platform_ca)

    @cached_property
    def tcb_signing(self) -> Signer:
        return self._issue("tcb-signing", "Intel SGX TCB Signing", self.root)

    def pck_chain(self, defect: D | None = None) -> Sequence[Signer]:
        """Leaf first, as a quote carries it."""
        if defect is D.CHAIN_OF_FOUR:
            middle = self._issue("stranger", "Intel SGX PCK Certificate", self.platform_ca)
            return self._pck(middle), self.pck, self.platform_ca, self.root
        root, ca = self._chain_root(defect), self.platform_ca
        if root is not self.root or defect in _CA_EDITS or defect is D.CA_OF_OTHER_ROOT:
            above = Signer(root.cert, self.keys["stranger"]) if defect is D.CA_OF_OTHER_ROOT else root
            edits = {"common_name": PLATFORM_CA, "ca": True, "path_length": 0, **_CA_EDITS.get(defect, {})}
            ca = self._issue("platform-ca", issuer=above, **edits)
        if defect is D.PCK_OF_OTHER_CA:
            return self._pck(Signer(ca.cert, self.keys["stranger"])), ca, root
        if ca is self.platform_ca and defect not in _PCK_EDITS:
            return self.pck, ca, root
        return self._pck(ca, **_PCK_EDITS.get(defect, {})), ca, root

    def _chain_root(self, defect: D | None) -> Signer:
        stranger = Signer(self.root.cert, self.keys["stranger"])
        match defect:
            case D.OTHER_ROOT:
                return self._issue("stranger", ROOT_CA, None, ca=True, path_length=1)
            case D.ROOT_OF_OTHER_ROLE:
                return self._issue("root", "Intel SGX Other CA", None, ca=True, path_length=1)
            case D.ROOT_EXPIRED:
                return self._issue("root", ROOT_CA, None, ca=True, path_length=1, dies=_BORN + _DAY)
            case D.ROOT_CHANGED:  # the pinned key, in a certificate that this key did not sign
                return Signer(
                    self._issue("root", ROOT_CA, stranger, ca=True, path_length=1).cert, self.root.key
                )
        return self.root

    def signing_chain(self, defect: D | None = None) -> Sequence[Signer]:
        """Who signs TCB info and QE identity, leaf first."""
        match defect:
            case D.SIGNER_IS_PCK:
                return self.pck, self.platform_ca, self.root
            case D.SIGNER_IS_PLATFORM_CA:
                return self.platform_ca, self.root
            case D.SIGNER_UNDER_PLATFORM_CA:
                signer = self._issue("tcb-signing", "Intel SGX TCB Signing", self.platform_ca)
                return signer, self.platform_ca, self.root
            case D.SIGNER_WITH_OTHER_ROOT:
                return self.tcb_signing, self._issue("stranger", ROOT_CA, None, ca=True, path_length=1)
            case D.SIGNER_EXPIRED:
                return self._issue(
                    "tcb-signing", "Intel SGX TCB Signing", self.root, dies=_BORN + _DAY
                ), self.root
        return self.tcb_signing, self.root

    def root_crl(self, now: datetime, defect: D | None = None) -> bytes:
        revoked = {None: None, D.CA_REVOKED: self.platform_ca, D.SIGNER_REVOKED: self.tcb_signing}.get(defect)
        signer = (
            Signer(self.root.cert, self.keys["stranger"]) if defect is D.ROOT_CRL_OF_OTHER_KEY else self.root
        )
        return _crl(
            signer,
            now,
            lifetime=365 * _DAY,
            revoked=revoked,
            expired=defect is D.ROOT_CRL_EXPIRED,
            future=defect is D.ROOT_CRL_NOT_YET_VALID,
        )

    def pck_crl(self, now: datetime, defect: D | None = None) -> bytes:
        if defect is D.PCK_CRL_IS_ROOT_CRL:
            return self.root_crl(now)
        return _crl(
            self.processor_ca if defect is D.PCK_CRL_OF_OTHER_CA else self.platform_ca,
            now,
            lifetime=intel.LIFETIME,
            revoked=self.pck if defect is D.PCK_REVOKED else None,
            expired=defect is D.PCK_CRL_EXPIRED,
            future=defect is D.PCK_CRL_NOT_YET_VALID,
            delta=defect is D.PCK_CRL_IS_A_DELTA,
        )

    def _pck(
        self,
        issuer: Signer,
        *,
        common_name: str = "Intel SGX PCK Certificate",
        extension: bytes | None = None,
        unknown_critical: bool = False,
        born: datetime = _BORN,
        dies: datetime = _DIES,
    ) -> Signer:
        der = sgx_extension() if extension is None else extension
        extra: list[Extension] = [(x509.UnrecognizedExtension(_SGX_EXTENSION, der), False)] if der else []
        if unknown_critical:
            extra.append((x509.UnrecognizedExtension(_UNKNOWN_EXTENSION, b"\x05\x00"), True))
        return self._issue("pck", common_name, issuer, born=born, dies=dies, extra=extra)

    def _issue(
        self,
        role: str,
        common_name: str,
        issuer: Signer | None,
        *,
        ca: bool = False,
        path_length: int | None = None,
        born: datetime = _BORN,
        dies: datetime = _DIES,
        extra: Sequence[Extension] = (),
    ) -> Signer:
        public = self.keys[role].public_key()
        above = issuer.key.public_key() if issuer else public
        points = x509.DistributionPoint([x509.UniformResourceIdentifier(_CRL_URL)], None, None, None)
        extensions: list[Extension] = [
            (x509.SubjectKeyIdentifier.from_public_key(public), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(above), False),
            (x509.CRLDistributionPoints([points]), False),
            *extra,
        ]
        spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return issue(
            name(common_name),
            self.keys[role],
            issuer,
            not_before=born,
            not_after=dies,
            ca=ca,
            path_length=path_length,
            extensions=extensions,
            # the same in every process that shares the keys, so that revocation lists agree
            serial=int.from_bytes(sha256(common_name.encode() + spki).digest()[:16], "big"),
        )


def _crl(
    signer: Signer,
    now: datetime,
    *,
    lifetime: timedelta,
    revoked: Signer | None,
    expired: bool,
    future: bool,
    delta: bool = False,
) -> bytes:
    start = now - lifetime - _DAY if expired else now + _DAY if future else now - _DAY
    return crl(
        signer,
        this_update=start,
        next_update=start + lifetime,
        revoked=() if revoked is None else (revoked.cert.serial_number,),
        extensions=((x509.DeltaCRLIndicator(1), True),) if delta else (),
    )


def sgx_extension(components: Sequence[int] = intel.SGX_COMPONENTS) -> bytes:
    """DER of the SGX extension of the simulated platform (Intel SGX PCK Certificate specification, 1.3.5)."""
    cpu_svn = bytes(components).ljust(16, b"\0")
    tcb = [
        *(_entry((2, i), _der(0x02, bytes([svn]))) for i, svn in enumerate(components, start=1)),
        _entry((2, 17), _der(0x02, bytes([intel.PCE_SVN]))),
        _entry((2, 18), _der(0x04, cpu_svn)),
    ]
    config = [
        _entry((7, 1), _der(0x01, b"\xff")),
        _entry((7, 2), _der(0x01, b"\0")),
        _entry((7, 3), _der(0x01, b"\xff")),
    ]
    return _der(
        0x30,
        _entry((1,), _der(0x04, intel.PPID))
        + _entry((2,), _der(0x30, b"".join(tcb)))
        + _entry((3,), _der(0x04, intel.PCE_ID))
        + _entry((4,), _der(0x04, intel.FMSPC))
        + _entry((5,), _der(0x0A, b"\x01"))
        + _entry((6,), _der(0x04, intel.INSTANCE_ID))
        + _entry((7,), _der(0x30, b"".join(config))),
    )


def _entry(arcs: tuple[int, ...], value: bytes) -> bytes:
    return _der(0x30, _der(0x06, bytes.fromhex("2a864886f84d010d01") + bytes(arcs)) + value)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    if 0x80 <= size < 0x100:
        length = bytes([0x81, size])
    return bytes([tag]) + length + content


_CA_EDITS: dict[D | None, dict[str, Any]] = {
    D.CA_IS_NO_CA: {"ca": False, "path_length": None},
    D.CA_OF_OTHER_ROLE: {"common_name": "Intel SGX TCB Signing"},
    D.CA_EXPIRED: {"dies": _BORN + _DAY},
}
_PCK_EDITS: dict[D | None, dict[str, Any]] = {
    D.PCK_OF_OTHER_ROLE: {"common_name": "Intel SGX TCB Signing"},
    D.PCK_EXPIRED: {"dies": _BORN + _DAY},
    D.PCK_NOT_YET_VALID: {"born": _FAR},
    D.PCK_UNKNOWN_CRITICAL: {"unknown_critical": True},
    D.PCK_WITHOUT_EXTENSION: {"extension": b""},
    D.PCK_EXTENSION_SHORT: {"extension": sgx_extension(intel.SGX_COMPONENTS[:15])},
}
