"""The evidence document: a CMW collection, both directions, with limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.collateral import AmdCollateral, Collateral, IntelCollateral
from attestation.errors import MalformedError
from attestation.evidence import (
    MAX_DOCUMENT_BYTES,
    Evidence,
    SnpEvidence,
    TdxEvidence,
    dump_evidence,
    parse_evidence,
)
from attestation.nvidia.collateral import NvidiaCollateral

INTEL = IntelCollateral(
    pck_crl_issuer_chain="chain",
    root_ca_crl=b"\x01",
    pck_crl=b"\x02",
    tcb_info_issuer_chain="chain",
    tcb_info="{}",
    tcb_info_signature=b"\x03",
    qe_identity_issuer_chain="chain",
    qe_identity="{}",
    qe_identity_signature=b"\x04",
)
AMD = AmdCollateral(vek=b"vek", chain=b"chain", crl=b"crl")
NVIDIA = NvidiaCollateral(rims=(b"<rim/>",), ocsp=(b"ocsp",))
DOCUMENTS = [
    Evidence(statement=b"s", cpu=TdxEvidence(b"quote")),
    Evidence(
        statement=b"s",
        cpu=TdxEvidence(b"quote"),
        gpu=b"[]",
        collateral=Collateral(intel=INTEL, nvidia=NVIDIA),
    ),
    Evidence(statement=b"s", cpu=SnpEvidence(b"report"), collateral=Collateral(amd=AMD)),
    Evidence(
        statement=b"s",
        cpu=SnpEvidence(b"r"),
        collateral=Collateral(amd=AmdCollateral(vek=b"v", chain=b"c", crl=b"")),
    ),
]


@pytest.mark.parametrize("evidence", DOCUMENTS)
def test_a_document_survives_the_round_trip(evidence: Evidence) -> None:
    """What one side writes, the other reads."""
    assert parse_evidence(dump_evidence(evidence)) == evidence


def test_a_document_is_a_cmw_collection() -> None:
    """Members are [media type, base64url, indicator] under a typed collection, as RFC 9999 has it."""
    document = json.loads(dump_evidence(DOCUMENTS[1]))
    assert document["__cmwc_t"].startswith("tag:")
    assert document["cpu"] == ["application/vnd.attested-inference.tdx-quote", "cXVvdGU", 4]
    assert document["collateral"]["intel"][2] == 2


def _with(**changes: Any) -> bytes:
    document = json.loads(dump_evidence(DOCUMENTS[1]))
    document.update(changes)
    return json.dumps({k: v for k, v in document.items() if v is not ...}).encode()


TDX = "application/vnd.attested-inference.tdx-quote"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b"\xff\xfe",
        dump_evidence(DOCUMENTS[0])[:-1],
        dump_evidence(DOCUMENTS[0]) + b"x",
        _with(__cmwc_t="tag:other"),
        _with(statement=...),
        _with(unknown=["a", "b", 4]),
        _with(cpu=["application/octet-stream", "cXVvdGU", 4]),
        _with(cpu=[TDX, "cXVvdGU=", 4]),
        _with(cpu=[TDX, "cXVv dGU", 4]),
        _with(cpu=[TDX, "cXVvdGV", 4]),
        _with(cpu=[TDX, "é", 4]),
        _with(cpu=[TDX, 7, 4]),
        _with(cpu=[TDX]),
        _with(cpu={}),
        _with(collateral=[]),
        _with(collateral={"__cmwc_t": "tag:attested-inference,2026:collateral#1", "intel": [TDX, "e30", 2]}),
        _with(
            collateral={
                "__cmwc_t": "tag:attested-inference,2026:collateral#1",
                "amd-crl": ["application/pkix-crl", "e30"],
            }
        ),
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b" " * (MAX_DOCUMENT_BYTES + 1),
    ],
)
def test_anything_else_is_malformed(data: bytes) -> None:
    """Unknown, missing, mistyped, padded, oversized or deep documents are refused by name."""
    with pytest.raises(MalformedError) as error:
        parse_evidence(data)
    assert error.value.check is Check.EVIDENCE_FORMAT


@pytest.mark.parametrize("size", range(0, 200, 7))
def test_every_truncation_is_malformed(size: int) -> None:
    """No prefix of a document is a document."""
    with pytest.raises(MalformedError):
        parse_evidence(dump_evidence(DOCUMENTS[1])[:size])


@pytest.mark.parametrize(
    "changes",
    [{"tcb_info": 1}, {"root_ca_crl": "zz"}, {"extra": ""}, {"pck_crl": None}],
)
def test_intel_collateral_is_strict(changes: dict[str, Any]) -> None:
    """Mistyped, non-hex, unknown and missing fields are malformed."""
    raw = {**json.loads(INTEL.to_json()), **changes}
    with pytest.raises(MalformedError):
        IntelCollateral.parse(json.dumps(raw).encode())


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_any_bytes_give_evidence_or_a_malformed_error(data: bytes) -> None:
    """Never another exception."""
    with pytest.raises(MalformedError):
        parse_evidence(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["cpu", "statement", "gpu", "x"]), inner)
        ),
        max_leaves=12,
    )
)
def test_any_json_gives_evidence_or_a_malformed_error(value: Any) -> None:
    """Well-formed JSON of any other shape is malformed, not a crash."""
    with pytest.raises(MalformedError):
        parse_evidence(json.dumps(value).encode())
