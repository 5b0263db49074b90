"""SNP policy: the default accepts one measurement on an up-to-date machine; every other demand has a failing case."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import pytest

from attestation._table import load_table
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.simulator.snp import MEASUREMENT, SnpDefect
from attestation.snp import Product, SigningKey, SnpPolicy, Tcb
from attestation.snp.floors import AMD_FLOORS, ANY_TCB, TcbFloor, floors_for
from attestation.snp.policy import AUTHENTIC_ONLY
from attestation.snp.report import FirmwareVersion
from tests.attestation.snp.support import NOW, claims_of, machine
from tests.attestation.snp.test_verify import AUTHENTICITY

POLICY = SnpPolicy(measurements=frozenset({MEASUREMENT}))
P = 1 << 17
OLD, NEW = Tcb(bootloader=10, snp=0x1C, microcode=0x57), Tcb(bootloader=10, snp=0x1D, microcode=0x58)

#: check, what the report says otherwise than usual, what the policy demands otherwise than usual
REPORT_CASES: list[tuple[Check, dict[str, Any], dict[str, Any]]] = [
    (Check.SNP_MEASUREMENT, {"measurement": b"x" * 48}, {}),
    (Check.SNP_MEASUREMENT, {}, {"measurements": frozenset()}),
    (Check.SNP_HOST_DATA, {"host_data": b"h" * 32}, {}),
    (Check.SNP_HOST_DATA, {}, {"host_data": frozenset({b"h" * 32})}),
    (Check.SNP_FAMILY_ID, {}, {"family_ids": frozenset({b"f" * 16})}),
    (Check.SNP_IMAGE_ID, {}, {"image_ids": frozenset({b"i" * 16})}),
    (Check.SNP_ID_KEY, {}, {"id_keys": frozenset({b"k" * 48})}),
    (Check.SNP_AUTHOR_KEY, {}, {"author_keys": frozenset({b"a" * 48})}),
    (Check.SNP_GUEST_SVN, {"guest_svn": 1}, {"min_guest_svn": 2}),
    (Check.SNP_DEBUG, {"policy": P | 1 << 19}, {}),
    (Check.SNP_MIGRATION, {"policy": P | 1 << 18}, {}),
    (Check.SNP_CXL, {"policy": P | 1 << 21}, {}),
    (Check.SNP_SMT, {"policy": P | 1 << 16, "platform_info": 0x20}, {"allow_smt": False}),
    (Check.SNP_SMT, {"policy": P, "platform_info": 0x21}, {"allow_smt": False}),
    (Check.SNP_SINGLE_SOCKET, {}, {"require_single_socket": True}),
    (Check.SNP_MEMORY_AES256, {}, {"require_memory_aes256": True}),
    (Check.SNP_RAPL, {}, {"require_rapl_disabled": True}),
    (Check.SNP_CIPHERTEXT_HIDING, {}, {"require_ciphertext_hiding": True}),
    (Check.SNP_PAGE_SWAP, {}, {"require_page_swap_disabled": True}),
    (Check.SNP_VMPL, {"vmpl": 1}, {}),
    (Check.SNP_VMPL, {"vmpl": 0xFFFFFFFF}, {"max_vmpl": 3}),
    (Check.SNP_ABI, {"policy": P | 0x0036}, {"min_abi_minor": 0x37}),
    (Check.SNP_ABI, {"policy": P | 0x0037}, {"min_abi_major": 1}),
    (Check.SNP_CHIP, {}, {"chip_ids": frozenset({b"c" * 64})}),
    (Check.SNP_ALIAS_CHECK, {"platform_info": 0x05}, {}),
    (Check.SNP_TSME, {}, {"require_tsme": True}),
    (Check.SNP_ECC, {"platform_info": 0x20}, {"require_ecc": True}),
    (Check.SNP_IOMMU, {"platform_info": 0x20}, {"require_iommu_write_safe": True}),
    (Check.SNP_PLATFORM_BITS, {"platform_info": 0x125}, {}),
    (Check.SNP_TCB, {"launch_tcb": Tcb(bootloader=10, snp=0x1A, microcode=0x57)}, {}),
    (Check.SNP_TCB, {"launch_tcb": Tcb(bootloader=10, snp=0x1C, microcode=0x55)}, {}),
    (Check.SNP_TCB, {}, {"tcb_floors": (TcbFloor(product=Product.GENOA, bootloader=11),)}),
    (Check.SNP_TCB, {}, {"tcb_floors": (TcbFloor(product=Product.GENOA, tee=1),)}),
    (Check.SNP_TCB, {}, {"tcb_floors": (TcbFloor(product=Product.GENOA, fmc=1),)}),
    (Check.SNP_TCB, {}, {"tcb_floors": ()}),
    (Check.SNP_TCB, {}, {"tcb_floors": (TcbFloor(product=Product.TURIN),)}),
    (Check.SNP_TCB_ORDER, {"committed_tcb": Tcb(bootloader=9, snp=0x1C, microcode=0x57)},
        {"allow_provisional_firmware": True}),
    (Check.SNP_TCB_ORDER, {"current_tcb": OLD, "committed_tcb": NEW}, {"allow_provisional_firmware": True}),
    (Check.SNP_PROVISIONAL, {"current_tcb": NEW}, {}),
    (Check.SNP_PROVISIONAL, {"current_firmware": b"\x32\x37\x01"}, {}),
    (Check.SNP_FIRMWARE, {}, {"min_firmware": FirmwareVersion(major=1, minor=0x37, build=0x32)}),
    (Check.SNP_FIRMWARE, {"committed_firmware": b"\x30\x37\x01"},
        {"min_firmware": FirmwareVersion(major=1, minor=0x37, build=0x31), "allow_provisional_firmware": True}),
]  # fmt: skip


def _checks(policy: SnpPolicy, claims: Any) -> list[Check]:
    return [violation.check for violation in policy.check(claims, NOW)]


@pytest.mark.parametrize(("check", "said", "demanded"), REPORT_CASES)
def test_each_demand_has_a_report_that_fails_exactly_it(
    check: Check, said: dict[str, Any], demanded: dict[str, Any]
) -> None:
    """One thing is off, one violation names it."""
    assert _checks(replace(POLICY, **demanded), claims_of(machine(), **said)) == [check]


def test_an_up_to_date_guest_with_a_listed_measurement_is_accepted() -> None:
    """The default policy plus one measurement accepts Genoa and Turin, in every report version."""
    for product in (Product.GENOA, Product.TURIN):
        for version in (2, 3, 4, 5):
            assert _checks(POLICY, claims_of(machine(product), version=version)) == []


def test_the_default_policy_accepts_no_measurement() -> None:
    """A policy that names nothing refuses, and says that it names nothing."""
    violations = SnpPolicy().check(claims_of(machine()), NOW)
    assert [v.check for v in violations] == [Check.SNP_MEASUREMENT]
    assert "lists nothing" in violations[0].expected


def test_a_missing_crl_has_to_be_allowed_by_name() -> None:
    """Missing means refused, unless the policy says otherwise."""
    claims = claims_of(machine(), SnpDefect.CRL_MISSING)
    assert _checks(POLICY, claims) == [Check.SNP_CRL_MISSING]
    assert _checks(replace(POLICY, allow_missing_crl=True), claims) == []


def test_a_cloud_key_has_to_be_accepted_by_name() -> None:
    """A VLEK does not tell chips apart, so it is not accepted unasked, and no list of chips matches it."""
    claims = claims_of(machine(signer=SigningKey.VLEK))
    both = replace(POLICY, signers=frozenset(SigningKey))
    assert _checks(POLICY, claims) == [Check.SNP_SIGNER]
    assert _checks(both, claims) == []
    assert _checks(replace(both, chip_ids=frozenset({machine().hwid})), claims) == [Check.SNP_CHIP]


def test_milan_has_to_be_accepted_by_name() -> None:
    """Milan's key seeds can be read out in software: a Milan TCB proves nothing by itself."""
    claims = claims_of(machine(Product.MILAN))
    assert _checks(POLICY, claims) == [Check.SNP_MILAN]
    assert _checks(replace(POLICY, allow_milan=True), claims) == []


@pytest.mark.parametrize(("version", "vector", "accepted"), [
    (5, 0x7, True), (5, 0xF, True), (5, 0x3, False), (4, 0x7, True), (3, 0x7, False), (2, 0x7, False),
])  # fmt: skip
def test_required_mitigations_are_a_set_of_bits(version: int, vector: int, accepted: bool) -> None:
    """All bits asked for, in both vectors; reports too old to have vectors do not have them."""
    policy = replace(POLICY, required_mitigations=0x7)
    for name in ("launch_mitigations", "current_mitigations"):
        found = _checks(policy, claims_of(machine(), version=version, **{name: vector}))
        assert set(found) == (set() if accepted else {Check.SNP_MITIGATIONS})


@pytest.mark.parametrize(("said", "demanded"), [
    ({"policy": P | 1 << 19}, {"allow_debug": True}),
    ({"policy": P | 1 << 18}, {"allow_migration_agent": True}),
    ({"policy": P | 1 << 21}, {"allow_cxl": True}),
    ({"policy": P, "platform_info": 0x20}, {"allow_smt": False}),
    ({"policy": P | 1 << 20}, {"require_single_socket": True}),
    ({"policy": P | 1 << 22}, {"require_memory_aes256": True}),
    ({"policy": P | 1 << 23}, {"require_rapl_disabled": True}),
    ({"platform_info": 0x28}, {"require_rapl_disabled": True}),
    ({"policy": P | 1 << 24}, {"require_ciphertext_hiding": True}),
    ({"platform_info": 0x30}, {"require_ciphertext_hiding": True}),
    ({"policy": P | 1 << 25}, {"require_page_swap_disabled": True}),
    ({"platform_info": 0x22}, {"require_tsme": True}),
    ({"platform_info": 0x24}, {"require_ecc": True}),
    ({"platform_info": 0x60}, {"require_iommu_write_safe": True}),
    ({"platform_info": 0x01}, {"allow_unchecked_aliases": True}),
    ({"platform_info": 0x165}, {"allow_unknown_platform_bits": True}),
    ({"vmpl": 2}, {"max_vmpl": 2}),
    ({"policy": P | 0x0137}, {"min_abi_major": 1, "min_abi_minor": 0x37}),
    ({"host_data": b"h" * 32}, {"host_data": frozenset({b"h" * 32})}),
    ({"host_data": b"h" * 32}, {"any_host_data": True}),
    ({"measurement": b"x" * 48}, {"any_measurement": True}),
    ({"family_id": b"f" * 16}, {"family_ids": frozenset({b"f" * 16})}),
    ({"guest_svn": 2}, {"min_guest_svn": 2}),
    ({"current_tcb": NEW}, {"allow_provisional_firmware": True}),
    ({}, {"min_firmware": FirmwareVersion(major=1, minor=0x37, build=0x31)}),
    ({}, {"chip_ids": frozenset({machine().hwid})}),
    ({"chip_id": bytes(64)}, {"chip_ids": frozenset({machine().hwid})}),
    ({"launch_tcb": Tcb()}, {"tcb_floors": ANY_TCB}),
])  # fmt: skip
def test_each_demand_can_be_met(said: dict[str, Any], demanded: dict[str, Any]) -> None:
    """What a policy asks for or allows by name is accepted."""
    assert _checks(replace(POLICY, **demanded), claims_of(machine(), **said)) == []


def test_all_violations_are_reported_at_once() -> None:
    """A policy does not stop at the first."""
    claims = claims_of(machine(), policy=P | 1 << 19 | 1 << 18, vmpl=1, host_data=b"h" * 32)
    found = _checks(POLICY, claims)
    assert found == [Check.SNP_HOST_DATA, Check.SNP_DEBUG, Check.SNP_MIGRATION, Check.SNP_VMPL]


def test_floors_of_one_stepping_add_to_those_of_the_product() -> None:
    """A CPUID's floor holds for it alone; version 2 reports have no CPUID and meet the product's."""
    genoa, microcode = floors_for(AMD_FLOORS, Product.GENOA, (0x19, 0x11, 1))
    assert (genoa.snp, genoa.cpuid, microcode.microcode) == (0x1B, None, 0x56)
    assert floors_for(AMD_FLOORS, Product.GENOA, (0x19, 0xA0, 2)) == [genoa]
    assert floors_for(AMD_FLOORS, Product.GENOA, None) == [genoa]


def test_raw_evidence_is_judged_for_debugging_and_revocation_only() -> None:
    """Without a policy of one's own: no word about images and products, but never a debuggable guest."""
    for product in Product:
        assert _checks(AUTHENTIC_ONLY, claims_of(machine(product), measurement=b"x" * 48, vmpl=3)) == []
    assert _checks(AUTHENTIC_ONLY, claims_of(machine(), policy=P | 1 << 19)) == [Check.SNP_DEBUG]
    assert _checks(AUTHENTIC_ONLY, claims_of(machine(), SnpDefect.CRL_MISSING)) == [Check.SNP_CRL_MISSING]


def test_a_policy_is_a_toml_table() -> None:
    """Digests in hex, floors as an array of tables, enumerations by name."""
    text = f"""
    measurements = ["{MEASUREMENT.hex()}"]
    signers = ["VCEK", "VLEK"]
    chip_ids = ["{machine().hwid.hex()}"]
    allow_milan = true
    min_firmware = {{ major = 1, minor = 55, build = 49 }}
    tcb_floors = [
      {{ product = "Genoa", snp = 27 }},
      {{ product = "Genoa", cpuid = "191101", microcode = 86 }},
    ]
    """
    policy = load_table(SnpPolicy, tomllib.loads(text), "snp")
    assert policy.tcb_floors[1] == TcbFloor(product=Product.GENOA, cpuid=b"\x19\x11\x01", microcode=86)
    assert policy.min_firmware == FirmwareVersion(major=1, minor=55, build=49)
    assert _checks(policy, claims_of(machine())) == []


@pytest.mark.parametrize("text", [
    'measurement = ["00"]', 'measurements = ["00"]', "allow_debug = 1", 'signers = ["AMD"]',
    'tcb_floors = [{ product = "Rome" }]', 'tcb_floors = [{ snp = 1 }]', 'host_data = ["zz"]',
    'tcb_floors = [{ product = "Genoa", cpuid = "19" }]', 'min_firmware = { major = "1" }',
])  # fmt: skip
def test_mistakes_in_a_policy_are_errors(text: str) -> None:
    """Unknown keys, wrong types, wrong lengths and unknown names never mean 'anything goes'."""
    with pytest.raises(MalformedError) as caught:
        load_table(SnpPolicy, tomllib.loads(text), "snp")
    assert caught.value.check is Check.POLICY_FORMAT


def test_every_snp_check_has_a_case_that_fails_it() -> None:
    """No check without a test: the names of the tables above are all there are."""
    elsewhere = {
        Check.SNP_REPORT, Check.SNP_VEK, Check.SNP_CRL_MISSING, Check.SNP_SIGNER, Check.SNP_MILAN,
        Check.SNP_MITIGATIONS,
    }  # fmt: skip
    failed = {check for check, _, _ in REPORT_CASES} | set(AUTHENTICITY.values()) | elsewhere
    assert failed == {check for check in Check if check.startswith("snp.")}
