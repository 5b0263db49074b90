"""Simulated Nitro documents: every defect is refused by the check that is for it, and policies say why they refuse."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.nitro import Missing, NitroClaims, NitroMeasurement, NitroPolicy, parse_document, verify
from attestation.nitro.document import MAX_DOCUMENT_BYTES
from attestation.roots import VENDOR
from attestation.simulator.nitro import PCRS, PROTECTED, NitroDefect, SimulatedNitro

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOST = SimulatedNitro()
ROOTS = (HOST.root,)
IMAGE = NitroMeasurement(pcr0=PCRS[0], pcr1=PCRS[1], pcr2=PCRS[2])
POLICY = NitroPolicy(measurements=(IMAGE,))

DEFECTS = {
    NitroDefect.OTHER_ROOT: Check.NITRO_ROOT,
    NitroDefect.BUNDLE_REVERSED: Check.NITRO_ROOT,
    NitroDefect.ROOT_NOT_SELF_SIGNED: Check.NITRO_CHAIN,
    NitroDefect.LINK_MISSING: Check.NITRO_CHAIN,
    NitroDefect.LINK_FORGED: Check.NITRO_CHAIN,
    NitroDefect.CA_IS_NOT_CA: Check.NITRO_CHAIN,
    NitroDefect.CA_WITHOUT_USAGE: Check.NITRO_CHAIN,
    NitroDefect.PATH_LENGTH: Check.NITRO_CHAIN,
    NitroDefect.CRITICAL_EXTENSION: Check.NITRO_CHAIN,
    NitroDefect.LEAF_IS_CA: Check.NITRO_CHAIN,
    NitroDefect.LEAF_P256: Check.NITRO_SIGNATURE,
    NitroDefect.CA_EXPIRED: Check.NITRO_CERTIFICATE_DATES,
    NitroDefect.LEAF_EXPIRED: Check.NITRO_CERTIFICATE_DATES,
    NitroDefect.LEAF_NOT_YET: Check.NITRO_CERTIFICATE_DATES,
    NitroDefect.OTHER_KEY: Check.NITRO_SIGNATURE,
    NitroDefect.PAYLOAD_ALTERED: Check.NITRO_SIGNATURE,
}


def _claims(**fields: Any) -> NitroClaims:
    return verify(HOST.document(NOW, **fields), ROOTS, NOW)


@pytest.mark.parametrize("tagged", [False, True])
def test_a_sound_document_is_accepted(tagged: bool) -> None:
    """With and without the CBOR tag 18: the same claims, and a policy that names the image has no objection."""
    claims = verify(HOST.document(NOW, tagged=tagged), ROOTS, NOW)
    assert claims.root == HOST.root
    assert claims.timestamp == NOW
    assert claims.collateral_expires == NOW + timedelta(days=1)
    assert POLICY.check(claims, NOW) == []


def test_every_defect_is_listed() -> None:
    """No defect of the simulator goes without its expected check."""
    assert set(DEFECTS) == set(NitroDefect)


@pytest.mark.parametrize(("defect", "check"), DEFECTS.items(), ids=[d.name for d in DEFECTS])
def test_a_defect_fails_its_check(defect: NitroDefect, check: Check) -> None:
    """Each defect of chain or signature is refused under the name of its check."""
    with pytest.raises(VerificationError) as failed:
        verify(HOST.document(NOW, defect), ROOTS, NOW)
    assert failed.value.check is check


def test_no_vendor_policy_trusts_the_simulator() -> None:
    """A simulated document is refused under the default roots."""
    with pytest.raises(VerificationError) as failed:
        verify(HOST.document(NOW), VENDOR.aws, NOW)
    assert failed.value.check is Check.NITRO_ROOT


def test_the_simulator_keeps_its_root(tmp_path: Path) -> None:
    """Made twice over one folder, a host has one trust anchor."""
    assert SimulatedNitro.load_or_create(tmp_path).root == SimulatedNitro.load_or_create(tmp_path).root


# What the bytes may say


@pytest.mark.parametrize(
    "fields",
    [
        {"module_id": ""},
        {"module_id": b"i-simulated"},
        {"module_id": ...},
        {"digest": "SHA256"},
        {"timestamp": 0},
        {"timestamp": 1.5},
        {"timestamp": True},
        {"timestamp": 1 << 63},
        {"pcrs": {}},
        {"pcrs": {32: bytes(48)}},
        {"pcrs": {-1: bytes(48)}},
        {"pcrs": {"0": bytes(48)}},
        {"pcrs": {True: bytes(48)}},
        {"pcrs": {0: bytes(32)}},
        {"pcrs": [bytes(48)]},
        {"certificate": b""},
        {"certificate": b"not a certificate"},
        {"certificate": bytes(1025)},
        {"cabundle": []},
        {"cabundle": b"x"},
        {"cabundle": [b"not a certificate"]},
        {"cabundle": [b"x"] * 9},
        {"public_key": "text"},
        {"public_key": bytes(1025)},
        {"user_data": bytes(513)},
        {"nonce": bytes(513)},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_payload_out_of_shape_is_malformed(fields: dict[str, Any]) -> None:
    """Missing, unknown, mistyped, too short and too long members are refused, signed or not."""
    with pytest.raises(MalformedError) as failed:
        _claims(**fields)
    assert failed.value.check is Check.NITRO_FORMAT


@pytest.mark.parametrize(
    ("value", "expected"), [(..., Missing.ABSENT), (None, Missing.NULL), (b"", b""), (b"x", b"x")]
)
def test_absent_null_and_empty_are_different(value: Any, expected: bytes | Missing) -> None:
    """An optional member keeps the way in which it has no value."""
    claims = _claims(nonce=value, user_data=value, public_key=value)
    assert (claims.nonce, claims.user_data, claims.public_key) == (expected, expected, expected)


def _message(payload: bytes) -> bytes:
    return cbor2.dumps([PROTECTED, {}, payload, HOST.sign(payload)])


def _payload() -> bytes:
    return bytes(cbor2.loads(HOST.document(NOW))[2])


def test_an_indefinite_outermost_map_is_accepted() -> None:
    """Amazon's newer documents have one; this is the only long form that is read."""
    payload = _payload()
    verify(_message(b"\xbf" + payload[1:] + b"\xff"), ROOTS, NOW)


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: b"\xaa" + p[1:] + p[1:].split(b"SHA384")[0] + b"SHA384",  # members twice
        lambda p: p.replace(b"\x66SHA384", b"\x7f\x66SHA384\xff"),  # indefinite text
        lambda p: p.replace(b"\x66SHA384", b"\x78\x06SHA384"),  # a length in long form
        lambda p: p.replace(b"\x64pcrs\xb0", b"\x64pcrs\xb8\x10"),
        lambda p: p + b"\0",
        lambda p: b"\xbf" + p[1:],  # no break
        lambda p: b"\xbf" + p[1:] + b"\xff\xff",
        lambda p: b"\x81" * 100 + p,  # deep
        lambda p: b"",
    ],
)
def test_any_other_encoding_is_malformed(edit: Any) -> None:
    """Duplicate keys, indefinite lengths inside, long forms, tails and depth are refused, though signed."""
    with pytest.raises(MalformedError):
        verify(_message(edit(_payload())), ROOTS, NOW)


@pytest.mark.parametrize(
    "message",
    [
        [cbor2.dumps({1: -7}), {}, b"", bytes(96)],  # another algorithm
        [cbor2.dumps({1: -35, 4: b"k"}), {}, b"", bytes(96)],
        [PROTECTED, {4: b"k"}, b"", bytes(96)],
        [PROTECTED, [], b"", bytes(96)],
        [PROTECTED, {}, None, bytes(96)],
        [PROTECTED, {}, b"", bytes(95)],
        [PROTECTED, {}, b""],
        {},
        cbor2.CBORTag(17, [PROTECTED, {}, b"", bytes(96)]),
        cbor2.CBORTag(18, cbor2.CBORTag(18, [PROTECTED, {}, b"", bytes(96)])),
    ],
    ids=str,
)
def test_another_message_is_malformed(message: Any) -> None:
    """Only COSE_Sign1 with ES384 and no other header is read."""
    with pytest.raises(MalformedError):
        parse_document(cbor2.dumps(message))


def test_a_large_document_is_malformed() -> None:
    """Size is looked at before anything else."""
    with pytest.raises(MalformedError, match="limit"):
        parse_document(bytes(MAX_DOCUMENT_BYTES + 1))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_document_or_malformed(data: bytes) -> None:
    """No bytes raise anything else."""
    with suppress(MalformedError):
        parse_document(data)


@given(st.data())
def test_any_altered_payload_is_a_document_or_malformed(data: st.DataObject) -> None:
    """No edit of a well-formed payload raises anything but MalformedError."""
    payload = _PAYLOAD
    start = data.draw(st.integers(0, len(payload)))
    stop = data.draw(st.integers(start, len(payload)))
    edited = payload[:start] + data.draw(st.binary(max_size=16)) + payload[stop:]
    with suppress(MalformedError):
        parse_document(cbor2.dumps([PROTECTED, {}, edited, bytes(96)]))


_PAYLOAD = _payload()


# What a policy accepts


@pytest.mark.parametrize(
    ("changed", "fields", "check"),
    [
        ({"measurements": ()}, {}, Check.NITRO_MEASUREMENT),
        ({}, {"pcrs": PCRS | {0: bytes(48)}}, Check.NITRO_MEASUREMENT),
        ({"measurements": (replace(IMAGE, pcr8=b"\1" * 48),)}, {}, Check.NITRO_MEASUREMENT),
        ({"any_measurement": True}, {"pcrs": {i: bytes(48) for i in range(16)}}, Check.NITRO_DEBUG),
        ({"any_measurement": True}, {"pcrs": {4: b"\1" * 48}}, Check.NITRO_DEBUG),
        ({}, {"timestamp": int((NOW - timedelta(seconds=301)).timestamp() * 1000)}, Check.NITRO_AGE),
        ({}, {"timestamp": int((NOW + timedelta(seconds=61)).timestamp() * 1000)}, Check.NITRO_AGE),
        ({}, {"nonce": b"n"}, Check.NITRO_NONCE),
        ({}, {"nonce": b""}, Check.NITRO_NONCE),
        ({"nonce": b"n"}, {}, Check.NITRO_NONCE),
        ({"nonce": b""}, {"nonce": ...}, Check.NITRO_NONCE),
        ({"nonce": b"n"}, {"nonce": b"m"}, Check.NITRO_NONCE),
        ({"user_data": b"u"}, {"user_data": b"v"}, Check.NITRO_USER_DATA),
        ({"public_key": b"k"}, {"public_key": None}, Check.NITRO_PUBLIC_KEY),
    ],
)
def test_a_policy_refuses(changed: dict[str, Any], fields: dict[str, Any], check: Check) -> None:
    """Each expectation, not met, is exactly one violation under its name."""
    assert [v.check for v in replace(POLICY, **changed).check(_claims(**fields), NOW)] == [check]


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({"measurements": (), "any_measurement": True}, {}),
        ({"measurements": (), "any_measurement": True, "allow_debug": True}, {"pcrs": {0: bytes(48)}}),
        ({"any_age": True}, {"timestamp": 1}),
        (
            {"any_nonce": True, "any_user_data": True, "any_public_key": True},
            {"nonce": b"n", "user_data": b"u"},
        ),
        (
            {"nonce": b"n", "user_data": b"u", "public_key": b"k"},
            {"nonce": b"n", "user_data": b"u", "public_key": b"k"},
        ),
        ({}, {"nonce": ..., "user_data": ..., "public_key": ...}),
    ],
)
def test_a_policy_accepts_what_it_names(changed: dict[str, Any], fields: dict[str, Any]) -> None:
    """Each loosening has a name, and does what it says."""
    assert replace(POLICY, **changed).check(_claims(**fields), NOW) == []


def test_a_new_policy_reports_everything_at_once() -> None:
    """A policy without a word in it refuses; all reasons are listed, with what was expected and found."""
    claims = _claims(
        pcrs={i: bytes(48) for i in range(3)}, nonce=b"n", user_data=b"u", public_key=b"k", timestamp=1
    )
    violations = NitroPolicy().check(claims, NOW)
    assert [v.check for v in violations] == [
        Check.NITRO_DEBUG,
        Check.NITRO_MEASUREMENT,
        Check.NITRO_AGE,
        Check.NITRO_NONCE,
        Check.NITRO_USER_DATA,
        Check.NITRO_PUBLIC_KEY,
    ]
    assert all(v.expected and v.found for v in violations)
