"""A simulated Nitro host: a chain of its own, documents in the real format, any defect on request.

A development tool. Nothing but a policy that names its root accepts what it signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha384
from pathlib import Path
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestation.roots import Root
from attestation.simulator import pki

PCRS = {i: sha384(b"simulated PCR %d" % i).digest() if i < 3 else bytes(48) for i in range(16)}
PROTECTED = cbor2.dumps({1: -35})
_NAMES = ("aws.nitro-enclaves", "regional", "zonal", "instance")


class NitroDefect(StrEnum):
    """What can be wrong with the chain or the signature. What the payload says is a matter of its fields."""

    OTHER_ROOT = "the bundle begins with another root"
    ROOT_NOT_SELF_SIGNED = "the root's key stands in a certificate that it did not sign"
    BUNDLE_REVERSED = "the bundle's last certificate stands first"
    LINK_MISSING = "the bundle lacks the zonal CA"
    LINK_FORGED = "the zonal CA is signed by a stranger under the regional CA's name"
    CA_IS_NOT_CA = "the instance's certificate denies that it is a CA"
    CA_WITHOUT_USAGE = "the instance's certificate does not say what its key may do"
    PATH_LENGTH = "the regional CA allows one CA below it, and two follow"
    CRITICAL_EXTENSION = "the zonal CA has a critical extension that nobody knows"
    LEAF_IS_CA = "the enclave's certificate is a CA"
    LEAF_P256 = "the enclave's key is of P-256"
    CA_EXPIRED = "the zonal CA is past its date"
    LEAF_EXPIRED = "the enclave's certificate is past its three hours"
    LEAF_NOT_YET = "the enclave's certificate is not valid yet"
    OTHER_KEY = "the document is signed by another key"
    PAYLOAD_ALTERED = "one bit of the payload differs from what was signed"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Role:
    """How the certificate at one place of the chain is made."""

    ca: bool | None = True
    path_length: int | None = None
    start: timedelta = timedelta(hours=-1)
    end: timedelta = timedelta(days=1)
    extensions: tuple[pki.Extension, ...] = ()


class SimulatedNitro:
    """One simulated host. The root's key may be kept in a file, so that its pin stays the same."""

    def __init__(self, root_key: pki.PrivateKey | None = None) -> None:
        self._root_key = root_key or pki.p384_key()
        self._ca_keys = [self._root_key, *(pki.p384_key() for _ in _NAMES[1:])]
        self._leaf_key, self._stranger = pki.p384_key(), pki.p384_key()

    @classmethod
    def load_or_create(cls, folder: Path) -> SimulatedNitro:
        return cls(pki.load_or_make_key(folder / "nitro-root.pem", pki.p384_key))

    @property
    def root(self) -> Root:
        """The trust anchor that a policy has to name to accept this host."""
        return pki.pin(self._issue(0, None, datetime(2026, 1, 1, tzinfo=UTC), None))

    def document(
        self, now: datetime, defect: NitroDefect | None = None, *, tagged: bool = False, **fields: Any
    ) -> bytes:
        """A signed document; `fields` replace or add members of the payload, `...` as a value leaves one out."""
        chain = self._chain(now, defect)
        bundle = [signer.der for signer in chain[:-1]]
        if defect is NitroDefect.BUNDLE_REVERSED:
            bundle.reverse()
        if defect is NitroDefect.LINK_MISSING:
            del bundle[2]
        content = {
            "module_id": "i-simulated-enc-simulated",
            "digest": "SHA384",
            "timestamp": int(now.timestamp() * 1000),
            "pcrs": PCRS,
            "certificate": chain[-1].der,
            "cabundle": bundle,
            "public_key": None,
            "user_data": None,
            "nonce": None,
        } | fields
        payload = cbor2.dumps({name: value for name, value in content.items() if value is not ...})
        key = self._stranger if defect is NitroDefect.OTHER_KEY else chain[-1].key
        signature = self.sign(payload, key)
        if defect is NitroDefect.PAYLOAD_ALTERED:
            payload = payload.replace(b"i-simulated", b"i-rimulated", 1)
        message = [PROTECTED, {}, payload, signature]
        return cbor2.dumps(cbor2.CBORTag(18, message) if tagged else message)

    def sign(self, payload: bytes, key: pki.PrivateKey | None = None) -> bytes:
        """ES384 over the Sig_structure of RFC 9052, with the enclave's key unless another is given."""
        signer = key or self._leaf_key
        if not isinstance(signer, ec.EllipticCurvePrivateKey):
            raise TypeError("ES384 needs an EC key")
        signed = cbor2.dumps(["Signature1", PROTECTED, b"", payload])
        r, s = decode_dss_signature(signer.sign(signed, ec.ECDSA(SHA384())))
        return r.to_bytes(48) + s.to_bytes(48)

    def _chain(self, now: datetime, defect: NitroDefect | None) -> list[pki.Signer]:
        chain: list[pki.Signer] = []
        for place in range(len(_NAMES) + 1):
            chain.append(self._issue(place, chain[-1] if chain else None, now, defect))
        return chain

    def _issue(
        self, place: int, issuer: pki.Signer | None, now: datetime, defect: NitroDefect | None
    ) -> pki.Signer:
        leaf = place == len(_NAMES)
        role = self._role(place, defect)
        key = self._leaf_key if leaf else self._ca_keys[place]
        if (place, defect) == (0, NitroDefect.OTHER_ROOT):
            key = self._stranger
        if leaf and defect is NitroDefect.LEAF_P256:
            key = pki.p256_key()
        subject = pki.name("enclave" if leaf else _NAMES[place])
        if (place, defect) == (2, NitroDefect.LINK_FORGED) and issuer:
            issuer = pki.Signer(issuer.cert, self._stranger)
        if (place, defect) == (0, NitroDefect.ROOT_NOT_SELF_SIGNED):
            issuer = self._named(subject, now)
        return pki.issue(
            subject,
            key,
            issuer,
            not_before=now + role.start,
            not_after=now + role.end,
            ca=role.ca,
            path_length=role.path_length,
            extensions=role.extensions,
        )

    def _named(self, subject: x509.Name, now: datetime) -> pki.Signer:
        day = timedelta(days=1)
        return pki.issue(subject, self._stranger, not_before=now - day, not_after=now + day, ca=True)

    def _role(self, place: int, defect: NitroDefect | None) -> _Role:
        """As Amazon's own: path lengths none, 2, 1, 0, and an end entity for three hours; or with the defect."""
        hour, unknown = timedelta(hours=1), x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
        leaf = len(_NAMES)
        match place, defect:
            case 3, NitroDefect.CA_IS_NOT_CA:
                return _Role(ca=False)
            case 3, NitroDefect.CA_WITHOUT_USAGE:
                return _Role(ca=None, extensions=((x509.BasicConstraints(True, 0), True),))
            case 2, NitroDefect.CRITICAL_EXTENSION:
                return _Role(
                    path_length=1, extensions=((x509.UnrecognizedExtension(unknown, b"\5\0"), True),)
                )
            case 2, NitroDefect.CA_EXPIRED:
                return _Role(path_length=1, end=-hour / 2)
            case _, NitroDefect.LEAF_IS_CA if place == leaf:
                return _Role()
            case _, NitroDefect.LEAF_EXPIRED if place == leaf:
                return _Role(ca=False, end=-hour / 2)
            case _, NitroDefect.LEAF_NOT_YET if place == leaf:
                return _Role(ca=False, start=hour, end=3 * hour)
        tight = (place, defect) == (1, NitroDefect.PATH_LENGTH)
        return _Role(ca=place != leaf, path_length=None if place in (0, leaf) else leaf - 1 - place - tight)
