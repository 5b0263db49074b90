"""Kept collateral: used until it is due, while the vendor is down and offline, and never when it is damaged."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from attestation import snp
from attestation._download import Patience
from attestation.fetch import Fetcher
from attestation.nvidia.ocsp import parse_answer
from attestation.simulator.snp import SnpDefect
from attestation.snp import Tcb
from tests.attestation.fetching import (
    DATA,
    NOW,
    Waits,
    again,
    gpu_machine,
    snp_machine,
    tdx_machine,
    unavailable,
)
from tests.vendor import Vendor


def test_kept_answers_are_used_until_they_are_due(
    vendor: Vendor, fetcher: Fetcher, tmp_path: Path, waits: Waits
) -> None:
    """Within a day nothing is asked; after it everything is, so that a revocation is seen."""
    report = snp_machine().report(DATA)
    first = fetcher.amd(report)
    with again(vendor, tmp_path, waits, after=timedelta(hours=20)) as later:
        assert later.amd(report) == first
    assert len(vendor.asked) == 3
    revoked = snp_machine().collateral(NOW, SnpDefect.ASK_REVOKED).crl
    vendor.pages["/vcek/v1/Genoa/crl"] = (200, {}, revoked)
    with again(vendor, tmp_path, waits, after=timedelta(days=2)) as later:
        assert later.amd(report).crl == revoked
    assert len(vendor.asked) == 6


def test_kept_answers_serve_while_the_vendor_is_down(
    vendor: Vendor, fetcher: Fetcher, tmp_path: Path, waits: Waits
) -> None:
    """Until the vendor's own expiry: 30 days here. After it they are not used, and the error says so."""
    report = snp_machine().report(DATA)
    first = fetcher.amd(report)
    vendor.pages = {}
    with again(vendor, tmp_path, waits, after=timedelta(days=29)) as later:
        assert later.amd(report) == first
    with again(vendor, tmp_path, waits, after=timedelta(days=31)) as later:
        unavailable(lambda: later.amd(report))


def test_offline_opens_no_socket(
    fetcher: Fetcher, vendor: Vendor, tmp_path: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept answers are used while in date, and nothing is tried beyond them."""
    report, (_, quote, intel) = snp_machine().report(DATA), tdx_machine()
    amd = fetcher.amd(report)
    assert fetcher.intel(quote) == intel

    def forbidden(*_: object, **__: object) -> None:
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(httpx, "Client", forbidden)
    with again(vendor, tmp_path, waits, after=timedelta(days=20), offline=True) as offline:
        assert offline.amd(report) == amd
        other = snp_machine().report(DATA, reported_tcb=Tcb(snp=1))
        assert "is not there" in str(unavailable(lambda: offline.amd(other)))
    with again(vendor, tmp_path, waits, after=timedelta(days=400), offline=True) as offline:
        assert "has expired" in str(unavailable(lambda: offline.amd(report)))
    with Fetcher(offline=True) as bare:
        unavailable(lambda: bare.intel(quote))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"url": "x"}', b"\xff\xfe"])
def test_a_damaged_cache_is_asked_anew(
    damage: bytes, fetcher: Fetcher, vendor: Vendor, tmp_path: Path, waits: Waits
) -> None:
    """A file that is cut or foreign counts as absent and is replaced; no part files stay behind."""
    report = snp_machine().report(DATA)
    first = fetcher.amd(report)
    for file in (tmp_path / "cache").iterdir():
        assert file.suffix == ".json"
        file.write_bytes(damage)
    assert fetcher.amd(report) == first
    assert len(vendor.asked) == 6
    with again(vendor, tmp_path, waits, after=timedelta(hours=1), offline=True) as offline:
        assert offline.amd(report) == first


def test_a_cache_of_another_address_is_not_used(fetcher: Fetcher, vendor: Vendor, tmp_path: Path) -> None:
    """An entry says which address it answers; moved under another name it counts as absent."""
    report = snp_machine().report(DATA)
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
        assert fetcher.amd(snp_machine().report(DATA)).vek


def test_answers_are_renewed_when_half_their_life_is_over(
    nvidia: Vendor, tmp_path: Path, waits: Waits
) -> None:
    """However seldom the caller wants to ask: OCSP answers end in days, manifests in years."""
    _, evidence = gpu_machine()

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
    ends = {s.next_update for der in gpu_machine()[0].collateral(NOW).ocsp for s in parse_answer(der).singles}
    life = min(end for end in ends if end is not None) - NOW
    assert fetch(life * 0.4) == []
    assert set(fetch(life * 0.6)) == {"/ocsp"}


# the cache on a disk that is unwell


def test_a_full_disk_costs_the_cache_and_not_the_answer(vendor: Vendor, tmp_path: Path) -> None:
    """What cannot be written down is used all the same, no half file is left, and the fetcher says why."""
    with small_disk(tmp_path / "cache"), Fetcher(sources=vendor.sources, cache=tmp_path / "cache") as fetcher:
        report = snp_machine().report(DATA)
        assert snp.verify(report, fetcher.amd(report), [snp_machine().root], NOW).revocation_checked
        assert fetcher.not_kept is not None
        assert "No space left" in fetcher.not_kept
        assert not list((tmp_path / "cache").glob("*.part"))


def test_a_kept_file_without_end(fetcher: Fetcher, vendor: Vendor, tmp_path: Path) -> None:
    """A cache that somebody filled with a huge file is asked around, not read into memory."""
    fetcher.amd(snp_machine().report(DATA))
    for kept in (tmp_path / "cache").glob("*.json"):
        with kept.open("ab") as file:
            file.truncate(20 * 1024 * 1024)
    fetcher.amd(snp_machine().report(DATA))
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
