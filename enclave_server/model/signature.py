"""A publisher's signature over a model's files: OpenSSF model signing, `model.sig`, with a key.

A Sigstore bundle around a DSSE envelope around an in-toto statement that lists every file with its SHA-256
(docs/models.md has the layout); `model_signing verify key` reads what is written here, and the other way round.
Promises: `verify_signature` gives out only what the key has signed; `check_signed` accepts only the very files listed.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from attestation.dsse import PAYLOAD_TYPE, STATEMENT_TYPE, pae
from enclave_server.model.manifest import SIGNATURE, File, Manifest, ModelError, ModelProblem

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MAX_SIGNATURE_BYTES = 16 * 1024 * 1024
UNSIGNED = (".git", ".gitattributes", ".github", ".gitignore", SIGNATURE)  # at the top; no engine reads them


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What a publisher signed."""

    name: str  # what the publisher calls the model; nothing depends on it
    digests: dict[str, str]


def parse_public_key(pem: str) -> EllipticCurvePublicKey:
    """A publisher's key, as `model_signing` has them: P-256, P-384 or P-521."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey):
        raise _bad_key("no public key in PEM on P-256, P-384 or P-521")
    _hash_for(key.curve)
    return key


def parse_private_key(pem: bytes) -> EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise _bad_key("no private key in PEM without a password, on P-256, P-384 or P-521")
    _hash_for(key.curve)
    return key


def sign_manifest(manifest: Manifest, key: EllipticCurvePrivateKey, *, name: str) -> bytes:
    """The content of `model.sig`: the same for the same files, key and name."""
    payload = _statement(manifest, name)
    algorithm = ECDSA(_hash_for(key.curve), deterministic_signing=True)
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {"sig": base64.b64encode(key.sign(pae(payload), algorithm)).decode(), "keyid": ""}
            ],
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def verify_signature(bundle: bytes, key: EllipticCurvePublicKey) -> Signed:
    """What stands in a `model.sig`, if `key` has signed it."""
    payload, signature = _parse_bundle(bundle)
    try:
        key.verify(signature, pae(payload), ECDSA(_hash_for(key.curve)))
    except InvalidSignature:
        raise ModelError(
            ModelProblem.SIGNATURE,
            f"{SIGNATURE} was not signed by the expected key (SHA-256 of its PEM: {_hint(key)})",
            advice="The signature was altered or is another publisher's: get the model from its publisher again",
        ) from None
    return _parse_statement(payload)


def check_signed(manifest: Manifest, signed: Signed) -> None:
    """Refuse `manifest` unless its files are those that were signed, neither more nor fewer."""
    found = {file.path: file.sha256 for file in manifest.files}
    wrong = sorted(
        path for path in found.keys() & signed.digests.keys() if found[path] != signed.digests[path]
    )
    more = sorted(file.path for file in _signable(manifest) if file.path not in signed.digests)
    fewer = sorted(signed.digests.keys() - found.keys())
    differences = [
        f"{what}: {', '.join(map(repr, paths[:5]))}{', …' if len(paths) > 5 else ''}"
        for what, paths in (("changed", wrong), ("not signed", more), ("missing", fewer))
        if paths
    ]
    if differences:
        raise ModelError(
            ModelProblem.SIGNED_FILES,
            f"the files are not those that {signed.name!r} was signed with; {'; '.join(differences)}",
            advice="Restore the files of the signed model, and remove every other one",
        )


def check_publisher(directory: Path, manifest: Manifest, key: EllipticCurvePublicKey) -> Signed:
    """Hold the files of `directory` against its `model.sig`, which `key` must have signed."""
    path = directory / SIGNATURE
    try:
        with path.open("rb") as file:
            bundle = file.read(MAX_SIGNATURE_BYTES + 1)
    except OSError as exc:
        raise ModelError(
            ModelProblem.SIGNATURE,
            f"{path} cannot be read ({exc.strerror})",
            advice="Put the publisher's signature there, or take model_signing_key out of the settings",
        ) from exc
    signed = verify_signature(bundle, key)
    check_signed(manifest, signed)
    return signed


def _statement(manifest: Manifest, name: str) -> bytes:
    files = sorted(_signable(manifest), key=lambda file: PurePosixPath(file.path))
    resources = [{"name": file.path, "algorithm": "sha256", "digest": file.sha256} for file in files]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root([file.sha256 for file in files])}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(UNSIGNED),
            },
            "resources": resources,
        },
    }
    return json.dumps(statement, ensure_ascii=False).encode()


def _parse_bundle(data: bytes) -> tuple[bytes, bytes]:
    if len(data) > MAX_SIGNATURE_BYTES:
        raise _malformed(f"it has more than {MAX_SIGNATURE_BYTES} bytes")
    try:
        bundle = _json(data)
        envelope, material = bundle["dsseEnvelope"], bundle["verificationMaterial"]
        (signature,) = envelope["signatures"]
        kinds = bundle["mediaType"], envelope["payloadType"]
        payload, raw = (
            base64.b64decode(text, validate=True) for text in (envelope["payload"], signature["sig"])
        )
        with_key = "publicKey" in material
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _malformed("it is no Sigstore bundle around one signed statement") from None
    if kinds != (MEDIA_TYPE, PAYLOAD_TYPE):
        raise _malformed(
            f"expected {MEDIA_TYPE} around {PAYLOAD_TYPE}, found {kinds[0]!r} around {kinds[1]!r}"
        )
    if not with_key:
        raise _malformed(
            "it was made with a certificate or an identity; signatures with a key are understood"
        )
    return payload, raw


def _parse_statement(payload: bytes) -> Signed:
    try:
        statement = _json(payload)
        (subject,) = statement["subject"]
        predicate = statement["predicate"]
        how, resources = predicate["serialization"], predicate["resources"]
        kinds = statement["_type"], statement["predicateType"]
        method, ignored = (how["method"], how["hash_type"]), set(how.get("ignore_paths", ()))
        digests = {resource["name"]: resource["digest"] for resource in resources}
        digest = _root([resource["digest"] for resource in resources])
        whole = all(resource["algorithm"] == "sha256" for resource in resources) and len(digests) == len(
            resources
        )
        name, root = subject["name"], subject["digest"]["sha256"]
        plain = all(isinstance(text, str) for text in (name, root, *digests, *ignored))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise _malformed("its statement is no model signature") from None
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE) or method != ("files", "sha256"):
        raise _malformed(
            f"expected SHA-256 of whole files in {PREDICATE_TYPE}, found {kinds[1]!r} with {method!r}"
        )
    if not (whole and plain) or root != digest:
        raise _malformed("its list of files contradicts itself")
    if not ignored <= set(UNSIGNED):
        raise _malformed(f"it leaves out files of the model: {sorted(ignored - set(UNSIGNED))[:5]}")
    return Signed(name=name, digests=digests)


def _signable(manifest: Manifest) -> list[File]:
    return [file for file in manifest.files if file.path.partition("/")[0] not in UNSIGNED]


def _root(digests: list[str]) -> str:
    return sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _hint(key: EllipticCurvePublicKey) -> str:
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha256(pem).hexdigest()


def _hash_for(curve: EllipticCurve) -> HashAlgorithm:
    match curve:
        case SECP256R1():
            return SHA256()
        case SECP384R1():
            return SHA384()
        case SECP521R1():
            return SHA512()
    raise _bad_key(f"a key on {curve.name}")


def _json(data: bytes) -> Any:
    return json.loads(data, object_pairs_hook=_no_duplicates)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)


def _malformed(detail: str) -> ModelError:
    return ModelError(
        ModelProblem.SIGNATURE_FORMAT,
        f"{SIGNATURE}: {detail}",
        advice="Have the model signed by `model_signing sign key`, or by `enclave-server model sign`",
    )


def _bad_key(found: str) -> ModelError:
    return ModelError(
        ModelProblem.KEY,
        f"expected a key on P-256, P-384 or P-521, found {found}",
        advice="Make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; "
        "openssl ec -in key.pem -pubout",
    )
