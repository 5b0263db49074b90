"""The C library's heap, and how its memory goes back to the kernel."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD, _LARGE = -3, 1024 * 1024  # mallopt(3)


def give_large_memory_back() -> None:
    """What has a mebibyte or more goes back to the kernel when it is freed.

    glibc's own threshold grows with what was freed: after the first large body all others come from the heap, where any
    small object above keeps them from being given back.
    """
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def give_free_memory_back() -> None:
    """Whole pages of the heap that nothing lies on. Two milliseconds for 20 MB, and a twentieth of one when there are none."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
