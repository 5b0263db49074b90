"""Clients that know names and authorities alone: they accept the enclave once its owner gave it an issuer, and attesting ones as ever."""

from __future__ import annotations

import base64
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from attestation.checks import Check
from attestation.errors import VerificationError
from enclave_server.identity import make_identity, tls_context
from enclave_server.provisioning import check_values
from enclave_server.tls_certificate import parse_issuer
from tests.caller import Caller
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.owner import CHAT, Provision, public_pem, waiting
from tests.processes import until
from tests.served import Served
from tests.servers import VERSION, gateway_settings

NAME = "enclave.example.com"
RECIPE = (Path(__file__).parents[2] / "docs/secrets.md").read_text()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipe of docs/secrets.md was executed: ca.pem, and `issuer`, the secret."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    folder = tmp_path_factory.mktemp("authority")
    (recipe,) = re.findall(r"```\n(openssl req -x509.*?)```", RECIPE, re.DOTALL)
    subprocess.run(["sh", "-ec", recipe], cwd=folder, check=True, capture_output=True, timeout=240)
    return folder


@pytest.fixture(scope="module")
def issuer(authority: Path) -> bytes:
    return (authority / "issuer").read_bytes()


def handshake(gateway: Served, authority: Path, name: str = NAME) -> x509.Certificate:
    """As any TLS client does that trusts the authority: the certificate that it accepted."""
    port = int(gateway.origin.rpartition(":")[2])
    context = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        found = secure.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Served]:
    values = {
        **fake_settings(tmp_path),
        "drain_seconds": 1,
        "workers": 2,
        "tls_names": [NAME],
        "owner_key": public_pem(),
        "secrets": ["tls_issuer"],
    }
    gateway = Served(tmp_path / "gateway", values)
    gateway.start()
    yield gateway
    if gateway.process.poll() is None:
        gateway.process.kill()
        gateway.process.wait(60)


def test_a_client_that_knows_names(running: Served, authority: Path, issuer: bytes, tmp_path: Path) -> None:
    """Before, it refuses; after, every worker shows a certificate for the attested key under the owner's authority, for its name alone."""
    until(lambda: waiting(running))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(running, authority)
    policy = running.policy()
    given = Provision(tmp_path / "owner", policy, {"tls_issuer": issuer})(running.origin)
    assert given.exit_code == 0, given.output
    running.until_ready(240)
    with Caller(running.origin, policy) as caller:
        assert caller.post("/v1/chat/completions", CHAT).status == 200
        pin = caller.verdict.statement.keys.tls_spki_sha256
    for _ in range(6):
        shown = handshake(running, authority)
        spki = shown.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert sha256(spki).digest() == pin
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(running, authority, "other.example.com")


def other_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("what", ["nothing", "no key", "another key", "no authority", "another name"])
def test_refused(authority: Path, issuer: bytes, what: str) -> None:
    """What would not convince a client is refused when it comes, and nothing of it is quoted."""
    certificate, key = issuer.split(b"-----BEGIN PRIVATE KEY", 1)
    values, names = {"tls_issuer": issuer}, (NAME,)
    check_values(values, names=names)
    match what:
        case "nothing":
            values = {"tls_issuer": b""}
        case "no key":
            values = {"tls_issuer": certificate}
        case "another key":
            values = {"tls_issuer": certificate + other_key()}
        case "no authority":
            values = {"tls_issuer": leaf_and_key(issuer)}
        case "another name":
            names = ("elsewhere.example.org",)
    with pytest.raises(VerificationError, match="tls_issuer") as refused:
        check_values(values, names=names)
    assert refused.value.check is Check.SECRET_VALUE
    assert key.split()[4].decode() not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2a8648ce3d030107", "2a8648ce3d030109"),
        ("2a8648ce3d0201", "2a8648ce3d0209"),
        ("a003020102", "a003020107"),
        ("0603551d0e", "0603551d0f"),
    ],
    ids=["unknown curve", "unknown algorithm", "unknown version", "an extension twice"],
)
def test_no_certificate(issuer: bytes, old: str, new: str) -> None:
    """What the library itself calls by other names is refused like anything else that is none."""
    parsed = parse_issuer(issuer, (NAME,)).chain[0].public_bytes(Encoding.DER)
    assert bytes.fromhex(old) in parsed
    body = base64.encodebytes(parsed.replace(bytes.fromhex(old), bytes.fromhex(new)))
    pem = b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"
    key = issuer[issuer.index(b"-----BEGIN PRIVATE KEY") :]
    with pytest.raises(VerificationError, match="tls_issuer") as refused:
        check_values({"tls_issuer": pem + key}, names=(NAME,))
    assert refused.value.check is Check.SECRET_VALUE


def leaf_and_key(issuer: bytes) -> bytes:
    """A certificate that may sign nothing, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    above = parse_issuer(issuer, (NAME,))
    chain = above.sign(key.public_key(), serial=1, start=now, end=now + timedelta(days=1))
    return chain + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_an_issuer_that_ended(tmp_path: Path, issuer: bytes) -> None:
    """When it has ended, the key shows itself by a certificate of its own again; attesting clients notice nothing."""
    settings = gateway_settings(tmp_path)
    now, later = parse_issuer(issuer, (NAME,)), datetime.now(UTC) + timedelta(days=3650)
    for moment, issued in ((None, True), (later, False)):
        identity = make_identity(settings, engine_version=VERSION, now=moment)
        chain = now.certify(identity.keys.tls.public_key(), identity.statement, identity.statement_digest)
        assert bool(chain) is issued
        assert tls_context(identity, now).statement == identity.statement_digest


@pytest.mark.parametrize(
    "changes",
    [
        {"tls_names": (NAME,)},
        {"secrets": ("tls_issuer",), "owner_key": public_pem()},
        {"secrets": ("tls_issuer",), "owner_key": public_pem(), "tls_names": ("Enclave.example.com",)},
        {"secrets": ("tls_issuer",), "owner_key": public_pem(), "tls_names": ("*.example.com",)},
        {"secrets": ("tls_issuer",), "owner_key": public_pem(), "tls_names": ("10.0.0.1:8443",)},
    ],
)
def test_settings_fit_together(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Names without an issuer, an issuer without names, and what is no name do not start."""
    with pytest.raises(ValueError, match="tls_names"):
        gateway_settings(tmp_path, **changes)
