"""Events in the order of a boot, and the registers that they lead to."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import new

from attestation.release import ExpectedEvent

_BYTES = {"sha256": 32, "sha384": 48}


def replay(events: Iterable[ExpectedEvent], algorithm: str) -> dict[str, bytes | None]:
    """The value of each register that the events extend; None where one of its events has no digest."""
    found: dict[str, bytes | None] = {}
    for event in events:
        digest: bytes | None = getattr(event, algorithm)
        before = found.get(event.register, bytes(_BYTES[algorithm]))
        known = before is not None and digest is not None
        found[event.register] = new(algorithm, (before or b"") + (digest or b"")).digest() if known else None
    return found
