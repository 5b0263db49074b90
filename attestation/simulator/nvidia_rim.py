"""Simulated reference manifests: really signed SWID XML, in NVIDIA's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives import serialization
from lxml import etree
from signxml.algorithms import (
    CanonicalizationMethod,
    DigestAlgorithm,
    SignatureConstructionMethod,
    SignatureMethod,
)
from signxml.signer import XMLSigner

from attestation.nvidia.evidence import DIGEST_BYTES
from attestation.simulator import pki

_SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_HASH = "http://www.w3.org/2001/04/xmlenc#sha384"
_OPAQUE = "https://docs.nvidia.com/attestation/specs/latest/opaque-data.html"
_FIRST_SVN = 0x1000
RESOURCES = 64


def make_rim(
    product: str,
    version: str,
    golden: Mapping[int, Sequence[bytes]],
    chain: Sequence[pki.Signer],
    *,
    min_svns: Mapping[int, int] | None = None,
) -> bytes:
    """A manifest signed by the first of `chain`, which it carries whole."""
    root = etree.Element(
        f"{{{_SWID}}}SoftwareIdentity", nsmap={None: _SWID, "hash": _HASH, "opaque": _OPAQUE}, name=product
    )
    etree.SubElement(
        root, f"{{{_SWID}}}Meta", colloquialVersion=version, product=product, edition="SIMULATED"
    )
    payload = etree.SubElement(root, f"{{{_SWID}}}Payload")
    for index in range(RESOURCES):
        values = list(golden.get(index, ()))
        _resource(payload, index, active=bool(values), values=values or [bytes(DIGEST_BYTES)])
    for kind, least in (min_svns or {}).items():
        node = etree.SubElement(payload, f"{{{_SWID}}}Resource", type="Measurement", active="True")
        node.set("index", str(_FIRST_SVN + kind))
        node.set("name", f"simulated SVN {kind}")
        node.set(f"{{{_OPAQUE}}}minSvn", str(least))
    signer = XMLSigner(
        method=SignatureConstructionMethod.enveloped,
        signature_algorithm=SignatureMethod.ECDSA_SHA384,
        digest_algorithm=DigestAlgorithm.SHA384,
        c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_1,
    )
    key = chain[0].key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    signed = signer.sign(root, key=key, cert=[link.cert for link in chain])
    return bytes(etree.tostring(signed))


def _resource(payload: etree._Element, index: int, *, active: bool, values: Sequence[bytes]) -> None:
    node = etree.SubElement(payload, f"{{{_SWID}}}Resource", type="Measurement", index=str(index))
    node.set("active", str(active))
    node.set("alternatives", str(len(values)))
    node.set("name", f"simulated measurement {index}")
    node.set("size", str(DIGEST_BYTES))
    for number, value in enumerate(values):
        node.set(f"{{{_HASH}}}Hash{number}", value.hex())
