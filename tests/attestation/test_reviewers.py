"""Reviewers by key and by identity, mixed: k of n, and what a bundle that proves something else counts for."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError, VerificationError
from attestation.policy import parse_policy
from attestation.references import dump_statement
from attestation.reviewers import ReferencesPolicy, Reviewer
from client_sdk.policy_toml import dump_policy
from client_sdk.terms import load_policy
from tests.attestation.sigstore_world import IDENTITY, ISSUER, SigstoreWorld
from tests.attestation.test_references import BARE, REFERENCES, REVIEWERS, signed

WORLD = SigstoreWorld()
RELEASE = Reviewer(
    name="release workflow",
    identity=IDENTITY,
    issuer=ISSUER,
    trusted_root="root.json",
    bundle="refs.sigstore.json",
)
BOTH = ReferencesPolicy(file="refs.json", name="acme/inference", reviewers=(REVIEWERS[0], RELEASE))
ALONE = replace(BOTH, reviewers=(replace(RELEASE, bundle=None),))
BUNDLE = json.dumps(WORLD.bundle(dump_statement(REFERENCES))).encode()
FILES = {"root.json": WORLD.trusted_root(), "refs.sigstore.json": BUNDLE}


def test_a_key_and_an_identity() -> None:
    """Both have signed the same statement; either alone is one of two."""
    assert BOTH.files == set(FILES)
    assert BOTH.verify(signed(by=(0,)), FILES) == REFERENCES
    assert replace(BOTH, threshold=1).verify(signed(by=()), FILES) == REFERENCES
    assert replace(BOTH, threshold=1).verify(signed(by=(0,)), {"root.json": b"{}"}) == REFERENCES


def test_the_bundle_may_be_the_references() -> None:
    """Where the workflow alone signs, its bundle is the one file that is published."""
    assert ALONE.verify(BUNDLE, {"root.json": WORLD.trusted_root()}) == REFERENCES


@pytest.mark.parametrize(
    ("bundle", "why"),
    [
        (None, "no bundle 'refs.sigstore.json'"),
        (WORLD.bundle(dump_statement(REFERENCES), identity="eve@acme.example"), "do not match"),
        (WORLD.bundle(dump_statement(REFERENCES), issuer="https://issuer.example"), "does not match"),
        (SigstoreWorld().bundle(dump_statement(REFERENCES)), "chain"),
        (WORLD.bundle(dump_statement(replace(REFERENCES, epoch=8))), "another statement"),
    ],
    ids=["none", "another identity", "another issuer", "another root", "another statement"],
)
def test_a_bundle_that_does_not_count(bundle: object, why: str) -> None:
    """It is as if the reviewer had not signed, and the refusal says why."""
    files = dict(FILES)
    files.pop("refs.sigstore.json")
    if bundle is not None:
        files["refs.sigstore.json"] = json.dumps(bundle).encode()
    with pytest.raises(VerificationError, match=why) as error:
        BOTH.verify(signed(by=(0,)), files)
    assert error.value.check is Check.REFERENCES_SIGNATURE


@pytest.mark.parametrize(
    "reviewer",
    [
        replace(RELEASE, issuer=None),
        replace(RELEASE, trusted_root=None),
        replace(RELEASE, identity=""),
        replace(RELEASE, key=REVIEWERS[1].key),
        replace(REVIEWERS[1], bundle="b"),
        Reviewer(name="nobody"),
    ],
    ids=["no issuer", "no root", "no identity", "both", "a key with a bundle", "neither"],
)
def test_half_a_reviewer(reviewer: Reviewer) -> None:
    """An identity without its issuer, or two ways at once, is no policy, whoever else has signed."""
    with pytest.raises(MalformedError, match="needs a key, or identity, issuer and trusted_root") as error:
        replace(BOTH, reviewers=(REVIEWERS[0], reviewer), threshold=1).verify(signed(by=(0,)), FILES)
    assert error.value.check is Check.POLICY_FORMAT


def test_one_identity_is_one_reviewer() -> None:
    """Else one workflow could be two reviewers, with two bundles of one day."""
    twice = replace(BOTH, reviewers=(RELEASE, replace(RELEASE, name="another", bundle="b")))
    with pytest.raises(MalformedError, match="twice"):
        twice.verify(signed(), FILES)


def test_one_key_is_one_reviewer_however_it_is_written() -> None:
    """Other line ends, a comment, a compressed point: the same key signs once, and would count twice."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    plain = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    short = base64.b64encode(bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point)
    compressed = f"-----BEGIN PUBLIC KEY-----\n{short.decode()}\n-----END PUBLIC KEY-----"
    for other in (plain.replace("\n", "\r\n"), f"my key\n{plain}", compressed):
        assert Reviewer(name="b", key=other).public_key() == key
        twice = (Reviewer(name="a", key=plain), Reviewer(name="b", key=other))
        with pytest.raises(MalformedError, match="twice"):
            replace(BOTH, reviewers=twice).verify(signed(by=()), FILES)


def test_a_key_of_another_kind_is_no_key() -> None:
    """Whatever algorithm the PEM names, known to the library or not, the policy is malformed, and nothing else."""
    unknown = base64.b64encode(bytes.fromhex("300c3005060342010103030000ff")).decode()
    x25519 = X25519PrivateKey.generate().public_key()
    known = x25519.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for pem in (f"-----BEGIN PUBLIC KEY-----\n{unknown}\n-----END PUBLIC KEY-----", known, "", "-----BEGIN"):
        with pytest.raises(MalformedError, match="no Ed25519 or P-256"):
            Reviewer(name="a", key=pem).check()


def test_from_files_beside_the_policy(tmp_path: Path) -> None:
    """A policy file names root and bundle by their names; without the root nothing is decided."""
    policy = replace(BARE, references=BOTH)
    assert parse_policy(dump_policy(policy)) == policy
    (tmp_path / "policy.toml").write_text(dump_policy(policy))
    (tmp_path / "refs.json").write_bytes(signed(by=(0,)))
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    assert load_policy(tmp_path / "policy.toml").release.epoch == REFERENCES.epoch
    (tmp_path / "root.json").unlink()
    with pytest.raises(UnavailableError) as error:
        load_policy(tmp_path / "policy.toml")
    assert error.value.check is Check.REFERENCES_MISSING
    (tmp_path / "root.json").mkdir()
    with pytest.raises(UnavailableError):
        load_policy(tmp_path / "policy.toml")
