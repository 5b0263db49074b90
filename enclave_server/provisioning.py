"""What the enclave's owner gave to it, in memory that all workers share, a replaced one too; in no file, log or answer.

The memory is made before the workers are forked, as that of `replays.py`; the engine's keeper lets go of it. It is filled
once, by whichever worker the owner's message comes to, and never emptied: another boot has to be given its secrets again.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import weakref
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path

from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.provisioning import MAX_SECRETS_BYTES, OwnerSecrets
from enclave_server.choices import SecretName
from enclave_server.lock import alone
from enclave_server.model.manifest import ModelError
from enclave_server.model.pack import open_index, parse_key
from enclave_server.settings import Settings
from enclave_server.tls_certificate import Issuer, check_issuer, parse_issuer

MIN_PEPPER_BYTES = 32
_POLL_SECONDS = 0.1
_DIGEST = slice(1, 33)  # after one byte that says whether they are there
_LENGTH = slice(33, 37)
_START = 37
_ROOM = _START + 2 * MAX_SECRETS_BYTES  # their JSON, in base64, with its names


class Secrets:
    """Made once, before workers are forked."""

    def __init__(self, settings: Settings) -> None:
        self._awaited, self._settings = bool(settings.secrets), settings
        self._values: Mapping[str, bytes] | None = None  # as this process has read them
        if self._awaited:
            self._file = os.memfd_create("secrets", os.MFD_CLOEXEC)
            self._close = weakref.finalize(self, os.close, self._file)
            os.ftruncate(self._file, _ROOM)
            self._memory = mmap.mmap(self._file, _ROOM)

    @property
    def missing(self) -> bool:
        """The gateway waits for its owner."""
        return self._awaited and not self._memory[0]

    @property
    def digest(self) -> bytes | None:
        """What the statement is to show of them."""
        return self._memory[_DIGEST] if self._awaited and self._memory[0] else None

    @property
    def database_url(self) -> str:
        """To be asked for once they are there, where the settings list it."""
        return read_database_url(self._read()[SecretName.DATABASE_URL])

    @property
    def key_pepper(self) -> bytes | None:
        """None where the settings do not list it."""
        return self._read().get(SecretName.KEY_PEPPER)

    @property
    def model_key(self) -> bytes:
        """To be asked for once they are there, where the settings list it."""
        return self._read()[SecretName.MODEL_KEY]

    @property
    def tls_issuer(self) -> Issuer | None:
        """None where the settings do not list it."""
        pem = self._read().get(SecretName.TLS_ISSUER)
        return parse_issuer(pem, self._settings.tls_names) if pem is not None else None

    async def arrival(self) -> None:
        """Wait until they are there."""
        while self.missing:  # noqa: ASYNC110 - another process sets it
            await asyncio.sleep(_POLL_SECONDS)

    def take(self, given: OwnerSecrets) -> None:
        """Keep what was verified and checked. The same again changes nothing; anything else is refused."""
        check_values(given.values, pack=self._settings.model_pack, names=self._settings.tls_names)
        content = json.dumps({n: b64encode(v).decode() for n, v in given.values.items()}).encode()
        with alone(self._file):
            if self._memory[0]:
                if not compare_digest(self._memory[_DIGEST], given.digest()):
                    raise VerificationError(
                        Check.SECRET_AGAIN,
                        "other secrets were given before",
                        advice="Restart the gateway, then give it these",
                    )
                return
            self._memory[_DIGEST] = given.digest()
            self._memory[_LENGTH] = len(content).to_bytes(4, "big")
            self._memory[_START : _START + len(content)] = content
            self._memory[0] = 1  # the last, for those who look without the lock

    def drop(self) -> None:
        """In a process that answers nobody: it keeps no secret."""
        if self._awaited:
            self._memory.close()
            self._close()
            self._awaited, self._values = False, None

    def _read(self) -> Mapping[str, bytes]:
        if self._values is None:
            if not self._awaited:
                return {}
            with alone(self._file):
                size = int.from_bytes(self._memory[_LENGTH], "big")
                found = json.loads(self._memory[_START : _START + size])
            self._values = {name: b64decode(value) for name, value in found.items()}
        return self._values


def check_values(
    values: Mapping[str, bytes], *, pack: Path | None = None, names: tuple[str, ...] = ()
) -> None:
    """Each can be used for what it is: the model's key for this pack, the issuer for these names. Nothing of them is quoted."""
    if (url := values.get(SecretName.DATABASE_URL)) is not None:
        read_database_url(url)
    if (pepper := values.get(SecretName.KEY_PEPPER)) is not None:
        check_pepper(pepper)
    if (key := values.get(SecretName.MODEL_KEY)) is not None and pack is not None:
        _check_model_key(key, pack)
    if (pem := values.get(SecretName.TLS_ISSUER)) is not None:
        _check_issuer(pem, names)


def _check_issuer(pem: bytes, names: tuple[str, ...]) -> None:
    try:
        check_issuer(parse_issuer(pem, names), datetime.now(UTC))
    except ValueError as exc:
        raise VerificationError(
            Check.SECRET_VALUE,
            f"tls_issuer cannot be used: {exc}",
            advice="docs/secrets.md says how to make one",
        ) from None


def _check_model_key(key: bytes, pack: Path) -> None:
    try:
        open_index(pack, parse_key(key))
    except ModelError as exc:
        raise VerificationError(
            Check.SECRET_VALUE,
            f"the pack of the model does not open: {exc.problem}",
            advice="Give the key that `model pack --encrypt` was given, and look at the pack",
        ) from None


def check_pepper(pepper: bytes) -> bytes:
    """The pepper, when nobody can guess it by its length."""
    if len(pepper) < MIN_PEPPER_BYTES:
        raise VerificationError(
            Check.SECRET_VALUE,
            f"key_pepper has {len(pepper)} bytes, fewer than {MIN_PEPPER_BYTES}",
            advice="Make one with `openssl rand -out pepper 32`",
        )
    return pepper


def read_database_url(value: bytes) -> str:
    """The URL in a file's content, where a line may end behind it."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - slow to load, and only for keys in a database
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        text = value.decode().strip()
        if not text.startswith(("sqlite:///", "postgresql://")):
            raise ValueError
        make_url(text)
    except (ValueError, ArgumentError):
        raise VerificationError(
            Check.SECRET_VALUE,
            "database_url is no URL that begins with sqlite:/// or postgresql://",
            advice="Give the URL of `access_database`, which may hold a password here",
        ) from None
    return text
