"""Reviewers by key and by identity, mixed: k of n, and what a bundle that proves something else counts for."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError, VerificationError
from attestation.policy import parse_policy
from attestation.references import dump_statement
from attestation.reviewers import ReferencesPolicy, Reviewer
from client_sdk.policy_toml import dump_policy
from client_sdk.terms import load_policy, reviewed
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
MINISIGN = Ed25519PrivateKey.generate()
MINISIGN_ID = b"bobs key"
BOB = Reviewer(
    name="bob",
    key=base64.b64encode(b"Ed" + MINISIGN_ID + MINISIGN.public_key().public_bytes_raw()).decode(),
)
MINISIGNED = ReferencesPolicy(file="refs.json", name="acme/inference", reviewers=(BOB, REVIEWERS[0]))
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


def minisigned(key: Ed25519PrivateKey, message: bytes, *, comment: bytes = b"reviewed") -> bytes:
    """The file that `minisign -S` makes with this key; its format is held by minisign's own in test_minisign."""
    signed = key.sign(blake2b(message, digest_size=64).digest())
    first, second = b"ED" + MINISIGN_ID + signed, key.sign(signed + comment)
    lines = (
        b"untrusted comment: x",
        base64.b64encode(first),
        b"trusted comment: " + comment,
        base64.b64encode(second),
    )
    return b"\n".join(lines) + b"\n"


def test_a_minisign_key_beside_another() -> None:
    """Its signature is a file of its own, over exactly the statement in the envelope."""
    named = replace(MINISIGNED, reviewers=(replace(BOB, signature="bob.minisig"), REVIEWERS[0]))
    good = minisigned(MINISIGN, dump_statement(REFERENCES))
    assert MINISIGNED.files == {"refs.json.minisig"}
    assert named.files == {"bob.minisig"}
    assert MINISIGNED.verify(signed(by=(0,)), {"refs.json.minisig": good}) == REFERENCES
    assert named.verify(signed(by=(0,)), {"bob.minisig": good}) == REFERENCES
    for files, why in (
        ({}, "no signature 'refs.json.minisig'"),
        ({"refs.json.minisig": b"no signature"}, "four lines"),
        ({"refs.json.minisig": minisigned(MINISIGN, b"another statement")}, "does not verify"),
        (
            {"refs.json.minisig": minisigned(Ed25519PrivateKey.generate(), dump_statement(REFERENCES))},
            "verify",
        ),
    ):
        with pytest.raises(VerificationError, match=why) as error:
            MINISIGNED.verify(signed(by=(0,)), files)
        assert error.value.check is Check.REFERENCES_SIGNATURE
        assert replace(MINISIGNED, threshold=1).verify(signed(by=(0,)), files) == REFERENCES


def test_minisign_alone_signs_the_file_as_it_is() -> None:
    """Where nobody signs in an envelope, `file` may be the statement itself: `minisign -Vm` of it says the same."""
    alone = replace(MINISIGNED, reviewers=(BOB,))
    statement = dump_statement(REFERENCES)
    files = {"refs.json.minisig": minisigned(MINISIGN, statement)}
    assert alone.verify(statement, files) == REFERENCES
    with pytest.raises(VerificationError, match="does not verify"):
        alone.verify(statement + b" ", files)
    with pytest.raises(VerificationError, match="bob"):
        MINISIGNED.verify(statement, files)


def test_one_key_in_minisigns_writing_and_in_pem_is_one_reviewer() -> None:
    """Else one person would be two of two."""
    pem = MINISIGN.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    twice = replace(MINISIGNED, reviewers=(BOB, Reviewer(name="a", key=pem)))
    with pytest.raises(MalformedError, match="twice"):
        twice.verify(signed(by=()), {})


def test_a_signatures_file_belongs_to_a_minisign_key() -> None:
    """Signatures by PEM keys are in the envelope: a file named for one would never be read."""
    for reviewer in (replace(REVIEWERS[0], signature="a.minisig"), replace(RELEASE, signature="a.minisig")):
        with pytest.raises(MalformedError, match=r"signature's file|needs a key"):
            replace(BOTH, reviewers=(reviewer,)).verify(signed(by=(0,)), FILES)


def test_minisign_from_files_beside_the_policy(tmp_path: Path) -> None:
    """A policy file with a minisign key reads back as itself, and its signature is found."""
    policy = replace(BARE, references=MINISIGNED)
    assert parse_policy(dump_policy(policy)) == policy
    (tmp_path / "policy.toml").write_text(dump_policy(policy))
    (tmp_path / "refs.json").write_bytes(signed(by=(0,)))
    with pytest.raises(VerificationError, match="no signature"):
        load_policy(tmp_path / "policy.toml")
    (tmp_path / "refs.json.minisig").write_bytes(minisigned(MINISIGN, dump_statement(REFERENCES)))
    assert load_policy(tmp_path / "policy.toml").release.epoch == REFERENCES.epoch


def test_policy_and_signers_come_of_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who signed is said of the very bytes that are in the policy: no file is read again, as it could be another by then."""
    (tmp_path / "policy.toml").write_text(dump_policy(replace(BARE, references=BOTH)))
    (tmp_path / "refs.json").write_bytes(signed(by=(0,)))
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    loaded, opened, as_it_is = load_policy(tmp_path / "policy.toml"), [], Path.open

    def noticed(file: Path, *how: Any) -> Any:
        opened.append(file.name)
        return as_it_is(file, *how)

    monkeypatch.setattr(Path, "open", noticed)
    policy, words = reviewed(tmp_path / "policy.toml")
    assert policy == loaded
    assert (
        words
        == f"'acme/inference', epoch {REFERENCES.epoch}, signed by {REVIEWERS[0].name}, release workflow"
    )
    assert sorted(opened) == ["policy.toml", "refs.json", "refs.sigstore.json", "root.json"]
