"""What an enclave must be to be accepted. Strict unless said: every loosening is a field named allow_… or any_…."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from attestation.checks import Check
from attestation.errors import Violation
from attestation.nitro.document import Missing
from attestation.nitro.verify import NitroClaims

_48 = {"size": 48}
_CLOCK_SKEW = timedelta(minutes=1)  # how far a document may lie ahead of this machine's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroMeasurement:
    """One accepted enclave: the image's three PCRs and, where given, those of the role, instance and signer."""

    pcr0: bytes = field(metadata=_48)
    pcr1: bytes = field(metadata=_48)
    pcr2: bytes = field(metadata=_48)
    pcr3: bytes | None = field(default=None, metadata=_48)
    pcr4: bytes | None = field(default=None, metadata=_48)
    pcr8: bytes | None = field(default=None, metadata=_48)

    def matches(self, pcrs: Mapping[int, bytes]) -> bool:
        return all(pcrs.get(index) == value for index, value in self._named())

    def _named(self) -> Iterator[tuple[int, bytes]]:
        for index in (0, 1, 2, 3, 4, 8):
            value = getattr(self, f"pcr{index}")
            if value is not None:
                yield index, value

    def __str__(self) -> str:
        return " ".join(f"pcr{index}={value.hex()}" for index, value in self._named())


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroPolicy:
    """An empty list of measurements accepts nothing; data that was not asked for is refused."""

    measurements: tuple[NitroMeasurement, ...] = ()
    any_measurement: bool = False
    allow_debug: bool = False
    max_age_seconds: int = 300
    any_age: bool = False  # for archives: only the certificates' dates count then
    # exactly these bytes; None wants the field absent or null
    nonce: bytes | None = None
    any_nonce: bool = False
    user_data: bytes | None = None
    any_user_data: bool = False
    public_key: bytes | None = None
    any_public_key: bool = False

    def check(self, claims: NitroClaims, now: datetime) -> list[Violation]:
        """Every reason not to accept `claims` at `now`; an empty list when there is none."""
        return [*self._check_image(claims), *self._check_age(claims, now), *self._check_data(claims)]

    def _check_image(self, claims: NitroClaims) -> Iterator[Violation]:
        if claims.debug and not self.allow_debug:
            yield Violation(Check.NITRO_DEBUG, "an enclave not in debug mode", "PCR0, PCR1 and PCR2 all zero")
        if not self.any_measurement and not any(m.matches(claims.pcrs) for m in self.measurements):
            accepted = " or ".join(map(str, self.measurements)) or "none: the policy lists no measurement"
            found = " ".join(f"pcr{i}={claims.pcrs[i].hex()}" for i in (0, 1, 2, 3, 4, 8) if i in claims.pcrs)
            yield Violation(Check.NITRO_MEASUREMENT, accepted, found or "none of these PCRs")

    def _check_age(self, claims: NitroClaims, now: datetime) -> Iterator[Violation]:
        oldest = now - timedelta(seconds=self.max_age_seconds)
        if not self.any_age and not oldest <= claims.timestamp <= now + _CLOCK_SKEW:
            yield Violation(
                Check.NITRO_AGE,
                f"a document at most {self.max_age_seconds} seconds old at {now:%Y-%m-%dT%H:%M:%SZ}",
                f"one of {claims.timestamp:%Y-%m-%dT%H:%M:%SZ}",
            )

    def _check_data(self, claims: NitroClaims) -> Iterator[Violation]:
        for check, wanted, any_value, found in (
            (Check.NITRO_NONCE, self.nonce, self.any_nonce, claims.nonce),
            (Check.NITRO_USER_DATA, self.user_data, self.any_user_data, claims.user_data),
            (Check.NITRO_PUBLIC_KEY, self.public_key, self.any_public_key, claims.public_key),
        ):
            accepted = isinstance(found, Missing) if wanted is None else found == wanted
            if not accepted and not any_value:
                yield Violation(check, "none" if wanted is None else _show(wanted), _show(found))


def _show(value: bytes | Missing) -> str:
    return str(value) if isinstance(value, Missing) else value.hex() or "an empty value"
