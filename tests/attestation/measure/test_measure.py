"""Event logs made by hand: the format's rules, what a replay proves and does not prove, and what policies accept."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256, sha384
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.measure import (
    Algorithm,
    EventLog,
    EventLogClaims,
    EventLogPolicy,
    LogKind,
    Registers,
    Role,
    parse_log,
    verify_log,
)
from attestation.measure import replay as replay_log
from attestation.measure.claims import EV_EVENT_TAG, EV_IPL
from attestation.measure.eventlog import EV_NO_ACTION, EV_SEPARATOR, MAX_EVENTS, MAX_LOG_BYTES
from tests.attestation.measure.logs import (
    ACPI,
    COMMAND_LINE,
    COMPOSE,
    INITRD,
    KERNEL,
    Entry,
    boot,
    entry,
    grub,
    header,
    log,
)


def _digest(data: bytes) -> bytes:
    return sha384(data).digest()


POLICY = EventLogPolicy(
    kernels=frozenset({_digest(KERNEL)}),
    initrds=frozenset({_digest(INITRD)}),
    command_lines=frozenset({COMMAND_LINE}),
    other_events=frozenset({_digest(ACPI)}),
)


def _registers(parsed: EventLog) -> Registers:
    """The registers of a machine on which exactly these events happened."""
    values = replay_log(parsed, Algorithm.SHA384)
    return Registers.rtmrs([values.get(register, bytes(48)) for register in (1, 2, 3, 4)])


def _claims(entries: Sequence[Entry]) -> EventLogClaims:
    parsed = parse_log(log(entries))
    return verify_log(parsed, _registers(parsed))


# The format


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header(2),
        header(type=4),
        header(digest=b"\1"),
        header(signature=b"Spec ID Event02\0"),
        header(major=1),
        header(count=2),
        header(count=0),
        header(algorithms=[(12, 32)]),
        header(algorithms=[(0x27, 32)]),  # an algorithm that nobody here knows
        header(algorithms=[(12, 48), (12, 48)]),
        header(algorithms=[(12, 48)] * 9),
        header(vendor=b"\2x"),
        header(vendor=b"\0x"),
        header() + entry(5, 1, b"", b""),  # a TD has no such register
        header(0) + entry(24, 1, b"", b""),
        header() + entry(1, 1, b"", b"", [12, 12]),
        header() + entry(1, 1, b"", b"", [11]),
        header() + entry(1, 1, b"", b"", []),
        header(algorithms=[(11, 32), (12, 48)]) + entry(1, 1, b"", b"", [12, 12]),
        header(algorithms=[(11, 32), (12, 48)]) + entry(1, 1, b"", b"", [12]),
        header() + entry(1, EV_SEPARATOR, b"", b""),
        header() + entry(2, EV_SEPARATOR, bytes(4), bytes(4)) * 2,
        header() + entry(1, EV_SEPARATOR, bytes(4), bytes(4)) * 3,
        header(0) + entry(1, EV_SEPARATOR, bytes(4), bytes(4)) * 2,
        header() + b"\xff" * 16 + entry(1, 1, b"", b""),
        header() + bytes(16) + b"\1",
        header() + b"\xff" * 8 + bytes(8),
        header() + entry(0, EV_NO_ACTION, b"", b"StartupLocality\0\5"),
        header() + entry(0, EV_NO_ACTION, b"", b"StartupLocality\0"),
        header() + entry(1, 1, b"", b"")[:-4] + b"\xff\xff\xff\x7f",
        bytes(MAX_LOG_BYTES + 1),
        header() + entry(1, 1, b"", b"") * (MAX_EVENTS + 1),
    ],
    ids=range(33),
)
def test_a_log_out_of_shape_is_malformed(data: bytes) -> None:
    """Unknown algorithms, wrong sizes, duplicate separators and anything after the padding are refused."""
    with pytest.raises(MalformedError) as failed:
        parse_log(data)
    assert failed.value.check is Check.EVENTLOG_FORMAT


@pytest.mark.parametrize("padding", [b"", b"\xff" * 7, b"\xff" * 100, bytes(5), bytes(64)])
def test_padding_ends_a_log(padding: bytes) -> None:
    """The rest of a firmware's log area may be ones or zeros."""
    assert len(parse_log(log(boot()) + padding).events) == len(boot())


def test_rtmr0_may_have_two_separators() -> None:
    """PCR1 and PCR7 share it, and firmware has drawn the line for each."""
    parse_log(header() + entry(1, EV_SEPARATOR, bytes(4), bytes(4)) * 2)


def test_a_log_may_have_several_banks() -> None:
    """Each bank of a TPM's log replays for itself."""
    parsed = parse_log(header(0, [(4, 20), (11, 32), (12, 48)]) + entry(4, 1, b"x", b"", [4, 11, 12]))
    assert replay_log(parsed, Algorithm.SHA256) == {4: sha256(bytes(32) + sha256(b"x").digest()).digest()}
    assert {len(value) for value in replay_log(parsed, Algorithm.SHA1).values()} == {20}


def test_a_startup_locality_counts() -> None:
    """PCR0 starts with the locality, and resettable PCRs with ones."""
    event = (
        struct.pack("<III", 0, EV_NO_ACTION, 1) + struct.pack("<H", 11) + bytes(32) + struct.pack("<I", 17)
    )
    data = header(0, [(11, 32)]) + event + b"StartupLocality\0\3"
    parsed = parse_log(data + entry(0, 1, b"x", b"", [11]) + entry(17, 1, b"x", b"", [11]))
    extended = sha256(b"x").digest()
    assert replay_log(parsed, Algorithm.SHA256) == {
        0: sha256(bytes(31) + b"\3" + extended).digest(),
        17: sha256(b"\xff" * 32 + extended).digest(),
    }


@given(st.binary(max_size=300))
def test_any_bytes_are_a_log_or_malformed(data: bytes) -> None:
    """No bytes raise anything else, alone or behind a good header."""
    for log_bytes in (data, header() + data, header(0) + data):
        with suppress(MalformedError):
            parse_log(log_bytes)


@given(st.binary(max_size=40), st.integers(0, 500), st.integers(0, 500))
def test_any_edit_of_a_log_is_a_log_or_malformed(data: bytes, start: int, size: int) -> None:
    """Nor does any edit of a good log, parsed and replayed."""
    good = log(boot())
    with suppress(MalformedError, VerificationError):
        parsed = parse_log(good[:start] + data + good[start + size :])
        verify_log(parsed, _registers(parsed))


# What a replay proves


def test_a_log_of_this_boot_is_accepted() -> None:
    """Claims have registers, order, digests, and data only where a digest covers it."""
    claims = _claims(boot())
    assert [e.register for e in claims.events] == ["RTMR0"] * 2 + ["RTMR1"] * 3 + ["RTMR2"] * 2 + [
        "RTMR1"
    ] * 2
    assert [e.data is not None for e in claims.events] == [
        False,
        True,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    assert claims.digests(Role.KERNEL) == (_digest(KERNEL),)
    assert claims.dstack is None
    assert POLICY.check(claims) == []


@pytest.mark.parametrize("edit", ["drop", "swap", "alter", "add"])
def test_a_log_of_another_boot_is_refused(edit: str) -> None:
    """Less, more, other events, or the same in another order do not lead to the quote's registers."""
    entries = boot()
    registers = _registers(parse_log(log(entries)))
    if edit == "drop":
        del entries[5]
    if edit == "swap":
        entries[5], entries[6] = entries[6], entries[5]
    if edit == "alter":
        entries[6] = (3, EV_EVENT_TAG, b"another initrd", entries[6][3])
    if edit == "add":
        entries.append(grub("set pager=1"))
    with pytest.raises(VerificationError, match="RTMR2 is the first") as failed:
        verify_log(parse_log(log(entries)), registers)
    assert failed.value.check is Check.EVENTLOG_REPLAY


def test_a_register_without_events_must_be_untouched() -> None:
    """What the quote has in a register must come from the log, also when the log has nothing."""
    parsed = parse_log(log(boot()))
    values = dict(_registers(parsed).values) | {4: b"\1" * 48}
    registers = Registers(kind=LogKind.CC, algorithm=Algorithm.SHA384, values=values)
    with pytest.raises(VerificationError, match="RTMR3"):
        verify_log(parsed, registers)
    assert verify_log(parsed, registers, leave_out={4}).left_out == ("RTMR3",)


def test_a_register_that_the_quote_lacks_is_refused() -> None:
    """Events of a register that nobody quoted prove nothing; the initial values of quoted ones are known."""
    parsed = parse_log(header(0) + entry(4, 1, b"x", b""))
    for values in ({}, {0: bytes(48)}):
        with pytest.raises(VerificationError, match="PCR4, which the quote does not cover"):
            verify_log(parsed, Registers.pcrs(values, Algorithm.SHA384))
    quoted = replay_log(parsed, Algorithm.SHA384) | {0: bytes(48), 17: b"\xff" * 48}
    assert verify_log(parsed, Registers.pcrs(quoted, Algorithm.SHA384)).events[0].register == "PCR4"


def test_a_log_and_registers_of_different_kinds_are_refused() -> None:
    """A CCEL says nothing about PCRs, and a log without SHA-384 nothing about RTMRs."""
    with pytest.raises(VerificationError, match="cannot explain") as failed:
        verify_log(parse_log(log(boot())), Registers.pcrs({}, Algorithm.SHA384))
    assert failed.value.check is Check.EVENTLOG_REPLAY
    with pytest.raises(VerificationError) as failed:
        verify_log(parse_log(header(1, [(11, 32)])), Registers.rtmrs([bytes(48)] * 4))
    assert failed.value.check is Check.EVENTLOG_ALGORITHM


def test_what_a_log_calls_an_event_changes_nothing_that_counts() -> None:
    """Relabelled by the host, an unknown initrd is still an unknown digest."""
    entries = boot()
    entries[6] = (3, EV_EVENT_TAG, b"evil", b"some label")
    entries.append(
        (3, EV_EVENT_TAG, INITRD, b'\xec";\x8f\r\0\0\0Linux initrd\0')
    )  # the good one, loaded as data
    violations = POLICY.check(_claims(entries))
    assert [v.check for v in violations] == [Check.EVENTLOG_OTHER]
    assert _digest(b"evil").hex() in violations[0].found


@pytest.mark.parametrize(
    ("text", "measured"),
    [
        (b"grub_cmd set pager=1\0\xfe", b"set pager=1\0"),
        (b"grub_cmd: set pager=1\0", b"set pager=1"),
        (b"grub_kernel_cmdline /vmlinuz ro\0_", b"/vmlinuz ro"),
        (b"kernel_cmdline: /vmlinuz ro\0", b"/vmlinuz ro"),
        (b"kernel_cmdline: /vmlinuz ro\0", b"/vmlinuz rw"),
    ],
)
def test_grubs_texts_are_claims_only_when_covered(text: bytes, measured: bytes) -> None:
    """The text after GRUB's prefix, with and without its NUL, if its digest is the event's."""
    claims = _claims([(3, EV_IPL, measured, text)])
    covered = not measured.endswith(b"rw")
    assert claims.events[0].data == (measured if covered else None)
    if b"kernel" in text:
        assert claims.command_lines == (("/vmlinuz ro",) if covered else ())


# Policy


@pytest.mark.parametrize(
    ("changed", "entries", "check"),
    [
        ({"kernels": frozenset()}, [], Check.EVENTLOG_KERNEL),
        ({"kernels": frozenset({bytes(48)})}, [], Check.EVENTLOG_KERNEL),
        ({}, [(2, 0x80000003, b"evil", b"")], Check.EVENTLOG_KERNEL),
        ({"initrds": frozenset()}, [], Check.EVENTLOG_INITRD),
        ({}, [(3, EV_EVENT_TAG, b"evil", b'\xec";\x8f')], Check.EVENTLOG_INITRD),
        ({"command_lines": frozenset({COMMAND_LINE + " init=/bin/sh"})}, [], Check.EVENTLOG_COMMAND_LINE),
        ({"command_lines": frozenset()}, [], Check.EVENTLOG_COMMAND_LINE),
        ({}, [(3, EV_IPL, b"evil", b"kernel_cmdline: evil\0")], Check.EVENTLOG_COMMAND_LINE),
        ({"other_events": frozenset()}, [], Check.EVENTLOG_FIRMWARE),
        ({}, [grub("set pager=1")], Check.EVENTLOG_OTHER),
        ({}, [(4, EV_EVENT_TAG, b"x", b"x")], Check.EVENTLOG_RUNTIME),
        (
            {"compose_hashes": frozenset({COMPOSE}), "any_app_id": True, "any_key_provider": True},
            [],
            Check.EVENTLOG_COMPOSE,
        ),
    ],
)
def test_a_policy_refuses(changed: dict[str, Any], entries: list[Entry], check: Check) -> None:
    """Each expectation, not met, is exactly one violation under its name, with what was expected and found."""
    (violation,) = replace(POLICY, **changed).check(_claims(boot() + entries))
    assert violation.check is check
    assert violation.expected
    assert violation.found


@pytest.mark.parametrize(
    ("changed", "entries"),
    [
        ({"any_kernel": True, "kernels": frozenset()}, [(2, 0x80000003, b"evil", b"")]),
        ({"any_initrd": True, "initrds": frozenset()}, []),
        ({"any_command_line": True, "command_lines": frozenset()}, []),
        ({"any_firmware_event": True, "other_events": frozenset()}, []),
        ({"any_other_event": True}, [grub("set pager=1")]),
        ({"any_runtime_event": True}, [(4, EV_EVENT_TAG, b"x", b"x")]),
        (
            {"other_events": frozenset({_digest(ACPI), _digest(b"set pager=1"), _digest(b"x")})},
            [grub("set pager=1"), (4, 6, b"x", b"")],
        ),
        ({}, [(2, 0x80000007, b"Exit Boot Services Returned with Failure", b"")]),
    ],
)
def test_a_policy_accepts_what_it_names(changed: dict[str, Any], entries: list[Entry]) -> None:
    """Each loosening has a name, and does what it says; a retried exit from boot services needs none."""
    assert replace(POLICY, **changed).check(_claims(boot() + entries)) == []


@pytest.mark.parametrize("measured", [COMMAND_LINE.encode(), COMMAND_LINE.encode() + b"\0"])
def test_a_command_line_is_known_in_every_form(measured: bytes) -> None:
    """As GRUB and systemd-stub measure it, besides the form of Linux' EFI stub."""
    entries = boot()
    entries[5] = (3, EV_IPL, measured, ".cmdline\0".encode("utf-16le"))
    assert POLICY.check(_claims(entries)) == []
