"""Certificates and revocation lists: what `_x509` promises to every vendor's verifier."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from attestation._x509 import (
    check_not_revoked,
    check_validity,
    find_root,
    parse_certificate,
    parse_chain,
    parse_crl,
    verify_crl,
    verify_issued_by,
)
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.simulator.pki import Signer, crl, issue, name, p256_key, p384_key, pin, rsa_key

BORN, DIES = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
CHECK, DATES = Check.TDX_ROOT_CRL, Check.TDX_ROOT_CRL_DATES


def make(common_name: str, issuer: Signer | None = None, *, ca: bool | None = True, **more: object) -> Signer:
    """A certificate of this year."""
    key = more.pop("key", None) or p256_key()
    return issue(name(common_name), key, issuer, not_before=BORN, not_after=DIES, ca=ca, **more)  # type: ignore[arg-type]  # passed on


ROOT = make("Root")
LEAF = make("Leaf", ROOT, ca=False)
NO_USAGE = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
CA_WITHOUT_USAGE = ((x509.BasicConstraints(True, None), True), (NO_USAGE, True))
NO_CA = make("Middle", ROOT, ca=False)
NO_CONSTRAINTS = make("Middle", ROOT, ca=None)


@pytest.mark.parametrize("key", [p256_key(), p384_key(), rsa_key(2048)], ids=["p256", "p384", "rsa-pss"])
def test_a_chain_of_each_kind_of_key_verifies(key: object) -> None:
    """The vendors' algorithms: ECDSA on both curves and RSA-PSS, in certificates and lists."""
    root = make("Root", key=key)
    leaf = make("Leaf", root, ca=False)
    verify_issued_by(root.cert, root.cert, CHECK)
    verify_issued_by(leaf.cert, root.cert, CHECK)
    made = parse_crl(crl(root, this_update=BORN, next_update=DIES), CHECK, "list")
    assert verify_crl(made, root.cert, NOW, signature=CHECK, dates=DATES) == DIES
    check_not_revoked(leaf.cert, made, CHECK)


@pytest.mark.parametrize(
    ("leaf", "issuer", "words"),
    [
        (LEAF, make("Root"), "signature"),
        (LEAF, make("Other name"), "issuer name"),
        (LEAF, make("Other name", key=ROOT.key), "issuer name"),
        (LEAF, make("Root", ca=None, key=ROOT.key, extensions=CA_WITHOUT_USAGE), "may not sign certificates"),
        (make("Leaf", NO_CA, ca=False), NO_CA, "not a CA"),
        (make("Leaf", NO_CONSTRAINTS, ca=False), NO_CONSTRAINTS, "no BasicConstraints"),
        (
            make(
                "Leaf",
                ROOT,
                extensions=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), True),),
            ),
            ROOT,
            "not understood",
        ),
    ],
)
def test_a_certificate_of_no_issuer_is_refused(leaf: Signer, issuer: Signer, words: str) -> None:
    """Key, name, CA flag and critical extensions each count."""
    with pytest.raises(VerificationError) as caught:
        verify_issued_by(leaf.cert, issuer.cert, CHECK)
    assert words in caught.value.detail


def test_validity_includes_its_first_and_last_second() -> None:
    """And not a second more."""
    for now in (BORN, DIES):
        check_validity(LEAF.cert, now, CHECK)
    for now in (BORN - timedelta(seconds=1), DIES + timedelta(seconds=1)):
        with pytest.raises(VerificationError):
            check_validity(LEAF.cert, now, CHECK)


def test_a_root_is_its_key() -> None:
    """The same name with another key is another root; the same key under another name is the same."""
    renamed = make("Renamed", key=ROOT.key)
    assert find_root(renamed.cert, (pin(ROOT),), CHECK) == pin(ROOT)
    for roots in ((pin(make("Root")),), ()):
        with pytest.raises(VerificationError):
            find_root(ROOT.cert, roots, CHECK)


def test_a_list_is_its_issuers_whole_and_in_date() -> None:
    """Other signers, other names, deltas and wrong dates are refused, each under its check."""
    good = crl(ROOT, this_update=BORN, next_update=DIES, revoked=[LEAF.cert.serial_number])
    parsed = parse_crl(good, CHECK, "list")
    with pytest.raises(VerificationError) as caught:
        check_not_revoked(LEAF.cert, parsed, CHECK)
    assert "revoked" in caught.value.detail
    delta = crl(ROOT, this_update=BORN, next_update=DIES, extensions=((x509.DeltaCRLIndicator(1), True),))
    for data, issuer in (
        (good, make("Root")),
        (good, make("Other name", key=ROOT.key)),
        (good, LEAF),
        (delta, ROOT),
    ):
        with pytest.raises(VerificationError) as caught:
            verify_crl(parse_crl(data, CHECK, "list"), issuer.cert, NOW, signature=CHECK, dates=DATES)
        assert caught.value.check is CHECK
    for now in (BORN - timedelta(seconds=1), DIES + timedelta(seconds=1)):
        with pytest.raises(VerificationError) as caught:
            verify_crl(parsed, ROOT.cert, now, signature=CHECK, dates=DATES)
        assert caught.value.check is DATES


def test_a_list_that_its_issuer_may_not_sign_is_refused() -> None:
    """A certificate without the key usage for lists signs none."""
    named_alike = make("Root", ca=False)
    made = parse_crl(crl(named_alike, this_update=BORN, next_update=DIES), CHECK, "list")
    with pytest.raises(VerificationError) as caught:
        verify_crl(made, named_alike.cert, NOW, signature=CHECK, dates=DATES)
    assert "may not sign" in caught.value.detail


@given(data=st.binary(max_size=400))
def test_any_bytes_are_malformed(data: bytes) -> None:
    """Nothing but MalformedError leaves the parsers."""
    pem = b"-----BEGIN CERTIFICATE-----\n" + data + b"\n-----END CERTIFICATE-----\n"
    for parse in (parse_certificate, parse_crl):
        with pytest.raises(MalformedError):
            parse(data, CHECK, "data")
    for text in (data, pem):
        with pytest.raises(MalformedError):
            parse_chain(text, CHECK, "data", length=1)


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_changed_bytes_parse_or_are_malformed(position: int, value: int) -> None:
    """Also for bytes that are almost a certificate or a list."""
    for parse, data in (
        (parse_certificate, LEAF.der),
        (parse_crl, crl(ROOT, this_update=BORN, next_update=DIES)),
    ):
        changed = bytearray(data)
        changed[position % len(data)] = value
        try:
            parse(bytes(changed), CHECK, "data")
        except MalformedError as exc:
            assert exc.check is CHECK  # noqa: PT017  # both outcomes are right


def test_the_length_of_a_chain_is_exact() -> None:
    """One certificate too many or too few is another chain."""
    pem = (LEAF.pem + ROOT.pem).encode()
    assert parse_chain(pem, CHECK, "chain", length=2) == (LEAF.cert, ROOT.cert)
    for length in (1, 3):
        with pytest.raises(MalformedError):
            parse_chain(pem, CHECK, "chain", length=length)
    assert parse_certificate(LEAF.cert.public_bytes(Encoding.PEM), CHECK, "leaf") == LEAF.cert
