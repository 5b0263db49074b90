"""What a client accepts. A new `Policy()` accepts nothing: every platform, measurement and model must be named.

A policy is a TOML file or these frozen dataclasses; unknown keys are errors. Crypto stops at the first failure,
a policy reports every violation at once. `docs/policy.md` explains each field.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar, overload

from attestation._table import load_table
from attestation.binding import Statement, Topology
from attestation.checks import Check
from attestation.errors import MalformedError, PolicyError, Violation
from attestation.measure import EventLogClaims, EventLogPolicy
from attestation.nvidia.policy import GpuPolicy
from attestation.nvidia.tokens import TokenClaims
from attestation.nvidia.verify import GpuClaims
from attestation.release import Limited
from attestation.release_policy import ReleasePolicy
from attestation.reviewers import ReferencesPolicy
from attestation.roots import VENDOR, Roots
from attestation.snp.policy import NO_HOST_DATA, SnpPolicy
from attestation.snp.verify import SnpClaims
from attestation.tdx.policy import TdxPolicy
from attestation.tdx.verify import TdxClaims
from attestation.vtpm import VtpmClaims, VtpmMeasurement, VtpmPolicy
from attestation.whole import Candidate, check_whole, last_end

MAX_POLICY_BYTES = 1024 * 1024

_OTHER = (
    "The evidence is genuine; what it shows is not what the policy accepts. Compare it with what the operator "
    "publishes: `attested lock` shows it, `attested diff` says what is new"
)
_OTHER_RELEASE = "Ask the operator for a release that is in force, or get newer references"
_ADVICE = {
    Check.POLICY_EXPIRED: "Lock the enclave again, or get a newer policy or newer references",
    Check.POLICY_REVOKED: _OTHER_RELEASE,
    Check.POLICY_RETIRED: _OTHER_RELEASE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementPolicy:
    """Which models and gateway configurations are accepted. Empty means none, unless said otherwise by name."""

    model_digests: frozenset[bytes] = field(default=frozenset(), metadata={"size": 32})
    any_model: bool = False
    config_digests: frozenset[bytes] = field(default=frozenset(), metadata={"size": 32})
    any_config: bool = False
    allow_external_engine: bool = False
    max_engine_nodes: int = 1
    require_log: bool = False
    require_serving_seal: bool = False
    secrets_digests: frozenset[bytes] = field(default=frozenset(), metadata={"size": 32})  # empty: not asked

    def check(self, statement: Statement, *, sealed: bool = False) -> list[Violation]:
        violations = []
        if not self.any_model and statement.model.digest not in self.model_digests:
            violations.append(
                Violation(Check.POLICY_MODEL, _one_of(self.model_digests), statement.model.digest.hex())
            )
        if not self.any_config and statement.config not in self.config_digests:
            violations.append(
                Violation(Check.POLICY_CONFIG, _one_of(self.config_digests), statement.config.hex())
            )
        topology = statement.engine.topology or Topology()
        if topology.external and not self.allow_external_engine:
            violations.append(
                Violation(
                    Check.POLICY_ENGINE, "an engine that the gateway started", "one that runs elsewhere"
                )
            )
        if topology.nodes > self.max_engine_nodes:
            violations.append(
                Violation(
                    Check.POLICY_ENGINE, f"at most {self.max_engine_nodes} machines", f"{topology.nodes}"
                )
            )
        if self.require_log and statement.keys.log_ed25519 is None:
            violations.append(
                Violation(Check.POLICY_LOG, "a log of receipts", "none: the statement names no log key")
            )
        if self.secrets_digests and statement.secrets not in self.secrets_digests:
            found = statement.secrets.hex() if statement.secrets else "none: its owner has given it nothing"
            violations.append(Violation(Check.POLICY_SECRETS, _one_of(self.secrets_digests), found))
        if self.require_serving_seal and not sealed:
            violations.append(
                Violation(Check.SERVING_SEAL, "a statement sealed by the key in RTMR3", "no seal")
            )
        return violations


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything a client demands. A platform without a table of its own is refused."""

    release: ReleasePolicy = field(default_factory=ReleasePolicy)
    references: ReferencesPolicy | None = None  # signed ones, which whoever reads the file merges into it
    roots: Roots = VENDOR
    statement: StatementPolicy = field(default_factory=StatementPolicy)
    tdx: TdxPolicy | None = None
    snp: SnpPolicy | None = None
    azure: VtpmPolicy | None = None
    gpu: GpuPolicy = field(default_factory=GpuPolicy)
    event_log: EventLogPolicy | None = (
        None  # None: the registers are judged, and what led to them is not asked
    )

    def check(
        self,
        cpu: TdxClaims | SnpClaims,
        gpus: Sequence[GpuClaims],
        token: TokenClaims | None,
        boot: EventLogClaims | None,
        statement: Statement,
        now: datetime,
        *,
        sealed: bool = False,
        vtpm: VtpmClaims | None = None,
    ) -> datetime | None:
        """Raise one PolicyError with every violation, or say until when this is accepted at most.

        That is as far as releases go: None without an end.
        """
        named = self.taking(*self.release.accepted)
        candidates = self.candidates(cpu, statement, now, vtpm)
        violations = [
            *self.release.check(cpu, now, vtpm, statement),
            *self._check_references(),
            *named.check_cpu(vtpm or cpu, now),
            *self.gpu.check(gpus, now, token),
            *self.check_boot(boot),
            *named.statement.check(statement, sealed=sealed),
            *check_whole(candidates),
        ]
        if violations:
            raise PolicyError(
                list(dict.fromkeys(violations)), advice=_ADVICE.get(violations[0].check, _OTHER)
            )
        ends = (self.release.ends(cpu, now, vtpm, statement), last_end(candidates))
        return min((end for end in ends if end is not None), default=None)

    def candidates(
        self, cpu: TdxClaims | SnpClaims, statement: Statement, now: datetime, vtpm: VtpmClaims | None = None
    ) -> tuple[Candidate, ...]:
        """How near each accepted release comes, in all that the policy does not name itself; none where it names it all."""
        releases = self.release.accepted

        def refused(*taken: Limited) -> list[Violation]:
            policy = self.taking(*taken)
            return [*policy.check_cpu(vtpm or cpu, now), *policy.statement.check(statement)]

        if not releases:
            return ()
        anyway = {violation.check for violation in refused(*releases)}

        def different(*taken: Limited) -> tuple[Violation, ...]:
            return tuple(violation for violation in refused(*taken) if violation.check not in anyway)

        if not different():
            return ()
        return tuple(Candidate(one, different(one), tuple(one.check(cpu, now))) for one in releases)

    def taking(self, *releases: Limited) -> Policy:
        """This policy, which also accepts what any of these, which are of its own, measures and serves; limits are not looked at."""
        if not self.release.accepted:
            return self
        models = frozenset[bytes]().union(*(r.models for r in releases))
        configs = frozenset[bytes]().union(*(r.configs for r in releases))
        files = frozenset[bytes]().union(*(r.config_files for r in releases))
        return replace(
            self,
            statement=replace(
                self.statement,
                model_digests=self.statement.model_digests | models,
                config_digests=self.statement.config_digests | configs,
            ),
            tdx=self.tdx
            and replace(
                self.tdx,
                measurements=(*self.tdx.measurements, *(m for r in releases for m in r.tdx)),
                mr_config_id=self.tdx.mr_config_id | {digest.ljust(48, b"\0") for digest in files},
            ),
            snp=self.snp
            and replace(
                self.snp,
                measurements=self.snp.measurements.union(*(r.snp for r in releases)),
                host_data=files | (self.snp.host_data or {NO_HOST_DATA}) if files else self.snp.host_data,
            ),
            azure=self.azure
            and replace(self.azure, measurements=(*self.azure.measurements, *self._pcrs(releases))),
        )

    def _pcrs(self, releases: Sequence[Limited]) -> tuple[VtpmMeasurement, ...]:
        """The PCRs of these releases; one set that nothing has where they name none and others do: named are then PCRs."""
        named = tuple(m for r in releases for m in r.vtpm)
        others = any(r.vtpm for r in self.release.accepted)
        return named or ((VtpmMeasurement(),) if others else ())

    def _check_references(self) -> list[Violation]:
        if self.references is None:
            return []
        return [
            Violation(Check.REFERENCES_MISSING, f"the references in {self.references.file!r}", "not read")
        ]

    def check_boot(self, boot: EventLogClaims | None) -> list[Violation]:
        """Every reason not to accept how it booted."""
        if self.event_log is None:
            return []
        if boot is None:
            return [Violation(Check.EVENTLOG_MISSING, "an event log of the boot", "none")]
        return self.event_log.check(boot)

    def check_cpu(self, cpu: TdxClaims | SnpClaims | VtpmClaims, now: datetime) -> list[Violation]:
        """Every reason not to accept this machine, whichever platform it is."""
        match cpu:
            case VtpmClaims() if self.azure is not None:
                return self.azure.check(cpu, now)
            case TdxClaims() if self.tdx is not None:
                return self.tdx.check(cpu, now)
            case SnpClaims() if self.snp is not None:
                return self.snp.check(cpu, now)
        tables = {"tdx": self.tdx, "snp": self.snp, "azure": self.azure}
        accepted = [name for name, table in tables.items() if table is not None]
        found = {TdxClaims: "tdx", SnpClaims: "snp", VtpmClaims: "azure"}[type(cpu)]
        return [
            Violation(
                Check.POLICY_PLATFORM, " or ".join(accepted) or "no platform: the policy names none", found
            )
        ]


P = TypeVar("P", bound=Policy)


@overload
def parse_policy(text: str) -> Policy: ...
@overload
def parse_policy(text: str, kind: type[P]) -> P: ...
def parse_policy(text: str, kind: type[Policy] = Policy) -> Policy:
    """A policy of this kind from its TOML text. Unknown keys, wrong types and wrong lengths are errors."""
    if len(text) > MAX_POLICY_BYTES:
        raise MalformedError(Check.POLICY_FORMAT, f"{len(text)} characters, the limit is {MAX_POLICY_BYTES}")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # also of a number with thousands of digits
        raise MalformedError(Check.POLICY_FORMAT, f"not TOML: {exc}") from exc
    return load_table(kind, table, "policy")


def _one_of(digests: frozenset[bytes]) -> str:
    return " or ".join(sorted(d.hex() for d in digests)) or "none: the policy lists no digest"
