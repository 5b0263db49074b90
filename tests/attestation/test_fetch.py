"""Fetching collateral: a local server in the vendors' shape, and every way in which a server can be unwell."""

from __future__ import annotations

from dataclasses import replace
from ssl import DER_cert_to_PEM_cert

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from attestation import snp, tdx
from attestation.checks import Check
from attestation.collateral import AmdCollateral
from attestation.errors import AttestationError, MalformedError, UnavailableError
from attestation.fetch import Fetcher, Sources
from attestation.nvidia.verify import verify_all
from attestation.roots import VENDOR
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.vtpm import SimulatedVtpm, make_hcl_report
from attestation.snp import Product, SigningKey
from attestation.vtpm import ReportType, parse_hcl_report
from tests.attestation.fetching import DATA, NOW, gpu_machine, snp_machine, tdx_machine, unavailable
from tests.vendor import Vendor, rim_answer


def test_intels_collateral_is_what_the_verifier_takes(fetcher: Fetcher, vendor: Vendor) -> None:
    """Four requests; the texts that Intel signed arrive byte for byte, the chains decoded from their headers."""
    sim, quote, expected = tdx_machine()
    collateral = fetcher.intel(quote)
    assert collateral == expected
    assert tdx.verify(quote, collateral, [sim.root], NOW).report_data == DATA
    assert len(vendor.asked) == 4


def test_amds_collateral_is_what_the_verifier_takes(fetcher: Fetcher, vendor: Vendor) -> None:
    """The certificate for this chip and TCB, the chain and the revocation list."""
    report = snp_machine().report(DATA)
    collateral = fetcher.amd(report)
    assert snp.verify(report, collateral, [snp_machine().root], NOW).revocation_checked
    assert len(vendor.asked) == 3


def test_a_pccs_serves_the_root_crl_in_hex(vendor: Vendor) -> None:
    """The caching service's paths and encodings; old ones name the TCB info's header otherwise."""
    _, quote, expected = tdx_machine()
    pages = {
        path.replace("/sgx/", "/sgx/certification/v4/").replace("/tdx/", "/tdx/certification/v4/"): page
        for path, page in vendor.pages.items()
    }
    pages["/sgx/certification/v4/rootcacrl"] = (200, {}, expected.root_ca_crl.hex().encode())
    tcb = next(path for path in pages if "/tcb?" in path)
    _, headers, body = pages[tcb]  # type: ignore[misc]  # a plain answer
    pages[tcb] = (200, {"SGX-TCB-Info-Issuer-Chain": headers["TCB-Info-Issuer-Chain"]}, body)
    vendor.pages = pages
    with Fetcher(sources=Sources.pccs(vendor.url + "/")) as fetcher:
        assert fetcher.intel(quote) == expected


def test_turin_is_asked_for_by_eight_bytes_and_with_fmc(vendor: Vendor, fetcher: Fetcher) -> None:
    """Turin's hardware id and TCB have another shape."""
    sim = SimulatedSnp(product=Product.TURIN)
    amd, t = sim.collateral(NOW), sim.tcb
    path = (
        f"/vcek/v1/Turin/{sim.hwid.hex()}?fmcSPL={t.fmc:02}&blSPL={t.bootloader:02}&teeSPL={t.tee:02}"
        f"&snpSPL={t.snp:02}&ucodeSPL={t.microcode:02}"
    )
    vendor.pages = {
        path: (200, {}, amd.vek),
        "/vcek/v1/Turin/cert_chain": (200, {}, amd.chain),
        "/vcek/v1/Turin/crl": (200, {}, amd.crl),
    }
    assert fetcher.amd(sim.report(DATA)) == amd
    assert len(sim.hwid.hex()) == 16


def test_a_vleks_chain_is_fetched_and_its_certificate_is_not(vendor: Vendor, fetcher: Fetcher) -> None:
    """AMD hands a VLEK to its cloud alone, so it has to come with the report."""
    sim = SimulatedSnp(signer=SigningKey.VLEK)
    amd = sim.collateral(NOW)
    vendor.pages = {
        "/vlek/v1/Genoa/cert_chain": (200, {}, amd.chain),
        "/vlek/v1/Genoa/crl": (200, {}, amd.crl),
    }
    assert fetcher.amd(sim.report(DATA), vek=amd.vek) == amd
    assert "cloud" in unavailable(lambda: fetcher.amd(sim.report(DATA))).advice


def test_a_version_2_report_does_not_tell_its_product(vendor: Vendor, fetcher: Fetcher) -> None:
    """It is not guessed: the certificate or the caller has to say."""
    report, amd = snp_machine().report(DATA, version=2), snp_machine().collateral(NOW)
    assert "Name the product" in unavailable(lambda: fetcher.amd(report)).advice
    assert vendor.asked == []
    fetcher.amd(report, product=Product.GENOA)
    fetcher.amd(report, vek=amd.vek)


def test_what_cannot_be_asked_for_is_not_asked(vendor: Vendor, fetcher: Fetcher) -> None:
    """A masked chip id, an unsigned report and an unknown product lead to advice, not to requests."""
    for changes in ({"chip_id": bytes(64)}, {"signer_info": 7 << 2}, {"cpuid": b"\x1a\x90\x00"}):
        unavailable(lambda changes=changes: fetcher.amd(snp_machine().report(DATA, **changes)))  # type: ignore[misc]
    assert vendor.asked == []


def test_evidence_that_is_none_is_malformed(fetcher: Fetcher) -> None:
    """No request is made for bytes that are not evidence."""
    with pytest.raises(MalformedError):
        fetcher.intel(b"not a quote")
    with pytest.raises(MalformedError):
        fetcher.amd(b"not a report")


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{}", b'{"tcbInfo":{},"signature":"00"}', b'{"tcbInfo":{"nextUpdate":"never"},"signature":""}',
    b'{"signature":"zz","tcbInfo":{"nextUpdate":"2030-01-01T00:00:00Z"}}', b'{"tcbInfo":3,"signature":"00"}',
    b'{"a":{"tcbInfo":{"b":1}},"tcbInfo":{"nextUpdate":"2030-01-01T00:00:00Z"},"signature":"00"}',
])  # fmt: skip
def test_a_tcb_info_of_another_shape_is_refused(body: bytes, vendor: Vendor, fetcher: Fetcher) -> None:
    """The text is cut out of the answer as it was signed, or not at all."""
    path = next(path for path in vendor.pages if "/tcb?" in path)
    vendor.pages[path] = (200, {}, body)
    unavailable(lambda: fetcher.intel(tdx_machine()[1]))


def test_a_chain_header_that_is_missing_is_named(vendor: Vendor, fetcher: Fetcher) -> None:
    """A proxy that drops headers is told from a vendor that errs."""
    vendor.pages["/tdx/qe/identity"] = (200, {}, vendor.pages["/tdx/qe/identity"][2])  # type: ignore[index]
    assert "sgx-enclave-identity-issuer-chain" in str(unavailable(lambda: fetcher.intel(tdx_machine()[1])))


def test_a_client_of_ones_own_stays_open(vendor: Vendor) -> None:
    """Proxies, certificates and connection limits are the caller's to choose."""
    with httpx.Client() as client:
        with Fetcher(sources=vendor.sources, client=client) as fetcher:
            fetcher.amd(snp_machine().report(DATA))
        assert not client.is_closed


def test_fetch_errors_are_of_our_tree() -> None:
    """No HTTP library's error comes out: those would be retried or reported as something else."""
    assert issubclass(UnavailableError, AttestationError)
    assert not issubclass(UnavailableError, httpx.HTTPError)


def test_an_unknown_issuer_of_platform_certificates_is_malformed(
    vendor: Vendor, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which revocation list to ask for is told by the issuer's name, or not asked."""
    monkeypatch.setattr("attestation.fetch._CA_OF", {})
    with pytest.raises(MalformedError) as caught:
        fetcher.intel(tdx_machine()[1])
    assert caught.value.check is Check.TDX_PCK_ROLE
    assert vendor.asked == []


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    return bytes((tag, *((0x81, size) if size < 256 else (0x82, size >> 8, size & 0xFF)))) + content


def test_a_revocation_list_without_an_end_is_refused(vendor: Vendor, fetcher: Fetcher) -> None:
    """A CRL that never ends (nextUpdate left out) is no CRL to rely on, or to keep."""
    crl = x509.load_der_x509_crl(snp_machine().collateral(NOW).crl)
    signed = crl.tbs_certlist_bytes
    body = signed[4:] if signed[1] == 0x82 else signed[3:]
    end = f"{crl.next_update_utc:%y%m%d%H%M%SZ}".encode()
    endless = _der(0x30, body.replace(b"\x17\x0d" + end, b"", 1))
    rest = crl.public_bytes(Encoding.DER).partition(signed)[2]
    vendor.pages["/vcek/v1/Genoa/crl"] = (200, {}, _der(0x30, endless + rest))
    assert "no nextUpdate" in str(unavailable(lambda: fetcher.amd(snp_machine().report(DATA))))


def test_nvidias_collateral_is_what_the_verifier_takes(fetcher: Fetcher, nvidia: Vendor) -> None:
    """Two manifests and an answer for each certificate; nothing is missing to the verifier, and a second look asks nothing."""
    machine, evidence = gpu_machine()
    collateral = fetcher.nvidia(evidence)
    for claims in verify_all(evidence, bytes(32), collateral, machine.trust(VENDOR), NOW):
        assert not claims.missing_rims
        assert not claims.unchecked
    count = len(nvidia.asked)
    assert count == 2 + len(collateral.ocsp)
    assert fetcher.nvidia(evidence) == collateral
    assert len(nvidia.asked) == count


@pytest.mark.parametrize("body", [b"", b"{}", b'{"rim": 3}', b'{"rim": "AAAA"}', rim_answer(b"<a/>")])
def test_a_manifest_that_is_none(nvidia: Vendor, fetcher: Fetcher, body: bytes) -> None:
    """What is no signed manifest is asked for again, and never kept."""
    nvidia.pages[next(path for path in nvidia.pages if path.startswith("/rim/"))] = (200, {}, body)
    unavailable(lambda: fetcher.nvidia(gpu_machine()[1]))


def test_an_altered_manifest(nvidia: Vendor, fetcher: Fetcher) -> None:
    """A manifest whose signature does not cover it did not arrive as it was sent."""
    rim = gpu_machine()[0].collateral(NOW).rims[0]
    path = next(path for path in nvidia.pages if path.startswith("/rim/"))
    nvidia.pages[path] = (200, {}, rim_answer(rim.replace(b"580.95.05", b"580.95.06")))
    unavailable(lambda: fetcher.nvidia(gpu_machine()[1]))


def test_an_ocsp_responder_that_does_not_know(nvidia: Vendor, fetcher: Fetcher) -> None:
    """An unsuccessful answer says nothing of a certificate, and is not kept."""
    refusal = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)
    nvidia.answer = lambda _: refusal.public_bytes(Encoding.DER)
    assert "UNAUTHORIZED" in str(unavailable(lambda: fetcher.nvidia(gpu_machine()[1])))


def test_azures_hardware(vendor: Vendor, fetcher: Fetcher) -> None:
    """AMD's collateral for the paravisor's report, with the VM's own certificate when it has one; Intel's for its quote."""
    vm = SimulatedVtpm(snp_machine())
    evidence = vm.evidence(bytes(32))
    assert fetcher.azure(evidence) == fetcher.amd(parse_hcl_report(evidence.hcl_report).hardware_report)
    vek = snp_machine().collateral(NOW).vek
    asked = len(vendor.asked)
    fetched = fetcher.azure(replace(evidence, vcek=DER_cert_to_PEM_cert(vek).encode()))
    assert isinstance(fetched, AmdCollateral)
    assert fetched.vek == vek
    assert len(vendor.asked) == asked
    td = replace(
        evidence,
        hcl_report=make_hcl_report(bytes(1184), vm.runtime_data({}), ReportType.TDX),
        td_quote=tdx_machine()[1],
    )
    assert fetcher.azure(td) == tdx_machine()[2]
