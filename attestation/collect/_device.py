"""A TEE's device file, for as long as one question takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attestation.collect._errors import failed


@contextmanager
def opened(device: Path, advice: str) -> Iterator[int]:
    """A descriptor of it. `advice` is for where it cannot be opened; whatever the kernel refuses then is named too."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise failed(f"{device}", exc, advice) from exc
    try:
        yield descriptor
    except OSError as exc:
        raise failed(f"{device}", exc) from exc
    finally:
        os.close(descriptor)
