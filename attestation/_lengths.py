"""Lengths inside a seal: written before each part, and rounded up with zeros, so that outside they tell little."""

from __future__ import annotations

from attestation._reader import Reader

LENGTH = 4  # bytes of the number before a part
_BUCKETS_END = 64 * 1024


def bucket(size: int, smallest: int) -> int:
    """The padded length: a power of two, then a multiple of 64 KiB."""
    if size > _BUCKETS_END:
        return -(-size // _BUCKETS_END) * _BUCKETS_END
    return max(smallest, 1 << (size - 1).bit_length())


def padded(content: bytes, smallest: int) -> bytes:
    return content.ljust(bucket(len(content), smallest), b"\x00")


def prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH, "big") + data


def take_uint(reader: Reader, size: int, name: str) -> int:
    """A big-endian number."""
    return int.from_bytes(reader.take(size, name), "big")


def take_prefixed(reader: Reader, name: str) -> bytes:
    return reader.take(take_uint(reader, LENGTH, "length"), name)
