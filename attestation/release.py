"""What a release of an image is: what it measures where, on which machines it may run, and how those numbers came about.

A client decides by the measurements, models, configurations and machines. `build` and `expected` decide nothing: they
tell a person what the numbers are made of, and `explain` which event of a boot differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

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
    machines: Machines | None = None  # None: any machine
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
class Confined:
    """One release that is refused on every machine but these."""

    id: str
    chip_ids: frozenset[bytes] = frozenset()
    ppids: frozenset[bytes] = field(default=frozenset(), metadata=_16)
    tdx: tuple[TdxMeasurement, ...] = ()
    snp: frozenset[bytes] = field(default=frozenset(), metadata=_48)
    vtpm: tuple[VtpmMeasurement, ...] = ()

    def check(self, cpu: TdxClaims | SnpClaims, vtpm: VtpmClaims | None = None) -> Iterator[Violation]:
        if not runs(self, cpu, vtpm):
            return
        if isinstance(cpu, TdxClaims):
            name, found, accepted = "PPID", cpu.platform.ppid, self.ppids
        else:
            name, found, accepted = "CHIP_ID", cpu.chip_id or b"", self.chip_ids
        if found not in accepted:
            listed = " or ".join(sorted(value.hex() for value in accepted)) or "none: the list names no such"
            where = f"{name} {found.hex() or 'unknown: a VLEK signed'}"
            yield Violation(Check.POLICY_MACHINE, f"release {self.id!r} on {name} {listed}", where)


def runs(measured: Revoked | Confined, cpu: TdxClaims | SnpClaims, vtpm: VtpmClaims | None) -> bool:
    """Whether the verified machine measured this: its CPU, or the vTPM on it."""
    if vtpm is not None and any(m.matches(vtpm.pcrs) for m in measured.vtpm):
        return True
    if isinstance(cpu, TdxClaims):
        return any(m.matches(cpu.td) for m in measured.tdx)
    return cpu.measurement in measured.snp


def confined(release: Release) -> tuple[Confined, ...]:
    """The same release as a demand on the machine, if it makes one."""
    if release.machines is None:
        return ()
    return (
        Confined(
            id=release.id,
            chip_ids=release.machines.chip_ids,
            ppids=release.machines.ppids,
            tdx=release.tdx,
            snp=release.snp,
            vtpm=release.vtpm,
        ),
    )
