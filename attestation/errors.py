"""The one error tree.

    AttestationError            .check names what failed, .detail says expected and found
    ├── MalformedError          the bytes are not the format they claim to be
    ├── VerificationError       not authentic, not fresh, revoked, or not bound to what was asked
    ├── PolicyError             authentic, but not what the policy accepts; .violations lists every reason
    └── UnavailableError        could not decide (network, device, missing collateral); the only retryable one

No error of this tree ever means "passed", and none derives from an HTTP library's errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attestation.checks import Check


class AttestationError(Exception):
    """Something that had to hold was not shown to hold."""

    def __init__(self, check: Check, detail: str, *, advice: str = "") -> None:
        super().__init__(check, detail)
        self.check = check
        self.detail = detail
        self.advice = advice

    def __str__(self) -> str:
        text = f"[{self.check}] {self.detail}"
        return f"{text}. {self.advice}" if self.advice else text


class MalformedError(AttestationError):
    """The bytes are not the format they claim to be."""


class VerificationError(AttestationError):
    """The bytes are well formed, but not authentic, fresh, unrevoked or bound to this exchange."""


class UnavailableError(AttestationError):
    """No decision could be made; trying again later may help."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing a policy does not accept."""

    check: Check
    expected: str
    found: str

    def __str__(self) -> str:
        return f"[{self.check}] expected {self.expected}, found {self.found}"


class PolicyError(AttestationError):
    """Authentic claims that a policy does not accept. Every violation is reported, not only the first."""

    def __init__(self, violations: Sequence[Violation], *, advice: str = "") -> None:
        if not violations:
            raise ValueError("a PolicyError needs at least one violation")
        super().__init__(
            violations[0].check,
            "; ".join(f"expected {v.expected}, found {v.found}" for v in violations),
            advice=advice,
        )
        self.violations = tuple(violations)

    def __str__(self) -> str:
        text = "; ".join(map(str, self.violations))
        return f"{text}. {self.advice}" if self.advice else text
