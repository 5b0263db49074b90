"""What an SNP guest and its machine must be to be accepted. Authentic claims in, every violation out.

Strict unless said: each loosening is a field named `allow_…`, `any_…`, `max_…` or a floor that is given anew.
Empty `measurements` accept nothing. The other lists only narrow what a measurement already allows, so empty means any;
`host_data` is the exception, because the host chooses it: unless listed it has to be zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from attestation.checks import Check
from attestation.errors import Violation
from attestation.snp.floors import AMD_FLOORS, ANY_TCB, TcbFloor, floors_for
from attestation.snp.product import Product
from attestation.snp.report import FirmwareVersion, GuestPolicy, PlatformInfo, Report, SigningKey
from attestation.snp.verify import SnpClaims

_16, _32, _48, _64 = ({"size": n} for n in (16, 32, 48, 64))
NO_HOST_DATA = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPolicy:
    """`[snp]` of a policy file. See `docs/verification.md` for what each violation means."""

    # what runs
    measurements: frozenset[bytes] = field(default=frozenset(), metadata=_48)
    any_measurement: bool = False
    host_data: frozenset[bytes] = field(default=frozenset(), metadata=_32)
    any_host_data: bool = False
    family_ids: frozenset[bytes] = field(default=frozenset(), metadata=_16)
    image_ids: frozenset[bytes] = field(default=frozenset(), metadata=_16)
    id_keys: frozenset[bytes] = field(default=frozenset(), metadata=_48)
    author_keys: frozenset[bytes] = field(default=frozenset(), metadata=_48)
    min_guest_svn: int = 0

    # how it runs
    allow_debug: bool = False
    allow_migration_agent: bool = False
    allow_cxl: bool = False
    allow_smt: bool = (
        True  # public clouds' SNP hosts have SMT on: a guest that forbids it does not start there
    )
    max_vmpl: int = 0  # reports of higher levels are asked for by less privileged code in the same guest
    require_single_socket: bool = False
    require_memory_aes256: bool = False
    require_rapl_disabled: bool = False
    require_ciphertext_hiding: bool = False
    require_page_swap_disabled: bool = False
    min_abi_major: int = 0
    min_abi_minor: int = 0

    # on which machine
    signers: frozenset[SigningKey] = frozenset({SigningKey.VCEK})  # a VLEK names a cloud and no chip
    allow_missing_crl: bool = False
    allow_milan: bool = False
    chip_ids: frozenset[bytes] = frozenset()  # 64 bytes, or 8 on Turin
    require_tsme: bool = False
    require_ecc: bool = False
    require_iommu_write_safe: bool = False
    allow_unchecked_aliases: bool = False
    allow_unknown_platform_bits: bool = False

    # with which firmware
    tcb_floors: tuple[TcbFloor, ...] = AMD_FLOORS
    allow_provisional_firmware: bool = False
    min_firmware: FirmwareVersion | None = None
    required_mitigations: int = 0

    def check(self, claims: SnpClaims, now: datetime) -> list[Violation]:  # noqa: ARG002  # as every policy's
        """Every reason to refuse `claims`; an empty list accepts them. Nothing here depends on `now`."""
        return [
            *self._check_image(claims.report),
            *self._check_guest(claims.report.policy, claims.report.platform, claims.report.vmpl),
            *self._check_endorsement(claims),
            *self._check_platform(claims.report.platform),
            *self._check_tcb(claims),
            *self._check_firmware(claims),
        ]

    def _check_image(self, report: Report) -> Iterator[Violation]:
        if not self.any_measurement:
            yield from _listed(Check.SNP_MEASUREMENT, self.measurements, report.measurement)
        if not self.any_host_data:
            yield from _listed(Check.SNP_HOST_DATA, self.host_data or {NO_HOST_DATA}, report.host_data)
        yield from _narrowed(Check.SNP_FAMILY_ID, self.family_ids, report.family_id)
        yield from _narrowed(Check.SNP_IMAGE_ID, self.image_ids, report.image_id)
        yield from _narrowed(Check.SNP_ID_KEY, self.id_keys, report.id_key_digest)
        yield from _narrowed(Check.SNP_AUTHOR_KEY, self.author_keys, report.author_key_digest)
        if report.guest_svn < self.min_guest_svn:
            yield Violation(Check.SNP_GUEST_SVN, f"at least {self.min_guest_svn}", str(report.guest_svn))

    def _check_guest(self, guest: GuestPolicy, machine: PlatformInfo, vmpl: int) -> Iterator[Violation]:
        rapl_disabled = guest.rapl_disabled or machine.rapl_disabled
        hiding = guest.ciphertext_hiding or machine.ciphertext_hiding
        yield from _forbid(Check.SNP_DEBUG, guest.debug, self.allow_debug)
        yield from _forbid(Check.SNP_MIGRATION, guest.migration_agent, self.allow_migration_agent)
        yield from _forbid(Check.SNP_CXL, guest.cxl, self.allow_cxl)
        yield from _forbid(Check.SNP_SMT, guest.smt or machine.smt, self.allow_smt)
        yield from _require(Check.SNP_SINGLE_SOCKET, guest.single_socket, self.require_single_socket)
        yield from _require(Check.SNP_MEMORY_AES256, guest.memory_aes256, self.require_memory_aes256)
        yield from _require(Check.SNP_RAPL, rapl_disabled, self.require_rapl_disabled)
        yield from _require(Check.SNP_CIPHERTEXT_HIDING, hiding, self.require_ciphertext_hiding)
        yield from _require(Check.SNP_PAGE_SWAP, guest.page_swap_disabled, self.require_page_swap_disabled)
        if vmpl > self.max_vmpl:
            yield Violation(Check.SNP_VMPL, f"VMPL {self.max_vmpl} or less", f"VMPL {vmpl}")
        if (guest.abi_major, guest.abi_minor) < (self.min_abi_major, self.min_abi_minor):
            expected = f"a guest that demands ABI {self.min_abi_major}.{self.min_abi_minor} or later"
            yield Violation(Check.SNP_ABI, expected, f"{guest.abi_major}.{guest.abi_minor}")

    def _check_endorsement(self, claims: SnpClaims) -> Iterator[Violation]:
        if not claims.revocation_checked and not self.allow_missing_crl:
            yield Violation(Check.SNP_CRL_MISSING, "AMD's CRL, or allow_missing_crl", "no CRL")
        if claims.signer not in self.signers:
            yield Violation(Check.SNP_SIGNER, _or(self.signers), claims.signer)
        if claims.product is Product.MILAN and not self.allow_milan:
            # MilanLaunchy and BadFuse: software can read out the seed of a Milan chip's keys and sign for any TCB
            yield Violation(Check.SNP_MILAN, "another product, or allow_milan (best with chip_ids)", "Milan")
        if self.chip_ids and claims.chip_id not in self.chip_ids:
            found = "none: a VLEK signed" if claims.chip_id is None else claims.chip_id.hex()
            yield Violation(Check.SNP_CHIP, _or(c.hex() for c in self.chip_ids), found)

    def _check_platform(self, machine: PlatformInfo) -> Iterator[Violation]:
        yield from _require(
            Check.SNP_ALIAS_CHECK, machine.alias_check_complete, not self.allow_unchecked_aliases
        )
        yield from _require(Check.SNP_TSME, machine.tsme, self.require_tsme)
        yield from _require(Check.SNP_ECC, machine.ecc, self.require_ecc)
        yield from _require(Check.SNP_IOMMU, machine.iommu_write_safe, self.require_iommu_write_safe)
        if machine.unknown and not self.allow_unknown_platform_bits:
            yield Violation(Check.SNP_PLATFORM_BITS, "bits 0 to 7 only", f"{machine.unknown:#x}")

    def _check_tcb(self, claims: SnpClaims) -> Iterator[Violation]:
        reported, committed, current = claims.reported_tcb, claims.committed_tcb, claims.current_tcb
        floors = floors_for(self.tcb_floors, claims.product, claims.report.cpuid)
        if not floors:
            yield Violation(Check.SNP_TCB, _or(f.product for f in self.tcb_floors), claims.product)
        tcbs = {
            "reported": reported,
            "committed": committed,
            "current": current,
            "launch": claims.launch_tcb,
        }
        for least in (floor.tcb for floor in floors):
            below = [f"{name} {tcb}" for name, tcb in tcbs.items() if not tcb.at_least(least)]
            if below:
                yield Violation(Check.SNP_TCB, f"at least {least}", ", ".join(below))
        if not (current.at_least(committed) and committed.at_least(reported)):
            found = f"reported {reported}, committed {committed}, current {current}"
            yield Violation(Check.SNP_TCB_ORDER, "reported <= committed <= current", found)

    def _check_firmware(self, claims: SnpClaims) -> Iterator[Violation]:
        report, wanted = claims.report, self.required_mitigations
        current, committed = report.current_firmware, report.committed_firmware
        versions = f"current {current}, committed {committed}"
        provisional = current != committed or claims.current_tcb != claims.committed_tcb
        if provisional and not self.allow_provisional_firmware:
            found = f"{versions}; TCB current {claims.current_tcb}, committed {claims.committed_tcb}"
            yield Violation(Check.SNP_PROVISIONAL, "what runs to be committed", found)
        if self.min_firmware is not None and min(current, committed) < self.min_firmware:
            yield Violation(Check.SNP_FIRMWARE, f"{self.min_firmware} or later", versions)
        for name, bits in (("launch", report.launch_mitigations), ("current", report.current_mitigations)):
            if wanted & ~(bits or 0):
                found = "none: this report version has no vector" if bits is None else f"{bits:#x}"
                yield Violation(Check.SNP_MITIGATIONS, f"{name} vector to include {wanted:#x}", found)


def _listed(check: Check, accepted: Collection[bytes], found: bytes) -> Iterator[Violation]:
    if found not in accepted:
        yield Violation(check, _or(a.hex() for a in accepted), found.hex())


def _narrowed(check: Check, accepted: Collection[bytes], found: bytes) -> Iterator[Violation]:
    if accepted:
        yield from _listed(check, accepted, found)


def _forbid(check: Check, found: bool, allowed: bool) -> Iterator[Violation]:
    if found and not allowed:
        yield Violation(check, f"no {_words(check)}", _words(check))


def _require(check: Check, found: bool, required: bool) -> Iterator[Violation]:
    if required and not found:
        yield Violation(check, _words(check), f"no {_words(check)}")


def _words(check: Check) -> str:
    return check.removeprefix("snp.").replace("_", " ")


def _or(values: Iterable[str]) -> str:
    return " or ".join(sorted(set(values))) or "none: the policy lists nothing"


#: For looking at raw evidence without a policy: authentic, unrevoked, not debuggable, and nothing said of the image,
#: the product or the age of its firmware. Never for deciding whom to send a prompt.
AUTHENTIC_ONLY = SnpPolicy(
    any_measurement=True,
    any_host_data=True,
    signers=frozenset(SigningKey),
    allow_milan=True,
    max_vmpl=3,
    allow_cxl=True,
    allow_unchecked_aliases=True,
    tcb_floors=ANY_TCB,
    allow_provisional_firmware=True,
)
