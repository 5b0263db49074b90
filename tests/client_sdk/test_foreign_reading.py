"""Other providers' formats as bytes: limits, formats that are known by name alone, and any bytes at all."""

from __future__ import annotations

import gzip
import json
import zlib
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError
from client_sdk.foreign.formats import MAX_REPORT_BYTES, recognise
from client_sdk.foreign.ratls import DSTACK_VERSIONED
from tests.client_sdk.evidence_files import NOW, amazon, amd, intel
from tests.client_sdk.foreign_judged import documents
from tests.client_sdk.foreign_servers import extension, identity, ratls, tinfoil_v2, wrap_v2


@pytest.mark.parametrize(("inside", "after"), [(b"\xa0", b""), (b"", b"\0")], ids=["claims", "evidence"])
def test_nothing_follows_a_cbor_value(inside: bytes, after: bytes) -> None:
    """A second value behind the claims, or bytes behind the evidence, would be read by some and not by others."""
    with pytest.raises(MalformedError, match="1 bytes after a CBOR value"):
        recognise(ratls("tcg", inside=inside, after=after).der)


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (lambda r: gzip.compress(bytes(MAX_REPORT_BYTES + 1)), "unpacks to more"),
        (lambda r: gzip.compress(bytes(200_000_000)), "unpacks to more"),
        (lambda r: gzip.compress(r) + b"\0", "after its gzip member"),
        (lambda r: gzip.compress(r) * 2, "after its gzip member"),
        (lambda r: gzip.compress(r)[:-1], "cut short"),
        (zlib.compress, "not gzip"),
    ],
    ids=["too large", "bomb", "trailing byte", "second member", "cut", "zlib"],
)
def test_a_body_is_one_gzip_member_of_bounded_size(pack: Callable[[bytes], bytes], said: str) -> None:
    """And nothing follows it."""
    with pytest.raises(MalformedError, match=said) as caught:
        recognise(tinfoil_v2(pack=pack))
    assert caught.value.check is Check.FOREIGN_FORMAT


def versioned(kind: bytes) -> bytes:
    """How dstack's attestation of version 1 begins, in MessagePack."""
    return b"\x83\xa7version\x01\xa8platform\x82\xa4kind" + kind + b"\xa4data\x80\xa5stack\x80"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"format":"https://tinfoil.sh/predicate/sev-snp-guest/v1","body":""}', "sev-snp-guest/v1"),
        (b'{"attestation_type":"chutes","nonce":"00"}', "chutes"),
        (b'{"api_version":"aci/1"}', "aci/1"),
        (b"{}", "no format"),
        (b'{"format":"https://tinfoil.sh/predicate/tdx-guest/v2","body":"","more":1}', "members"),
        (b'{"all_attestations":[1]}', "object"),
        (identity().der, "without a quote"),
        (b"", "evidence nitro"),
        (versioned(b"\xa7sev-snp"), "versioned attestation of an AMD SEV-SNP machine is not judged"),
        (versioned(b"\xa4next"), "versioned attestation is not judged"),
        (
            json.dumps({"attestation": versioned(b"\xa3tdx").hex()}).encode(),
            "of an Intel TDX machine is not judged here; .* `attested evidence tdx`",
        ),
        (b'{"attestation": "no hex"}', "versioned attestation is not judged"),
        (b'{"quote": "", "event_log": "[]", "report_data": "", "vm_config": "{}"}', "guest agent"),
        (
            identity([extension(DSTACK_VERSIONED, b"\4\x20" + versioned(b"\xa7sev-snp"))]).der,
            "AMD SEV-SNP machine .1.3",
        ),
        (
            json.dumps({"intel_quote": amd().report(bytes(64)).hex()}).encode(),
            "dstack report of an AMD SEV-SNP",
        ),
        (amd().report(bytes(64)), "SEV-SNP report without a document"),
        (b64encode(intel().quote(bytes(64))), "TDX quote without a document"),
        (wrap_v2(b"\1" + bytes(1183), tdx=False), "version 1, of firmware before"),
    ],
)
def test_what_is_known_by_name_alone_is_refused_by_its_name(data: bytes, said: str) -> None:
    """Formats of others that are not judged, and bytes of none."""
    with pytest.raises(MalformedError, match=said) as caught:
        recognise(data or b64encode(amazon().document(NOW)))
    assert caught.value.check in {Check.FOREIGN_FORMAT, Check.SNP_REPORT}


@given(st.data())
def test_any_bytes_are_read_or_malformed(data: st.DataObject) -> None:
    """Random bytes, and documents with bytes exchanged, cut out or repeated."""
    raw = data.draw(st.sampled_from(documents()) | st.binary(max_size=200))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(raw)))
        cut = data.draw(st.integers(0, 8))
        raw = raw[:at] + data.draw(st.binary(max_size=8)) + raw[at + cut :]
    with suppress(MalformedError):
        assert recognise(raw)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_value_in_any_member_is_read_or_malformed(data: st.DataObject) -> None:
    """JSON of other types where texts, lists and objects are expected, also inside the sections."""
    document = json.loads(data.draw(st.sampled_from(documents()[:3])))
    target: Any = document
    while True:
        name = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
        inner = target[name]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        target = inner
    target[name] = data.draw(_JSON | _JSON.map(lambda v: b64encode(json.dumps(v).encode()).decode()))
    with suppress(MalformedError):
        assert recognise(json.dumps(document).encode())
