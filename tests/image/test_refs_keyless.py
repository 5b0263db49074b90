"""References signed as an identity: the whole way through a Sigstore instance of our own, and back to a client that verifies it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any

import jwt
import pytest
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.errors import VerificationError
from attestation.references import PREDICATE_TYPE, References, dump_references
from attestation.release import Release
from attestation.reviewers import ReferencesPolicy, Reviewer
from image.cli import main
from tests.attestation.sigstore_world import IDENTITY, ISSUER, SigstoreWorld

COSIGN = os.environ.get("COSIGN") or shutil.which("cosign")
NOW = int(time())
REFERENCES = References(
    name="acme",
    epoch=1,
    issued=NOW,
    expires=NOW + 86400,
    releases=(Release(id="1.4.0", snp=frozenset({bytes(48)})),),
)


@dataclass
class Instance:
    """An authority and a log, served on loopback, for whoever shows a token."""

    world: SigstoreWorld = field(default_factory=lambda: SigstoreWorld(at=datetime.now(UTC)))
    down: bool = False
    address: str = ""

    def answer(self, path: str, token: str, asked: dict[str, Any]) -> Any:
        if self.down:
            return None
        if path.endswith("signingCert"):
            claims = jwt.decode(token, options={"verify_signature": False})
            request = x509.load_pem_x509_csr(b64decode(asked["certificateSigningRequest"]))
            key = request.public_key()
            assert isinstance(key, EllipticCurvePublicKey)
            leaf = self.world.certificate(key, identity=claims["sub"], issuer=claims["iss"])
            chain = [c.public_bytes(Encoding.PEM).decode() for c in (leaf, self.world.root)]
            return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}
        proposed = asked["spec"]["proposedContent"]
        envelope = json.loads(proposed["envelope"])
        (verifier,) = proposed["verifiers"]
        payload, signature = b64decode(envelope["payload"]), envelope["signatures"][0]["sig"]
        return {"0" * 64: _as_v1(self.world.entry(payload, signature, verifier))}

    def config(self) -> bytes:
        """The file that tells a client where the instance is, and what to trust."""
        service = {
            "majorApiVersion": 1,
            "validFor": {"start": "2026-01-01T00:00:00Z"},
            "operator": "test",
            "url": self.address,
        }
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service],
            "oidcUrls": [service],
            "rekorTlogUrls": [service],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": [],
            "tsaConfig": {"selector": "ANY"},
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
                "trustedRoot": json.loads(self.world.trusted_root()),
                "signingConfig": signing,
            }
        ).encode()


def _as_v1(entry: dict[str, Any]) -> dict[str, Any]:
    """A log entry as the log's own service words it."""

    def to_hex(text: str) -> str:
        return b64decode(text).hex()

    proof = entry["inclusionProof"]
    return {
        "body": entry["canonicalizedBody"],
        "integratedTime": int(entry["integratedTime"]),
        "logID": to_hex(entry["logId"]["keyId"]),
        "logIndex": int(entry["logIndex"]),
        "verification": {
            "inclusionProof": {
                "logIndex": int(proof["logIndex"]),
                "treeSize": int(proof["treeSize"]),
                "rootHash": to_hex(proof["rootHash"]),
                "hashes": [to_hex(one) for one in proof["hashes"]],
                "checkpoint": proof["checkpoint"]["envelope"],
            },
            "signedEntryTimestamp": entry["inclusionPromise"]["signedEntryTimestamp"],
        },
    }


@pytest.fixture
def instance() -> Iterator[Instance]:
    made = Instance()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
            said = made.answer(self.path, token, asked)
            body = json.dumps(said).encode()
            self.send_response(503 if said is None else 201)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join(60)


@dataclass
class Desk:
    folder: Path
    instance: Instance
    capsys: pytest.CaptureFixture[str]

    def sign(self, references: References = REFERENCES, *, token: str | None = None, status: int = 0) -> str:
        """What `refs sign-keyless` says."""
        (self.folder / "refs.json").write_bytes(dump_references(references))
        (self.folder / "instance.json").write_bytes(self.instance.config())
        now = int(time())
        claims = {"iss": ISSUER, "sub": IDENTITY, "aud": "sigstore", "iat": now - 10, "exp": now + 600}
        made = jwt.encode(claims, "a secret of the issuer's, for tests", algorithm="HS256")
        (self.folder / "token").write_text(made if token is None else token)
        names = {"-o": "bundle.json", "--token": "token", "--instance": "instance.json"}
        options = [part for flag, name in names.items() for part in (flag, str(self.folder / name))]
        with pytest.raises(SystemExit) as ended:
            main("refs", ["sign-keyless", str(self.folder / "refs.json"), *options])
        said = self.capsys.readouterr()
        assert (ended.value.code or 0) == status, said.err
        return said.out if status == 0 else said.err


@pytest.fixture
def desk(tmp_path: Path, instance: Instance, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, instance, capsys)


def _without_proof(bundle: Any) -> Any:
    bundle["verificationMaterial"]["tlogEntries"][0].pop("inclusionProof")
    return bundle


def test_signed_and_verified(desk: Desk) -> None:
    """What the instance vouched for is what a client accepts that pins identity, issuer and root; and no other one."""
    desk.sign()
    bundle, root = (desk.folder / "bundle.json").read_bytes(), {"root": desk.instance.world.trusted_root()}
    reviewer = Reviewer(name="release", identity=IDENTITY, issuer=ISSUER, trusted_root="root")
    policy = ReferencesPolicy(file="bundle.json", name="acme", reviewers=(reviewer,))
    assert policy.verify(bundle, root) == REFERENCES
    with pytest.raises(VerificationError, match="do not match"):
        replace(policy, reviewers=(replace(reviewer, identity="eve@acme.example"),)).verify(bundle, root)


@pytest.mark.skipif(not COSIGN, reason="cosign is not installed (COSIGN names another place)")
@pytest.mark.parametrize(
    ("identity", "edit", "status"),
    [(IDENTITY, lambda b: b, 0), ("eve@acme.example", lambda b: b, 1), (IDENTITY, _without_proof, 1)],
    ids=["this one", "another identity", "no inclusion proof"],
)
def test_cosign_agrees(desk: Desk, identity: str, edit: Callable[[Any], Any], status: int) -> None:
    """Offline, under the same pinned root: what we accept it accepts, and what we refuse it refuses."""
    desk.sign()
    bundle = edit(json.loads((desk.folder / "bundle.json").read_bytes()))
    (desk.folder / "bundle.json").write_text(json.dumps(bundle))
    (desk.folder / "root.json").write_bytes(desk.instance.world.trusted_root())
    (desk.folder / "entry").write_bytes(rfc8785.dumps(json.loads(dump_references(REFERENCES))["releases"][0]))
    command = [str(COSIGN), "verify-blob-attestation", "--new-bundle-format", "--bundle", "bundle.json"]
    command += ["--trusted-root", "root.json", "--type", PREDICATE_TYPE, "entry"]
    command += ["--certificate-identity", identity, "--certificate-oidc-issuer", ISSUER]
    home = {"HOME": str(desk.folder), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        command, check=False, cwd=desk.folder, env=home, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == status, done.stderr


def test_an_edition_that_does_not_follow(desk: Desk) -> None:
    """The bundle that is there counts as the edition before; a newer one takes its place."""
    desk.sign()
    assert "does not rise" in desk.sign(replace(REFERENCES, releases=()), status=1)
    desk.sign(replace(REFERENCES, epoch=2))
    bundle = json.loads((desk.folder / "bundle.json").read_bytes())
    assert b'"epoch":2' in b64decode(bundle["dsseEnvelope"]["payload"])


def test_no_signature(desk: Desk) -> None:
    """A service that is down, and a token that is none: one line each, and no file."""
    desk.instance.down = True
    assert "Sigstore did not sign" in desk.sign(status=1)
    desk.instance.down = False
    assert "Sigstore did not sign: IdentityError" in desk.sign(token=b64encode(b"none").decode(), status=1)
    assert not (desk.folder / "bundle.json").exists()


def test_no_identity(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a workflow there is nobody to sign as, unless a token says who."""
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    (desk.folder / "refs.json").write_bytes(dump_references(REFERENCES))
    (desk.folder / "instance.json").write_bytes(desk.instance.config())
    out = ["-o", str(desk.folder / "b"), "--instance", str(desk.folder / "instance.json")]
    with pytest.raises(SystemExit):
        main("refs", ["sign-keyless", str(desk.folder / "refs.json"), *out])
    assert "no identity to sign as" in desk.capsys.readouterr().err
