"""The device files of older kernels, with a stand-in at the ioctl: the structures are read and written where they really lie."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.collect import sev_guest, tdx_guest
from attestation.collect.certificates import Certificate, parse_certificates
from attestation.collect.nitro import NSM, collect_nitro
from attestation.collect.registers import extend_rtmr3, read_event_log, read_register
from attestation.collect.sev_guest import SNP_GET_EXT_REPORT, SNP_GET_REPORT, collect_sev_guest
from attestation.collect.tdx_guest import TDX_CMD_GET_REPORT0, collect_tdreport, quote_of
from attestation.errors import MalformedError, UnavailableError
from attestation.nitro.document import Missing, parse_document
from attestation.simulator.nitro import SimulatedNitro
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import SimulatedTdx
from attestation.snp.report import parse_report
from attestation.tdx.quote import parse_quote

DATA = bytes(range(64))


class SevGuest:
    """The driver of /dev/sev-guest: finds request and answer through the addresses in the message."""

    def __init__(self, table: bytes = b"", fails: dict[int, tuple[int, int]] | None = None) -> None:
        self.machine, self.table, self.fails = SimulatedSnp(), table, fails or {}
        self.status = 0

    def __call__(self, descriptor: int, number: int, message: ctypes.Structure) -> int:
        assert number >> 16 & 0x3FFF == ctypes.sizeof(message) == 32
        if number in self.fails:
            code, vmm_error = self.fails[number]
            ctypes.memmove(ctypes.addressof(message) + 28, struct.pack("<I", vmm_error), 4)
            raise OSError(code, "as told")
        version, request, response = struct.unpack_from("<B7xQQ", bytes(message))
        assert version == 1
        data = ctypes.string_at(request, 64)
        if number == SNP_GET_EXT_REPORT:
            where, size = struct.unpack("<QI", ctypes.string_at(request + 96, 12))
            assert size == 16 * 1024
            ctypes.memmove(where, self.table, len(self.table))
        report = self.machine.report(data)
        answer = struct.pack("<II24x", self.status, len(report)) + report
        ctypes.memmove(response, answer, len(answer))
        return 0


def test_sev_guest(tmp_path: Path) -> None:
    """A report over the data, and the host's certificates."""
    device = tmp_path / "sev-guest"
    device.touch()
    collected = collect_sev_guest(DATA, device=device, ioctl=SevGuest(table(VCEK=b"der")))
    assert parse_report(collected.outblob).report_data == DATA
    assert parse_certificates(collected.auxblob) == {Certificate.VCEK: b"der"}
    assert collect_sev_guest(DATA, device=device, ioctl=SevGuest()).auxblob == b""


def test_sev_guest_without_certificates(tmp_path: Path) -> None:
    """A host that knows no extended request is asked the plain one."""
    device = tmp_path / "sev-guest"
    device.touch()
    plain = SevGuest(fails={SNP_GET_EXT_REPORT: (errno.EIO, 1)})
    collected = collect_sev_guest(DATA, device=device, ioctl=plain)
    assert parse_report(collected.outblob).report_data == DATA


@pytest.mark.parametrize(
    ("fails", "status", "words"),
    [
        ({SNP_GET_EXT_REPORT: (errno.EIO, 2)}, 0, "host is busy"),
        ({SNP_GET_EXT_REPORT: (errno.EIO, 0), SNP_GET_REPORT: (errno.EIO, 0)}, 0, "EIO"),
        ({SNP_GET_EXT_REPORT: (errno.EPERM, 0)}, 0, "EPERM"),
        ({}, 0x16, "status 0x16"),
    ],
)
def test_sev_guest_refuses(
    tmp_path: Path, fails: dict[int, tuple[int, int]], status: int, words: str
) -> None:
    """Host, driver and firmware say no in three places; each is a named error."""
    device = tmp_path / "sev-guest"
    device.touch()
    driver = SevGuest(fails=fails)
    driver.status = status
    with pytest.raises(UnavailableError, match=words) as caught:
        collect_sev_guest(DATA, device=device, ioctl=driver)
    assert caught.value.check is Check.TEE_COLLECT


def test_no_device(tmp_path: Path) -> None:
    """A missing device file says which module brings it."""
    with pytest.raises(UnavailableError, match="Load sev-guest"):
        collect_sev_guest(DATA, device=tmp_path / "none")
    with pytest.raises(UnavailableError, match="Load tdx_guest"):
        collect_tdreport(DATA, device=tmp_path / "none")
    for collect in (sev_guest.collect_sev_guest, tdx_guest.collect_tdreport):
        with pytest.raises(ValueError, match="64 bytes"):
            collect(b"")


def table(**entries: bytes) -> bytes:
    """A table as hosts write it: headers, an entry of zeros, then the certificates."""
    at, heads, bodies = 24 * (len(entries) + 1), b"", b""
    for name, body in entries.items():
        guid = bytes.fromhex(Certificate[name].replace("-", ""))
        heads += guid + struct.pack("<II", at + len(bodies), len(body))
        bodies += body
    return heads + bytes(24) + bodies


def test_certificates() -> None:
    """Kinds by GUID in either byte order; an empty buffer is no certificates; unknown ones are left to the host."""
    known = table(VCEK=b"leaf", ASK=b"middle", ARK=b"root")
    assert parse_certificates(known) == {
        Certificate.VCEK: b"leaf",
        Certificate.ASK: b"middle",
        Certificate.ARK: b"root",
    }
    swapped = (
        bytes.fromhex("8d75da6364e66445adc5f4b93be8accd") + struct.pack("<II", 48, 4) + bytes(24) + b"leaf"
    )
    assert parse_certificates(swapped + bytes(8)) == {Certificate.VCEK: b"leaf"}
    assert parse_certificates(b"") == parse_certificates(bytes(4096)) == {}
    other = b"\x01" * 16 + struct.pack("<II", 48, 4) + bytes(24) + b"what"
    assert parse_certificates(other) == {}


@pytest.mark.parametrize(
    "bad",
    [
        table(VCEK=b"leaf")[:-1],
        table(VCEK=b"leaf")[:20],
        table(VCEK=b"x") .replace(struct.pack("<I", 48), struct.pack("<I", 0), 1),
        (b"\x01" * 16 + struct.pack("<II", 24, 0)) * 65,
        bytes.fromhex(Certificate.VCEK.replace("-", "")) * 0
        + (bytes.fromhex(Certificate.VCEK.replace("-", "")) + struct.pack("<II", 72, 1)) * 2
        + bytes(24)
        + b"x",
    ],
)  # fmt: skip
def test_malformed_certificates(bad: bytes) -> None:
    """Entries outside of the table, without end, or twice of one kind."""
    with pytest.raises(MalformedError):
        parse_certificates(bad)


@given(st.binary(max_size=300))
def test_any_bytes_are_certificates_or_malformed(data: bytes) -> None:
    """The host writes the table; whatever it writes is a value or a MalformedError."""
    with suppress(MalformedError):
        parse_certificates(data)


# TDX: a TDREPORT, and the quoting service


def tdx_driver(_: int, number: int, request: bytearray) -> int:
    """The driver of /dev/tdx_guest: the report lies behind the data, in the same buffer."""
    assert (number, len(request)) == (TDX_CMD_GET_REPORT0, 64 + 1024)
    request[64:] = b"TDREPORT" + request[:64] + bytes(1024 - 72)
    return 0


def test_tdreport(tmp_path: Path) -> None:
    """The report over the data; a busy module is a named error."""
    device = tmp_path / "tdx_guest"
    device.touch()
    report = collect_tdreport(DATA, device=device, ioctl=tdx_driver)
    assert report[:72] == b"TDREPORT" + DATA
    assert len(report) == 1024

    def busy(*_: object) -> int:
        raise OSError(errno.EBUSY, "as told")

    with pytest.raises(UnavailableError, match="EBUSY"):
        collect_tdreport(DATA, device=device, ioctl=busy)


@contextmanager
def quoting_service(reply: Callable[[bytes], bytes]) -> Iterator[Callable[[], socket.socket]]:
    """A service that answers one message; it stands where the host's is, on a socket pair in place of vsock."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            size = int.from_bytes(theirs.recv(4))
            message = b""
            while len(message) < size:
                message += theirs.recv(size - len(message))
            answer = reply(message)
            for at in range(0, len(answer), 1000):
                theirs.sendall(answer[at : at + 1000])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield lambda: ours
    finally:
        ours.close()
        thread.join()


def quoted(message: bytes) -> bytes:
    """What QGS answers to a request for a quote."""
    head, (report, ids) = struct.unpack_from("<HHIII", message), struct.unpack_from("<II", message, 16)
    assert head == (1, 0, 0, len(message), 0)
    assert (report, ids) == (1024, 0)
    quote = SimulatedTdx.create().quote(message[24 + 8 : 24 + 72])
    body = struct.pack("<HHIII", 1, 0, 1, 24 + len(quote), 0) + struct.pack("<II", 0, len(quote)) + quote
    return len(body).to_bytes(4) + body


def test_a_quote_over_vsock() -> None:
    """The quoting service turns a TDREPORT into a quote."""
    with quoting_service(quoted) as connect:
        quote = quote_of(b"TDREPORT" + DATA + bytes(1024 - 72), connect=connect)
    assert parse_quote(quote).td.report_data == DATA


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "in the middle"),
        ((1 << 30).to_bytes(4), "announces"),
        ((24).to_bytes(4) + bytes(3), "in the middle"),
        ((24).to_bytes(4) + struct.pack("<HHIII", 1, 0, 1, 24, 0x11001) + bytes(8), "error 0x11001"),
        ((24).to_bytes(4) + struct.pack("<HHIII", 1, 0, 1, 24, 0) + bytes(8), "not one to a request"),
        ((24).to_bytes(4) + struct.pack("<HHIII", 1, 0, 3, 24, 0) + struct.pack("<II", 9, 9), "not one to"),
    ],
)
def test_a_quoting_service_that_is_unwell(answer: bytes, words: str) -> None:
    """Refusals, cut and wrong answers are named errors."""
    with (
        quoting_service(lambda _: answer) as connect,
        pytest.raises(UnavailableError, match=words) as caught,
    ):
        quote_of(bytes(1024), connect=connect)
    assert caught.value.check is Check.TEE_COLLECT


def test_a_quoting_service_that_is_silent() -> None:
    """It is waited for so long and no longer."""
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(UnavailableError, match="does not answer"):
        quote_of(bytes(1024), connect=lambda: ours, seconds=0.05)


# registers and the boot's log


def test_registers(tmp_path: Path) -> None:
    """RTMR3 is read and extended through its file; anything but 48 bytes is refused."""
    (tmp_path / "rtmr3:sha384").write_bytes(bytes(48))
    assert read_register("rtmr3:sha384", folder=tmp_path) == bytes(48)
    extend_rtmr3(b"\x11" * 48, folder=tmp_path)
    assert read_register("rtmr3:sha384", folder=tmp_path) == b"\x11" * 48  # a file, which does not hash
    (tmp_path / "mrconfigid").write_bytes(b"short")
    with pytest.raises(UnavailableError, match="48"):
        read_register("mrconfigid", folder=tmp_path)
    with pytest.raises(ValueError, match="48 bytes"):
        extend_rtmr3(b"short", folder=tmp_path)
    for call in (lambda: read_register("rtmr2:sha384", folder=tmp_path / "no"), lambda: extend_rtmr3(bytes(48), folder=tmp_path / "no")):  # fmt: skip
        with pytest.raises(UnavailableError, match=r"6\.16"):
            call()


def test_the_boots_log(tmp_path: Path) -> None:
    """The firmware's log as it is; none where the firmware left none; a huge one is refused."""
    assert read_event_log(folder=tmp_path) == b""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/CCEL").write_bytes(b"log")
    assert read_event_log(folder=tmp_path) == b"log"
    (tmp_path / "data/CCEL").write_bytes(bytes(1024 * 1024 + 1))
    with pytest.raises(UnavailableError, match="more than"):
        read_event_log(folder=tmp_path)


# Nitro: CBOR through the module's own ioctl


class Nsm:
    """The driver of /dev/nsm: request and answer lie where the message says."""

    def __init__(self, answer: Callable[[dict[str, Any]], bytes], size: int | None = None) -> None:
        self._answer, self._size = answer, size

    def __call__(self, descriptor: int, number: int, message: ctypes.Structure) -> int:
        assert number == NSM
        base, length, where, room = struct.unpack("<4Q", bytes(message))
        answer = self._answer(cbor2.loads(ctypes.string_at(base, length)))
        assert len(answer) <= room == 12 * 1024
        ctypes.memmove(where, answer, len(answer))
        ctypes.memmove(ctypes.addressof(message) + 24, struct.pack("<Q", self._size or len(answer)), 8)
        return 0


def test_nitro(tmp_path: Path) -> None:
    """A document with the nonce that was asked for, which the verifier reads."""
    device, host = tmp_path / "nsm", SimulatedNitro()
    device.touch()

    def sign(request: dict[str, Any]) -> bytes:
        return cbor2.dumps(
            {"Attestation": {"document": host.document(datetime.now(UTC), **request["Attestation"])}}
        )

    document = parse_document(collect_nitro(nonce=DATA, device=device, ioctl=Nsm(sign)))
    assert document.nonce == DATA
    assert document.user_data is Missing.NULL


@pytest.mark.parametrize(
    ("answer", "size", "words"),
    [
        (cbor2.dumps({"Error": "InvalidOperation"}), None, "InvalidOperation"),
        (cbor2.dumps({"Attestation": {}}), None, "no document"),
        (b"\xff", None, "not CBOR"),
        (b"x", 99999, "99999 bytes"),
    ],
)
def test_nitro_refuses(tmp_path: Path, answer: bytes, size: int | None, words: str) -> None:
    """What the module says in place of a document is named."""
    device = tmp_path / "nsm"
    device.touch()
    with pytest.raises(UnavailableError, match=words) as caught:
        collect_nitro(device=device, ioctl=Nsm(lambda _: answer, size))
    assert caught.value.check is Check.TEE_COLLECT


def test_no_nitro(tmp_path: Path) -> None:
    """No module, and bytes that it would not take."""
    with pytest.raises(UnavailableError, match="Nitro enclave"):
        collect_nitro(device=tmp_path / "none")
    with pytest.raises(ValueError, match="nonce has at most 512"):
        collect_nitro(nonce=bytes(513))
