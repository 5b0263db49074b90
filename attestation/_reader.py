"""A cursor over untrusted bytes: every read is bounded, every failure is a MalformedError."""

from __future__ import annotations

from attestation.checks import Check
from attestation.errors import MalformedError


class Reader:
    """Reads little-endian structures front to back; `end()` must be called, so that nothing is ignored."""

    __slots__ = ("_check", "_data", "_pos", "_what")

    def __init__(self, data: bytes, check: Check, what: str) -> None:
        self._data, self._check, self._what, self._pos = data, check, what, 0

    @property
    def offset(self) -> int:
        return self._pos

    @property
    def remaining(self) -> int:
        return len(self._data) - self._pos

    def error(self, detail: str) -> MalformedError:
        return MalformedError(self._check, f"{self._what}: {detail}")

    def take(self, size: int, name: str) -> bytes:
        start, end = self._pos, self._pos + size
        if size < 0 or end > len(self._data):
            raise self.error(
                f"{name} needs {size} bytes at offset {self._pos}, only {self.remaining} are left"
            )
        self._pos = end
        return self._data[start:end]

    def uint(self, size: int, name: str) -> int:
        return int.from_bytes(self.take(size, name), "little")

    def expect(self, value: bytes, name: str) -> None:
        found = self.take(len(value), name)
        if found != value:
            raise self.error(f"{name} must be {value.hex()}, found {found.hex()}")

    def zeros(self, size: int, name: str) -> None:
        if any(self.take(size, name)):
            raise self.error(f"{name} ({size} bytes before offset {self._pos}) must be zero")

    def nested(self, size: int, name: str) -> Reader:
        return Reader(self.take(size, name), self._check, f"{self._what} {name}")

    def end(self, *, padding: bool = False) -> None:
        """Nothing may follow; with `padding`, zero bytes may (device files pad quotes with them)."""
        rest = self._data[self._pos :]
        if rest and not (padding and rest == bytes(len(rest))):
            raise self.error(f"{len(rest)} unexpected bytes after offset {self._pos}")
        self._pos = len(self._data)
