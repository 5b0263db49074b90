"""Is this Nitro document authentic? Bytes, pinned roots and a time become claims, or an error that names the check.

Promised: Amazon's chain, in date at `now`, vouches for the key that signed the document. Not promised: that the
document is recent or the enclave acceptable; that is `NitroPolicy`. To judge an archived document, pass a time at
which its certificate was valid (it lives three hours): the document's own timestamp, for instance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestation import _x509
from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.nitro.document import Document, Missing, parse_document
from attestation.roots import Root

_ECDSA = ec.ECDSA(SHA384())
_UNDERSTOOD = {x509.BasicConstraints.oid, x509.KeyUsage.oid}


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroClaims:
    """What an authentic document says. `verify` makes these; a policy decides whether they are acceptable."""

    root: Root
    collateral_expires: datetime  # the earliest end of any certificate relied on
    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    public_key: bytes | Missing
    user_data: bytes | Missing
    nonce: bytes | Missing

    @property
    def debug(self) -> bool:
        """An enclave in debug mode has PCR0, PCR1 and PCR2 zero; one that lacks them proves nothing better."""
        return not any(any(self.pcrs.get(index, b"")) for index in (0, 1, 2))


def verify(document: bytes, roots: Sequence[Root], now: datetime) -> NitroClaims:
    """Verify one attestation document, its certificates as of `now`. No network, no clock."""
    doc = parse_document(document)
    chain = [
        _x509.parse_certificate(der, Check.NITRO_FORMAT, "certificate")
        for der in (*doc.cabundle, doc.certificate)
    ]
    root = _x509.find_root(chain[0], roots, Check.NITRO_ROOT)  #   1. the bundle begins with a pinned root
    _verify_chain(chain)  #                                        2. that leads to the certificate
    for cert in chain:  #                                          3. all of them in date
        _x509.check_validity(cert, now, Check.NITRO_CERTIFICATE_DATES)
    _verify_signature(doc, chain[-1])  #                           4. whose key signed the document
    return NitroClaims(
        root=root,
        collateral_expires=min(cert.not_valid_after_utc for cert in chain),
        module_id=doc.module_id,
        timestamp=doc.timestamp,
        pcrs=doc.pcrs,
        public_key=doc.public_key,
        user_data=doc.user_data,
        nonce=doc.nonce,
    )


def _verify_chain(chain: Sequence[x509.Certificate]) -> None:
    """Root first. RFC 5280 §6.1 for a chain of CAs and one end entity, without names of policies."""
    last = len(chain) - 1
    _x509.verify_issued_by(chain[0], chain[0], Check.NITRO_CHAIN)
    for issuer, cert in pairwise(chain):
        _x509.verify_issued_by(cert, issuer, Check.NITRO_CHAIN)
    for i, cert in enumerate(chain):
        below = None if i == last else last - 1 - i  # CAs between this one and the end entity
        if reason := _wrong_role(cert, below):
            raise VerificationError(Check.NITRO_CHAIN, f"{_x509.common_name(cert.subject)!r}: {reason}")


@lru_cache(maxsize=512)
def _wrong_role(cert: x509.Certificate, cas_below: int | None) -> str:
    """Empty when the extensions allow the certificate's place: so many CAs below it, or the end (None).

    That an issuer is a CA and may sign certificates was part of `verify_issued_by`.
    """
    unknown = [e.oid.dotted_string for e in cert.extensions if e.critical and e.oid not in _UNDERSTOOD]
    if unknown:
        return f"critical extensions {unknown} are not understood"
    try:
        basic = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as exc:
        return str(exc)
    if cas_below is None:
        return "expected an end entity that may sign" if basic.ca or not usage.digital_signature else ""
    if basic.path_length is not None and basic.path_length < cas_below:
        return f"its path length is {basic.path_length}, and {cas_below} CAs follow"
    return ""


def _verify_signature(doc: Document, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise VerificationError(
            Check.NITRO_SIGNATURE, "ES384 needs a P-384 key, which the certificate does not hold"
        )
    r, s = int.from_bytes(doc.signature[:48]), int.from_bytes(doc.signature[48:])
    try:
        key.verify(encode_dss_signature(r, s), doc.signed, _ECDSA)
    except InvalidSignature as exc:
        raise VerificationError(
            Check.NITRO_SIGNATURE, f"the document was not signed by {_x509.common_name(leaf.subject)!r}"
        ) from exc
