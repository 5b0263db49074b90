"""Outcomes as EAT Attestation Results: status and vector agree with the verdict, and the signature with the key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestation.checks import Check
from attestation.ear import PROFILE, Status, appraise, load_signing_key, make_ear, sign_ear
from attestation.errors import (
    AttestationError,
    MalformedError,
    PolicyError,
    UnavailableError,
    VerificationError,
    Violation,
)
from attestation.roots import VENDOR, Root

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VALUES = range(-128, 128)


def denied(*checks: Check) -> PolicyError:
    return PolicyError([Violation(check, "a", "b") for check in checks])


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("error", "status", "aspect", "value"),
    [
        (None, Status.AFFIRMING, "hardware", 2),
        (denied(Check.TDX_MEASUREMENT), Status.CONTRAINDICATED, "executables", 33),
        (denied(Check.SNP_DEBUG), Status.CONTRAINDICATED, "runtime-opaque", 96),
        (denied(Check.TDX_TCB_STATUS), Status.CONTRAINDICATED, "hardware", 32),
        (denied(Check.SNP_CHIP), Status.CONTRAINDICATED, "instance-identity", 97),
        (denied(Check.TDX_XFAM), Status.CONTRAINDICATED, "configuration", 96),
        (VerificationError(Check.TDX_QUOTE_SIGNATURE, "x"), Status.CONTRAINDICATED, "hardware", 99),
        (VerificationError(Check.TDX_PCK_REVOKED, "x"), Status.CONTRAINDICATED, "hardware", 96),
        (VerificationError(Check.TDX_TCB_LEVEL, "x"), Status.CONTRAINDICATED, "hardware", 97),
        (VerificationError(Check.GPU_MEASUREMENT, "x"), Status.CONTRAINDICATED, "hardware", 96),
        (MalformedError(Check.TDX_FORMAT, "x"), Status.CONTRAINDICATED, "hardware", 1),
    ],
)
def test_the_status_follows_the_verdict(
    error: AttestationError | None, status: Status, aspect: str, value: int
) -> None:
    """Refusals are contraindicated whatever the vector says; the vector says of what."""
    appraisal = appraise(error, roots=VENDOR.intel)
    assert appraisal.status is status
    assert appraisal.vector[aspect] == value
    assert all(v in VALUES for v in appraisal.vector.values())
    assert appraisal.verifier_claims.get("check") == (error and str(error.check))


def test_every_check_that_a_policy_may_refuse_has_an_aspect() -> None:
    """Whatever check is violated, the vector stays one of AR4SI and nothing in it is better than before."""
    good = appraise(None, roots=VENDOR.intel).vector
    for check in Check:
        vector = appraise(denied(check), roots=VENDOR.intel).vector
        assert set(vector) == set(good)
        assert vector != good


def test_not_deciding_affirms_nothing() -> None:
    """No vector, and the tier that a relying party treats as no claim."""
    appraisal = appraise(UnavailableError(Check.COLLATERAL_MISSING, "x"))
    assert appraisal.status is Status.NONE
    assert appraisal.vector == {}


def test_what_was_not_judged_or_is_no_vendors_warns() -> None:
    """Without measurements, or under a root that is no vendor's, an acceptance is only a warning."""
    assert appraise(None, roots=VENDOR.intel, measured=False).status is Status.WARNING
    foreign = appraise(None, roots=(Root("simulated", bytes(32)),))
    assert foreign.status is Status.WARNING
    assert foreign.vector["hardware"] == -33
    assert foreign.verifier_claims["vendor-root"] is False


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(ed25519.Ed25519PrivateKey.generate(), "EdDSA"), (ec.generate_private_key(ec.SECP256R1()), "ES256")],
)
def test_a_result_is_a_signed_token(
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, algorithm: str
) -> None:
    """Any JWT library reads it with the public key, and finds what the draft asks for."""
    appraisal = appraise(denied(Check.TDX_DEBUG), roots=VENDOR.intel, claims={"mrtd": "00"})
    ear = make_ear(
        {"tdx": appraisal}, build="test 1", issued=NOW, expires=NOW + timedelta(days=1), nonce=bytes(32)
    )
    token = sign_ear(ear, load_signing_key(pem(key)))
    read = jwt.decode(
        token, key.public_key(), algorithms=[algorithm], options={"verify_exp": False, "verify_iat": False}
    )
    assert read["eat_profile"] == PROFILE == "tag:ietf.org,2026:rats/ear#04"
    assert read["iat"] == int(NOW.timestamp())
    assert read["exp"] - read["iat"] == 86400
    assert read["ear_verifier_id"] == {"developer": "attested-inference", "build": "test 1"}
    assert len(read["eat_nonce"]) == 43
    submodule = read["submods"]["tdx"]
    assert submodule["ear_status"] == "contraindicated"
    assert submodule["ear_attester_claims"] == {"mrtd": "00"}
    assert submodule["ear_verifier_claims"]["violations"] == ["[tdx.debug] expected a, found b"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no key",
        pem(rsa.generate_private_key(65537, 2048)),
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(ed25519.Ed25519PrivateKey.generate()).replace(b"PRIVATE", b"PUBLIC"),
    ],
    ids=["empty", "text", "rsa", "p384", "mislabelled"],
)
def test_other_keys_do_not_sign(data: bytes) -> None:
    """Only unencrypted Ed25519 and P-256 private keys are taken."""
    with pytest.raises(ValueError, match=r"."):
        load_signing_key(data)
