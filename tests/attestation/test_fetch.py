"""Fetching collateral: a local server in the vendors' shape, and every way in which a server can be unwell."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from ssl import DER_cert_to_PEM_cert

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from attestation import snp, tdx
from attestation._download import Patience
from attestation.checks import Check
from attestation.collateral import AmdCollateral, IntelCollateral
from attestation.errors import AttestationError, MalformedError, UnavailableError
from attestation.fetch import Fetcher, Sources
from attestation.nvidia.ocsp import parse_answer
from attestation.nvidia.verify import verify_all
from attestation.roots import VENDOR
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.snp import SimulatedSnp, SnpDefect
from attestation.simulator.tdx import SimulatedTdx
from attestation.simulator.vtpm import SimulatedVtpm, make_hcl_report
from attestation.snp import Product, SigningKey, Tcb
from attestation.vtpm import ReportType, parse_hcl_report
from tests.vendor import (
    Reply,
    Vendor,
    amd_pages,
    intel_pages,
    responder,
    rim_answer,
    rim_pages,
    vendor_service,
)

NOW = datetime.now(UTC).replace(microsecond=0)
DATA = bytes(range(64))


@cache
def _intel() -> tuple[SimulatedTdx, bytes, IntelCollateral]:
    sim = SimulatedTdx.create()
    return sim, sim.quote(DATA), sim.collateral(NOW)


@cache
def _amd() -> SimulatedSnp:
    return SimulatedSnp()


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """A vendor that answers rightly, until a test spoils it."""
    with vendor_service(intel_pages(_intel()[2]) | amd_pages(_amd(), NOW)) as service:
        yield service


class Waits(list[float]):
    """Stands for `time.sleep`, and remembers."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits() -> Waits:
    """The pauses that were asked for, none of them taken."""
    return Waits()


@pytest.fixture
def fetcher(vendor: Vendor, waits: Waits, tmp_path: Path) -> Iterator[Fetcher]:
    """A fetcher with a cache, asking the local vendor."""
    patience = Patience(sleep=waits, read_s=1, total_s=0.5)
    with Fetcher(sources=vendor.sources, cache=tmp_path / "cache", patience=patience) as made:
        yield made


def _again(
    vendor: Vendor, tmp_path: Path, waits: Waits, *, after: timedelta, offline: bool = False
) -> Fetcher:
    return Fetcher(
        sources=vendor.sources,
        cache=tmp_path / "cache",
        offline=offline,
        patience=Patience(sleep=waits),
        now=lambda: NOW + after,
    )


def _unavailable(call: Callable[[], object]) -> UnavailableError:
    with pytest.raises(UnavailableError) as caught:
        call()
    assert caught.value.check is Check.COLLATERAL_FETCH
    assert caught.value.advice
    return caught.value


def test_intels_collateral_is_what_the_verifier_takes(fetcher: Fetcher, vendor: Vendor) -> None:
    """Four requests; the texts that Intel signed arrive byte for byte, the chains decoded from their headers."""
    sim, quote, expected = _intel()
    collateral = fetcher.intel(quote)
    assert collateral == expected
    assert tdx.verify(quote, collateral, [sim.root], NOW).report_data == DATA
    assert len(vendor.asked) == 4


def test_amds_collateral_is_what_the_verifier_takes(fetcher: Fetcher, vendor: Vendor) -> None:
    """The certificate for this chip and TCB, the chain and the revocation list."""
    report = _amd().report(DATA)
    collateral = fetcher.amd(report)
    assert snp.verify(report, collateral, [_amd().root], NOW).revocation_checked
    assert len(vendor.asked) == 3


def test_a_pccs_serves_the_root_crl_in_hex(vendor: Vendor) -> None:
    """The caching service's paths and encodings; old ones name the TCB info's header otherwise."""
    _, quote, expected = _intel()
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
    assert "cloud" in _unavailable(lambda: fetcher.amd(sim.report(DATA))).advice


def test_a_version_2_report_does_not_tell_its_product(vendor: Vendor, fetcher: Fetcher) -> None:
    """It is not guessed: the certificate or the caller has to say."""
    report, amd = _amd().report(DATA, version=2), _amd().collateral(NOW)
    assert "Name the product" in _unavailable(lambda: fetcher.amd(report)).advice
    assert vendor.asked == []
    fetcher.amd(report, product=Product.GENOA)
    fetcher.amd(report, vek=amd.vek)


def test_what_cannot_be_asked_for_is_not_asked(vendor: Vendor, fetcher: Fetcher) -> None:
    """A masked chip id, an unsigned report and an unknown product lead to advice, not to requests."""
    for changes in ({"chip_id": bytes(64)}, {"signer_info": 7 << 2}, {"cpuid": b"\x1a\x90\x00"}):
        _unavailable(lambda changes=changes: fetcher.amd(_amd().report(DATA, **changes)))  # type: ignore[misc]
    assert vendor.asked == []


def test_evidence_that_is_none_is_malformed(fetcher: Fetcher) -> None:
    """No request is made for bytes that are not evidence."""
    with pytest.raises(MalformedError):
        fetcher.intel(b"not a quote")
    with pytest.raises(MalformedError):
        fetcher.amd(b"not a report")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_overloaded_vendor_is_asked_again(
    status: int, vendor: Vendor, fetcher: Fetcher, waits: Waits
) -> None:
    """Too many requests and server errors are waited out, each time longer."""
    vendor.spoil = [(status, {}, b"later")] * 3
    fetcher.amd(_amd().report(DATA))
    assert len(vendor.asked) == 6
    assert [0.25 * 2**n <= wait <= 0.5 * 2**n for n, wait in enumerate(waits)] == [True] * 3


def test_retry_after_is_honoured_in_seconds_and_as_a_date(
    vendor: Vendor, fetcher: Fetcher, waits: Waits
) -> None:
    """The vendor says when to come back."""
    date = (datetime.now(UTC) + timedelta(seconds=30)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    vendor.spoil = [
        (429, {"Retry-After": "7"}, b""),
        (503, {"Retry-After": date}, b""),
        (429, {"Retry-After": "soon"}, b""),
    ]
    fetcher.amd(_amd().report(DATA))
    assert waits[0] == 7
    assert 25 < waits[1] <= 30
    assert waits[2] < 2.1


def test_a_long_pause_is_reported_and_not_waited_for(vendor: Vendor, fetcher: Fetcher, waits: Waits) -> None:
    """Nobody sleeps for an hour unasked."""
    vendor.spoil = [(429, {"Retry-After": "3600"}, b"")]
    assert "3600 s" in _unavailable(lambda: fetcher.amd(_amd().report(DATA))).advice
    assert waits == []


def test_patience_ends(vendor: Vendor, fetcher: Fetcher, waits: Waits) -> None:
    """After the last attempt, the error carries the cause; nothing waits in vain after it."""
    vendor.spoil = [(500, {}, b"")] * 4
    assert "status 500 (4 attempts)" in str(_unavailable(lambda: fetcher.amd(_amd().report(DATA))))
    assert (len(vendor.asked), len(waits)) == (4, 3)


@pytest.mark.parametrize("status", [301, 400, 401, 404])
def test_a_clear_no_is_not_asked_again(status: int, vendor: Vendor, fetcher: Fetcher) -> None:
    """Redirects are not followed, and what the vendor does not know it will not know a second later."""
    vendor.spoil = [(status, {"Location": vendor.url + "/elsewhere"}, b"")]
    assert str(status) in str(_unavailable(lambda: fetcher.amd(_amd().report(DATA))))
    assert len(vendor.asked) == 1


def _cut(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10)


def _cut_unnoticed(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + _amd().collateral(NOW).vek[:500])


def _nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def _drip(handler: BaseHTTPRequestHandler) -> None:
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(60):
            handler.wfile.write(b"x")
            time.sleep(0.05)
    except OSError:
        return  # the client has given up, as it should


@pytest.mark.parametrize(
    "reply", [_cut, _cut_unnoticed, _nothing, _drip, (200, {}, b""), (200, {}, b"<html>")]
)
def test_cut_slow_and_foreign_answers_are_asked_for_again(
    reply: Reply, vendor: Vendor, fetcher: Fetcher
) -> None:
    """Whatever is not a whole certificate is not one, and is not kept."""
    vendor.spoil = [reply]
    report = _amd().report(DATA)
    assert snp.verify(report, fetcher.amd(report), [_amd().root], NOW).report_data == DATA
    assert len(vendor.asked) == 4


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{}", b'{"tcbInfo":{},"signature":"00"}', b'{"tcbInfo":{"nextUpdate":"never"},"signature":""}',
    b'{"signature":"zz","tcbInfo":{"nextUpdate":"2030-01-01T00:00:00Z"}}', b'{"tcbInfo":3,"signature":"00"}',
    b'{"a":{"tcbInfo":{"b":1}},"tcbInfo":{"nextUpdate":"2030-01-01T00:00:00Z"},"signature":"00"}',
])  # fmt: skip
def test_a_tcb_info_of_another_shape_is_refused(body: bytes, vendor: Vendor, fetcher: Fetcher) -> None:
    """The text is cut out of the answer as it was signed, or not at all."""
    path = next(path for path in vendor.pages if "/tcb?" in path)
    vendor.pages[path] = (200, {}, body)
    _unavailable(lambda: fetcher.intel(_intel()[1]))


def test_a_chain_header_that_is_missing_is_named(vendor: Vendor, fetcher: Fetcher) -> None:
    """A proxy that drops headers is told from a vendor that errs."""
    vendor.pages["/tdx/qe/identity"] = (200, {}, vendor.pages["/tdx/qe/identity"][2])  # type: ignore[index]
    assert "sgx-enclave-identity-issuer-chain" in str(_unavailable(lambda: fetcher.intel(_intel()[1])))


def test_an_endless_answer_is_cut_off(
    vendor: Vendor, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collateral has a limit of size."""
    monkeypatch.setattr("attestation._download.MAX_COLLATERAL_BYTES", 1000)
    assert "more than 1000 bytes" in str(_unavailable(lambda: fetcher.amd(_amd().report(DATA))))


def test_nobody_there(waits: Waits) -> None:
    """A port where nothing listens is unavailable after the last attempt."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Fetcher(sources=Sources(amd=url), patience=Patience(sleep=waits)) as fetcher:
            _unavailable(lambda: fetcher.amd(_amd().report(DATA)))
    assert len(waits) == 3


def test_kept_answers_are_used_until_they_are_due(
    vendor: Vendor, fetcher: Fetcher, tmp_path: Path, waits: Waits
) -> None:
    """Within a day nothing is asked; after it everything is, so that a revocation is seen."""
    report = _amd().report(DATA)
    first = fetcher.amd(report)
    with _again(vendor, tmp_path, waits, after=timedelta(hours=20)) as later:
        assert later.amd(report) == first
    assert len(vendor.asked) == 3
    revoked = _amd().collateral(NOW, SnpDefect.ASK_REVOKED).crl
    vendor.pages["/vcek/v1/Genoa/crl"] = (200, {}, revoked)
    with _again(vendor, tmp_path, waits, after=timedelta(days=2)) as later:
        assert later.amd(report).crl == revoked
    assert len(vendor.asked) == 6


def test_kept_answers_serve_while_the_vendor_is_down(
    vendor: Vendor, fetcher: Fetcher, tmp_path: Path, waits: Waits
) -> None:
    """Until the vendor's own expiry: 30 days here. After it they are not used, and the error says so."""
    report = _amd().report(DATA)
    first = fetcher.amd(report)
    vendor.pages = {}
    with _again(vendor, tmp_path, waits, after=timedelta(days=29)) as later:
        assert later.amd(report) == first
    with _again(vendor, tmp_path, waits, after=timedelta(days=31)) as later:
        _unavailable(lambda: later.amd(report))


def test_offline_opens_no_socket(
    fetcher: Fetcher, vendor: Vendor, tmp_path: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept answers are used while in date, and nothing is tried beyond them."""
    report, (_, quote, intel) = _amd().report(DATA), _intel()
    amd = fetcher.amd(report)
    assert fetcher.intel(quote) == intel

    def forbidden(*_: object, **__: object) -> None:
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(httpx, "Client", forbidden)
    with _again(vendor, tmp_path, waits, after=timedelta(days=20), offline=True) as offline:
        assert offline.amd(report) == amd
        other = _amd().report(DATA, reported_tcb=Tcb(snp=1))
        assert "is not there" in str(_unavailable(lambda: offline.amd(other)))
    with _again(vendor, tmp_path, waits, after=timedelta(days=400), offline=True) as offline:
        assert "has expired" in str(_unavailable(lambda: offline.amd(report)))
    with Fetcher(offline=True) as bare:
        _unavailable(lambda: bare.intel(quote))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"url": "x"}', b"\xff\xfe"])
def test_a_damaged_cache_is_asked_anew(
    damage: bytes, fetcher: Fetcher, vendor: Vendor, tmp_path: Path, waits: Waits
) -> None:
    """A file that is cut or foreign counts as absent and is replaced; no part files stay behind."""
    report = _amd().report(DATA)
    first = fetcher.amd(report)
    for file in (tmp_path / "cache").iterdir():
        assert file.suffix == ".json"
        file.write_bytes(damage)
    assert fetcher.amd(report) == first
    assert len(vendor.asked) == 6
    with _again(vendor, tmp_path, waits, after=timedelta(hours=1), offline=True) as offline:
        assert offline.amd(report) == first


def test_a_cache_of_another_address_is_not_used(fetcher: Fetcher, vendor: Vendor, tmp_path: Path) -> None:
    """An entry says which address it answers; moved under another name it counts as absent."""
    report = _amd().report(DATA)
    fetcher.amd(report)
    files = sorted((tmp_path / "cache").iterdir())
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)
    fetcher.amd(report)
    assert len(vendor.asked) == 6


def test_a_cache_that_cannot_be_written_does_not_stop_anybody(vendor: Vendor, tmp_path: Path) -> None:
    """It is logged, and the answer is used."""
    (tmp_path / "file").write_text("not a folder")
    with Fetcher(sources=vendor.sources, cache=tmp_path / "file") as fetcher:
        assert fetcher.amd(_amd().report(DATA)).vek


def test_a_client_of_ones_own_stays_open(vendor: Vendor) -> None:
    """Proxies, certificates and connection limits are the caller's to choose."""
    with httpx.Client() as client:
        with Fetcher(sources=vendor.sources, client=client) as fetcher:
            fetcher.amd(_amd().report(DATA))
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
        fetcher.intel(_intel()[1])
    assert caught.value.check is Check.TDX_PCK_ROLE
    assert vendor.asked == []


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    return bytes((tag, *((0x81, size) if size < 256 else (0x82, size >> 8, size & 0xFF)))) + content


def test_a_revocation_list_without_an_end_is_refused(vendor: Vendor, fetcher: Fetcher) -> None:
    """A CRL that never ends (nextUpdate left out) is no CRL to rely on, or to keep."""
    crl = x509.load_der_x509_crl(_amd().collateral(NOW).crl)
    signed = crl.tbs_certlist_bytes
    body = signed[4:] if signed[1] == 0x82 else signed[3:]
    end = f"{crl.next_update_utc:%y%m%d%H%M%SZ}".encode()
    endless = _der(0x30, body.replace(b"\x17\x0d" + end, b"", 1))
    rest = crl.public_bytes(Encoding.DER).partition(signed)[2]
    vendor.pages["/vcek/v1/Genoa/crl"] = (200, {}, _der(0x30, endless + rest))
    assert "no nextUpdate" in str(_unavailable(lambda: fetcher.amd(_amd().report(DATA))))


# NVIDIA: manifests by name, and one question for each certificate


@cache
def _nvidia() -> tuple[SimulatedNvidia, bytes]:
    machine = SimulatedNvidia.create(Machine(gpus=2))
    return machine, machine.evidence(bytes(32))


@pytest.fixture
def nvidia(vendor: Vendor) -> Vendor:
    """The vendor, with NVIDIA's services."""
    machine, evidence = _nvidia()
    collateral = machine.collateral(NOW)
    vendor.pages |= rim_pages(evidence, collateral)
    vendor.answer = responder(collateral)
    return vendor


def test_nvidias_collateral_is_what_the_verifier_takes(fetcher: Fetcher, nvidia: Vendor) -> None:
    """Two manifests and an answer for each certificate; nothing is missing to the verifier, and a second look asks nothing."""
    machine, evidence = _nvidia()
    collateral = fetcher.nvidia(evidence)
    for claims in verify_all(evidence, bytes(32), collateral, machine.trust(VENDOR), NOW):
        assert not claims.missing_rims
        assert not claims.unchecked
    count = len(nvidia.asked)
    assert count == 2 + len(collateral.ocsp)
    assert fetcher.nvidia(evidence) == collateral
    assert len(nvidia.asked) == count


def test_answers_are_renewed_when_half_their_life_is_over(
    nvidia: Vendor, tmp_path: Path, waits: Waits
) -> None:
    """However seldom the caller wants to ask: OCSP answers end in days, manifests in years."""
    _, evidence = _nvidia()

    def fetch(after: timedelta) -> list[str]:
        """What is asked for when it is so much later."""
        before = len(nvidia.asked)
        with Fetcher(
            sources=nvidia.sources,
            cache=tmp_path / "cache",
            patience=Patience(sleep=waits),
            refresh=timedelta(days=3650),
            now=lambda: NOW + after,
        ) as fetcher:
            fetcher.nvidia(evidence)
        return nvidia.asked[before:]

    assert fetch(timedelta())
    ends = {s.next_update for der in _nvidia()[0].collateral(NOW).ocsp for s in parse_answer(der).singles}
    life = min(end for end in ends if end is not None) - NOW
    assert fetch(life * 0.4) == []
    assert set(fetch(life * 0.6)) == {"/ocsp"}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"rim": 3}', b'{"rim": "AAAA"}', rim_answer(b"<a/>")])
def test_a_manifest_that_is_none(nvidia: Vendor, fetcher: Fetcher, body: bytes) -> None:
    """What is no signed manifest is asked for again, and never kept."""
    nvidia.pages[next(path for path in nvidia.pages if path.startswith("/rim/"))] = (200, {}, body)
    _unavailable(lambda: fetcher.nvidia(_nvidia()[1]))


def test_an_altered_manifest(nvidia: Vendor, fetcher: Fetcher) -> None:
    """A manifest whose signature does not cover it did not arrive as it was sent."""
    rim = _nvidia()[0].collateral(NOW).rims[0]
    path = next(path for path in nvidia.pages if path.startswith("/rim/"))
    nvidia.pages[path] = (200, {}, rim_answer(rim.replace(b"580.95.05", b"580.95.06")))
    _unavailable(lambda: fetcher.nvidia(_nvidia()[1]))


def test_an_ocsp_responder_that_does_not_know(nvidia: Vendor, fetcher: Fetcher) -> None:
    """An unsuccessful answer says nothing of a certificate, and is not kept."""
    refusal = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)
    nvidia.answer = lambda _: refusal.public_bytes(Encoding.DER)
    assert "UNAUTHORIZED" in str(_unavailable(lambda: fetcher.nvidia(_nvidia()[1])))


# the cache on a disk that is unwell


def test_a_full_disk_costs_the_cache_and_not_the_answer(vendor: Vendor, tmp_path: Path) -> None:
    """What cannot be written down is used all the same, no half file is left, and the fetcher says why."""
    with small_disk(tmp_path / "cache"), Fetcher(sources=vendor.sources, cache=tmp_path / "cache") as fetcher:
        report = _amd().report(DATA)
        assert snp.verify(report, fetcher.amd(report), [_amd().root], NOW).revocation_checked
        assert fetcher.not_kept is not None
        assert "No space left" in fetcher.not_kept
        assert not list((tmp_path / "cache").glob("*.part"))


def test_a_kept_file_without_end(fetcher: Fetcher, vendor: Vendor, tmp_path: Path) -> None:
    """A cache that somebody filled with a huge file is asked around, not read into memory."""
    fetcher.amd(_amd().report(DATA))
    for kept in (tmp_path / "cache").glob("*.json"):
        with kept.open("ab") as file:
            file.truncate(20 * 1024 * 1024)
    fetcher.amd(_amd().report(DATA))
    assert len(vendor.asked) == 6


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of one page, where root may mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "none", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_azures_hardware(vendor: Vendor, fetcher: Fetcher) -> None:
    """AMD's collateral for the paravisor's report, with the VM's own certificate when it has one; Intel's for its quote."""
    vm = SimulatedVtpm(_amd())
    evidence = vm.evidence(bytes(32))
    assert fetcher.azure(evidence) == fetcher.amd(parse_hcl_report(evidence.hcl_report).hardware_report)
    vek = _amd().collateral(NOW).vek
    asked = len(vendor.asked)
    fetched = fetcher.azure(replace(evidence, vcek=DER_cert_to_PEM_cert(vek).encode()))
    assert isinstance(fetched, AmdCollateral)
    assert fetched.vek == vek
    assert len(vendor.asked) == asked
    td = replace(
        evidence,
        hcl_report=make_hcl_report(bytes(1184), vm.runtime_data({}), ReportType.TDX),
        td_quote=_intel()[1],
    )
    assert fetcher.azure(td) == _intel()[2]
