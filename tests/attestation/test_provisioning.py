"""An owner's secrets on their way: read, opened, verified and checked, and each refusal by name."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from attestation._b64 import b64url_encode
from attestation.binding import Keys
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, VerificationError
from attestation.policy import StatementPolicy
from attestation.provisioning import (
    MAX_CLOCK_SKEW,
    MAX_MESSAGE_BYTES,
    MAX_SECRETS_BYTES,
    TYPE,
    OwnerSecrets,
    check_secrets,
    open_secrets,
    parse_sealed_secrets,
    seal_secrets,
    verify_secrets,
)
from attestation.sealed import SealingKeys
from tests.attestation.test_binding import STATEMENT as WHOLE_STATEMENT

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
STATEMENT = bytes(range(32))
VALUES = {"key_pepper": b"\x00" * 40, "database_url": b"postgresql://enclave:word@db/enclave\n"}
OWNER = Ed25519PrivateKey.from_private_bytes(b"owner".ljust(32))


@cache
def keys() -> SealingKeys:
    return SealingKeys.generate()


def public(of: SealingKeys) -> Keys:
    return Keys(
        receipt_ed25519=bytes(32),
        tls_spki_sha256=bytes(32),
        sealing_x_wing=of.public_x_wing,
        sealing_x25519=of.public_x25519,
    )


def sealed(values: dict[str, bytes] = VALUES) -> tuple[bytes, bytes]:
    return seal_secrets(values, owner=OWNER, keys=public(keys()), statement=STATEMENT, now=NOW)


@pytest.mark.parametrize("pinned", [set(), {bytes(32)}, {b"d" * 32}, {b"d" * 32, bytes(32)}])
@pytest.mark.parametrize("shown", [None, b"d" * 32])
def test_a_policy_that_pins_them(pinned: set[bytes], shown: bytes | None) -> None:
    """With `secrets_digests` a statement has to show one of them; without, it may show any or none."""
    policy = StatementPolicy(any_model=True, any_config=True, secrets_digests=frozenset(pinned))
    found = [violation.check for violation in policy.check(replace(WHOLE_STATEMENT, secrets=shown))]
    assert found == ([] if not pinned or shown in pinned else [Check.POLICY_SECRETS])


def token_of(message: bytes) -> bytes:
    return open_secrets(parse_sealed_secrets(message), keys())


def opened() -> OwnerSecrets:
    return verify_secrets(token_of(sealed()[0]), OWNER.public_key())


def refused(check: Check, error: pytest.ExceptionInfo[AttestationError]) -> bool:
    return error.value.check is check


def signed(claims: object, *, header: str = f'{{"alg":"EdDSA","typ":"{TYPE}"}}') -> bytes:
    text = f"{b64url_encode(header.encode())}.{b64url_encode(json.dumps(claims).encode())}".encode()
    return text + b"." + b64url_encode(OWNER.sign(text)).encode()


def claims(**changes: object) -> dict[str, object]:
    usual = {
        "v": 1,
        "purpose": "attested-inference/secrets",
        "statement": STATEMENT.hex(),
        "time": int(NOW.timestamp()),
        "salt": b64url_encode(bytes(32)),
        "secrets": {"key_pepper": b64url_encode(b"value")},
    }
    return {**usual, **changes}


def test_what_was_given_comes_out() -> None:
    """The enclave reads exactly what its owner gave, and both know the same digest."""
    message, digest = sealed()
    given = verify_secrets(token_of(message), OWNER.public_key())
    check_secrets(given, statement=STATEMENT, names=set(VALUES), now=NOW)
    assert given.values == VALUES
    assert given.digest() == digest
    assert not any(value in repr(given).encode() for value in VALUES.values())


def test_the_digest_is_of_the_secrets_and_their_owner_alone() -> None:
    """The same secrets have one digest at every enclave; another value, name or owner has another."""
    _, digest = sealed()
    assert sealed(dict(reversed(VALUES.items())))[1] == digest
    other = Ed25519PrivateKey.from_private_bytes(b"other".ljust(32))
    changes = [{**VALUES, "key_pepper": b"\x01" * 40}, {"key_pepper": VALUES["key_pepper"]}]
    assert digest not in {sealed(values)[1] for values in changes}
    assert (
        digest
        != seal_secrets(
            VALUES, owner=other, keys=public(keys()), statement=bytes(32), now=NOW + timedelta(1)
        )[1]
    )


def test_lengths_are_hidden() -> None:
    """A short pepper and a long one make messages of the same length."""
    assert len(sealed({"key_pepper": b"1" * 32})[0]) == len(sealed({"key_pepper": b"1" * 900})[0])


def test_too_much_is_not_sealed() -> None:
    """What would not be taken is not sent."""
    with pytest.raises(MalformedError) as error:
        sealed({"key_pepper": bytes(MAX_SECRETS_BYTES + 1)})
    assert refused(Check.SECRET_FORMAT, error)


def test_the_most_fits() -> None:
    """As many bytes as may be given make a message that is taken."""
    message, _ = sealed({"key_pepper": bytes(MAX_SECRETS_BYTES)})
    assert len(message) <= MAX_MESSAGE_BYTES
    assert (
        len(verify_secrets(token_of(message), OWNER.public_key()).values["key_pepper"]) == MAX_SECRETS_BYTES
    )


@pytest.mark.parametrize("at", [0, 3])
def test_another_protocol_is_malformed(at: int) -> None:
    """Version and suite are this protocol's; nothing is negotiated."""
    message = bytearray(sealed()[0])
    message[at] ^= 1
    with pytest.raises(MalformedError) as error:
        parse_sealed_secrets(bytes(message))
    assert refused(Check.SECRET_FORMAT, error)


@pytest.mark.parametrize("at", [10, 60, 1500, -1])
def test_what_was_altered_does_not_open(at: int) -> None:
    """A changed statement digest, key or ciphertext is noticed before anything is read."""
    message = bytearray(sealed()[0])
    message[at] ^= 1
    with pytest.raises(VerificationError) as error:
        token_of(bytes(message))
    assert refused(Check.SEALED_OPEN, error)


def test_only_the_enclave_opens_it() -> None:
    """Other keys, as those of another boot, do not open it."""
    with pytest.raises(VerificationError) as error:
        open_secrets(parse_sealed_secrets(sealed()[0]), SealingKeys.generate())
    assert refused(Check.SEALED_OPEN, error)


def test_another_owners_secrets_are_refused() -> None:
    """Whoever can reach the enclave can seal to it; only its owner can sign."""
    with pytest.raises(VerificationError) as error:
        verify_secrets(token_of(sealed()[0]), Ed25519PrivateKey.generate().public_key())
    assert refused(Check.SECRET_SIGNATURE, error)


def test_unsigned_secrets_are_refused() -> None:
    """An empty signature is a wrong one."""
    token = token_of(sealed()[0]).rpartition(b".")[0] + b"."
    with pytest.raises(VerificationError) as error:
        verify_secrets(token, OWNER.public_key())
    assert refused(Check.SECRET_SIGNATURE, error)


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"a.b",
        signed(claims(), header='{"alg":"none","typ":"attested-secrets+jwt"}'),
        signed(claims(), header='{"alg":"EdDSA","typ":"attested-receipt+jwt"}'),
        signed([]),
        signed(claims(v=2)),
        signed(claims(v=True)),
        signed(claims(purpose="attested-inference/enclave")),
        signed(claims(time="now")),
        signed(claims(time=-1)),
        signed(claims(statement="00")),
        signed(claims(statement="é" * 64)),
        signed(claims(salt=b64url_encode(bytes(31)))),
        signed(claims(secrets=[])),
        signed(claims(secrets={"key_pepper": 7})),
        signed(claims(secrets={"key_pepper": "=="})),
        signed(claims(secrets={"\ud800": ""})),
        signed(claims(more=1)),
        signed({}),
    ],
)
def test_claims_are_exactly_these(token: bytes) -> None:
    """What the owner signed has to be the secrets of this protocol, and nothing else that the key ever signed."""
    with pytest.raises(MalformedError) as error:
        verify_secrets(token, OWNER.public_key())
    assert refused(Check.SECRET_FORMAT, error)


def test_secrets_for_another_enclave_are_refused() -> None:
    """An enclave that was given secrets cannot pass them on as the owner's to another one."""
    with pytest.raises(VerificationError) as error:
        check_secrets(opened(), statement=bytes(32), names=set(VALUES), now=NOW)
    assert refused(Check.SECRET_STATEMENT, error)


@pytest.mark.parametrize("seconds", [-MAX_CLOCK_SKEW - 1, MAX_CLOCK_SKEW + 1])
def test_stale_secrets_are_refused(seconds: int) -> None:
    """Recorded, and brought later; or signed for a time to come."""
    with pytest.raises(VerificationError) as error:
        check_secrets(opened(), statement=STATEMENT, names=set(VALUES), now=NOW + timedelta(seconds=seconds))
    assert refused(Check.SECRET_TIME, error)


@pytest.mark.parametrize("names", [{"key_pepper"}, {*VALUES, "more"}, {"key_pepper", "other"}])
def test_secrets_are_those_that_are_waited_for(names: set[str]) -> None:
    """One too few, one too many, or another one: nothing is taken of it."""
    with pytest.raises(VerificationError) as error:
        check_secrets(opened(), statement=STATEMENT, names=names, now=NOW)
    assert refused(Check.SECRET_NAME, error)


def test_errors_quote_no_secret() -> None:
    """Names and values of what was refused stay out of the error's words."""
    given = replace(opened(), values={"word-that-nobody-sees": b"value-that-nobody-sees"})
    with pytest.raises(VerificationError) as error:
        check_secrets(given, statement=STATEMENT, names=set(VALUES), now=NOW)
    assert "nobody-sees" not in str(error.value)


@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_malformed(data: bytes) -> None:
    """A message is read, or it is malformed."""
    with suppress(MalformedError):
        assert parse_sealed_secrets(data).ciphertext in data


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda b: signed(b.decode("latin-1"))))
def test_any_token_is_read_or_refused(token: bytes) -> None:
    """What was inside is read, malformed, or not the owner's."""
    with pytest.raises((MalformedError, VerificationError)) as error:
        verify_secrets(token, OWNER.public_key())
    assert error.value.check in {Check.SECRET_FORMAT, Check.SECRET_SIGNATURE}
