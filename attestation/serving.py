"""The serving seal: a TD's RTMR3 names the key that seals every statement of this boot, from before anything else could.

    RTMR3 = SHA-384( zeros 48 ‖ SHA-384( "attested-inference/serving/v1" ‖ 0x00 ‖ key ) )
    seal  = key (Ed25519, 32 bytes) ‖ signature (64) over "attested-inference/serving-seal/v1" ‖ 0x00 ‖ SHA-256(statement)

The gateway extends RTMR3 once, when it has its keys and before it serves. Whatever starts in the TD later can quote that
register, but it cannot seal a statement of its own: it lacks the key, and another extension would show.
"""

from __future__ import annotations

from hashlib import sha256, sha384

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.snp.verify import SnpClaims
from attestation.tdx.verify import TdxClaims

SEAL_BYTES = 96
_KEY = 32
_SEPARATOR = b"attested-inference/serving/v1\x00"
_SEAL = b"attested-inference/serving-seal/v1\x00"


def separator(key: bytes) -> bytes:
    """What RTMR3 is extended with, for this public key."""
    return sha384(_SEPARATOR + key).digest()


def sealed_register(key: bytes) -> bytes:
    """RTMR3 after that, when nothing else was ever measured into it."""
    return sha384(bytes(48) + separator(key)).digest()


def make_seal(key: Ed25519PrivateKey, statement: bytes) -> bytes:
    """The key that RTMR3 names, and its signature over this statement."""
    return key.public_key().public_bytes_raw() + key.sign(_message(statement))


def verify_seal(seal: bytes, statement: bytes, cpu: TdxClaims | SnpClaims) -> bool:
    """Whether the statement is sealed: False without a seal, an error for one that does not hold."""
    if not seal:
        return False
    if len(seal) != SEAL_BYTES:
        raise MalformedError(Check.SERVING_SEAL, f"a serving seal has {SEAL_BYTES} bytes, found {len(seal)}")
    if isinstance(cpu, SnpClaims):
        raise VerificationError(
            Check.SERVING_SEAL, "a serving seal came with an SEV-SNP report, which has no RTMR3"
        )
    key, signature = seal[:_KEY], seal[_KEY:]
    if cpu.td.rtmr3 != sealed_register(key):
        raise VerificationError(
            Check.SERVING_SEAL,
            f"RTMR3 is {cpu.td.rtmr3.hex()}, the seal's key makes it {sealed_register(key).hex()}",
            advice="The TD measured something else after the gateway had begun to serve, or before; its operator restarts it",
        )
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _message(statement))
    except InvalidSignature as exc:
        raise VerificationError(
            Check.SERVING_SEAL, "the statement was not sealed by the key that RTMR3 names"
        ) from exc
    return True


def _message(statement: bytes) -> bytes:
    return _SEAL + sha256(statement).digest()
