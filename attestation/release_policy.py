"""Which releases a policy is about: until when, where and with what each is accepted, and which are refused whatever else holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from attestation.binding import Statement
from attestation.checks import Check
from attestation.errors import Violation
from attestation.release import Limited, Revoked, runs
from attestation.snp.verify import SnpClaims
from attestation.tdx.verify import TdxClaims
from attestation.vtpm import VtpmClaims


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicy:
    """Which release a policy is about. A client remembers the newest epoch of each name, and refuses older ones."""

    name: str = ""  # nothing is remembered without one
    epoch: int = 0
    expires: datetime | None = None
    revoked: tuple[Revoked, ...] = ()  # refused, whatever else accepts them
    limited: tuple[Limited, ...] = ()  # accepted until they end, on the machines that they name
    accepted: tuple[Limited, ...] = ()  # each as a whole: what the policy does not name itself is all of one

    def check(
        self,
        cpu: TdxClaims | SnpClaims,
        now: datetime,
        vtpm: VtpmClaims | None = None,
        statement: Statement | None = None,
    ) -> list[Violation]:
        violations = [violation for revoked in self.revoked for violation in revoked.check(cpu, vtpm)]
        for what, releases in self.limits(cpu, vtpm, statement):
            passed = [list(one.check(cpu, now, what)) for one in releases]
            if all(passed):  # of releases that measure or serve the same, one within its limits is enough
                violations += [violation for found in passed for violation in found]
        return [*violations, *self.check_end(now)]

    def check_end(self, now: datetime) -> list[Violation]:
        """Whether the policy itself has ended, which whatever is judged by it is refused for."""
        if self.expires is None or now < self.expires:
            return []
        ended = f"one that ended at {self.expires:%Y-%m-%dT%H:%M:%SZ}"
        return [Violation(Check.POLICY_EXPIRED, "a policy that is in force", ended)]

    def ends(
        self,
        cpu: TdxClaims | SnpClaims,
        now: datetime,
        vtpm: VtpmClaims | None = None,
        statement: Statement | None = None,
    ) -> datetime | None:
        """Until when this machine and what it serves are accepted at most, as far as releases go: None without an end."""
        ends = [self.expires]
        for _, releases in self.limits(cpu, vtpm, statement):
            held = [one.until for one in releases if not list(one.check(cpu, now))]
            known = [until for until in held if until is not None]
            ends.append(max(known) if known and len(known) == len(held) else None)
        return min((end for end in ends if end is not None), default=None)

    def limits(
        self, cpu: TdxClaims | SnpClaims, vtpm: VtpmClaims | None, statement: Statement | None
    ) -> Iterator[tuple[str, list[Limited]]]:
        """The limited releases that this machine runs, whose model it serves, and whose configuration it has."""
        yield "release", [one for one in (*self.limited, *self.accepted) if runs(one, cpu, vtpm)]
        if statement is not None:
            model, config = statement.model.digest, statement.config
            yield "the model of release", [one for one in self.limited if model in one.models]
            yield "the configuration of release", [one for one in self.limited if config in one.configs]
