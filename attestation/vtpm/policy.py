"""What an Azure confidential VM must be to be accepted. Strict unless said: every loosening is named allow_… or any_…."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime

from attestation.checks import Check
from attestation.errors import Violation
from attestation.measure import EventLogPolicy
from attestation.snp import SnpClaims, SnpPolicy
from attestation.tdx import TdxPolicy
from attestation.vtpm.verify import VtpmClaims

_32 = {"size": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrPolicy:
    """The values that one PCR (SHA-256) may have."""

    index: int
    values: frozenset[bytes] = field(metadata=_32)


@dataclass(frozen=True, slots=True, kw_only=True)
class VtpmMeasurement:
    """One accepted image: the PCRs (SHA-256) that it has together. At least one must be named."""

    pcr4: bytes | None = field(default=None, metadata=_32)  # what firmware started: kernel or UKI
    pcr5: bytes | None = field(default=None, metadata=_32)  # the disk's partition table
    pcr7: bytes | None = field(default=None, metadata=_32)  # Secure Boot
    pcr9: bytes | None = field(default=None, metadata=_32)  # initrd and command line, as the kernel got them
    pcr11: bytes | None = field(default=None, metadata=_32)  # the sections of a UKI
    pcr12: bytes | None = field(
        default=None, metadata=_32
    )  # command lines and credentials from outside a UKI
    pcr13: bytes | None = field(default=None, metadata=_32)  # system extensions
    pcr15: bytes | None = field(default=None, metadata=_32)

    def matches(self, pcrs: Mapping[int, bytes]) -> bool:
        named = dict(self._named())
        return bool(named) and all(pcrs.get(index) == value for index, value in named.items())

    def _named(self) -> Iterator[tuple[int, bytes]]:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value is not None:
                yield int(spec.name.removeprefix("pcr")), value

    def __str__(self) -> str:
        return " ".join(f"pcr{index}={value.hex()}" for index, value in self._named()) or "no PCR"


@dataclass(frozen=True, slots=True, kw_only=True)
class VtpmPolicy:
    """The hardware, by its own table, and the vTPM. Hardware without a table is refused.

    The image is in the PCRs: name measurements, PCR values, or an event log to judge, or say `any_pcrs`.
    """

    snp: SnpPolicy | None = None
    tdx: TdxPolicy | None = None
    measurements: tuple[VtpmMeasurement, ...] = ()
    pcrs: tuple[PcrPolicy, ...] = ()
    event_log: EventLogPolicy | None = None
    any_pcrs: bool = False
    allow_no_secure_boot: bool = False
    allow_console: bool = False  # the cloud's serial console reaches into the VM
    user_data: bytes | None = None  # None wants none, or zeros
    any_user_data: bool = False

    def check(self, claims: VtpmClaims, now: datetime) -> list[Violation]:
        """Every reason not to accept `claims` at `now`; an empty list when there is none."""
        return [
            *self._check_hardware(claims, now),
            *self._check_pcrs(claims),
            *self._check_event_log(claims),
            *self._check_vm(claims),
        ]

    def _check_hardware(self, claims: VtpmClaims, now: datetime) -> list[Violation]:
        if isinstance(claims.hardware, SnpClaims):
            if self.snp is not None:
                return self.snp.check(claims.hardware, now)
        elif self.tdx is not None:
            return self.tdx.check(claims.hardware, now)
        named = [name for name, table in (("snp", self.snp), ("tdx", self.tdx)) if table is not None]
        found = "snp" if isinstance(claims.hardware, SnpClaims) else "tdx"
        return [
            Violation(
                Check.POLICY_PLATFORM, " or ".join(named) or "nothing: the policy names no hardware", found
            )
        ]

    def _check_pcrs(self, claims: VtpmClaims) -> Iterator[Violation]:
        named = self.measurements or self.pcrs or self.event_log is not None
        if not named and not self.any_pcrs:
            yield Violation(Check.VTPM_PCR, "nothing: the policy names no PCR", f"PCRs {list(claims.pcrs)}")
        if self.measurements and not any(m.matches(claims.pcrs) for m in self.measurements):
            shown = " ".join(f"pcr{index}={value.hex()}" for index, value in sorted(claims.pcrs.items()))
            yield Violation(Check.VTPM_PCR, " or ".join(map(str, self.measurements)), shown)
        for pcr in self.pcrs:
            found = claims.pcrs.get(pcr.index)
            if found not in pcr.values:
                accepted = " or ".join(sorted(v.hex() for v in pcr.values)) or "no value: none is listed"
                yield Violation(
                    Check.VTPM_PCR, f"PCR{pcr.index} {accepted}", found.hex() if found else "not in the quote"
                )

    def _check_event_log(self, claims: VtpmClaims) -> list[Violation]:
        if self.event_log is None:
            return []
        if claims.event_log is None:
            return [Violation(Check.EVENTLOG_MISSING, "an event log", "none in the evidence")]
        return self.event_log.check(claims.event_log)

    def _check_vm(self, claims: VtpmClaims) -> Iterator[Violation]:
        vm = claims.configuration
        if vm.secure_boot is not True and not self.allow_no_secure_boot:
            yield Violation(Check.VTPM_SECURE_BOOT, "secure-boot true", _show(vm.secure_boot))
        if vm.console_enabled is not False and not self.allow_console:
            yield Violation(Check.VTPM_CONSOLE, "console-enabled false", _show(vm.console_enabled))
        accepted = (
            claims.user_data == self.user_data if self.user_data is not None else not any(claims.user_data)
        )
        if not accepted and not self.any_user_data:
            wanted = "none" if self.user_data is None else self.user_data.hex()
            yield Violation(Check.VTPM_USER_DATA, wanted, claims.user_data.hex() or "none")


def _show(value: bool | None) -> str:
    return "nothing said" if value is None else str(value).lower()
