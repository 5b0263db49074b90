"""Signed reference values: k of n reviewers, one name, one epoch; what they accept and what they revoke."""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, PolicyError, VerificationError
from attestation.policy import Policy, StatementPolicy, parse_policy
from attestation.references import References, dump_envelope, dump_statement, merge, parse_envelope, sign
from attestation.release import Release, Revoked
from attestation.release_policy import ReleasePolicy
from attestation.reviewers import ReferencesPolicy, Reviewer
from attestation.simulator.tdx import DEFAULT_TD
from attestation.snp.policy import SnpPolicy
from attestation.tdx.policy import TdxMeasurement, TdxPolicy
from attestation.verify import verify
from tests.client_sdk.pretend import NOW, POLICY, PretendEnclave

KEYS: list[Any] = [
    Ed25519PrivateKey.generate(),
    Ed25519PrivateKey.generate(),
    ec.generate_private_key(ec.SECP256R1()),
]
MEASURED = TdxMeasurement(mrtd=DEFAULT_TD.mrtd)
MODEL, CONFIG = b"\x07" * 32, b"\x08" * 32
REFERENCES = References(
    name="acme/inference",
    epoch=7,
    issued=int(NOW.timestamp()) - 60,
    expires=int(NOW.timestamp()) + 86400,
    releases=(
        Release(
            id="1.4.0",
            tdx=(MEASURED,),
            snp=frozenset({b"\x01" * 48}),
            models=frozenset({MODEL}),
            configs=frozenset({CONFIG}),
        ),
    ),
)


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


REVIEWERS = tuple(
    Reviewer(name=name, key=pem(key)) for name, key in zip(("ann", "bob", "cyd"), KEYS, strict=True)
)
DEMANDED = ReferencesPolicy(file="refs.json", name="acme/inference", reviewers=REVIEWERS, threshold=2)
BARE = replace(
    POLICY,
    statement=StatementPolicy(),
    tdx=TdxPolicy(),
    snp=SnpPolicy(),
    references=DEMANDED,
)


def signed(references: References = REFERENCES, by: tuple[int, ...] = (0, 1)) -> bytes:
    payload = dump_statement(references)
    return dump_envelope(payload, [sign(payload, KEYS[i]) for i in by])


@pytest.mark.parametrize("by", [(0, 1), (0, 2), (2, 1), (0, 1, 2)])
def test_enough_reviewers_of_either_kind(by: tuple[int, ...]) -> None:
    """Two of three are enough, whichever they are; what was signed is what is read."""
    assert DEMANDED.verify(signed(by=by)) == REFERENCES


@pytest.mark.parametrize("by", [(), (0,), (0, 0), (2, 2)], ids=["nobody", "one", "one twice", "other twice"])
def test_too_few_reviewers(by: tuple[int, ...]) -> None:
    """One reviewer who signs twice is one reviewer."""
    with pytest.raises(VerificationError) as error:
        DEMANDED.verify(signed(by=by))
    assert error.value.check is Check.REFERENCES_SIGNATURE


def test_all_reviewers_unless_said() -> None:
    """Without a threshold every reviewer has to have signed."""
    with pytest.raises(VerificationError):
        replace(DEMANDED, threshold=None).verify(signed(by=(0, 1)))
    assert replace(DEMANDED, threshold=None).verify(signed(by=(0, 1, 2))) == REFERENCES


@pytest.mark.parametrize("threshold", [0, -1, 4])
def test_a_threshold_that_makes_no_sense(threshold: int) -> None:
    """None at all, or more than there are reviewers, is no policy."""
    with pytest.raises(MalformedError) as error:
        replace(DEMANDED, threshold=threshold).verify(signed(by=(0, 1, 2)))
    assert error.value.check is Check.POLICY_FORMAT


def test_one_key_under_two_names_is_refused() -> None:
    """Else one person could be two reviewers."""
    twice = replace(DEMANDED, reviewers=(REVIEWERS[0], replace(REVIEWERS[0], name="another")))
    with pytest.raises(MalformedError, match="twice"):
        twice.verify(signed())


@pytest.mark.parametrize(
    "key",
    ["", "no key", pem(generate_private_key(65537, 2048)), pem(ec.generate_private_key(ec.SECP384R1()))],
)
def test_other_keys_are_refused(key: str) -> None:
    """Only Ed25519 and P-256."""
    with pytest.raises(MalformedError, match="Ed25519 or P-256"):
        replace(DEMANDED, reviewers=(Reviewer(name="ann", key=key),), threshold=1).verify(signed())


def test_every_byte_is_signed() -> None:
    """No bit of the statement can change unseen."""
    payload, signatures = parse_envelope(signed())
    for position in range(len(payload)):
        altered = bytearray(payload)
        altered[position] ^= 1
        with pytest.raises(VerificationError) as error:
            DEMANDED.verify(dump_envelope(bytes(altered), signatures))
        assert error.value.check is Check.REFERENCES_SIGNATURE


def test_another_name_and_an_older_epoch() -> None:
    """References of another image, or older than the policy asks for, are refused by name."""
    with pytest.raises(VerificationError) as error:
        replace(DEMANDED, name="other").verify(signed())
    assert error.value.check is Check.REFERENCES_NAME
    with pytest.raises(VerificationError) as error:
        replace(DEMANDED, min_epoch=8).verify(signed())
    assert error.value.check is Check.REFERENCES_EPOCH


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"payloadType":"text/plain","payload":"","signatures":[]}',
        b'{"payloadType":"application/vnd.in-toto+json","payload":"!","signatures":[]}',
        b'{"payloadType":"application/vnd.in-toto+json","payload":"","signatures":[{}]}',
        json.dumps(
            {"payloadType": "application/vnd.in-toto+json", "payload": "", "signatures": [{}] * 65}
        ).encode(),
    ],
)
def test_no_envelope(document: bytes) -> None:
    """What is no DSSE envelope is malformed."""
    with pytest.raises(MalformedError) as error:
        DEMANDED.verify(document)
    assert error.value.check is Check.REFERENCES_FORMAT


@given(
    st.binary(max_size=300)
    | st.binary(max_size=100).map(lambda b: b'{"payloadType":"application/vnd.in-toto+json",' + b)
)
def test_any_bytes_give_a_value_or_malformed(data: bytes) -> None:
    """Whatever the file holds, only MalformedError comes of parsing it."""
    with suppress(MalformedError):
        parse_envelope(data)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda c: (
            st.lists(c, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "epoch", "releases", "id", "tdx"]), c)
        ),
    )
)
def test_any_signed_predicate_gives_a_value_or_malformed(predicate: Any) -> None:
    """A reviewer who signs nonsense breaks nothing."""
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "tag:attested-inference,2026:references#1",
    }
    payload = json.dumps({**document, "predicate": predicate}).encode()
    with pytest.raises(MalformedError):
        DEMANDED.verify(dump_envelope(payload, [sign(payload, KEYS[i]) for i in (0, 1)]))


def test_what_they_accept_is_accepted() -> None:
    """A policy that names nothing itself accepts the pretended enclave by its references, until they end."""
    policy = merge(BARE, DEMANDED.verify(signed()))
    nonce = b"\x05" * 32
    verdict = verify(PretendEnclave().evidence(nonce), policy, nonce=nonce, now=NOW)
    assert verdict.valid_until <= datetime.fromtimestamp(REFERENCES.expires, UTC)
    assert policy.release.name == "acme/inference"
    assert policy.release.epoch == 7


def refusals(policy: Policy, now: datetime = NOW) -> set[Check]:
    nonce = b"\x05" * 32
    with pytest.raises(PolicyError) as error:
        verify(PretendEnclave().evidence(nonce, now), policy, nonce=nonce, now=now)
    return {violation.check for violation in error.value.violations}


def test_what_they_revoke_is_refused_at_once() -> None:
    """Even where the policy itself names the measurement, and with the reason."""
    revoked = Revoked(id="1.3.2", reason="CVE-2026-0001", tdx=(MEASURED,))
    policy = merge(replace(BARE, tdx=POLICY.tdx), replace(REFERENCES, revoked=(revoked,)))
    assert refusals(policy) == {Check.POLICY_REVOKED}
    by_hand = replace(POLICY, release=ReleasePolicy(revoked=(revoked,)))
    assert refusals(by_hand) == {Check.POLICY_REVOKED}


def test_references_that_were_not_read_accept_nothing() -> None:
    """A policy that asks for references is worth nothing without them, whatever else it accepts."""
    assert refusals(replace(POLICY, references=DEMANDED)) == {Check.REFERENCES_MISSING}


def test_a_policy_ends() -> None:
    """At its end, and not after it."""
    over = replace(POLICY, release=ReleasePolicy(expires=NOW))
    assert refusals(over) == {Check.POLICY_EXPIRED}


def test_the_end_of_either_counts() -> None:
    """A policy does not outlive its references, nor the other way round."""
    soon = datetime.fromtimestamp(REFERENCES.expires - 3600, UTC)
    merged = merge(replace(BARE, release=ReleasePolicy(expires=soon)), REFERENCES)
    assert merged.release.expires == soon
    assert merge(BARE, REFERENCES).release.expires == datetime.fromtimestamp(REFERENCES.expires, UTC)


def test_a_policy_file_names_reviewers() -> None:
    """The table of a policy file is read as it is documented; a time without an offset is refused."""
    text = f'[references]\nfile = "r.json"\nname = "acme"\n[[references.reviewers]]\nname = "ann"\nkey = """{pem(KEYS[0])}"""\n'
    policy = parse_policy(text)
    assert policy.references is not None
    assert policy.references.reviewers[0].name == "ann"
    assert parse_policy("[release]\nexpires = 2027-01-01T00:00:00+01:00").release.expires == datetime(
        2026, 12, 31, 23, tzinfo=UTC
    )
    for bad in ("2027-01-01T00:00:00", "2027-01-01", '"2027-01-01T00:00:00Z"'):
        with pytest.raises(AttestationError, match="offset"):
            parse_policy(f"[release]\nexpires = {bad}")


def test_the_envelope_is_what_other_tools_read() -> None:
    """DSSE's own pre-authentication encoding, and subjects with the digest of each release's entry."""
    payload, _ = parse_envelope(signed())
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert [s["name"] for s in statement["subject"]] == ["1.4.0"]
    KEYS[0].public_key().verify(
        sign(payload, KEYS[0]), b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    )
    assert json.loads(signed())["payload"] == b64encode(payload).decode()
