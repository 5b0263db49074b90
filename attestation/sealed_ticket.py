"""Tickets: a sealed answer brings what the next request is sealed with, so that only the first one needs a key exchange. No I/O.

A ticket's secret follows from its id and a key that lives and ends with the sealing keys: nobody keeps tickets, and any worker
opens what is sealed with one. A random value goes into every request's key, so a ticket that is used twice repeats none.
`docs/protocol.md` §7 has the bytes.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation._b64 import b64url_decode, b64url_encode
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError

HEADER = "attested-ticket"  # in the heads inside: of who wants a ticket, and of the answer that brings it
ASK = "new"
SPAN = 300  # seconds that share one time, so that a ticket's does not tell which answer it came in
SECONDS = 900  # for so long after its time, a ticket is accepted
KEY_BYTES = 32
_TICKET = b"attested-inference/sealed-ticket/v1\x00"
_REQUEST = b"attested-inference/sealed-ticket-request/v1\x00"
_RANDOM, _TIME, _SECRET = 32, 8, 32
_ID = _RANDOM + _TIME
ENC_BYTES = _ID + _RANDOM
_NONCE = bytes(12)  # each key is for one message


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """For one request. The id is sent with it, and tells in which SPAN the ticket was made; the secret is for its owner and the enclave."""

    id: bytes
    secret: bytes = field(repr=False)


def make_ticket(key: bytes, statement: bytes, now: datetime) -> Ticket:
    """A new one, good for requests to this statement from `now` on."""
    time = int(now.timestamp()) // SPAN * SPAN
    name = secrets.token_bytes(_RANDOM) + time.to_bytes(_TIME, "big")
    return Ticket(id=name, secret=_secret(key, statement, name))


def dump_ticket(ticket: Ticket) -> str:
    """As it stands in an answer's head."""
    return b64url_encode(ticket.id + ticket.secret)


def parse_ticket(text: str) -> Ticket:
    data = b64url_decode(text, Check.SEALED_FORMAT, "the ticket")
    if len(data) != _ID + _SECRET:
        raise MalformedError(Check.SEALED_FORMAT, f"a ticket has {_ID + _SECRET} bytes, found {len(data)}")
    return Ticket(id=data[:_ID], secret=data[_ID:])


def check_ticket(enc: bytes, now: datetime) -> None:
    """The ticket that a request was sealed with is of the last SECONDS before `now`."""
    made = int.from_bytes(enc[_RANDOM:_ID], "big")
    if not 0 <= int(now.timestamp()) - made <= SECONDS:
        raise VerificationError(
            Check.SEALED_TICKET,
            f"the ticket is of {made}, and was used at {int(now.timestamp())}; it is good for {SECONDS} s",
            advice="Seal the request to the statement's key",
        )


def encrypt(ticket: Ticket, prefix: bytes, content: bytes) -> tuple[bytes, bytes]:
    """`enc`, which is new for every request, and the ciphertext. `prefix` is what stands in front of both."""
    enc = ticket.id + secrets.token_bytes(_RANDOM)
    return enc, _cipher(ticket.secret, prefix, enc).encrypt(_NONCE, content, None)


def decrypt(key: bytes, statement: bytes, prefix: bytes, enc: bytes, ciphertext: bytes) -> bytes:
    """The content. InvalidTag for what was not sealed with a ticket of this key and statement, or was altered."""
    return _cipher(_secret(key, statement, enc[:_ID]), prefix, enc).decrypt(_NONCE, ciphertext, None)


def _secret(key: bytes, statement: bytes, name: bytes) -> bytes:
    return hmac.digest(key, _TICKET + statement + name, "sha256")


def _cipher(secret: bytes, prefix: bytes, enc: bytes) -> AESGCM:
    """The key depends on all that stands in front of the ciphertext, so nothing is left for AAD."""
    return AESGCM(hmac.digest(secret, _REQUEST + prefix + enc, "sha256"))
