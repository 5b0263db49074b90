"""From a log to the registers it must have led to: extend, event by event, as the hardware did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import new

from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.measure.eventlog import DIGEST_BYTES, EV_NO_ACTION, Algorithm, EventLog, LogKind

_HASHES = {
    Algorithm.SHA1: "sha1",
    Algorithm.SHA256: "sha256",
    Algorithm.SHA384: "sha384",
    Algorithm.SHA512: "sha512",
}
_RESETTABLE = range(17, 23)  # these PCRs start with ones (TCG PC Client Platform TPM Profile, table 1)


def digest(algorithm: Algorithm, data: bytes) -> bytes:
    return new(_HASHES[algorithm], data, usedforsecurity=False).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Registers:
    """What an already verified quote says the registers were, by the log's register numbers."""

    kind: LogKind
    algorithm: Algorithm
    values: Mapping[int, bytes]

    @classmethod
    def rtmrs(cls, values: Sequence[bytes]) -> Registers:
        """RTMR0 to RTMR3 of a TDX quote."""
        return cls(kind=LogKind.CC, algorithm=Algorithm.SHA384, values=dict(enumerate(values, start=1)))

    @classmethod
    def pcrs(cls, values: Mapping[int, bytes], algorithm: Algorithm = Algorithm.SHA256) -> Registers:
        """The PCRs that a TPM quote covers."""
        return cls(kind=LogKind.TPM, algorithm=algorithm, values=dict(values))


def replay(log: EventLog, algorithm: Algorithm) -> dict[int, bytes]:
    """Every register that the log extends, as its events leave it."""
    if algorithm not in log.algorithms or algorithm not in _HASHES:
        has = ", ".join(a.name for a in log.algorithms)
        raise VerificationError(
            Check.EVENTLOG_ALGORITHM,
            f"the registers hold {algorithm.name} digests, the log has no such, only {has}",
        )
    values: dict[int, bytes] = {}
    for event in log.events:
        if event.type == EV_NO_ACTION:
            continue
        before = values.get(event.register) or initial(log, event.register, algorithm)
        values[event.register] = digest(algorithm, before + event.digests[algorithm])
    return values


def initial(log: EventLog, register: int, algorithm: Algorithm) -> bytes:
    """What a register holds before its first event."""
    size = DIGEST_BYTES[algorithm]
    if log.kind is LogKind.TPM and register in _RESETTABLE:
        return b"\xff" * size
    if log.kind is LogKind.TPM and register == 0:
        return log.startup_locality.to_bytes(size)
    return bytes(size)
