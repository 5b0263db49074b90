"""The measured command line: what the initrd believes, and all that it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.guest.cmdline import FIXED, OPTIONAL, Measured, Verity, command_line, parse_command_line
from image.guest.linux import Refused

DIGEST, SALT = bytes(range(32)), b"salt"
MEASURED = Measured(root=Verity(root_hash=DIGEST, data_blocks=77, salt=SALT), config=DIGEST[::-1])
LINE = command_line(MEASURED)


def test_a_line_is_written_and_read() -> None:
    """The build's line says exactly what the guest reads from it."""
    assert f"enclave.root={DIGEST.hex()}:77:{SALT.hex()} enclave.config={DIGEST[::-1].hex()}" in LINE
    assert parse_command_line(LINE.encode()) == MEASURED
    assert parse_command_line(f"{LINE}\n".encode()) == MEASURED


def test_the_host_gives_no_acpi_code_and_gets_no_second_try() -> None:
    """The words that close what the kernel would do by itself are on every line."""
    assert {"acpi_no_static_ssdt", "panic=-1", "ro"} <= set(FIXED)
    for word in FIXED:
        with pytest.raises(Refused, match="once"):
            parse_command_line(LINE.replace(word, "", 1).encode())


@pytest.mark.parametrize("also", OPTIONAL)
@pytest.mark.parametrize("before", [True, False])
def test_words_that_firmware_adds_are_known(also: str, before: bool) -> None:
    """QEMU's firmware adds `initrd=initrd`, in front or behind by its version."""
    line = f"{also} {LINE}" if before else f"{LINE} {also}"
    assert parse_command_line(line.encode()) == MEASURED
    with pytest.raises(Refused, match="once"):
        parse_command_line(f"{line} {also}".encode())


@pytest.mark.parametrize(
    "word",
    [
        "init=/bin/sh",
        "rdinit=/bin/sh",
        "systemd.unit=rescue.target",
        "rd.break",
        "single",
        "root=/dev/vda",
        "console=hvc0",
        "panic=0",
        "rw",
        "mitigations=off",
        "module_blacklist=nf_tables",
        "lockdown=none",
        "kunit.enable=1",
        "--",
        '"ro',
        "enclave.rootx=1",
        "PYTHONSTARTUP=/dev/vdb",
        f"enclave.config={DIGEST.hex()}",
        f"enclave.root={DIGEST.hex()}:1:00",
        "ro",
    ],
)
def test_a_word_that_nobody_wrote_is_refused(word: str) -> None:
    """Unknown, or one too many: both change what the kernel or this program does."""
    with pytest.raises(Refused, match="command line"):
        parse_command_line(f"{LINE} {word}".encode())


@pytest.mark.parametrize("between", ["\t", "\n", "\v", "\f", "\r", "\x1c", "\x1d", "\x1e", "\x1f", "\0"])
def test_words_are_those_that_the_kernel_reads(between: str) -> None:
    """For the kernel `ro` and what follows would be one word, of which it knows nothing, or a line of another form."""
    with pytest.raises(Refused, match="command line"):
        parse_command_line(LINE.replace(" ro ", f" ro{between}").encode())
    assert parse_command_line(f" {LINE}  \n".encode()) == parse_command_line(LINE.encode())


@pytest.mark.parametrize(
    "root",
    [
        "",
        "x",
        f"{DIGEST.hex()}:77",
        f"{DIGEST.hex()}:0:00",
        f"{DIGEST.hex()}:077:00",
        f"{DIGEST.hex()}:-1:00",
        f"{DIGEST.hex()}:9999999999999:00",
        f"{DIGEST.hex()}:77:0",
        f"{DIGEST.hex()}:77:000",
        f"{DIGEST.hex()}:77:",
        f"{DIGEST.hex().upper()}A:77:00",
        f"{DIGEST.hex()[2:]}:77:00",
        f"{DIGEST.hex()}:77:00:1",
    ],
)
def test_a_root_that_is_not_fully_said_is_refused(root: str) -> None:
    """Hash, number of blocks and salt, each in its one form."""
    with pytest.raises(Refused, match="root hash"):
        parse_command_line(f"{' '.join(FIXED)} enclave.root={root} enclave.config={DIGEST.hex()}".encode())


@pytest.mark.parametrize("config", ["", "0", DIGEST.hex()[1:], DIGEST.hex() + "00", DIGEST.hex().upper()])
def test_a_configuration_digest_of_another_form_is_refused(config: str) -> None:
    """64 lower-case hex digits."""
    line = f"{' '.join(FIXED)} enclave.root={DIGEST.hex()}:1:00 enclave.config={config}"
    with pytest.raises(Refused, match="SHA-256"):
        parse_command_line(line.encode())


@given(st.binary(max_size=400))
def test_any_bytes_are_a_line_or_refused(line: bytes) -> None:
    """No other error leaves the parser."""
    with pytest.raises(Refused):
        parse_command_line(line)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 1 << 40), st.binary(min_size=1, max_size=256))
def test_every_line_leads_back_to_what_it_was_made_of(digest: bytes, blocks: int, salt: bytes) -> None:
    """Whatever can be measured can be said."""
    measured = Measured(root=Verity(root_hash=digest, data_blocks=blocks, salt=salt), config=digest)
    assert parse_command_line(command_line(measured, also=OPTIONAL).encode()) == measured


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40))
def test_any_further_word_is_refused(word: str) -> None:
    """But for the words that firmware adds."""
    if word not in OPTIONAL:
        with pytest.raises(Refused):
            parse_command_line(f"{LINE} {word}".encode())
