"""Files from the command line are told apart by content, and refused where they could be read in two ways."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import MalformedError, UnavailableError
from client_sdk import files
from client_sdk.files import decode, parse_hex, parse_time, read_file, read_raw, read_root

BINARY = st.binary(min_size=66, max_size=300).map(lambda data: b"\x04\x00\xff\xff" + data)  # no text


@given(BINARY)
def test_three_spellings_say_the_same(data: bytes) -> None:
    """Raw bytes, hex in both cases and base64 in both alphabets, folded or not, give the same bytes."""
    folded = b"\r\n".join(b64encode(data)[i : i + 64] for i in range(0, len(data) * 2, 64))
    for text in (
        data,
        data.hex().encode(),
        data.hex().upper().encode() + b"\n",
        b"0x" + data.hex().encode(),
        b64encode(data),
        b"  " + folded + b"\n",
        urlsafe_b64encode(data),
        urlsafe_b64encode(data).rstrip(b"="),
    ):
        assert decode(text) == data


@given(st.binary(max_size=400) | st.text("0123456789abcdefABCDEFxg+/-_= \n", max_size=200).map(str.encode))
def test_any_bytes_are_read_or_malformed(data: bytes) -> None:
    """Nothing but bytes or MalformedError comes out, whatever goes in."""
    with suppress(MalformedError):
        assert isinstance(decode(data), bytes)


@pytest.mark.parametrize(
    "text",
    [
        b"00" * 32,  # hex of 32 bytes, or base64 of 48
        b"0" * 101,  # half a byte
        b"AAAAA",  # base64 cut short
        b"AAAA=",  # padding that belongs to nothing
        b"zz==",  # bits left over
        b"AA+A_AAAAAAA-A=",  # cut short, and both alphabets
    ],
)
def test_what_has_no_one_reading_is_refused(text: bytes) -> None:
    """Ambiguous or damaged spellings are errors, and never fall back to raw bytes that happen to parse."""
    if b"+" in text and b"_" in text:
        assert decode(text) == text  # not base64 at all: a parser of raw bytes will refuse it
        return
    with pytest.raises(MalformedError):
        decode(text)


def test_hex_of_a_nonce_needs_its_prefix_in_a_file() -> None:
    """32 bytes of hex are also base64 of 48; 0x says which."""
    assert decode(b"0x" + b"00" * 32) == bytes(32)


@pytest.mark.parametrize(
    "text", [b'{"a": 1}', b"[1]", b"-----BEGIN CERTIFICATE-----", b"<a/>", b"e30.e30.c2ln"]
)
def test_structured_text_stays_as_it_is(text: bytes) -> None:
    """JSON, PEM, XML and tokens are not spellings of something else."""
    assert decode(text) == text


def test_files_that_cannot_be_read_leave_the_question_open(tmp_path: Path) -> None:
    """A missing file, a folder and a name that no system takes are UnavailableError, with the reason."""
    with pytest.raises(UnavailableError, match="No such file"):
        read_file(tmp_path / "none")
    with pytest.raises(UnavailableError, match="directory"):
        read_file(tmp_path)
    with pytest.raises(UnavailableError):
        read_file(Path("\0"))


def test_empty_and_huge_files_are_malformed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit, and nothing is not evidence."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(MalformedError, match="empty"):
        read_raw(file)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    file.write_bytes(bytes(11))
    with pytest.raises(MalformedError, match="larger"):
        read_raw(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1787894484", datetime(2026, 8, 28, 5, 21, 24, tzinfo=UTC)),
        ("2026-08-28T05:21:24Z", datetime(2026, 8, 28, 5, 21, 24, tzinfo=UTC)),
        ("2026-08-28t05:21:24z", datetime(2026, 8, 28, 5, 21, 24, tzinfo=UTC)),
        ("2026-08-28T07:21:24.5+02:00", datetime(2026, 8, 28, 5, 21, 24, 500000, tzinfo=UTC)),
    ],
)
def test_times_are_rfc_3339_or_unix_seconds(text: str, expected: datetime) -> None:
    """Both notations give an aware time in UTC."""
    assert parse_time(text) == expected
    assert parse_time(text).tzinfo == timezone(timedelta(0))


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-08-28", "2026-08-28T05:21:24", "-1", "1e9", "9" * 30, "2026-13-01T00:00:00Z", "٣"],
)
def test_other_times_are_usage_errors(text: str) -> None:
    """No local time, no date alone, no guess."""
    with pytest.raises(typer.BadParameter):
        parse_time(text)


def test_a_nonce_is_hex() -> None:
    """With or without 0x; anything else is a usage error."""
    assert parse_hex("0x0aff") == parse_hex("0AFF") == b"\x0a\xff"
    with pytest.raises(typer.BadParameter):
        parse_hex("xyz")


def test_a_root_is_one_certificate(tmp_path: Path) -> None:
    """Its key is the trust anchor; what is no certificate is malformed."""
    file = tmp_path / "root.pem"
    file.write_bytes(b"no certificate")
    with pytest.raises(MalformedError):
        read_root(file)
