"""Raw evidence of each kind, from its files to an outcome with its chain of trust. No network; the time is an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from attestation import nitro, snp, tdx
from attestation.checks import Check
from attestation.collateral import AmdCollateral, IntelCollateral
from attestation.errors import AttestationError, PolicyError, UnavailableError, Violation
from attestation.measure import EventLogClaims
from attestation.roots import Root, Roots
from attestation.snp.vek import parse_vek
from attestation.vtpm import VtpmClaims
from client_sdk import chains
from client_sdk.amd_file import parse_amd
from client_sdk.evidence_policy import RAW, EvidencePolicy, read_policy
from client_sdk.files import read_file, read_raw, read_root
from client_sdk.present import Line, Link, walk

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms evidence is judged."""

    now: datetime
    policy: EvidencePolicy
    policy_given: bool
    foreign: tuple[Root, ...]  # given in place of the vendors'

    @property
    def roots(self) -> Roots:
        return self.policy.roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One outcome. Claims are authentic where they are present, accepted or not."""

    error: AttestationError | None
    lines: Sequence[Line]
    claims: Any = None
    roots: Sequence[Root] = ()
    expires: datetime | None = None


def load_terms(policy: Path | None, roots: Sequence[Path], now: datetime) -> Terms:
    """Read policy and roots. A root given here stands in place of every pinned one."""
    accepted = read_policy(policy) if policy else RAW
    given = tuple(read_root(path) for path in roots)
    if given:
        everywhere = Roots(intel=given, amd=given, nvidia_device=given, nvidia_rim=given, aws=given)
        accepted = replace(accepted, roots=everywhere)
    return Terms(now=now, policy=accepted, policy_given=policy is not None, foreign=given)


def judge_tdx(terms: Terms, quote: Path, collateral: Path | None) -> Judged:
    def verify() -> tdx.TdxClaims:
        data = read_file(quote)
        if collateral is None:
            tdx.parse_quote(data, padding=True)  # what is no quote needs no collateral to be refused
            raise missing("Intel's TCB info, QE identity and CRLs", "--collateral")
        given = IntelCollateral.parse(read_raw(collateral), Check.TDX_COLLATERAL_FORMAT)
        return tdx.verify(data, given, terms.roots.intel, terms.now)

    def violations(c: tdx.TdxClaims) -> list[Violation]:
        return [*accept("tdx", terms.policy.tdx, lambda t: t.check(c, terms.now)), *beside(terms, c, None)]

    return judge_one(chains.TDX, verify, violations)


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdFiles:
    """Where AMD's certificates and revocation list are: three files, or the one that was fetched."""

    vek: Path | None = None
    chain: Path | None = None
    crl: Path | None = None
    fetched: Path | None = None

    def read(self, stapled: bytes = b"") -> AmdCollateral:
        """`stapled` is the endorsement certificate that the evidence carries, if it does."""
        if self.fetched is not None:
            return parse_amd(read_raw(self.fetched))
        if self.vek is None and not stapled:
            raise missing(
                "the chip's VCEK (or the cloud's VLEK) certificate and its issuers", "--vek, --chain"
            )
        vek = read_file(self.vek) if self.vek else stapled
        if self.chain is None:
            raise _issuers_missing(vek)
        return AmdCollateral(
            vek=vek, chain=read_raw(self.chain), crl=read_file(self.crl) if self.crl else b""
        )


def judge_snp(terms: Terms, report: Path, files: AmdFiles) -> Judged:
    def verify() -> snp.SnpClaims:
        data = read_file(report)
        snp.parse_report(data)  # what is no report needs no collateral to be refused
        return snp.verify(data, files.read(), terms.roots.amd, terms.now)

    def violations(c: snp.SnpClaims) -> list[Violation]:
        return [*accept("snp", terms.policy.snp, lambda t: t.check(c, terms.now)), *beside(terms, c, None)]

    judged = judge_one(chains.SNP, verify, violations)
    if isinstance(judged.claims, snp.SnpClaims) and judged.claims.revocation_checked:
        return judged
    # without proof that the list was read, the link may have been left out
    return replace(judged, lines=walk(chains.SNP, judged.error, skipped=(chains.REVOCATION,)))


def _issuers_missing(vek: bytes) -> UnavailableError:
    parsed = parse_vek(vek)
    base = f"https://kdsintf.amd.com/{parsed.kind.lower()}/v1/{parsed.product}"
    return UnavailableError(
        Check.COLLATERAL_MISSING,
        f"the certificates of AMD's {parsed.product} line that issued this {parsed.kind} are not part of this program",
        advice=f"Fetch {base}/cert_chain (issuer, then ARK) for --chain, and {base}/crl for --crl",
    )


def judge_nitro(terms: Terms, document: Path) -> Judged:
    def violations(c: nitro.NitroClaims) -> list[Violation]:
        own = accept("nitro", terms.policy.nitro, lambda t: t.check(c, terms.now))
        return [*own, *terms.policy.release.check_end(terms.now)]

    return judge_one(
        chains.NITRO, lambda: nitro.verify(read_file(document), terms.roots.aws, terms.now), violations
    )


def accept(name: str, table: T | None, check: Callable[[T], Sequence[Violation]]) -> Sequence[Violation]:
    """The table's violations; a policy without a table for this kind of evidence does not accept it."""
    if table is None:
        return [Violation(Check.POLICY_PLATFORM, f"a policy with a [{name}] table", "none")]
    return check(table)


def beside(
    terms: Terms,
    cpu: tdx.TdxClaims | snp.SnpClaims,
    boot: EventLogClaims | None,
    vtpm: VtpmClaims | None = None,
) -> list[Violation]:
    """What the policy's other tables say of this machine: releases, references that only a whole verification reads, its boot."""
    policy = terms.policy
    violations = policy.release.check(cpu, terms.now, vtpm)
    if policy.references is not None:
        where = f"the references in {policy.references.file!r}"
        violations.append(Violation(Check.REFERENCES_MISSING, where, "not read for evidence by itself"))
    return [*violations, *policy.check_boot(boot)]


def judge_one(
    links: Sequence[Link],
    verify: Callable[[], Any],
    accept: Callable[[Any], Sequence[Violation]],
) -> Judged:
    """One piece of evidence: verify it, then hold its claims against the policy."""
    try:
        claims = verify()
    except AttestationError as exc:
        return Judged(error=exc, lines=walk(links, exc))
    violations = accept(claims)
    error = PolicyError(violations) if violations else None
    return Judged(
        error=error,
        lines=walk(links, error),
        claims=claims,
        roots=(claims.root,),
        expires=claims.collateral_expires,
    )


def missing(what: str, option: str) -> UnavailableError:
    return UnavailableError(
        Check.COLLATERAL_MISSING,
        f"{what} are not given ({option})",
        advice="`attested collateral fetch` gets them from the vendor",
    )
