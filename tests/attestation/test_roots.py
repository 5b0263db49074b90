"""The pinned roots are the vendors' own."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.roots import VENDOR, Root, is_vendor
from tests.vectors import needs_vectors, read

FILES = {
    "intel_sgx_root_ca": VENDOR.intel[0],
    "amd_ark_milan": VENDOR.amd[0],
    "amd_ark_genoa": VENDOR.amd[1],
    "amd_ark_turin": VENDOR.amd[2],
    "nvidia_device_identity_ca": VENDOR.nvidia_device[0],
    "nvidia_corim_signing_root": VENDOR.nvidia_rim[0],
    "aws_nitro_enclaves_root_g1": VENDOR.aws[0],
}


@needs_vectors
@pytest.mark.parametrize("name", FILES)
def test_each_pin_is_the_key_of_the_vendors_certificate(name: str) -> None:
    """The pin in the code, the certificate and the cross-checked figure agree."""
    cert = x509.load_pem_x509_certificate(read(f"roots/{name}.pem"))
    spki = cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert FILES[name].spki_sha256 == sha256(spki).digest()
    assert FILES[name].spki_sha256.hex() == json.loads(read("roots/roots.json"))[name]["spki_sha256"]


def test_only_the_pins_are_vendor_roots() -> None:
    """A vendor's name with another key is no vendor root."""
    assert is_vendor(VENDOR.intel[0])
    assert not is_vendor(Root("Intel SGX Root CA", bytes(32)))
