"""Manifests: XML is read safely, in one form only, and only what is signed counts."""

from __future__ import annotations

import re
from base64 import b64encode

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.rim import MAX_RIM_BYTES, Rim, load_rim
from attestation.simulator.nvidia import SimulatedNvidia
from attestation.simulator.nvidia_pki import RIM_NAMES, authorities, issue
from attestation.simulator.nvidia_rim import make_rim
from attestation.simulator.pki import p384_key
from tests.attestation.nvidia.conftest import NOW, is_malformed, outcome

CHAIN = [issue("signer", p384_key(), (A := authorities(p384_key(), RIM_NAMES))[2], ca=False), *A[::-1]]
VALUE = b"v" * 48
GOOD = make_rim("GH100", "1.0", {0: [VALUE], 3: [b"a" * 48, b"b" * 48]}, CHAIN, min_svns={40: 2})


def refused(data: bytes) -> str:
    """The message with which `data` is refused as malformed."""
    with pytest.raises(MalformedError) as error:
        load_rim(data)
    assert error.value.check is Check.GPU_RIM_FORMAT
    return error.value.detail


def signed(change: str, by: str) -> bytes:
    """A manifest that NVIDIA might have signed with other text in it: changed before it is signed."""
    from lxml import etree
    from signxml.algorithms import CanonicalizationMethod, DigestAlgorithm, SignatureMethod
    from signxml.signer import XMLSigner

    unsigned = re.sub(rb"<ds:Signature.*</ds:Signature>", b"", GOOD, flags=re.DOTALL).decode()
    assert change in unsigned
    root = etree.fromstring(unsigned.replace(change, by).encode())
    signer = XMLSigner(
        signature_algorithm=SignatureMethod.ECDSA_SHA384,
        digest_algorithm=DigestAlgorithm.SHA384,
        c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_1,
    )
    return bytes(etree.tostring(signer.sign(root, key=CHAIN[0].key, cert=[link.cert for link in CHAIN])))


def test_content() -> None:
    """Product, version, active values with all their alternatives, minimum SVNs and the chain."""
    rim = load_rim(GOOD)
    assert (rim.product, rim.version, dict(rim.min_svns)) == ("GH100", "1.0", {40: 2})
    assert dict(rim.golden) == {0: (VALUE,), 3: (b"a" * 48, b"b" * 48)}
    assert rim.chain == tuple(link.cert for link in CHAIN)
    assert load_rim(GOOD) is rim


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        ('active="True"', 'active="true"', "active must be True or False"),
        ('index="3"', 'index="0"', "index 0 appears twice"),
        ('index="3"', 'index="-3"', "index must be a number"),
        ('index="3"', 'index="٣"', "index must be a number"),
        ('alternatives="2"', 'alternatives="0"', "has no alternative"),
        ('alternatives="2"', 'alternatives="3"', "alternative 2 of index 3 is not"),
        ("61" * 48, "61" * 47, "alternative 0 of index 3 is not"),
        ('type="Measurement"', 'type="File"', "unexpected"),
        ('minSvn="2"', 'minSvn="two"', "minSvn of index 4136 must be a number"),
        ('product="GH100"', 'product=""', "no product"),
        ('colloquialVersion="1.0"', "", "no colloquialVersion"),
        ("<Meta ", "<Mate ", "one Meta"),
        ('active="True"', 'active="False"', "no measurement is active"),
    ],
)
def test_bad_content(change: str, by: str, message: str) -> None:
    """A well signed manifest that is not of measurements is malformed."""
    assert message in refused(signed(change, by))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not XML"),
        (b"<a/>", "must be a SoftwareIdentity"),
        (b"<a>" * 40 + b"</a>" * 40, "nested deeper"),
        (GOOD.decode().encode("utf-16"), "not UTF-8"),
        (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "document type"),
        (
            GOOD.replace(b"<SoftwareIdentity", b'<?xml version="1.0" encoding="x-none"?><SoftwareIdentity')[
                :-9
            ],
            "not XML",
        ),
        (GOOD + b" " * MAX_RIM_BYTES, "the limit is"),
        (GOOD.replace(b'URI=""', b'URI="#x"'), "refer to the whole document"),
        (GOOD.replace(b"ecdsa-sha384", b"ecdsa-sha256"), "unexpected signature algorithms"),
        (GOOD.replace(b"#enveloped-signature", b"#base64"), "unexpected signature algorithms"),
    ],
)
def test_bad_form(data: bytes, message: str) -> None:
    """Other encodings, entities, depths, references and algorithms are refused before anything is judged."""
    assert message in refused(data)


def _certificates(data: bytes, ders: list[bytes]) -> bytes:
    nodes = b"".join(b"<ds:X509Certificate>" + b64encode(d) + b"</ds:X509Certificate>" for d in ders)
    return re.sub(
        rb"<ds:X509Data>.*</ds:X509Data>", b"<ds:X509Data>" + nodes + b"</ds:X509Data>", data, flags=re.DOTALL
    )


def test_bad_certificates() -> None:
    """Certificates that are none, too many or too few are malformed; another's is not the signer's."""
    ders = [link.der for link in CHAIN]
    assert "expected 1 to 8 certificates, found 0" in refused(_certificates(GOOD, []))
    assert "found 9" in refused(_certificates(GOOD, ders[:1] * 9))
    assert "not a DER certificate" in refused(_certificates(GOOD, [b"?"]))
    refused(_certificates(GOOD, ders).replace(b"<ds:X509Certificate>M", b"<ds:X509Certificate>!", 1))
    with pytest.raises(VerificationError) as error:
        load_rim(_certificates(GOOD, ders[1:]))
    assert error.value.check is Check.GPU_RIM_SIGNATURE


def test_signature_wrapping() -> None:
    """A second payload, a second signature or a signature elsewhere does not make other values golden."""
    signature = re.search(rb"<ds:Signature.*</ds:Signature>", GOOD, re.DOTALL)
    assert signature is not None
    found = signature.group()
    assert "exactly one Signature" in refused(
        GOOD.replace(b"</SoftwareIdentity>", found + b"</SoftwareIdentity>")
    )
    inside = GOOD.replace(found, b"").replace(b"</Payload>", found + b"</Payload>")
    assert "exactly one Signature" in refused(inside)
    evil = GOOD.replace(b"<Payload>", b"<Payload/><Payload>", 1)
    with pytest.raises(VerificationError) as error:
        load_rim(evil)
    assert error.value.check is Check.GPU_RIM_SIGNATURE


def test_comments_do_not_count() -> None:
    """What canonicalization drops, the reader does not see."""
    commented = GOOD.replace(b"<Payload>", b"<Payload><!-- x -->")
    assert load_rim(commented).golden == load_rim(GOOD).golden


@settings(max_examples=60, deadline=None)
@given(st.integers(min_value=0, max_value=len(GOOD) - 1), st.integers(min_value=0, max_value=255))
def test_any_changed_byte(position: int, value: int) -> None:
    """A manifest with one byte changed is refused, or says what it said before."""
    changed = GOOD[:position] + bytes([value]) + GOOD[position + 1 :]
    found, same = outcome(load_rim, changed), load_rim(GOOD)
    if isinstance(found, Rim):
        assert (found.product, found.version, found.golden) == (same.product, same.version, same.golden)
    else:
        assert found.check in {Check.GPU_RIM_FORMAT, Check.GPU_RIM_SIGNATURE}


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes(data: bytes) -> None:
    """Any bytes give a manifest or a MalformedError."""
    found = outcome(load_rim, data)
    assert isinstance(found, Rim) or is_malformed(found, Check.GPU_RIM_FORMAT)


def test_collateral_round_trips(nvidia: SimulatedNvidia) -> None:
    """Collateral survives its JSON; a nonce is the caller's own and stays out of it."""
    collateral = nvidia.collateral(NOW)
    assert NvidiaCollateral.parse(collateral.to_json()) == collateral
    assert NvidiaCollateral.parse(nvidia.collateral(NOW, nonce=b"n").to_json()).ocsp_nonce is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"rims": []}',
        b'{"rims": [], "ocsp": [], "more": 1}',
        b'{"rims": [1], "ocsp": []}',
        b'{"rims": {}, "ocsp": []}',
        b'{"rims": ["?"], "ocsp": []}',
        b'{"rims": [], "ocsp": [%s]}' % b",".join([b'""'] * 257),
    ],
)
def test_bad_collateral(data: bytes) -> None:
    """Collateral that is not lists of base64 is malformed."""
    with pytest.raises(MalformedError) as error:
        NvidiaCollateral.parse(data)
    assert error.value.check is Check.EVIDENCE_FORMAT


def test_der_is_what_the_simulator_issues() -> None:
    """The signer's certificate in the manifest is the one that made it."""
    assert load_rim(GOOD).chain[0].public_bytes(Encoding.DER) == CHAIN[0].der
