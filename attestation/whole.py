"""One release is one thing: what a machine measures, serves and is configured with must all be of one release in force.

Measurements of one release with the model or the configuration of another were never reviewed together, and what an ended
release had does not come back by a newer one's measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from attestation.checks import Check
from attestation.errors import Violation
from attestation.release import Limited


@dataclass(frozen=True, slots=True)
class Candidate:
    """How near one release comes: what is not its own, and which of its limits are passed."""

    release: Limited
    different: tuple[Violation, ...]
    passed: tuple[Violation, ...]

    @property
    def accepted(self) -> bool:
        return not self.different and not self.passed

    @property
    def distance(self) -> tuple[bool, int, int]:
        """The least is nearest: what is only out of its limits, then those in force by what differs, then the others."""
        return bool(self.different and self.passed), len(self.different), len(self.passed)


def check_whole(candidates: Sequence[Candidate]) -> list[Violation]:
    """Why no release is what was found; nothing where one in force is, or where none is asked for."""
    if not candidates or any(one.accepted for one in candidates):
        return []
    nearest = min(candidates, key=lambda one: one.distance)
    if not nearest.different:
        return list(nearest.passed)
    wanted = "; ".join(f"{v.check} {v.expected}" for v in nearest.different)
    found = "; ".join(f"{v.check} {v.found}{_owners(v, candidates)}" for v in nearest.different)
    return [
        Violation(
            Check.POLICY_RELEASE,
            f"all of one release in force; the nearest, {nearest.release.id!r}, has {wanted}",
            found,
        )
    ]


def last_end(candidates: Sequence[Candidate]) -> datetime | None:
    """When the last of the releases ends that are what was found; None where one of them does not end, or none is asked for."""
    ends = [one.release.until for one in candidates if one.accepted]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def _owners(violation: Violation, candidates: Sequence[Candidate]) -> str:
    """Whose value it is."""
    ids = [repr(c.release.id) for c in candidates if violation.check not in {v.check for v in c.different}]
    return f" (of {', '.join(ids)})" if ids else ""
