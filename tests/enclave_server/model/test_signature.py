"""Publishers' signatures: what the key signed is what is served, and `model_signing` reads and writes the same."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from enclave_server.commands.model import cli
from enclave_server.model import signature as model_signature
from enclave_server.model.manifest import ModelError, ModelProblem, read_manifest
from enclave_server.model.signature import (
    check_publisher,
    parse_private_key,
    parse_public_key,
    sign_manifest,
    verify_signature,
)
from tests.enclave_server.fake_vllm import fake_python
from tests.served import Served, model_settings, served

KEY = ec.generate_private_key(ec.SECP256R1())
PROGRAM = os.environ.get("MODEL_SIGNING") or shutil.which("model_signing")


def private_pem(key: Any = KEY) -> bytes:
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


def public_pem(key: Any = KEY) -> str:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "ü.txt").write_text("a")
    (folder / "sub.txt").write_text("b")
    (folder / ".gitattributes").write_text("c")
    (tmp_path / "key.pem").write_bytes(private_pem())
    (tmp_path / "public.pem").write_text(public_pem())
    return folder


def run(*arguments: object) -> str:
    """What a command printed; its error, if it has one."""
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.output


def altered(change: Callable[[dict[str, Any]], None], model: Path) -> bytes:
    """The signature of `model` with another statement, signed anew."""

    def statement(*_: object) -> bytes:
        made: dict[str, Any] = json.loads(original(read_manifest(model), "name"))
        change(made)
        return json.dumps(made).encode()

    original = model_signature._statement
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_signature, "_statement", statement)
        return sign_manifest(read_manifest(model), KEY, name="name")


def test_signed_and_verified(model: Path, tmp_path: Path) -> None:
    """A signed model verifies, by key and digest; signing changes no digest, and gives the same bytes again."""
    before = run("digest", model).strip()
    assert run("sign", model, "--key", tmp_path / "key.pem", "--id", "me/model@1").strip() == before
    signature = (model / "model.sig").read_bytes()
    said = run("verify", model, "--key", tmp_path / "public.pem", "--digest", before)
    assert "me/model@1" in said
    assert before in said
    run("sign", model, "--key", tmp_path / "key.pem", "--id", "me/model@1")
    assert (model / "model.sig").read_bytes() == signature


@pytest.mark.parametrize(
    ("change", "words"),
    [("changed", "config.json"), ("missing", "config.json"), ("not signed", "new.json")],
)
def test_other_files_are_refused(model: Path, tmp_path: Path, change: str, words: str) -> None:
    """A changed, missing or additional file is refused and named, whoever made the rest."""
    run("sign", model, "--key", tmp_path / "key.pem")
    match change:
        case "changed":
            (model / "config.json").write_text("[]")
        case "missing":
            (model / "config.json").unlink()
        case "not signed":
            (model / "new.json").touch()
    with pytest.raises(ModelError, match=rf"\[model.signed_files\] .*{change}: \'{words}\'"):
        run("verify", model, "--key", tmp_path / "public.pem")


def test_wrong_or_missing_signature(model: Path) -> None:
    """No signature, another's, or an altered one: each is refused by the same name."""
    key, manifest = parse_public_key(public_pem()), read_manifest(model)
    with pytest.raises(ModelError, match=r"\[model.signature\] .*cannot be read"):
        check_publisher(model, manifest, key)
    other = ec.generate_private_key(ec.SECP384R1())
    (model / "model.sig").write_bytes(sign_manifest(manifest, other, name="m"))
    check_publisher(model, manifest, other.public_key())
    with pytest.raises(ModelError, match=r"\[model.signature\] .*not signed by"):
        check_publisher(model, manifest, key)
    bundle = json.loads(sign_manifest(manifest, KEY, name="m"))
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b'"m"', b'"n"')
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(ModelError, match=r"\[model.signature\]"):
        verify_signature(json.dumps(bundle).encode(), key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "whole files"),
        (lambda s: s["predicate"]["serialization"].update(hash_type="blake3"), "whole files"),
        (lambda s: s["predicate"]["serialization"].update(ignore_paths=["config.json"]), "leaves out"),
        (lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"), "whole files"),
        (lambda s: s["predicate"]["resources"].pop(), "contradicts"),
        (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "contradicts"),
        (lambda s: s["subject"].append(s["subject"][0]), "no model signature"),
        (lambda s: s.pop("predicate"), "no model signature"),
    ],
)
def test_other_statements_are_refused(
    model: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    """What a key signed in another form, or with files left out, is refused by name."""
    with pytest.raises(ModelError, match=rf"\[model.signature_format\] .*{words}"):
        verify_signature(altered(change, model), KEY.public_key())


def test_certificates_are_refused(model: Path) -> None:
    """A bundle that was made with a certificate is refused by name."""
    bundle = json.loads(sign_manifest(read_manifest(model), KEY, name="m"))
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": ""}, "tlogEntries": []}
    with pytest.raises(ModelError, match=r"\[model.signature_format\] .*certificate"):
        verify_signature(json.dumps(bundle).encode(), KEY.public_key())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(data: bytes) -> None:
    """Whatever stands in `model.sig` is refused by name."""
    with pytest.raises(ModelError):
        verify_signature(data, KEY.public_key())


@given(st.sampled_from(["_type", "subject", "predicate", "predicateType"]), JSON)
def test_any_signed_statement(name: str, value: Any) -> None:
    """Whatever a key has signed is a list of files, or refused by name."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "m", "digest": {"sha256": "0" * 64}}],
        "predicateType": model_signature.PREDICATE_TYPE,
        "predicate": {"serialization": {"method": "files", "hash_type": "sha256"}, "resources": []},
        name: value,
    }
    with pytest.raises(ModelError):
        model_signature._parse_statement(json.dumps(statement).encode())


def test_keys() -> None:
    """Only keys that the format has are taken, and private ones without a password."""
    for pem in (
        "",
        "no key",
        public_pem(Ed25519PrivateKey.generate()),
        public_pem(ec.generate_private_key(ec.SECP256K1())),
    ):
        with pytest.raises(ModelError, match=r"\[model.key\]"):
            parse_public_key(pem)
    for raw in (
        b"",
        private_pem(Ed25519PrivateKey.generate()),
        private_pem(ec.generate_private_key(ec.SECP256K1())),
    ):
        with pytest.raises(ModelError, match=r"\[model.key\]"):
            parse_private_key(raw)


def test_commands_refuse(model: Path, tmp_path: Path) -> None:
    """Verifying by nothing, and signing links, are refused with what to do."""
    with pytest.raises(ModelError) as caught:
        run("verify", model)
    assert caught.value.problem is ModelProblem.NOTHING_EXPECTED
    (model / "link.json").symlink_to(model / "config.json")
    with pytest.raises(ModelError, match="cp -rL"):
        run("sign", model, "--key", tmp_path / "key.pem")


@pytest.mark.parametrize("signed", [True, False])
def test_gateway_holds_the_signature(model: Path, tmp_path: Path, signed: bool) -> None:
    """With a publisher's key in its settings, a gateway starts only on files that this key signed."""
    run("sign", model, "--key", tmp_path / "key.pem")
    (tmp_path / "gateway").mkdir()
    values: dict[str, Any] = {
        **model_settings(model, "fake-model"),
        "engine_python": str(fake_python(tmp_path / "python", behaviour={"delay": 0.02, "chunks": 1})),
        "model_signing_key": public_pem(KEY if signed else ec.generate_private_key(ec.SECP256R1())),
    }
    if signed:
        with served(tmp_path / "gateway", **values) as gateway:
            assert gateway.terminate() == 0
        return
    gateway = Served(tmp_path / "gateway", values)
    gateway.start()
    assert gateway.process.wait(240) == 1
    assert "[model.signature]" in gateway.log
    assert "Traceback" not in gateway.log


@pytest.mark.skipif(
    PROGRAM is None, reason="model_signing is not installed; MODEL_SIGNING may name its command"
)
@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_model_signing_agrees(model: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    """`model_signing` verifies what is signed here, and what it signs is verified here; both see a change."""
    assert PROGRAM is not None
    key = ec.generate_private_key(curve)
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    (tmp_path / "public.pem").write_text(public_pem(key))
    signature = model / "model.sig"
    theirs: list[str | Path] = [
        PROGRAM,
        "verify",
        "key",
        model,
        "--public_key",
        tmp_path / "public.pem",
        "--signature",
        signature,
    ]
    run("sign", model, "--key", tmp_path / "key.pem")
    subprocess.run(theirs, check=True, capture_output=True)
    sign: list[str | Path] = [
        PROGRAM,
        "sign",
        "key",
        model,
        "--private_key",
        tmp_path / "key.pem",
        "--signature",
        signature,
    ]
    subprocess.run(sign, check=True, capture_output=True)
    run("verify", model, "--key", tmp_path / "public.pem")
    run("sign", model, "--key", tmp_path / "key.pem")
    (model / "config.json").write_text("[]")
    assert subprocess.run(theirs, check=False, capture_output=True).returncode != 0
