"""The bytes of an SNP report: every field, every reserved area, and nothing but MalformedError for the rest."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.snp import Product, Report, SigningKey, Tcb, parse_report
from attestation.snp.product import decode_tcb, product_of_cpuid
from attestation.snp.report import FirmwareVersion
from tests.attestation.snp.support import REPORT_DATA, machine, refused_by


def _edited(offset: int, value: bytes, **changes: object) -> bytes:
    report = machine().report(REPORT_DATA, **changes)
    return report[:offset] + value + report[offset + len(value) :]


def test_every_field_is_read_from_its_own_bytes() -> None:
    """A report of distinct values parses to those values."""
    report = machine().report(
        REPORT_DATA,
        version=5,
        guest_svn=7,
        policy=0x02B_1337 | 1 << 17,
        family_id=b"f" * 16,
        image_id=b"i" * 16,
        vmpl=2,
        measurement=b"m" * 48,
        host_data=b"h" * 32,
        id_key_digest=b"k" * 48,
        author_key_digest=b"a" * 48,
        signer_info=0b111,
        current_firmware=b"\x03\x02\x01",
        committed_firmware=b"\x06\x05\x04",
        launch_mitigations=0x11,
        current_mitigations=0x22,
        committed_tcb=Tcb(bootloader=1, tee=2, snp=3, microcode=4),
    )
    parsed = parse_report(report)
    assert (parsed.version, parsed.guest_svn, parsed.vmpl) == (5, 7, 2)
    assert (parsed.policy.abi_major, parsed.policy.abi_minor) == (0x13, 0x37)
    assert (parsed.policy.smt, parsed.policy.debug, parsed.policy.single_socket) == (True, True, False)
    assert (parsed.policy.cxl, parsed.policy.migration_agent) == (True, False)
    assert (parsed.family_id, parsed.image_id) == (b"f" * 16, b"i" * 16)
    assert (parsed.report_data, parsed.measurement, parsed.host_data) == (REPORT_DATA, b"m" * 48, b"h" * 32)
    assert (parsed.id_key_digest, parsed.author_key_digest) == (b"k" * 48, b"a" * 48)
    assert parsed.signer.signing_key is SigningKey.VLEK
    assert parsed.signer.author_key_enabled
    assert parsed.signer.mask_chip_key
    assert parsed.cpuid == (0x19, 0x11, 1)
    assert parsed.chip_id == machine().hwid
    assert parsed.current_firmware == FirmwareVersion(major=1, minor=2, build=3)
    assert parsed.committed_firmware == FirmwareVersion(major=4, minor=5, build=6)
    assert (parsed.launch_mitigations, parsed.current_mitigations) == (0x11, 0x22)
    assert parsed.committed_tcb == bytes((1, 2, 0, 0, 0, 0, 3, 4))


@pytest.mark.parametrize(("bit", "name"), list(enumerate(
    ["smt", "tsme", "ecc", "rapl_disabled", "ciphertext_hiding", "alias_check_complete", "iommu_write_safe", "tio"]
)))  # fmt: skip
def test_each_platform_bit_has_its_name(bit: int, name: str) -> None:
    """One bit of PLATFORM_INFO sets one field; bits beyond are kept as unknown."""
    platform = parse_report(machine().report(REPORT_DATA, platform_info=1 << bit)).platform
    assert [field for field in platform.__slots__ if getattr(platform, field)] == [name]
    assert parse_report(machine().report(REPORT_DATA, platform_info=1 << 9)).platform.unknown == 1 << 9


@pytest.mark.parametrize(("bit", "name"), [
    (16, "smt"), (18, "migration_agent"), (19, "debug"), (20, "single_socket"), (21, "cxl"), (22, "memory_aes256"),
    (23, "rapl_disabled"), (24, "ciphertext_hiding"), (25, "page_swap_disabled"),
])  # fmt: skip
def test_each_guest_policy_bit_has_its_name(bit: int, name: str) -> None:
    """One bit of the guest policy sets one field."""
    policy = parse_report(machine().report(REPORT_DATA, policy=1 << 17 | 1 << bit)).policy
    assert [field for field in policy.__slots__ if getattr(policy, field)] == [name]


@pytest.mark.parametrize(("version", "cpuid", "vectors"), [(2, False, False), (3, True, False), (4, True, True), (5, True, True)])  # fmt: skip
def test_versions_differ_in_what_they_have(version: int, cpuid: bool, vectors: bool) -> None:
    """CPUID came with version 3, mitigation vectors with version 4."""
    parsed = parse_report(machine().report(REPORT_DATA, version=version))
    assert (parsed.cpuid is not None, parsed.launch_mitigations is not None) == (cpuid, vectors)


@pytest.mark.parametrize(("offset", "value", "changes"), [
    pytest.param(0x000, b"\x01", {}, id="version 1"),
    pytest.param(0x000, b"\x06", {}, id="version 6"),
    pytest.param(0x008, bytes(8), {}, id="policy bit 17 clear"),
    pytest.param(0x00B, b"\x04", {}, id="policy bit 26"),
    pytest.param(0x00F, b"\x80", {}, id="policy bit 63"),
    pytest.param(0x030, b"\x04", {}, id="vmpl 4"),
    pytest.param(0x034, b"\x02", {}, id="another signature algorithm"),
    pytest.param(0x048, b"\x08", {}, id="signing key 2"),
    pytest.param(0x048, b"\x20", {}, id="signer_info bit 5"),
    pytest.param(0x04C, b"\x01", {}, id="reserved after signer_info"),
    pytest.param(0x188, b"\x19", {"version": 2}, id="CPUID in version 2"),
    pytest.param(0x18B, b"\x01", {}, id="reserved after cpuid"),
    pytest.param(0x19F, b"\x01", {"version": 2}, id="reserved in version 2"),
    pytest.param(0x1EB, b"\x01", {}, id="reserved after the current firmware"),
    pytest.param(0x1EF, b"\x01", {}, id="reserved after the committed firmware"),
    pytest.param(0x1F8, b"\x01", {}, id="launch vector in version 3"),
    pytest.param(0x207, b"\x01", {}, id="current vector in version 3"),
    pytest.param(0x208, b"\x01", {"version": 5}, id="reserved before the signature, version 5"),
    pytest.param(0x29F, b"\x01", {}, id="reserved before the signature"),
    pytest.param(0x2A0 + 48, b"\x01", {}, id="above r"),
    pytest.param(0x2A0 + 143, b"\x01", {}, id="above s"),
    pytest.param(0x2A0 + 144, b"\x01", {}, id="after s"),
    pytest.param(0x49F, b"\x01", {}, id="last byte"),
])  # fmt: skip
def test_what_the_specification_reserves_is_malformed(
    offset: int, value: bytes, changes: dict[str, int]
) -> None:
    """Reserved bits, bytes and values are refused, each version with its own."""
    refused_by(Check.SNP_REPORT, MalformedError, lambda: parse_report(_edited(offset, value, **changes)))


def test_unsigned_reports_and_host_requests_parse() -> None:
    """Signing key 7 (none) and the host's VMPL are values of the format; judging them is left to others."""
    parsed = parse_report(machine().report(REPORT_DATA, signer_info=7 << 2, vmpl=0xFFFFFFFF))
    assert parsed.signer.signing_key is None
    assert parsed.vmpl == 0xFFFFFFFF


def test_any_other_length_is_malformed() -> None:
    """Every truncation and every longer file is refused."""
    report = machine().report(REPORT_DATA)
    for data in (*(report[:size] for size in range(len(report))), report + b"\0", b""):
        refused_by(Check.SNP_REPORT, MalformedError, lambda data=data: parse_report(data))  # type: ignore[misc]


@given(st.binary(min_size=1184, max_size=1184) | st.binary(max_size=64))
def test_any_bytes_give_a_report_or_malformed(data: bytes) -> None:
    """No input makes the parser fail in another way."""
    with suppress(MalformedError):
        assert isinstance(parse_report(data), Report)


@given(st.data())
def test_edited_reports_give_a_report_or_malformed(data: st.DataObject) -> None:
    """Nor does a real report with some bytes replaced, in any version."""
    report = bytearray(machine().report(REPORT_DATA, version=data.draw(st.sampled_from([2, 3, 4, 5]))))
    for _ in range(data.draw(st.integers(1, 8))):
        report[data.draw(st.integers(4, len(report) - 1))] = data.draw(st.integers(0, 255))
    with suppress(MalformedError):
        assert isinstance(parse_report(bytes(report)), Report)


@pytest.mark.parametrize(("cpuid", "product"), [
    ((0x19, 0x01, 1), Product.MILAN), ((0x19, 0x11, 1), Product.GENOA), ((0x19, 0xA0, 2), Product.GENOA),
    ((0x1A, 0x02, 1), Product.TURIN), ((0x1A, 0x11, 0), Product.TURIN), ((0x1A, 0x50, 0), None),
    ((0x19, 0x20, 0), None), ((0x17, 0x31, 0), None),
])  # fmt: skip
def test_the_product_is_told_from_cpuid_and_never_guessed(
    cpuid: tuple[int, int, int], product: Product | None
) -> None:
    """Known families and models have a line; all others have none."""
    assert product_of_cpuid(cpuid) is product


def test_turin_has_its_own_tcb_layout() -> None:
    """The same eight bytes mean other parts on Turin, and other bytes are reserved."""
    assert decode_tcb(bytes((1, 2, 3, 4, 0, 0, 0, 5)), Product.TURIN, "t") == Tcb(
        fmc=1, bootloader=2, tee=3, snp=4, microcode=5
    )
    assert decode_tcb(bytes((1, 2, 0, 0, 0, 0, 3, 4)), Product.MILAN, "t") == Tcb(
        bootloader=1, tee=2, snp=3, microcode=4
    )
    for raw, product in ((bytes((1, 2, 3, 4, 0, 0, 9, 5)), Product.TURIN), (bytes((1, 2, 3, 0, 0, 0, 3, 4)), Product.GENOA)):  # fmt: skip
        refused_by(Check.SNP_REPORT, MalformedError, lambda r=raw, p=product: decode_tcb(r, p, "t"))  # type: ignore[misc]
