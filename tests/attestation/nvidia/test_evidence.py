"""Parsing of reports and lists: real ones are read, everything else is malformed and nothing else."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.nvidia.devices import GpuDevice, GpuState, dump_list, parse_list
from attestation.nvidia.evidence import Arch, Feature, GpuEvidence, arch_of_chip, parse_evidence
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.nvidia_report import binary_vbios, make_report, plain_opaque, typed_opaque
from attestation.simulator.pki import p384_key
from tests.attestation.nvidia.conftest import NONCE, is_malformed, outcome

KEY = p384_key()
FIELDS = {3: b"580.95.05\0", 6: binary_vbios("96.00.74.00.1A"), 11: b"\x55"}
DIGESTS = [bytes([i]) * 48 for i in range(3)]


def report(fields: Mapping[int, bytes | None]) -> bytes:
    """A small report with FIELDS, changed; None leaves one out."""
    merged = {**FIELDS, **fields}
    return make_report(KEY, NONCE, DIGESTS, plain_opaque({k: v for k, v in merged.items() if v is not None}))


def refused(data: bytes) -> str:
    """The message with which `data` is refused as malformed."""
    with pytest.raises(MalformedError) as error:
        parse_evidence(data)
    assert error.value.check is Check.GPU_FORMAT
    return error.value.detail


def test_a_small_report() -> None:
    """Every field that is read stands where the report has it."""
    pdis = bytes(range(8)) + bytes(8) + bytes(range(8))
    more = {20: b"f" * 48, 14: b"\x01\x02\0\0", 15: b"882\0", 17: b"1010", 18: b"0200", 21: b"\xaa"}
    evidence = parse_evidence(
        report(more | {22: pdis, 34: b"\x01\0", 35: b"GB100\0", 36: b"\x02\0", 99: b"?"})
    )
    assert (evidence.driver, evidence.vbios, evidence.nonce) == ("580.95.05", "96.00.74.00.1A", NONCE)
    assert (evidence.fwid, evidence.board_id, evidence.chip_sku) == (b"f" * 48, 0x201, "882")
    assert (evidence.project, evidence.project_sku, evidence.chip) == ("1010", "0200", "GB100")
    assert (evidence.nvdec0, evidence.protected_pcie, evidence.feature) == (False, True, Feature.PPCIE)
    assert evidence.pdis == (bytes(range(8))[::-1],)
    assert (evidence.opaque_version, evidence.switch, evidence.measurements) == (1, False, tuple(DIGESTS))


def test_the_typed_layout() -> None:
    """Newer drivers put a header before the fields, and types into them."""
    evidence = parse_evidence(make_report(KEY, NONCE, DIGESTS, typed_opaque(FIELDS, {40: 7})))
    assert (evidence.opaque_version, evidence.driver, dict(evidence.svns)) == (2, "580.95.05", {40: 7})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({3: None}, "field 3 (driver) is missing"),
        ({6: None}, "field 6 (vbios) is missing"),
        ({11: None}, "field 11 (nvdec0) must be aa or 55, found nothing"),
        ({11: b"\x56"}, "must be aa or 55, found 56"),
        ({6: b"96.00"}, "must have 8 bytes"),
        ({3: b"5\xff"}, "must be a name or version"),
        ({20: b"short"}, "must have 48 bytes"),
        ({21: b""}, "must be aa or 55"),
        ({22: b"1234567"}, "must be PDIs of 8 bytes"),
        ({14: b""}, "must have 1 to 4 bytes"),
        ({34: b"\x03"}, "unknown opaque data version 3"),
        ({36: b"\x03"}, "unknown feature 3"),
    ],
)
def test_bad_fields(fields: dict[int, bytes | None], message: str) -> None:
    """A field that does not hold what it should is refused by name, never guessed at."""
    assert message in refused(report(fields))


def test_a_switch_needs_its_own_pdi() -> None:
    """A switch's report names the switch."""
    good = {3: None, 6: b"96.10.55.00.01", 11: None, 26: bytes(128)}
    assert parse_evidence(report({**good, 22: b"12345678"})).pdis == (b"12345678",)
    assert "field 22 (pdi) is missing" in refused(report(good))


def test_fields_may_not_repeat() -> None:
    """A field that stands twice could be read either way."""
    opaque = plain_opaque(FIELDS)
    assert "appears twice" in refused(make_report(KEY, NONCE, DIGESTS, opaque + opaque))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0x12, "the request for all measurements"),
        (3, 0x01, "the request for all measurements"),
        (36, 8, "certificate slot 8"),
        (37, 0x10, "the response code"),
        (41, 2, "do not make a record"),
        (41, 0, "do not make a record"),
        (45, 9, "block 1 must have index 1"),
        (46, 2, "block 1 must have index 1"),
        (47, 1, "block 1 must have index 1"),
        (50, 1, "block 1 must have index 1"),
    ],
)
def test_bad_bytes(offset: int, value: int, message: str) -> None:
    """Each fixed byte of request and response is held to its value."""
    data = bytearray(report({}))
    data[offset] = value
    assert message in refused(bytes(data))


def test_every_truncation_is_refused() -> None:
    """No prefix of a report is a report, and only zeros may follow one."""
    data = report({})
    for length in range(len(data)):
        refused(data[:length])
    assert parse_evidence(data + bytes(100)) == parse_evidence(data)
    assert "unexpected bytes" in refused(data + b"\0\1")
    assert "the limit is" in refused(data + bytes(64 * 1024))


@given(st.binary(max_size=300))
def test_any_opaque_bytes(opaque: bytes) -> None:
    """Any opaque data gives a value or a MalformedError."""
    found = outcome(parse_evidence, make_report(KEY, NONCE, DIGESTS, opaque))
    assert isinstance(found, GpuEvidence) or is_malformed(found, Check.GPU_FORMAT)


@given(st.binary(max_size=500), st.integers(min_value=0, max_value=400))
def test_any_bytes(noise: bytes, start: int) -> None:
    """Any bytes, and any damage to a report, give a value or a MalformedError."""
    good = report({})
    for data in (noise, good[:start] + noise + good[start + len(noise) :]):
        found = outcome(parse_evidence, data)
        assert isinstance(found, GpuEvidence) or is_malformed(found, Check.GPU_FORMAT)


def test_architectures_are_never_guessed() -> None:
    """Chips of known families have an architecture; any other is refused with its name."""
    assert [arch_of_chip(c) for c in ("GH100", "GB100", "GB202", "LS_10")] == [
        Arch.HOPPER,
        Arch.BLACKWELL,
        Arch.BLACKWELL,
        Arch.LS10,
    ]
    for chip in ("GR100", "GA100", "GB300", "gh100", "", "GH100 "):
        with pytest.raises(MalformedError, match="unknown architecture: chip"):
            arch_of_chip(chip)


def test_lists_round_trip() -> None:
    """What `dump_list` writes, `parse_list` reads, with and without the driver's state."""
    state = GpuState(confidential=True, devtools=False, ready=True)
    devices = (
        GpuDevice(report=b"r", chain=b"c", arch=Arch.HOPPER, nonce=NONCE, state=state),
        GpuDevice(report=b"", chain=b"", arch=Arch.LS10),
    )
    assert parse_list(dump_list(devices)) == devices


GOOD = {"arch": "HOPPER", "evidence": b64encode(b"r").decode(), "certificate": b64encode(b"c").decode()}


def test_foreign_members_are_not_read() -> None:
    """NVIDIA's own list has versions beside the report; the signed report has them too."""
    (device,) = parse_list(json.dumps([{**GOOD, "version": "1.0", "driver_version": "1"}]).encode())
    assert device == GpuDevice(report=b"r", chain=b"c", arch=Arch.HOPPER)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        [GOOD] * 65,
        ["text"],
        [{**GOOD, "arch": "RUBIN"}],
        [{**GOOD, "arch": 1}],
        [{**GOOD, "evidence": "?"}],
        [{k: v for k, v in GOOD.items() if k != "certificate"}],
        [{**GOOD, "nonce": "00"}],
        [{**GOOD, "nonce": "xx" * 32}],
        [{**GOOD, "state": {}}],
        [{**GOOD, "state": {"confidential": 1, "devtools": False, "ready": True}}],
        [{**GOOD, "state": {"confidential": True, "devtools": False, "ready": True, "more": 1}}],
    ],
)
def test_bad_lists(value: Any) -> None:
    """A list that is not of devices is malformed."""
    with pytest.raises(MalformedError) as error:
        parse_list(json.dumps(value).encode())
    assert error.value.check is Check.GPU_FORMAT


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*GOOD, "nonce", "state"]), inner, max_size=5)
        ),
        max_leaves=12,
    )
)
def test_any_list(value: Any) -> None:
    """Any JSON gives devices or a MalformedError."""
    found = outcome(parse_list, json.dumps(value).encode())
    assert isinstance(found, tuple) or is_malformed(found, Check.GPU_FORMAT)


def test_no_list_is_no_device(nvidia: SimulatedNvidia) -> None:
    """Machines of one and of several GPUs list each of them."""
    assert len(parse_list(nvidia.evidence(NONCE))) == 1
    assert len(parse_list(SimulatedNvidia.create(Machine(gpus=3, switches=2)).evidence(NONCE))) == 5
