"""AMD's certificate extensions: what is read, and that nothing sloppy is."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.simulator import pki
from attestation.simulator.snp import SimulatedSnp
from attestation.snp import Product, SigningKey, Tcb
from attestation.snp.vek import Vek, parse_vek
from tests.attestation.snp.support import NOW, machine, refused_by
from tests.vectors import needs_vectors, read

OID = "1.3.6.1.4.1.3704.1."
MILAN = {
    "1": b"\x02\x01\x00", "2": b"\x16\x08Milan-B0", "3.1": b"\x02\x01\x03", "3.2": b"\x02\x01\x00",
    "3.3": b"\x02\x01\x0a", "3.8": b"\x02\x02\x00\xa9", "4": bytes(range(64)),
}  # fmt: skip


def _certificate(
    extensions: dict[str, bytes | None], name: str = "SEV-VCEK", key: pki.PrivateKey | None = None
) -> bytes:
    values = {oid: value for oid, value in (MILAN | extensions).items() if value is not None}
    made = pki.issue(
        pki.name(name),
        key or pki.p384_key(),
        not_before=NOW,
        not_after=NOW + timedelta(days=1),
        ca=None,
        extensions=[
            (x509.UnrecognizedExtension(x509.ObjectIdentifier(OID + oid), value), False)
            for oid, value in values.items()
        ],
    )
    return made.der


def test_every_extension_is_read() -> None:
    """Product name, patch levels and hardware id come out as AMD wrote them."""
    vek = parse_vek(_certificate({}))
    assert (vek.kind, vek.product, vek.product_name) == (SigningKey.VCEK, Product.MILAN, "Milan-B0")
    assert vek.tcb == Tcb(bootloader=3, snp=10, microcode=0xA9)
    assert (vek.hwid, vek.csp_id) == (bytes(range(64)), None)


def test_the_hardware_id_may_be_bare_or_wrapped() -> None:
    """Both encodings that AMD has used give the same bytes."""
    assert parse_vek(_certificate({"4": b"\x04\x40" + bytes(range(64))})).hwid == bytes(range(64))


def test_a_vlek_names_a_cloud() -> None:
    """A VLEK has no hardware id; it says whom AMD gave it to."""
    vek = parse_vek(_certificate({"4": None, "5": b"\x16\x05cloud"}, name="SEV-VLEK"))
    assert (vek.kind, vek.hwid, vek.csp_id) == (SigningKey.VLEK, None, "cloud")


@pytest.mark.parametrize("product", Product)
@pytest.mark.parametrize("wrapped", [False, True])
def test_simulated_certificates_read_back(product: Product, wrapped: bool) -> None:
    """What the simulator issues says what the machine is, Turin's short hardware id included."""
    sim = SimulatedSnp(product=product, wrapped_hwid=wrapped)
    vek = parse_vek(sim.collateral(NOW).vek)
    assert (vek.product, vek.hwid, vek.tcb) == (product, sim.hwid, sim.tcb)


@pytest.mark.parametrize("extensions", [
    pytest.param({"2": None}, id="no product name"),
    pytest.param({"2": b"\x16\x06Naples"}, id="a product without SNP"),
    pytest.param({"2": b"\x16\x05MilanX"}, id="wrong length"),
    pytest.param({"2": b"\x0c\x05Milan"}, id="another string type"),
    pytest.param({"2": b"\x16\x05Mil\xff\x00"}, id="not ASCII"),
    pytest.param({"2": b"\x16\x06Milanx"}, id="a longer name"),
    pytest.param({"3.1": None}, id="no bootloader level"),
    pytest.param({"3.8": b"\x02\x02\x01\x00"}, id="level 256"),
    pytest.param({"3.8": b"\x02\x01\xff"}, id="level -1"),
    pytest.param({"3.8": b"\x02\x02\x00\x01"}, id="not minimal"),
    pytest.param({"3.8": b"\x02\x00"}, id="empty integer"),
    pytest.param({"3.8": b"\x02\x01\x01\x00"}, id="trailing byte"),
    pytest.param({"3.8": b"\x04\x01\x01"}, id="octet string for integer"),
    pytest.param({"3.8": b""}, id="empty"),
    pytest.param({"4": None}, id="no hardware id"),
    pytest.param({"4": bytes(63)}, id="short hardware id"),
    pytest.param({"4": b"\x04\x08" + bytes(8)}, id="Turin's hardware id on Milan"),
    pytest.param({"2": b"\x16\x05Turin"}, id="Turin without FMC"),
    pytest.param({"2": b"\x16\x05Turin", "3.9": b"\x02\x01\x00"}, id="Milan's hardware id on Turin"),
])  # fmt: skip
def test_extensions_that_are_missing_or_not_der_are_malformed(extensions: dict[str, bytes | None]) -> None:
    """Each is refused by name, none is guessed."""
    refused_by(Check.SNP_VEK, MalformedError, lambda: parse_vek(_certificate(extensions)))


def test_only_p384_keys_and_amds_names_will_do() -> None:
    """A key on another curve, an RSA key and another common name are refused."""
    other = ec.generate_private_key(ec.SECP256R1())
    refused_by(Check.SNP_VEK, MalformedError, lambda: parse_vek(_certificate({}, key=other)))
    refused_by(Check.SNP_VEK, MalformedError, lambda: parse_vek(_certificate({}, key=pki.rsa_key(2048))))
    refused_by(Check.SNP_VEK, MalformedError, lambda: parse_vek(_certificate({}, name="SEV-Milan")))
    refused_by(Check.SNP_VEK, MalformedError, lambda: parse_vek(_certificate({"4": None}, name="SEV-VLEK")))


@cache
def _specimens() -> tuple[bytes, bytes]:
    return machine().collateral(NOW).vek, _certificate({})


@given(st.data())
def test_edited_certificates_parse_or_are_malformed(data: st.DataObject) -> None:
    """Any bytes in place of a certificate give a value or MalformedError."""
    der = bytearray(_specimens()[data.draw(st.integers(0, 1))])
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(der)) | st.just(len(der)))
    with suppress(MalformedError):
        assert isinstance(parse_vek(bytes(der[:cut])), Vek)


@needs_vectors
def test_amds_own_turin_certificate() -> None:
    """A real Turin VCEK: FMC level, 8-byte hardware id."""
    vek = parse_vek(read("snp/extra/virtee-turin-vcek.der"))
    assert (vek.kind, vek.product, vek.product_name) == (SigningKey.VCEK, Product.TURIN, "Turin")
    assert vek.tcb == Tcb(microcode=9)
    assert vek.hwid == bytes.fromhex("1e550a8ee5cf9f4d")
