"""A gateway's owner: the keys, and the command that gives a gateway what it waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from client_sdk.cli import app
from tests.caller import untrusting
from tests.served import Served

OWNER = Ed25519PrivateKey.from_private_bytes(b"owner".ljust(32))
PEPPER = b"a pepper that must be seen nowhere at all"
CHAT = {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}]}


def public_pem(key: Ed25519PrivateKey = OWNER) -> str:
    encoding = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*encoding).decode()


def private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def secrets_in(folder: Path) -> dict[str, bytes]:
    """What the owner gives."""
    return {"database_url": f"sqlite:///{folder}/owner.db\n".encode(), "key_pepper": PEPPER}


class Provision:
    """`attested provision` with its files."""

    def __init__(self, folder: Path, policy: str, values: dict[str, bytes]) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "policy.toml").write_text(policy)
        (folder / "owner.pem").write_bytes(private_pem(OWNER))
        for name, value in values.items():
            (folder / name).write_bytes(value)
        self._names = list(values)

    def __call__(self, origin: str, *more: str, **files: str) -> Result:
        at = {"policy": "policy.toml", "key": "owner.pem"} | files
        arguments = [
            word for option, name in at.items() for word in (f"--{option}", str(self._folder / name))
        ]
        for name in self._names:
            arguments += ["--secret", f"{name}={self._folder / name}"]
        return CliRunner().invoke(app, ["provision", origin, *arguments, *more])


def ready(origin: str) -> Any:
    return httpx.get(f"{origin}/readyz", verify=untrusting(), trust_env=False).json()["reason"]


def waiting(gateway: Served) -> bool:
    try:
        return not gateway.ready() and ready(gateway.origin) == "secrets_missing"
    except httpx.TransportError:
        return False
