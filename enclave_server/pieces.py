"""Bytes that arrive in pieces, put together as they come.

Pieces that are kept until the last is there lie all over the heap, between small things that stay: of eight bodies of
10 MB at once, most of those 80 MB never went back to the kernel. One growing block of a mebibyte and more does, see
`heap.give_large_memory_back`.
"""

from __future__ import annotations


def joined(whole: bytes | bytearray, piece: bytes) -> bytes | bytearray:
    """`whole` and `piece` behind it. Begin with b"", and end with `bytes`; what came in one piece is never copied."""
    if not whole:
        return piece
    grown = bytearray(whole) if isinstance(whole, bytes) else whole
    grown += piece
    return grown
