"""What is computed, held against logs that real machines left: three boots under emulation and three TDs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from hashlib import sha384
from pathlib import Path

import pytest

from attestation.measure import Algorithm, Event, LogKind, parse_log
from attestation.release import ExpectedEvent
from attestation.tdx import parse_quote
from image.errors import ImageError
from image.measure import efi, pcr, rtmr
from image.measure.authenticode import parse_pe
from image.measure.efi import GLOBAL, IMAGE_SECURITY, Measured
from image.measure.profiles import PROFILES, Profile
from image.measure.snp import takes_hashes
from image.measure.tdvf import parse_tdvf
from tests.image.measure.files import VARIABLES, kernel, layout, unified
from tests.vectors import needs_vectors, read

pytestmark = needs_vectors

GIB = 1 << 30
INSTALLED = Path("/usr/share/ovmf/OVMF.fd")
FIRMWARE = Path(__file__).parents[3] / ".cache" / "firmware" / "2026.08"
DIRECT = {
    "boot-direct-qemu7.2-edk2-2022.11": "qemu7.2-edk2-2022.11",
    "boot-direct-qemu10-edk2-2026.08": "qemu10-edk2-2026.08",
}


def events(name: str, register: int) -> list[Event]:
    return [e for e in parse_log(read(f"eventlog/{name}")).events if e.register == register and e.type != 3]


def digests(name: str, register: int) -> list[bytes]:
    return [event.digests[Algorithm.SHA384] for event in events(name, register)]


def extend(digests: Iterable[bytes | None]) -> bytes:
    """What a register holds after these."""
    return reduce(lambda value, digest: sha384(value + (digest or b"")).digest(), digests, bytes(48))


def both(event: Measured) -> tuple[bytes, bytes]:
    return event.sha256, event.sha384


@pytest.mark.parametrize(("log", "profile"), DIRECT.items())
def test_a_direct_boot(log: str, profile: str) -> None:
    """Everything in PCRs 1 and 4 but the kernel and the host's tables is as its profile says, in this order."""
    found = digests(f"{log}.evlog", 4)
    assert found[1:] == [efi.action(efi.CALLING).sha384, efi.separator().sha384]
    computed = pcr.direct(kernel(), b"initrd", "ro", PROFILES[profile], memory=2 * GIB)
    assert [e.sha384 for e in computed.events if e.register == "PCR4"][1:] == found[1:]
    variables = [efi.boot_variable(*v).sha384 for v in PROFILES[profile].boot_variables]
    ours = [event for event in events(f"{log}.evlog", 1) if event.type == 0x80000002]
    assert [event.digests[Algorithm.SHA384] for event in ours] == variables
    acpi = [event for event in events(f"{log}.evlog", 1) if event.type == 0xA]
    assert len(acpi) == (
        4 if PROFILES[profile].acpi else 0
    )  # with a TPM there is one table more than in a TD
    smbios = [event for event in events(f"{log}.evlog", 1) if event.type == 0x80000009]
    assert bool(smbios) is PROFILES[profile].handoff_tables


@pytest.mark.parametrize(("log", "profile"), DIRECT.items())
def test_secure_boots_variables_without_keys(log: str, profile: str) -> None:
    """PCR 7 of a firmware without keys, in both banks."""
    computed = (
        efi.variable("SecureBoot", PROFILES[profile].secure_boot, GLOBAL),
        efi.variable("PK", b""),
        efi.variable("KEK", b""),
        efi.variable("db", b"", IMAGE_SECURITY),
        efi.variable("dbx", b"", IMAGE_SECURITY),
        efi.separator(),
    )
    found = [
        (event.digests[Algorithm.SHA256], event.digests[Algorithm.SHA384])
        for event in events(f"{log}.evlog", 7)
    ]
    assert found == [both(event) for event in computed]


@pytest.mark.parametrize(
    ("log", "register", "retries"),
    [
        ("boot-direct-qemu7.2-edk2-2022.11.evlog", 5, 0),
        ("boot-direct-qemu10-edk2-2026.08.evlog", 5, 0),
        ("boot-disk-uki-qemu10.evlog", 5, 1),
        ("ccel-cdai-live2.bin", 2, 0),
        ("ccel-dstack.bin", 2, 0),
    ],
)
def test_leaving_boot_services(log: str, register: int, retries: int) -> None:
    """One of the boots was refused once and asked again: both forms are among those that are enumerated."""
    computed = [event.sha384 for event in efi.exits(retries)]
    assert digests(log, register)[-len(computed) :] == computed
    assert digests(log, register).count(computed[0]) == retries + 1


def test_a_partition_table() -> None:
    """The event of a real disk's table, computed anew from a disk with the same table."""
    (event,) = (e for e in events("boot-disk-uki-qemu10.evlog", 5) if e.type == 0x80000006)
    header, entries = event.data[:92], event.data[100:]
    disk = bytes(512) + header.ljust(512, b"\0") + entries.ljust(128 * 128, b"\0")
    computed = efi.partition_table(disk)
    assert both(computed) == (event.digests[Algorithm.SHA256], event.digests[Algorithm.SHA384])


def test_the_names_of_a_unified_images_sections() -> None:
    """systemd-stub 257 measured .uname and .sbat too; 252, of which Debian 12 makes images, does not."""
    found = digests("boot-disk-uki-qemu10.evlog", 11)
    names = [b".linux\0", b".osrel\0", b".cmdline\0", b".initrd\0", b".uname\0", b".sbat\0"]
    assert found[::2] == [efi.measured("", "", name).sha384 for name in names]
    for stub, expected in ((252, 4), (257, 5)):  # the test's image has no .uname
        image = parse_pe(unified(kernel(), b"initrd", b"ro", stub=stub), "image")
        ours = [e.sha384 for e in pcr.sections(image, stub)[::2]]
        assert len(ours) == expected
        assert ours[:4] == found[:8:2]


@pytest.mark.parametrize(
    ("log", "gib", "temporary"),
    [
        ("ccel-dstack.bin", 1, (0x811000, 0xF000)),
        ("ccel-cdai-live2.bin", 2, (0x811000, 0xF000)),
        ("ccel-trustee-ovmf.bin", 2, (0x810000, 0x10000)),
    ],
)
def test_the_memory_handed_to_a_td(log: str, gib: int, temporary: tuple[int, int]) -> None:
    """The first event of three real TDs' RTMR0 is the TD HOB of their memory and firmware."""
    assert layout(temporary).hand_off(gib * GIB).sha384 == digests(log, 1)[0]


def test_debians_own_firmware() -> None:
    """The layout that a real TD's first event came from is that of Debian 12's OVMF; no kernel hashes are in it."""
    if not INSTALLED.is_file():
        pytest.skip(f"{INSTALLED} is not here: apt-get install ovmf")
    found = parse_tdvf(INSTALLED.read_bytes())
    assert found.hand_off(2 * GIB).sha384 == digests("ccel-trustee-ovmf.bin", 1)[0]
    assert not found.secure_boot
    assert not takes_hashes(INSTALLED)


def test_firmware_for_confidential_vms() -> None:
    """Debian's builds for TDX and SEV-SNP: keys in the one, kernel hashes in the other."""
    tdx, snp = FIRMWARE / "OVMF.inteltdx.ms.fd", FIRMWARE / "OVMF.amdsev.fd"
    if not (tdx.is_file() and snp.is_file()):
        pytest.skip(f"no ovmf-inteltdx and ovmf-amdsev in {FIRMWARE}")
    assert parse_tdvf(tdx.read_bytes()).secure_boot
    assert takes_hashes(snp)
    assert not takes_hashes(tdx)


def rtmr0_of(memory: int, profile: Profile, host: rtmr.HostEvents | None = None) -> tuple[ExpectedEvent, ...]:
    if not VARIABLES.is_file():
        pytest.skip(f"{VARIABLES} is not here: apt-get install ovmf")
    firmware = layout((0x811000, 0xF000), VARIABLES.read_bytes())
    found, _ = rtmr.rtmr0(firmware, profile, host, memory=memory)
    return found


@pytest.mark.parametrize(("log", "gib"), [("ccel-dstack", 1), ("ccel-cdai-live2", 2)])
def test_rtmr0_of_real_hardware(log: str, gib: int) -> None:
    """Memory, Debian's variables, Secure Boot, boot options: with the host's tables from the log this is the quote's RTMR0."""
    profile = PROFILES["qemu10-edk2-2025.02"]
    expected = rtmr0_of(gib * GIB, profile)
    assert [event.what for event in expected if event.sha384 is None] == [
        "ACPI table-loader",
        "ACPI rsdp",
        "ACPI tables",
    ]
    host = rtmr.host_events(parse_log(read(f"eventlog/{log}.bin")), expected)
    complete = rtmr0_of(gib * GIB, profile, host)
    value = extend(event.sha384 for event in complete)
    assert value == parse_quote(read(f"eventlog/{log}.quote.bin")).td.rtmr0


def test_a_log_of_another_shape_explains_nothing() -> None:
    """A log is no excuse: what can be computed is, and has to agree."""
    log = parse_log(read("eventlog/ccel-cdai-live2.bin"))
    with pytest.raises(ImageError, match=r"event 1 of RTMR0 .* memory handed over"):
        rtmr.host_events(log, rtmr0_of(4 * GIB, PROFILES["qemu10-edk2-2025.02"]))
    with pytest.raises(ImageError, match="13 events in RTMR0, expected 10"):
        rtmr.host_events(log, rtmr0_of(2 * GIB, PROFILES["qemu10-edk2-2022.11"]))
    with pytest.raises(ImageError, match="13 events in RTMR0, expected 15"):
        rtmr.host_events(log, rtmr0_of(2 * GIB, PROFILES["qemu10-edk2-2026.08"]))
    other = parse_log(read("eventlog/boot-disk-uki-qemu10.evlog"))
    assert other.kind is LogKind.TPM
    with pytest.raises(ImageError, match="none of a TD"):
        rtmr.host_events(other, rtmr0_of(2 * GIB, PROFILES["qemu10-edk2-2025.02"]))


@pytest.mark.parametrize("log", ["ccel-cdai-live2", "ccel-dstack"])
def test_rtmr1_of_real_hardware(log: str) -> None:
    """With its kernel's digest in the place of ours, the events computed are RTMR1 of a real quote; so is the order."""
    found = digests(f"{log}.bin", 2)
    ours = rtmr.rtmr1(kernel(), b"initrd", PROFILES["qemu10-edk2-2025.02"], memory=2 * GIB, retries=0)
    computed = [found[0], *(event.sha384 for event in ours[1:])]
    assert computed == found
    if log != "ccel-dstack":  # its quote is of another boot than its log, as its publisher says
        assert extend(computed) == parse_quote(read(f"eventlog/{log}.quote.bin")).td.rtmr1
