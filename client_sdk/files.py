"""Files from the command line: raw bytes, hex or base64, told apart by content; and points in time.

One rule decides, and what could be read in two ways is refused: text of hex digits alone is hex, text of one base64
alphabet alone is base64, and everything else is what it looks like (JSON, PEM, XML, a JWT, raw bytes).
"""

from __future__ import annotations

import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import typer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation._x509 import common_name, parse_certificate
from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError
from attestation.roots import Root

try:
    import fcntl
except ImportError:  # Windows: of two processes that write at once, one may lose what it wrote
    fcntl = None  # type: ignore[assignment]

MAX_FILE_BYTES = 32 * 1024 * 1024
# 64 random bytes as base64 are hex digits alone with a chance of 1 in 2**130; shorter texts may well be either
MIN_HEX_DIGITS = 88

_HEX = re.compile(rb"(?:0[xX])?([0-9a-fA-F]+)")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+={0,2}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def read_file(path: Path) -> bytes:
    """The evidence in a file, whichever of the three ways it is written in."""
    return decode(read_raw(path))


def read_raw(path: Path) -> bytes:
    """The bytes of a file. One that cannot be read leaves the question open: UnavailableError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise UnavailableError(Check.EVIDENCE_FETCH, f"{path}: {reason or 'cannot be read'}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise MalformedError(Check.EVIDENCE_FORMAT, f"{path}: larger than {MAX_FILE_BYTES} bytes")
    if not data:
        raise MalformedError(Check.EVIDENCE_FORMAT, f"{path}: the file is empty")
    return data


def decode(data: bytes) -> bytes:
    """`data` itself, or what it spells in hex or base64. Judges nothing but the spelling."""
    text = data.strip(b" \t\r\n").replace(b"\r\n", b"").replace(b"\n", b"")
    if match := _HEX.fullmatch(text):
        return _from_hex(match[1], prefixed=text[:2] in (b"0x", b"0X"))
    if len(text) > 2 and (_BASE64.fullmatch(text) or _BASE64URL.fullmatch(text)):
        return _from_base64(text)
    return data


def _from_hex(digits: bytes, *, prefixed: bool) -> bytes:
    if len(digits) % 2:
        raise _spelling(f"{len(digits)} hex digits are no whole number of bytes")
    if not prefixed and len(digits) < MIN_HEX_DIGITS and len(digits) % 4 == 0:
        raise _spelling(f"{len(digits)} hex digits may also be base64; write 0x before hex")
    return bytes.fromhex(digits.decode())


def _from_base64(text: bytes) -> bytes:
    """One text for one value: whole groups or none padded, and no bits left over."""
    body = text.rstrip(b"=")
    standard = body.replace(b"-", b"+").replace(b"_", b"/")
    padded = standard + b"=" * (-len(standard) % 4)
    if len(body) % 4 == 1 or (b"=" in text and len(text) != len(padded)):
        raise _spelling(f"base64 of {len(text)} characters is cut short or padded wrongly")
    value = b64decode(padded)
    if b64encode(value) != padded:
        raise _spelling("base64 with bits left over after the last byte")
    return value


def _spelling(detail: str) -> MalformedError:
    return MalformedError(
        Check.EVIDENCE_FORMAT, f"the file is neither raw bytes nor plain hex or base64: {detail}"
    )


def replace_file(path: Path, data: bytes) -> None:
    """`data` in the place of what was there: all of it or nothing, also when the power goes. Raises OSError.

    Nobody may read it who could not read what was there.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666
        with open(new, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        with suppress(OSError):  # where it could not even be made, there is none
            new.unlink(missing_ok=True)
        raise


def write_private(path: Path, data: bytes, *, over: bool = True) -> None:
    """Prompt and answer in clear: only this user may read a file that is made here. Raises OSError.

    One that is there already keeps its mode; without `over` it is left alone, and an error.
    """
    new = 0 if over else os.O_EXCL
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags | new, 0o600)) as file:
        file.write(data)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """What is done to `path` is done by one of all this user's processes at a time. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_root(path: Path) -> Root:
    """The certificate in a PEM or DER file, as a trust anchor: its key is what counts."""
    cert = parse_certificate(read_raw(path), Check.EVIDENCE_FORMAT, f"root certificate {path.name}")
    key = cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Root(common_name(cert.subject) or path.name, sha256(key).digest())


def parse_time(text: str) -> datetime:
    """RFC 3339 with an offset, or Unix seconds; anything else is a usage error."""
    try:
        if text.isascii() and text.isdigit():
            return datetime.fromtimestamp(int(text), UTC)
        if _RFC3339.fullmatch(text):
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise typer.BadParameter(f"{text!r} is no time: {exc}") from exc
    raise typer.BadParameter(f"{text!r} is neither RFC 3339 (2026-11-21T12:00:00Z) nor Unix seconds")


def parse_hex(text: str) -> bytes:
    """A nonce on the command line; anything but hex is a usage error."""
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is not hex") from exc
