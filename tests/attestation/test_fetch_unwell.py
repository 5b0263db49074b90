"""Fetching from a server that is unwell: what is asked for again, how long, and when to give up."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler

import pytest

from attestation import snp
from attestation._download import Patience
from attestation.fetch import Fetcher, Sources
from tests.attestation.fetching import DATA, NOW, Waits, snp_machine, unavailable
from tests.vendor import Reply, Vendor


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_overloaded_vendor_is_asked_again(
    status: int, vendor: Vendor, fetcher: Fetcher, waits: Waits
) -> None:
    """Too many requests and server errors are waited out, each time longer."""
    vendor.spoil = [(status, {}, b"later")] * 3
    fetcher.amd(snp_machine().report(DATA))
    assert len(vendor.asked) == 6
    assert [0.25 * 2**n <= wait <= 0.5 * 2**n for n, wait in enumerate(waits)] == [True] * 3


def test_retry_after_is_honoured_in_seconds_and_as_a_date(
    vendor: Vendor, fetcher: Fetcher, waits: Waits
) -> None:
    """The vendor says when to come back."""
    date = (datetime.now(UTC) + timedelta(seconds=55)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    vendor.spoil = [
        (429, {"Retry-After": "7"}, b""),
        (503, {"Retry-After": date}, b""),
        (429, {"Retry-After": "soon"}, b""),
    ]
    fetcher.amd(snp_machine().report(DATA))
    assert waits[0] == 7
    assert 7 < waits[1] <= 55
    assert waits[2] < 2.1


def test_a_long_pause_is_reported_and_not_waited_for(vendor: Vendor, fetcher: Fetcher, waits: Waits) -> None:
    """Nobody sleeps for an hour unasked."""
    vendor.spoil = [(429, {"Retry-After": "3600"}, b"")]
    assert "3600 s" in unavailable(lambda: fetcher.amd(snp_machine().report(DATA))).advice
    assert waits == []


def test_patience_ends(vendor: Vendor, fetcher: Fetcher, waits: Waits) -> None:
    """After the last attempt, the error carries the cause; nothing waits in vain after it."""
    vendor.spoil = [(500, {}, b"")] * 4
    assert "status 500 (4 attempts)" in str(unavailable(lambda: fetcher.amd(snp_machine().report(DATA))))
    assert (len(vendor.asked), len(waits)) == (4, 3)


@pytest.mark.parametrize("status", [301, 400, 401, 404])
def test_a_clear_no_is_not_asked_again(status: int, vendor: Vendor, fetcher: Fetcher) -> None:
    """Redirects are not followed, and what the vendor does not know it will not know a second later."""
    vendor.spoil = [(status, {"Location": vendor.url + "/elsewhere"}, b"")]
    assert str(status) in str(unavailable(lambda: fetcher.amd(snp_machine().report(DATA))))
    assert len(vendor.asked) == 1


def _cut(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10)


def _cut_unnoticed(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + snp_machine().collateral(NOW).vek[:500])


def _nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def _drip(handler: BaseHTTPRequestHandler) -> None:
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)
    except OSError:
        return  # the client has given up, as it should


@pytest.mark.parametrize("reply", [_cut, _cut_unnoticed, _nothing, (200, {}, b""), (200, {}, b"<html>")])
def test_cut_and_foreign_answers_are_asked_for_again(reply: Reply, vendor: Vendor, fetcher: Fetcher) -> None:
    """Whatever is not a whole certificate is not one, and is not kept."""
    vendor.spoil = [reply]
    report = snp_machine().report(DATA)
    assert snp.verify(report, fetcher.amd(report), [snp_machine().root], NOW).report_data == DATA
    assert len(vendor.asked) == 4


def test_a_slow_answer_is_asked_for_again(vendor: Vendor, waits: Waits) -> None:
    """However many bytes it still sends."""
    vendor.spoil = [_drip]
    patience = Patience(sleep=waits, total_s=4)
    with Fetcher(sources=vendor.sources, patience=patience) as fetcher:
        fetcher.amd(snp_machine().report(DATA))
    assert len(vendor.asked) == 4


def test_an_endless_answer_is_cut_off(
    vendor: Vendor, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collateral has a limit of size."""
    monkeypatch.setattr("attestation._download.MAX_COLLATERAL_BYTES", 1000)
    assert "more than 1000 bytes" in str(unavailable(lambda: fetcher.amd(snp_machine().report(DATA))))


def test_nobody_there(waits: Waits) -> None:
    """A port where nothing listens is unavailable after the last attempt."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Fetcher(sources=Sources(amd=url), patience=Patience(sleep=waits)) as fetcher:
            unavailable(lambda: fetcher.amd(snp_machine().report(DATA)))
    assert len(waits) == 3
