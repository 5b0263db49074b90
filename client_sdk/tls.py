"""TLS to a key instead of a name: the peer's public key must be the attested one, in the handshake itself.

The check runs inside `do_handshake`, on the very connection that is about to carry the request, so not a byte of it
can leave before. It works wherever an `ssl.SSLContext` does: httpx and httpx2, blocking and async, through proxies.
"""

from __future__ import annotations

import socket
import ssl
from hashlib import sha256
from hmac import compare_digest
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import InvalidVersion, load_der_x509_certificate

from attestation.checks import Check
from attestation.errors import VerificationError
from client_sdk.tls_socket import TLSSocket

Context = TypeVar("Context", bound=ssl.SSLContext)


class PinnedContext(ssl.SSLContext):
    """A client context that connects to one public key. Names, dates and issuers of certificates mean nothing to it."""

    pin: bytes  # SHA-256 of the SubjectPublicKeyInfo

    def wrap_socket(  # type: ignore[override]  # as much of a socket as HTTP libraries use
        self, sock: socket.socket, *, server_hostname: str | None = None
    ) -> TLSSocket:
        made = TLSSocket(sock, self, server_hostname)
        try:
            made.do_handshake()
        except BaseException:
            sock.close()  # nobody else has it yet
            raise
        return made


class _PinnedObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        _check_peer(self)


PinnedContext.sslobject_class = _PinnedObject


def pinned_context(spki_sha256: bytes) -> PinnedContext:
    """A context for connections to the holder of one key, and to nobody else."""
    context = _without_names(PinnedContext(ssl.PROTOCOL_TLS_CLIENT))
    context.pin = spki_sha256
    return context


def unpinned_context() -> ssl.SSLContext:
    """A context that trusts anybody: for fetching evidence, which proves itself, and for nothing else."""
    return _without_names(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def _without_names(context: Context) -> Context:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _check_peer(peer: ssl.SSLObject) -> None:
    context = peer.context
    certificate = peer.getpeercert(binary_form=True)
    if not isinstance(context, PinnedContext) or certificate is None:
        raise VerificationError(Check.CHANNEL_TLS_KEY, "the peer showed no certificate")
    found = spki_digest(certificate)
    if not compare_digest(found, context.pin):
        raise VerificationError(
            Check.CHANNEL_TLS_KEY,
            f"the attested TLS key is {context.pin.hex()[:16]}…, the peer holds {found.hex()[:16]}…",
            advice="The enclave was restarted and has to be verified again, or something else answers at its address",
        )


def spki_digest(certificate: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo of a DER certificate."""
    try:
        key = load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm, InvalidVersion) as exc:
        raise VerificationError(
            Check.CHANNEL_TLS_KEY, f"the peer's certificate cannot be read ({exc})"
        ) from exc
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
