"""Sigstore bundles as reviewers' signatures: verified offline, for one identity of one issuer under one pinned root."""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, UnavailableError, VerificationError
from attestation.keyless import verify_bundle
from tests.attestation.sigstore_world import IDENTITY, ISSUER, SigstoreWorld

WORLD = SigstoreWorld()
ROOT = WORLD.trusted_root()
PAYLOAD = b'{"_type":"https://in-toto.io/Statement/v1"}'
Edit = Callable[[dict[str, Any]], object]


def proven(bundle: dict[str, Any], root: bytes = ROOT) -> bytes:
    return verify_bundle(json.dumps(bundle).encode(), root, identity=IDENTITY, issuer=ISSUER)


def entry(bundle: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = bundle["verificationMaterial"]["tlogEntries"][0]
    return found


def test_what_this_identity_signed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of the pinned identity and issuer gives its payload, and no socket is ever made."""
    monkeypatch.setattr("socket.socket", None)
    monkeypatch.setattr("socket.create_connection", None)
    assert proven(WORLD.bundle(PAYLOAD)) == PAYLOAD


@pytest.mark.parametrize(
    ("identity", "issuer"),
    [
        (IDENTITY.replace("v1.4.0", "v1.4.1"), ISSUER),
        (IDENTITY.replace("acme", "acne"), ISSUER),
        (IDENTITY, "https://issuer.example"),
    ],
    ids=["another tag", "another repository", "another issuer"],
)
def test_another_identity_or_issuer(identity: str, issuer: str) -> None:
    """A genuine signature of somebody else proves nothing, nor does the same name at another issuer."""
    with pytest.raises(VerificationError, match=r"does not match|do not match") as error:
        proven(WORLD.bundle(PAYLOAD, identity=identity, issuer=issuer))
    assert error.value.check is Check.REFERENCES_KEYLESS


@pytest.mark.parametrize("part", ["authority", "certificate_log", "signature_log"])
def test_another_root(part: str) -> None:
    """Each of the three keys of the pinned root is needed: authority, certificate log and signature log."""
    other = replace(WORLD, **{part: getattr(SigstoreWorld(), part)})
    with pytest.raises(VerificationError):
        proven(other.bundle(PAYLOAD))
    assert proven(other.bundle(PAYLOAD), other.trusted_root()) == PAYLOAD


def test_the_public_instances_root() -> None:
    """The root that the library brings is one that can be pinned; what our own instance signed is nothing under it."""
    store = files("sigstore") / "_store" / "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev" / "trusted_root.json"
    with pytest.raises(VerificationError) as error:
        proven(WORLD.bundle(PAYLOAD), store.read_bytes())
    assert error.value.check is Check.REFERENCES_KEYLESS


def _flipped(text: str) -> str:
    data = bytearray(b64decode(text))
    data[-1] ^= 1
    return b64encode(data).decode()


def _set(edit: Callable[[dict[str, Any]], dict[str, Any]], name: str, value: Any = None) -> Edit:
    def apply(bundle: dict[str, Any]) -> None:
        table = edit(bundle)
        table[name] = _flipped(table[name]) if value is None else value

    return apply


@pytest.mark.parametrize(
    "edit",
    [
        _set(lambda b: b["dsseEnvelope"], "payload"),
        _set(lambda b: b["dsseEnvelope"], "payload", b64encode(b"{}").decode()),
        _set(lambda b: b["dsseEnvelope"], "payloadType", "text/plain"),
        _set(lambda b: b["dsseEnvelope"]["signatures"][0], "sig"),
        _set(entry, "canonicalizedBody"),
        _set(entry, "integratedTime", "1893456000"),
        _set(lambda b: entry(b)["inclusionPromise"], "signedEntryTimestamp"),
        _set(lambda b: entry(b)["inclusionProof"], "rootHash"),
        _set(lambda b: entry(b)["inclusionProof"], "hashes", []),
        _set(lambda b: entry(b)["inclusionProof"], "logIndex", "1"),
        _set(lambda b: entry(b)["inclusionProof"]["checkpoint"], "envelope", "log.example\n3\nAAAA\n"),
    ],
    ids=[
        "payload altered",
        "payload exchanged",
        "payload type",
        "signature",
        "log entry",
        "time after the certificate",
        "promise of the log",
        "root hash",
        "no path",
        "another place in the log",
        "checkpoint",
    ],
)
def test_altered_bundles(edit: Edit) -> None:
    """Nothing in a bundle can change without being noticed."""
    bundle = WORLD.bundle(PAYLOAD)
    edit(bundle)
    with pytest.raises(VerificationError) as error:
        proven(bundle)
    assert error.value.check is Check.REFERENCES_KEYLESS


def test_an_entry_about_another_payload() -> None:
    """The log must hold this very signature's payload, not one that was signed at another time."""
    with pytest.raises(VerificationError, match="payload hash"):
        proven(WORLD.bundle(PAYLOAD, logged=b"another"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda b: entry(b).pop("inclusionProof"),
        lambda b: entry(b)["inclusionProof"].pop("checkpoint"),
        lambda b: entry(b).pop("inclusionPromise"),
        lambda b: b["verificationMaterial"].update(tlogEntries=[]),
        lambda b: b["verificationMaterial"].pop("certificate"),
        lambda b: b["dsseEnvelope"].update(signatures=[]),
        lambda b: b.pop("dsseEnvelope"),
        lambda b: b.update(mediaType="application/json"),
    ],
    ids=[
        "no inclusion proof",
        "no checkpoint",
        "no signed time",
        "no log entry",
        "no certificate",
        "no signature",
        "no envelope",
        "another kind",
    ],
)
def test_incomplete_bundles(edit: Edit) -> None:
    """What a bundle must have and has not is no bundle, and never a weaker one."""
    bundle = WORLD.bundle(PAYLOAD)
    edit(bundle)
    with pytest.raises((MalformedError, VerificationError)):
        proven(bundle)


@given(st.binary(max_size=200) | st.just(b"{}") | st.just(b"[]"))
def test_any_bytes_are_malformed(data: bytes) -> None:
    """Whatever a file holds, as a bundle or as a trusted root, only MalformedError comes of it."""
    good = json.dumps(WORLD.bundle(PAYLOAD)).encode()
    for bundle, root in ((data, ROOT), (good, data)):
        with pytest.raises(MalformedError) as error:
            verify_bundle(bundle, root, identity=IDENTITY, issuer=ISSUER)
        assert error.value.check is Check.REFERENCES_FORMAT


@given(st.data())
def test_any_edit_is_one_of_ours(data: st.DataObject) -> None:
    """A bundle with any one value exchanged verifies as before or raises one of our errors, never another."""
    bundle = WORLD.bundle(PAYLOAD)
    table: Any = bundle
    while True:
        name = data.draw(st.sampled_from(sorted(table) if isinstance(table, dict) else range(len(table))))
        if not isinstance(table[name], dict | list) or not table[name] or data.draw(st.booleans()):
            break
        table = table[name]
    table[name] = data.draw(
        st.none() | st.integers() | st.text(max_size=9) | st.just([]) | st.just({}) | st.just("AAAA")
    )
    with suppress(AttestationError):
        assert proven(bundle) == PAYLOAD


def test_too_large() -> None:
    """Files have a limit before anything reads them."""
    with pytest.raises(MalformedError, match="over"):
        verify_bundle(bytes(9 * 1024 * 1024), ROOT, identity=IDENTITY, issuer=ISSUER)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra nothing is decided, and the message says what to install."""
    monkeypatch.setitem(sys.modules, "sigstore.verify", None)
    with pytest.raises(UnavailableError, match=r"attested-inference\[sigstore\]") as error:
        proven(WORLD.bundle(PAYLOAD))
    assert error.value.check is Check.REFERENCES_KEYLESS
