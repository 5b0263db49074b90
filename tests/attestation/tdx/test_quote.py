"""Quotes as bytes: any input gives a quote or a MalformedError, and no changed bit is accepted."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.collateral import IntelCollateral
from attestation.errors import AttestationError, MalformedError
from attestation.simulator import DEFAULT_TD, DEFAULT_TD15, SimulatedTdx
from attestation.tdx import TdxClaims, parse_quote, verify
from attestation.tdx.quote import MAX_QUOTE_BYTES, TD15EX, ServiceTdHistory
from tests.attestation.tdx.second_opinion import ask

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HISTORY = ServiceTdHistory(
    vmid=2,
    td_id=b"\xa0" * 32,
    dev_info=b"\xd1" * 48,
    init_service_td_hash=b"\x11" * 48,
    init_service_td_attributes=b"\x12" * 8,
    init_cpu_svn=b"\x13" * 16,
    init_tee_tcb_svn=b"\x14" * 16,
    init_tee_fmspc=b"\x15" * 12,
    current_service_td_hash=b"\x16" * 48,
    current_service_td_attributes=b"\x17" * 8,
)
TD15EX_TD = replace(DEFAULT_TD15, body_type=TD15EX, history=HISTORY)
BODIES = {
    "v4": (DEFAULT_TD, 4),
    "v5-td10": (DEFAULT_TD, 5),
    "v5-td15": (DEFAULT_TD15, 5),
    "v5-td15ex": (TD15EX_TD, 5),
}


@cache
def simulator() -> SimulatedTdx:
    """One for the whole file: hypothesis does not like function-scoped fixtures."""
    return SimulatedTdx.create()


@cache
def good(kind: str) -> bytes:
    """A good quote of this kind."""
    td, version = BODIES[kind]
    return simulator().quote(bytes(range(64)), td=td, version=version)


@cache
def collateral() -> IntelCollateral:
    """What judges them."""
    return simulator().collateral(NOW)


def claims(quote: bytes) -> TdxClaims:
    """What a quote that verifies says."""
    return verify(quote, collateral(), (simulator().root,), NOW)


def refused_by(quote: bytes) -> Check | None:
    """The check that refuses `quote`, None when it is authentic."""
    try:
        claims(quote)
    except AttestationError as exc:
        return exc.check
    return None


@pytest.mark.parametrize("kind", BODIES)
def test_every_field_comes_back(kind: str) -> None:
    """Parsing gives what the simulator wrote, for each version and body type, and the second opinion reads it too."""
    td, version = BODIES[kind]
    quote = parse_quote(good(kind))
    assert quote.td == replace(td, report_data=bytes(range(64)))
    assert quote.version == version
    assert quote.user_data.startswith(b"SIMULATED")
    assert quote.padding == 0
    assert refused_by(good(kind)) is None
    assert ask(good(kind), collateral(), NOW, simulator().root_der) == ("UpToDate", ())


@pytest.mark.parametrize("kind", BODIES)
def test_every_truncation_is_refused(kind: str) -> None:
    """No prefix of a quote is a quote."""
    quote = good(kind)
    for size in range(len(quote)):
        with pytest.raises(MalformedError):
            parse_quote(quote[:size])


def test_padding_is_zeros_and_only_on_request() -> None:
    """Device files end in zeros; anything else after a quote is refused either way."""
    quote = good("v4")
    with pytest.raises(MalformedError) as caught:
        parse_quote(quote + bytes(70))
    assert caught.value.check is Check.TDX_FORMAT
    assert parse_quote(quote + bytes(70), padding=True).padding == 70
    for tail in (b"\x01", bytes(69) + b"\x01", quote):
        with pytest.raises(MalformedError):
            parse_quote(quote + tail, padding=True)


def test_size_is_bounded() -> None:
    """A quote is some kilobytes; a megabyte of zeros after it is not parsed."""
    with pytest.raises(MalformedError) as caught:
        parse_quote(good("v4") + bytes(MAX_QUOTE_BYTES), padding=True)
    assert "limit" in caught.value.detail


@pytest.mark.parametrize(
    ("offset", "value", "check", "words"),
    [
        (0, b"\x03\x00", Check.TDX_KIND, "an SGX quote"),
        (0, b"\x06\x00", Check.TDX_KIND, "version 6"),
        (2, b"\x03\x00", Check.TDX_KIND, "key type 3"),
        (4, b"\x00\x00", Check.TDX_KIND, "SGX"),
        (48, b"\x01\x00", Check.TDX_KIND, "an SGX enclave"),
        (48, b"\x05\x00", Check.TDX_KIND, "body type 5"),
        (48, b"\x02\x00", Check.TDX_FORMAT, "584"),
        (50, b"\x89\x02", Check.TDX_FORMAT, "649"),
        (50, b"\xff\xff\xff\xff", Check.TDX_FORMAT, "4294967295"),
        (702, b"\xff\xff\xff\x7f", Check.TDX_FORMAT, "only"),
        (834, b"\x05\x00", Check.TDX_KIND, "type 5, expected 6"),
        (836, b"\x00\x00", Check.TDX_FORMAT, "unexpected"),
        (1288, b"\xff\xff", Check.TDX_FORMAT, "expected 32"),
        (1322, b"\x01\x00", Check.TDX_KIND, "type 1, expected 5"),
        (1324, b"\x00\x00", Check.TDX_FORMAT, "unexpected"),
    ],
)
def test_headers_and_lengths_must_agree(offset: int, value: bytes, check: Check, words: str) -> None:
    """Types are refused by name, and every length must be exactly what it holds."""
    quote = good("v5-td15")
    with pytest.raises(MalformedError) as caught:
        parse_quote(quote[:offset] + value + quote[offset + len(value) :])
    assert caught.value.check is check
    assert words in caught.value.detail


@given(data=st.binary(max_size=2000))
@example(data=b"")
def test_any_bytes_give_a_quote_or_malformed(data: bytes) -> None:
    """Nothing but MalformedError leaves the parser."""
    _parse(data)
    _parse(b"\x04\x00\x02\x00\x81\x00\x00\x00" + data)


@given(
    kind=st.sampled_from(sorted(BODIES)),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
)
def test_edited_quotes_give_a_quote_or_malformed(kind: str, edits: list[tuple[int, int]]) -> None:
    """Nor from bytes that are almost a quote; and none of them verifies unless nothing changed."""
    quote = bytearray(good(kind))
    for position, value in edits:
        quote[position % len(quote)] = value
    _parse(bytes(quote))
    if refused_by(bytes(quote)) is None:
        assert claims(bytes(quote)) == claims(good(kind))


def _parse(data: bytes) -> None:
    with suppress(MalformedError):
        parse_quote(data)


def signed_bits(quote: bytes) -> range:
    """Positions of the signed part, the signature and the attestation key, in bits."""
    signed = len(parse_quote(quote).signed)
    return range((signed + 4 + 128) * 8)


def test_some_flipped_bits_are_refused() -> None:
    """A sample of the next test, for every day."""
    quote = good("v4")
    for bit in signed_bits(quote)[::97]:
        assert refused_by(_flip(quote, bit)) is not None, f"bit {bit}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", BODIES)
def test_every_flipped_bit_of_the_signed_part_is_refused(kind: str) -> None:
    """Header, body, signature and key: no single bit may change."""
    quote = good(kind)
    for bit in signed_bits(quote):
        assert refused_by(_flip(quote, bit)) is not None, f"bit {bit}"


@pytest.mark.slow
def test_every_flipped_bit_of_a_whole_quote_is_refused_or_says_nothing() -> None:
    """Certification data too. What may change is how certificates are wrapped in PEM, not a bit of what they say."""
    quote = good("v4")
    chain = quote.index(b"-----BEGIN") * 8
    for bit in range(chain):
        assert refused_by(_flip(quote, bit)) is not None, f"bit {bit}"
    free = [bit for bit in range(chain, len(quote) * 8) if refused_by(_flip(quote, bit)) is None]
    assert len(free) < 200  # white space and the line after the last certificate
    assert all(claims(_flip(quote, bit)) == claims(quote) for bit in free)


def _flip(quote: bytes, bit: int) -> bytes:
    changed = bytearray(quote)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
