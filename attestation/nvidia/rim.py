"""Reference integrity manifests: NVIDIA's golden measurements of one driver or VBIOS, as signed SWID XML.

The XML signature is `signxml`'s work (enveloped XMLDSig, ECDSA P-384, C14N 1.1), narrowed to the one form that NVIDIA
uses; only the bytes that it says were signed are read. DTDs, entities and other encodings than UTF-8 are refused
before anything is judged. A manifest that loaded is remembered by its content; its chain and dates are judged each time.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from lxml import etree
from signxml.algorithms import DigestAlgorithm, SignatureMethod
from signxml.exceptions import SignXMLException
from signxml.verifier import SignatureConfiguration, XMLVerifier

from attestation._x509 import check_validity, find_root, parse_certificate, verify_issued_by
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.nvidia.evidence import DIGEST_BYTES
from attestation.roots import Root

MAX_RIM_BYTES = 256 * 1024
MAX_RIM_DEPTH = 16
MAX_RIM_CERTIFICATES = 8
RIM_CHAIN_LENGTH = 4  # signer, two intermediates, CoRIM signing root
_CACHE = 128
_FIRST_SVN = 0x1000  # indexes from here on are minimum SVNs of opaque fields, not measurements

_SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_HASH = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_MIN_SVN = "{https://docs.nvidia.com/attestation/specs/latest/opaque-data.html}minSvn"
_DS = "{http://www.w3.org/2000/09/xmldsig#}"
_ALGORITHMS = [  # canonicalization, signature, transforms, digest: in this order, and no others
    "http://www.w3.org/2006/12/xml-c14n11",
    "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
    "http://www.w3.org/2000/09/xmldsig#enveloped-signature",
    "http://www.w3.org/2006/12/xml-c14n11",
    "http://www.w3.org/2001/04/xmldsig-more#sha384",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """A manifest whose bytes are what its first certificate signed. Whose certificate that is, `verify_rim` judges."""

    product: str  # the chip: GH100, GB100, LS10
    version: str  # of the driver or the VBIOS
    golden: Mapping[int, tuple[bytes, ...]]  # active measurements by index, with every accepted value
    min_svns: Mapping[int, int]
    chain: tuple[x509.Certificate, ...]


def load_rim(data: bytes) -> Rim:
    """Read a manifest and check that its signature covers it."""
    if len(data) > MAX_RIM_BYTES:
        raise MalformedError(Check.GPU_RIM_FORMAT, f"{len(data)} bytes of RIM, the limit is {MAX_RIM_BYTES}")
    return _load(data)


def verify_rim(rim: Rim, roots: Sequence[Root], now: datetime) -> Root:
    """The manifest's signer is certified by a pinned root, and every certificate is in date."""
    if len(rim.chain) != RIM_CHAIN_LENGTH:
        raise VerificationError(
            Check.GPU_RIM_CHAIN,
            f"expected a chain of {RIM_CHAIN_LENGTH} certificates, found {len(rim.chain)}",
        )
    root = find_root(rim.chain[-1], roots, Check.GPU_RIM_CHAIN)
    for cert, issuer in pairwise(rim.chain):
        verify_issued_by(cert, issuer, Check.GPU_RIM_CHAIN)
    for cert in rim.chain:
        check_validity(cert, now, Check.GPU_RIM_VALIDITY)
    return root


@lru_cache(maxsize=_CACHE)
def _load(data: bytes) -> Rim:
    root = _parse_xml(data)
    _check_form(root)
    chain = _chain(root)
    signed = _signed_content(root, chain[0])
    return _read(signed, chain)


def _malformed(detail: str) -> MalformedError:
    return MalformedError(Check.GPU_RIM_FORMAT, f"RIM: {detail}")


def _parse_xml(data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _malformed("not UTF-8") from exc
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise _malformed("a document type or entity is declared; RIMs have none")
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as exc:
        raise _malformed(f"not XML ({exc})") from exc
    depth = 0
    for event, _ in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > MAX_RIM_DEPTH:
            raise _malformed(f"nested deeper than {MAX_RIM_DEPTH}")
    return root


def _check_form(root: Any) -> None:
    """Exactly one signature, over the whole document, with NVIDIA's algorithms."""
    signatures = list(root.iter(f"{_DS}Signature"))
    if (
        root.tag != f"{_SWID}SoftwareIdentity"
        or len(signatures) != 1
        or signatures[0].getparent() is not root
    ):
        raise _malformed("must be a SoftwareIdentity with exactly one Signature as its child")
    references = [node.get("URI") for node in root.iter(f"{_DS}Reference")]
    if references != [""]:
        raise _malformed(f"the signature must refer to the whole document once, found {references}")
    algorithms = [node.get("Algorithm") for node in signatures[0].iter() if node.get("Algorithm") is not None]
    if algorithms != _ALGORITHMS:
        raise _malformed(f"unexpected signature algorithms {algorithms}")


def _chain(root: Any) -> tuple[x509.Certificate, ...]:
    nodes = list(root.iter(f"{_DS}X509Certificate"))
    if not 0 < len(nodes) <= MAX_RIM_CERTIFICATES:
        raise _malformed(f"expected 1 to {MAX_RIM_CERTIFICATES} certificates, found {len(nodes)}")
    try:
        ders = [b64decode("".join((node.text or "").split()), validate=True) for node in nodes]
    except ValueError as exc:
        raise _malformed("a certificate is not base64") from exc
    return tuple(parse_certificate(der, Check.GPU_RIM_FORMAT, "RIM certificate") for der in ders)


def _signed_content(root: Any, signer: x509.Certificate) -> Any:
    config = SignatureConfiguration(
        location="./",
        expect_references=1,
        signature_methods=frozenset({SignatureMethod.ECDSA_SHA384}),
        digest_algorithms=frozenset({DigestAlgorithm.SHA384}),
        verification_time=signer.not_valid_before_utc,  # dates are judged by verify_rim, at the time asked about
    )
    try:
        result = XMLVerifier().verify(root, x509_cert=signer, expect_config=config)
    except (SignXMLException, InvalidSignature) as exc:
        raise VerificationError(
            Check.GPU_RIM_SIGNATURE, f"the RIM is not what its signer signed ({str(exc) or 'bad signature'})"
        ) from exc
    except (ValueError, TypeError, AttributeError, etree.LxmlError) as exc:
        raise _malformed(f"unusable signature ({exc})") from exc
    return result.signed_xml  # type: ignore[union-attr]  # one reference gives one result


def _read(root: Any, chain: tuple[x509.Certificate, ...]) -> Rim:
    metas, payloads = root.findall(f"{_SWID}Meta"), root.findall(f"{_SWID}Payload")
    if len(metas) != 1 or len(payloads) != 1:
        raise _malformed(f"expected one Meta and one Payload, found {len(metas)} and {len(payloads)}")
    product, version = metas[0].get("product", ""), metas[0].get("colloquialVersion", "")
    if not product or not version:
        raise _malformed("Meta names no product or no colloquialVersion")
    golden: dict[int, tuple[bytes, ...]] = {}
    min_svns: dict[int, int] = {}
    seen: set[int] = set()
    for node in payloads[0]:
        index = _index(node)
        if index in seen:
            raise _malformed(f"index {index} appears twice")
        seen.add(index)
        if node.get("active") == "False":
            continue
        if index < _FIRST_SVN:
            golden[index] = _values(node, index)
        else:
            min_svns[index - _FIRST_SVN] = _number(node, _MIN_SVN, f"minSvn of index {index}")
    if not golden:
        raise _malformed("no measurement is active")
    return Rim(
        product=product,
        version=version,
        golden=MappingProxyType(golden),
        min_svns=MappingProxyType(min_svns),
        chain=chain,
    )


def _index(node: Any) -> int:
    if node.tag != f"{_SWID}Resource" or node.get("type") != "Measurement":
        raise _malformed(f"unexpected {node.tag} of type {node.get('type')!r} in the Payload")
    if node.get("active") not in {"True", "False"}:
        raise _malformed(f"active must be True or False, found {node.get('active')!r}")
    return _number(node, "index", "index")


def _number(node: Any, name: str, what: str) -> int:
    text = node.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise _malformed(f"{what} must be a number, found {text!r}")
    return int(text)


def _values(node: Any, index: int) -> tuple[bytes, ...]:
    values = []
    for number in range(_number(node, "alternatives", "alternatives")):
        text = node.get(f"{_HASH}{number}", "")
        if not re.fullmatch(rf"[0-9A-Fa-f]{{{2 * DIGEST_BYTES}}}", text, re.ASCII):
            raise _malformed(f"alternative {number} of index {index} is not a SHA-384 digest")
        values.append(bytes.fromhex(text))
    if not values:
        raise _malformed(f"index {index} has no alternative")
    return tuple(values)
