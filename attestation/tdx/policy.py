"""What a TD must be to be accepted. Strict unless said: every loosening is a field named allow_…, accept_… or any_…."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from attestation.checks import Check
from attestation.errors import Violation
from attestation.tdx.claims import TdxClaims
from attestation.tdx.quote import TdReport
from attestation.tdx.status import TcbStatus

# TD attributes, Intel TDX Module Base Architecture Specification, ATTRIBUTES
DEBUG = 1 << 0
SEPT_VE_DISABLE = 1 << 28
MIGRATABLE = 1 << 29
PKS = 1 << 30
PERFMON = 1 << 63
KNOWN_ATTRIBUTES = DEBUG | SEPT_VE_DISABLE | MIGRATABLE | PKS | PERFMON

# XFAM: x87 and SSE are always on; the rest is what TDX lets a TD have (same specification, XFAM)
XFAM_FIXED_1 = 0x3
XFAM_ALLOWED = 0x6DBE7

_48 = {"size": 48}
_ZERO = bytes(48)
_ONLY_ZERO = frozenset({_ZERO})


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxMeasurement:
    """One accepted TD: the initial image and, where given, the run-time registers."""

    mrtd: bytes = field(metadata=_48)
    rtmr0: bytes | None = field(default=None, metadata=_48)
    rtmr1: bytes | None = field(default=None, metadata=_48)
    rtmr2: bytes | None = field(default=None, metadata=_48)
    rtmr3: bytes | None = field(default=None, metadata=_48)

    def matches(self, td: TdReport) -> bool:
        found = {"mrtd": td.mrtd, "rtmr0": td.rtmr0, "rtmr1": td.rtmr1, "rtmr2": td.rtmr2, "rtmr3": td.rtmr3}
        return all(wanted is None or wanted == found[name] for name, wanted in self._named())

    def unlike(self, found: TdxMeasurement) -> tuple[str, str]:
        """What of this was expected, and what was found there, where they differ."""
        names = [n for n, wanted in self._named() if wanted is not None and wanted != getattr(found, n)]
        expected, other = (" ".join(f"{n}={getattr(m, n).hex()}" for n in names) for m in (self, found))
        return expected, other

    def _named(self) -> Iterator[tuple[str, bytes | None]]:
        for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"):
            yield name, getattr(self, name)

    def __str__(self) -> str:
        return " ".join(f"{name}={value.hex()}" for name, value in self._named() if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPolicy:
    """Allow-lists accept what they name; an empty one accepts nothing. Where None is the default, None asks nothing."""

    # what runs
    measurements: tuple[TdxMeasurement, ...] = ()
    any_measurement: bool = False
    mr_config_id: frozenset[bytes] = field(default=_ONLY_ZERO, metadata=_48)
    any_mr_config_id: bool = False
    mr_owner: frozenset[bytes] = field(default=_ONLY_ZERO, metadata=_48)
    any_mr_owner: bool = False
    mr_owner_config: frozenset[bytes] = field(default=_ONLY_ZERO, metadata=_48)
    any_mr_owner_config: bool = False
    # how it runs
    allow_debug: bool = False
    allow_sept_ve: bool = False  # a host may inject #VE into the TD; Azure's TDs handle that themselves
    allow_migratable: bool = False
    allow_perfmon: bool = False
    allow_pks: bool = False
    allow_attribute_bits: frozenset[int] = frozenset()  # by bit number, for those without a name above
    allow_xfam_bits: frozenset[int] = frozenset()
    allow_service_td: bool = False
    allow_padding: bool = False  # zero bytes after the quote, as device files have them
    # what it runs on
    accept_tcb_status: frozenset[TcbStatus] = frozenset({TcbStatus.UP_TO_DATE})
    grace_days: int = 0  # how long after its tcbDate an out-of-date level still does
    accept_advisories: frozenset[str] = frozenset()
    accept_any_advisory: bool = False
    min_tcb_evaluation_data_number: int = 0
    max_collateral_age_days: int | None = None
    min_tee_tcb_svn: bytes | None = field(default=None, metadata={"size": 16})
    mr_seam: frozenset[bytes] | None = field(default=None, metadata=_48)
    mr_signer_seam: frozenset[bytes] = field(default=_ONLY_ZERO, metadata=_48)  # zero: Intel's own module
    fmspc: frozenset[bytes] | None = field(default=None, metadata={"size": 6})
    ppid: frozenset[bytes] | None = field(default=None, metadata={"size": 16})
    platform_instance_id: frozenset[bytes] | None = field(default=None, metadata={"size": 16})

    def check(self, claims: TdxClaims, now: datetime) -> list[Violation]:
        """Every reason not to accept `claims` at `now`; an empty list when there is none."""
        return [
            *_check_measurements(self, claims.td),
            *_check_attributes(self, claims.td),
            *_check_tcb(self, claims, now),
            *_check_platform(self, claims),
        ]


def _check_measurements(policy: TdxPolicy, td: TdReport) -> Iterator[Violation]:
    if not policy.any_measurement and not any(m.matches(td) for m in policy.measurements):
        found = TdxMeasurement(mrtd=td.mrtd, rtmr0=td.rtmr0, rtmr1=td.rtmr1, rtmr2=td.rtmr2, rtmr3=td.rtmr3)
        if len(policy.measurements) == 1:
            yield Violation(Check.TDX_MEASUREMENT, *policy.measurements[0].unlike(found))
        else:
            accepted = " or ".join(map(str, policy.measurements)) or "none: the policy lists no measurement"
            yield Violation(Check.TDX_MEASUREMENT, accepted, str(found))
    if not policy.any_mr_config_id:
        yield from _one_of(Check.TDX_MR_CONFIG_ID, policy.mr_config_id, td.mr_config_id)
    if not policy.any_mr_owner:
        yield from _one_of(Check.TDX_MR_OWNER, policy.mr_owner, td.mr_owner)
    if not policy.any_mr_owner_config:
        yield from _one_of(Check.TDX_MR_OWNER_CONFIG, policy.mr_owner_config, td.mr_owner_config)


def _check_attributes(policy: TdxPolicy, td: TdReport) -> Iterator[Violation]:
    word = f"TD attributes {td.td_attributes:#018x}"
    for bit, allowed, check, what in (
        (DEBUG, policy.allow_debug, Check.TDX_DEBUG, "DEBUG"),
        (MIGRATABLE, policy.allow_migratable, Check.TDX_MIGRATABLE, "MIGRATABLE"),
        (PKS, policy.allow_pks, Check.TDX_PKS, "PKS"),
        (PERFMON, policy.allow_perfmon, Check.TDX_PERFMON, "PERFMON"),
    ):
        if td.td_attributes & bit and not allowed:
            yield Violation(check, f"{what} clear", word)
    if not td.td_attributes & SEPT_VE_DISABLE and not policy.allow_sept_ve:
        yield Violation(Check.TDX_SEPT_VE, "SEPT_VE_DISABLE set", word)
    if td.td_attributes & ~(KNOWN_ATTRIBUTES | _bits(policy.allow_attribute_bits)):
        yield Violation(Check.TDX_RESERVED_ATTRIBUTES, "reserved bits clear", word)
    xfam = XFAM_ALLOWED | _bits(policy.allow_xfam_bits)
    if td.xfam & ~xfam or td.xfam & XFAM_FIXED_1 != XFAM_FIXED_1:
        yield Violation(
            Check.TDX_XFAM, f"bits {XFAM_FIXED_1:#x} set and none outside {xfam:#x}", f"XFAM {td.xfam:#x}"
        )
    for name, found in _service_tds(td):
        if found not in (None, _ZERO) and not policy.allow_service_td:
            yield Violation(Check.TDX_SERVICE_TD, "no service TD bound", f"{name} {found.hex()}")


def _service_tds(td: TdReport) -> Iterator[tuple[str, bytes | None]]:
    """The service TDs that can reach into this one, or could when it began: one that moves it brings its memory along."""
    yield "MRSERVICETD", td.mr_service_td
    if td.history is not None:
        yield "at its start: service TD", td.history.init_service_td_hash
        yield "now: service TD", td.history.current_service_td_hash


def _check_tcb(policy: TdxPolicy, claims: TdxClaims, now: datetime) -> Iterator[Violation]:
    tcb, accepted = claims.tcb, policy.accept_tcb_status
    in_grace = (
        now <= tcb.date + timedelta(days=policy.grace_days) and tcb.status.if_brought_up_to_date in accepted
    )
    if tcb.status not in accepted and not in_grace:
        yield Violation(
            Check.TDX_TCB_STATUS,
            " or ".join(sorted(accepted)),
            f"{tcb.status} (level of {tcb.date:%Y-%m-%d})",
        )
    unaccepted = sorted(set(tcb.advisories) - policy.accept_advisories)
    if unaccepted and not policy.accept_any_advisory:
        expected = (
            "none but " + ", ".join(sorted(policy.accept_advisories)) if policy.accept_advisories else "none"
        )
        yield Violation(Check.TDX_ADVISORIES, expected, ", ".join(unaccepted))
    number, minimum = claims.tcb_evaluation_data_number, policy.min_tcb_evaluation_data_number
    if number < minimum:
        yield Violation(Check.TDX_TCB_EVALUATION, f"tcbEvaluationDataNumber {minimum} or later", str(number))
    days = policy.max_collateral_age_days
    if days is not None and now - claims.collateral_issued > timedelta(days=days):
        yield Violation(
            Check.TDX_COLLATERAL_AGE,
            f"collateral of the last {days} days",
            f"issued {claims.collateral_issued:%Y-%m-%d}",
        )
    svn, floor = claims.td.tee_tcb_svn, policy.min_tee_tcb_svn
    if floor is not None and any(have < need for have, need in zip(svn, floor, strict=True)):
        yield Violation(Check.TDX_TEE_TCB_SVN, f"every byte at least that of {floor.hex()}", svn.hex())


def _check_platform(policy: TdxPolicy, claims: TdxClaims) -> Iterator[Violation]:
    td, platform = claims.td, claims.platform
    yield from _one_of(Check.TDX_MR_SEAM, policy.mr_seam, td.mr_seam)
    yield from _one_of(Check.TDX_MR_SIGNER_SEAM, policy.mr_signer_seam, td.mr_signer_seam)
    yield from _one_of(Check.TDX_PLATFORM, policy.fmspc, platform.fmspc, "FMSPC ")
    yield from _one_of(Check.TDX_PLATFORM, policy.ppid, platform.ppid, "PPID ")
    instance = platform.platform_instance_id or b""
    yield from _one_of(Check.TDX_PLATFORM, policy.platform_instance_id, instance, "platform instance id ")
    if claims.padding and not policy.allow_padding:
        yield Violation(Check.TDX_PADDING, "nothing after the quote", f"{claims.padding} zero bytes")


def _one_of(
    check: Check, accepted: frozenset[bytes] | None, found: bytes, what: str = ""
) -> Iterator[Violation]:
    if accepted is not None and found not in accepted:
        names = " or ".join(sorted(value.hex() for value in accepted)) or "none: the policy lists no value"
        yield Violation(check, what + names, what + (found.hex() or "none"))


def _bits(numbers: frozenset[int]) -> int:
    return sum(1 << number for number in numbers if 0 <= number < 64)
