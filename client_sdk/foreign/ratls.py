"""RA-TLS: a certificate with a TDX quote in an extension, whose report data commits to the certificate's public key.

1.2.840.113741.1337.6     the quote itself; report data = SHA-256(SPKI) ‖ 0³²                        (Intel, Gramine)
0.6.9.42.840.113741.1337.6  the same, as Gramine writes it: with the tag and length of an OID before the OID
2.23.133.5.4.9            60000([quote, claims]); report data = SHA-256(claims) ‖ 0³²; the claims name the key's
                          digest: {"pubkey-hash": << [algorithm, digest] >>}            (TCG DICE, interoperable RA-TLS)
1.3.6.1.4.1.62397.1.1     the quote in an OCTET STRING; report data = SHA-512("ratls-cert:" ‖ SPKI)           (dstack)
1.3.6.1.4.1.62397.1.2     the event log, likewise
"""

from __future__ import annotations

from hashlib import new, sha256, sha512
from io import BytesIO
from typing import Any

import cbor2
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation._x509 import parse_certificate
from attestation.checks import Check
from attestation.evidence import TdxEvidence
from attestation.tdx.quote import parse_quote
from client_sdk.foreign.document import Foreign, Format, TlsKey, malformed
from client_sdk.foreign.named import versioned

INTEL = "1.2.840.113741.1337.6"
GRAMINE = "0.6.9.42.840.113741.1337.6"
TCG = "2.23.133.5.4.9"
DSTACK_QUOTE = "1.3.6.1.4.1.62397.1.1"
DSTACK_EVENTS = "1.3.6.1.4.1.62397.1.2"
DSTACK_VERSIONED = "1.3.6.1.4.1.62397.1.8"
CBOR_TAG = 60000

_HASHES = {1: "sha256", 7: "sha384", 8: "sha512"}  # IANA, Named Information Hash Algorithm Registry
_UNCOVERED = (
    "the nonce: a certificate has none, so the quote may be as old as the key",
    "GPUs: a certificate has no evidence of them",
    "the certificate's names, dates and issuer: its key alone is judged",
    "the software: its measurements are signed; what they are of, a policy says",
)


def parse_ratls(data: bytes) -> Foreign:
    """The evidence in one certificate, PEM or DER."""
    cert = parse_certificate(data, Check.FOREIGN_FORMAT, "certificate")
    spki, found = _read(cert)
    committed: tuple[bytes, ...]
    if DSTACK_QUOTE in found:
        quote, committed = _octets(found[DSTACK_QUOTE]), (sha512(b"ratls-cert:" + spki).digest(),)
    elif TCG in found:
        quote, committed = _tagged(found[TCG], spki)
    elif (raw := found.get(INTEL, found.get(GRAMINE))) is not None:
        quote, committed = raw, (sha256(spki).digest() + bytes(32),)
    elif DSTACK_VERSIONED in found:
        name = versioned(found[DSTACK_VERSIONED])
        raise malformed(f"{name} ({DSTACK_VERSIONED}) is not judged here")
    else:
        raise malformed("a certificate without a quote in it")
    parse_quote(quote, padding=True)
    events = _octets(found[DSTACK_EVENTS]) if DSTACK_EVENTS in found else b""
    plain = events[:1] == b"["
    return Foreign(
        format=Format.RA_TLS,
        cpu=TdxEvidence(quote),
        report_data=committed,
        tls=TlsKey(sha256(spki).digest()),
        events=events if plain else None,
        uncovered=_UNCOVERED if plain else (*_UNCOVERED, "what was started: there is no event log as JSON"),
    )


def _read(cert: x509.Certificate) -> tuple[bytes, dict[str, bytes]]:
    """The public key as DER, and the extensions that nobody but RA-TLS knows."""
    try:
        spki = cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        extensions = [(e.oid.dotted_string, e.value) for e in cert.extensions]
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise malformed(f"the certificate cannot be read ({exc})") from exc
    return spki, {oid: v.value for oid, v in extensions if isinstance(v, x509.UnrecognizedExtension)}


def _octets(der: bytes) -> bytes:
    """The content of a DER OCTET STRING as long as quotes and logs are: with two or three bytes of length."""
    for size in (2, 3):
        content = der[2 + size :]
        if der[:2] == bytes((4, 0x80 + size)) and int.from_bytes(der[2 : 2 + size]) == len(content):
            return content
    raise malformed("an extension is not one OCTET STRING")


def _tagged(data: bytes, spki: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Quote, and what it must commit to: nothing will do where the claims are about another key."""
    match _cbor(data):
        case cbor2.CBORTag(tag=60000, value=[bytes(quote), bytes(claims)]):
            pass
        case _:
            raise malformed(f"tagged evidence must be {CBOR_TAG}([quote, claims])")
    named = _cbor(claims)
    digest = named.get("pubkey-hash") if isinstance(named, dict) else None
    match _cbor(digest) if isinstance(digest, bytes) else None:
        case [int(algorithm), bytes(value)] if algorithm in _HASHES:
            ours = value == new(_HASHES[algorithm], spki).digest()
            return quote, (sha256(claims).digest() + bytes(32),) if ours else ()
    raise malformed(
        'the claims must have "pubkey-hash": [algorithm, digest], with SHA-256, SHA-384 or SHA-512'
    )


def _cbor(data: bytes) -> Any:
    """One value, and nothing after it."""
    stream = BytesIO(data)
    try:
        value = cbor2.load(stream, max_depth=8, allow_duplicate_keys=False)
    except Exception as exc:  # cbor2 lets errors of the types it builds through, and RecursionError
        raise malformed(f"not acceptable CBOR ({exc})") from exc
    if rest := len(data) - stream.tell():
        raise malformed(f"{rest} bytes after a CBOR value")
    return value
