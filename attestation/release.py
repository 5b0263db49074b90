"""What a release of an image is: what it measures where, on which machines it may run, and how those numbers came about.

A client decides by the measurements, models, configurations and machines. `build` and `expected` decide nothing: they
tell a person what the numbers are made of, and `explain` which event of a boot differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from attestation.checks import Check
from attestation.errors import Violation
from attestation.snp.verify import SnpClaims
from attestation.tdx.policy import TdxMeasurement
from attestation.tdx.verify import TdxClaims
from attestation.vtpm import VtpmClaims, VtpmMeasurement

_64, _48, _32, _16 = ({"size": n} for n in (64, 48, 32, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The only machines that a release may run on: AMD's by their chip, Intel's by their PPID."""

    chip_ids: frozenset[bytes] = frozenset()  # 64 bytes, or 8 on Turin
    ppids: frozenset[bytes] = field(default=frozenset(), metadata=_16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that the measurements were computed from, or that was built from it."""

    name: str
    sha256: bytes = field(metadata=_32)
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Where a release comes from, for whoever builds it again."""

    id: bytes = field(metadata=_32)  # over the digests of all its files
    source: str = ""  # revision
    source_date_epoch: int = 0
    target: str = ""
    versions: tuple[str, ...] = ()  # "kernel 6.12.90", "vllm 0.33.0"
    files: tuple[Artifact, ...] = ()
    firmware: tuple[Artifact, ...] = ()  # given to the calculation, and no part of the image


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedEvent:
    """One event of a boot, as it was computed. Without a digest it comes, but cannot be computed: `what` says why."""

    register: str  # "RTMR1", "PCR4"; "MRTD" and "MEASUREMENT" hold one value and no events
    what: str
    source: str  # the file or setting that makes it
    sha256: bytes | None = field(default=None, metadata=_32)
    sha384: bytes | None = field(default=None, metadata=_48)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A register for which nothing is predicted, and why not."""

    register: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a boot of one shape under one profile (a VMM and its firmware) measures, in order."""

    platform: str  # "tdx", "snp", "vtpm"
    profile: str
    shape: str
    boot: str  # "direct" from kernel, initrd and command line; "uki" from a disk
    events: tuple[ExpectedEvent, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release that is accepted: what it measures on each kind of machine, and what it may serve."""

    id: str
    tdx: tuple[TdxMeasurement, ...] = ()
    snp: frozenset[bytes] = field(default=frozenset(), metadata=_48)
    vtpm: tuple[VtpmMeasurement, ...] = ()
    models: frozenset[bytes] = field(default=frozenset(), metadata=_32)
    configs: frozenset[bytes] = field(default=frozenset(), metadata=_32)
    config_files: frozenset[bytes] = field(
        default=frozenset(), metadata=_32
    )  # SHA-256; a host may say it once more
    machines: Machines | None = None  # None: any machine
    until: int | None = None  # Unix seconds: accepted before, refused from then on
    build: Build | None = None
    expected: tuple[Expected, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """One release that is refused, whatever else accepts it, and why."""

    id: str
    reason: str
    tdx: tuple[TdxMeasurement, ...] = ()
    snp: frozenset[bytes] = field(default=frozenset(), metadata=_48)
    vtpm: tuple[VtpmMeasurement, ...] = ()

    def check(self, cpu: TdxClaims | SnpClaims, vtpm: VtpmClaims | None = None) -> Iterator[Violation]:
        if runs(self, cpu, vtpm):
            found = f"release {self.id!r}, revoked: {self.reason}"
            yield Violation(Check.POLICY_REVOKED, "a release that is not revoked", found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """One release and its limits: until when it is accepted, and on which machines. None of either is no limit."""

    id: str
    until: datetime | None = None
    machines: Machines | None = None
    tdx: tuple[TdxMeasurement, ...] = ()
    snp: frozenset[bytes] = field(default=frozenset(), metadata=_48)
    vtpm: tuple[VtpmMeasurement, ...] = ()
    models: frozenset[bytes] = field(default=frozenset(), metadata=_32)
    configs: frozenset[bytes] = field(default=frozenset(), metadata=_32)
    config_files: frozenset[bytes] = field(default=frozenset(), metadata=_32)

    def check(self, cpu: TdxClaims | SnpClaims, now: datetime, what: str = "release") -> Iterator[Violation]:
        """Every limit that this machine passes at `now`, once it is known to run this release, or `what` of it."""
        if self.until is not None and now >= self.until:
            ended = f"{what} {self.id!r}, which was retired at {self.until:%Y-%m-%dT%H:%M:%SZ}"
            yield Violation(Check.POLICY_RETIRED, "a release that is in force", ended)
        if self.machines is None:
            return
        if isinstance(cpu, TdxClaims):
            name, found, accepted = "PPID", cpu.platform.ppid, self.machines.ppids
        else:
            name, found, accepted = "CHIP_ID", cpu.chip_id or b"", self.machines.chip_ids
        if found not in accepted:
            listed = " or ".join(sorted(value.hex() for value in accepted)) or "none: the list names no such"
            where = f"{name} {found.hex() or 'unknown: a VLEK signed'}"
            yield Violation(Check.POLICY_MACHINE, f"{what} {self.id!r} on {name} {listed}", where)


def runs(
    measured: Release | Revoked | Limited, cpu: TdxClaims | SnpClaims, vtpm: VtpmClaims | None = None
) -> bool:
    """Whether the verified machine measured this: its CPU, or the vTPM on it."""
    if vtpm is not None and any(m.matches(vtpm.pcrs) for m in measured.vtpm):
        return True
    if isinstance(cpu, TdxClaims):
        return any(m.matches(cpu.td) for m in measured.tdx)
    return cpu.measurement in measured.snp


def limited(release: Release) -> Limited:
    """What decides about a release, without how it came about."""
    return Limited(
        id=release.id,
        until=None if release.until is None else datetime.fromtimestamp(release.until, UTC),
        machines=release.machines,
        tdx=release.tdx,
        snp=release.snp,
        vtpm=release.vtpm,
        models=release.models,
        configs=release.configs,
        config_files=release.config_files,
    )
