"""The statement and the 64 bytes that the hardware signs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from datetime import UTC, datetime
from hashlib import sha256, sha512

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.binding import (
    PURPOSE,
    Engine,
    Image,
    Keys,
    Model,
    Statement,
    Topology,
    check_binding,
    check_statement_time,
    gpu_nonce,
    parse_statement,
    report_data,
)
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError

NONCE = bytes(range(32))
STATEMENT = Statement(
    v=1,
    purpose=PURPOSE,
    keys=Keys(
        receipt_ed25519=b"\x01" * 32,
        tls_spki_sha256=b"\x02" * 32,
        sealing_x_wing=b"\x05" * 1216,
        sealing_x25519=b"\x06" * 32,
    ),
    not_before=1_700_000_000,
    not_after=1_700_086_400,
    model=Model(names=("smollm2", "größe"), digest=b"\x03" * 32),
    engine=Engine(name="vllm", version="0.32.0", flags=("--dtype", "float32")),
    config=b"\x04" * 32,
    image=Image(build="dev", source="abc"),
)


def test_a_statement_survives_the_round_trip() -> None:
    """Parsing the canonical text gives the same statement."""
    assert parse_statement(STATEMENT.to_bytes()) == STATEMENT


def test_a_log_stands_in_a_statement_only_where_one_is_kept() -> None:
    """The members of a log are left out without one, and no text says null."""
    keys = dataclasses.replace(STATEMENT.keys, log_ed25519=b"\x07" * 32)
    logged = dataclasses.replace(STATEMENT, keys=keys, log_origin="example.com/log")
    assert parse_statement(logged.to_bytes()) == logged
    assert b"log" not in STATEMENT.to_bytes()
    raw = json.loads(STATEMENT.to_bytes())
    raw["keys"]["log_ed25519"] = None
    with pytest.raises(MalformedError, match="canonical"):
        parse_statement(json.dumps(raw, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode())


def test_a_topology_stands_whole_or_not_at_all() -> None:
    """Where the engine is not one process of the gateway's own its statement says so; a count of none is malformed."""
    topology = Topology(external=True, nodes=2, tensor_parallel=8)
    there = dataclasses.replace(STATEMENT, engine=dataclasses.replace(STATEMENT.engine, topology=topology))
    assert parse_statement(there.to_bytes()) == there
    assert b"topology" not in STATEMENT.to_bytes()
    nobody = dataclasses.replace(there.engine, topology=Topology(replicas=0))
    with pytest.raises(MalformedError, match=r"engine\.topology"):
        parse_statement(dataclasses.replace(there, engine=nobody).to_bytes())


def test_report_data_is_the_documented_formula() -> None:
    """The 64 bytes are computed here a second time, from docs/protocol.md alone."""
    text = STATEMENT.to_bytes()
    expected = sha512(
        b"attested-inference/report-data/v1\x00" + NONCE + sha256(text).digest() + sha256(b"gpu").digest()
    ).digest()
    assert report_data(NONCE, text, b"gpu") == expected
    assert (
        gpu_nonce(NONCE, text)
        == sha256(b"attested-inference/gpu-nonce/v1" + b"\x00" + NONCE + sha256(text).digest()).digest()
    )


def test_binding_holds_for_the_same_three_parts() -> None:
    """What report_data made, check_binding accepts."""
    check_binding(report_data(NONCE, b"s", b"g"), NONCE, b"s", b"g")


@pytest.mark.parametrize(
    ("nonce", "statement", "gpu"),
    [(b"\xff" * 32, b"s", b"g"), (NONCE, b"t", b"g"), (NONCE, b"s", b"h"), (NONCE, b"s", b"")],
    ids=["nonce", "statement", "gpu", "gpu dropped"],
)
def test_any_other_part_breaks_the_binding(nonce: bytes, statement: bytes, gpu: bytes) -> None:
    """Another nonce, statement or GPU is refused."""
    with pytest.raises(VerificationError) as error:
        check_binding(report_data(NONCE, b"s", b"g"), nonce, statement, gpu)
    assert error.value.check is Check.BINDING_REPORT_DATA


@pytest.mark.parametrize("gpu", [b"", b"g"])
def test_a_services_token_is_covered_too(gpu: bytes) -> None:
    """What is said of the layout, and that a token can be neither added, dropped, exchanged nor taken for evidence."""
    found = report_data(NONCE, b"s", gpu, b"token")
    both = sha256(sha256(gpu).digest() + sha256(b"token").digest()).digest()
    prefix = b"attested-inference/report-data/v1" + b"\x00"
    assert found == sha512(prefix + NONCE + sha256(b"s").digest() + both).digest()
    check_binding(found, NONCE, b"s", gpu, b"token")
    for other in ((gpu, b""), (gpu, b"another"), (gpu + b"token", b""), (b"token", gpu)):
        with pytest.raises(VerificationError):
            check_binding(found, NONCE, b"s", *other)
    with pytest.raises(VerificationError):
        check_binding(report_data(NONCE, b"s", gpu), NONCE, b"s", gpu, b"token")


def test_zero_report_data_is_refused_by_name() -> None:
    """Evidence that commits to nothing says so."""
    with pytest.raises(VerificationError, match="all zero") as error:
        check_binding(bytes(64), NONCE, b"s")
    assert error.value.check is Check.BINDING_REPORT_DATA


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_nonce_has_32_bytes(size: int) -> None:
    """Short and long nonces are malformed, on both sides."""
    with pytest.raises(MalformedError) as error:
        report_data(bytes(size), b"s")
    assert error.value.check is Check.BINDING_NONCE


@pytest.mark.parametrize(
    ("at", "ok"), [(1_699_999_999, False), (1_700_000_000, True), (1_700_086_401, False)]
)
def test_a_statement_counts_only_in_its_time(at: int, ok: bool) -> None:
    """Before not_before and after not_after it is refused."""
    now = datetime.fromtimestamp(at, UTC)
    if ok:
        check_statement_time(STATEMENT, now)
        return
    with pytest.raises(VerificationError) as error:
        check_statement_time(STATEMENT, now)
    assert error.value.check is Check.STATEMENT_VALIDITY


def _altered(**changes: object) -> bytes:
    raw = json.loads(STATEMENT.to_bytes())
    raw.update(changes)
    return json.dumps(
        {k: v for k, v in raw.items() if v is not ...}, sort_keys=True, separators=(",", ":")
    ).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"v":1}',
        STATEMENT.to_bytes() + b" ",
        json.dumps(json.loads(STATEMENT.to_bytes())).encode(),
        STATEMENT.to_bytes().replace(b'"v":1', b'"v":1,"v":1'),
        _altered(v=2),
        _altered(purpose="something else"),
        _altered(extra=1),
        _altered(image=...),
        _altered(config="00"),
        _altered(config="zz" * 32),
        _altered(not_before=5, not_after=4),
        _altered(not_after=2**60),
        _altered(not_after=True),
        _altered(model={"names": "smollm2", "digest": "03" * 32}),
        b"[" * 100_000,
        b"{" + b" " * 70_000 + b"}",
    ],
)
def test_anything_but_the_canonical_text_is_malformed(text: bytes) -> None:
    """Unknown, missing, mistyped, duplicated, re-spaced, oversized or deeply nested text is refused."""
    with pytest.raises(MalformedError) as error:
        parse_statement(text)
    assert error.value.check is Check.STATEMENT_FORMAT


@given(st.binary(max_size=300))
def test_any_bytes_give_a_statement_or_a_malformed_error(data: bytes) -> None:
    """Never another exception."""
    with pytest.raises(MalformedError):
        parse_statement(data)


@given(st.integers(min_value=0, max_value=len(STATEMENT.to_bytes()) - 1), st.integers(1, 255))
def test_every_flipped_byte_is_malformed_or_another_statement(index: int, flip: int) -> None:
    """No two texts have one meaning, so the digest always moves."""
    text = bytearray(STATEMENT.to_bytes())
    text[index] ^= flip
    with contextlib.suppress(MalformedError):
        assert parse_statement(bytes(text)) != STATEMENT


def test_the_digest_moves_with_every_field() -> None:
    """Two statements that differ anywhere have different texts."""
    other = dataclasses.replace(STATEMENT, image=Image(build="dev", source="abd"))
    assert other.to_bytes() != STATEMENT.to_bytes()
