"""TDX quotes without configfs-tsm: a TDREPORT from /dev/tdx_guest, and the host's quoting service over vsock.

A TDREPORT convinces this machine alone; only the quoting enclave on the host turns it into a quote. The messages are
those of Intel's quote generation service (QGS), each after its length in four bytes, big-endian.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from attestation.collect._device import opened
from attestation.collect._errors import unavailable
from attestation.collect.tsm import INBLOB_BYTES, MAX_BLOB_BYTES

DEVICE = Path("/dev/tdx_guest")
QGS_PORT = 4050  # Intel's default; /etc/tdx-attest.conf names another
TDREPORT_BYTES = 1024
TDX_CMD_GET_REPORT0 = 3 << 30 | (INBLOB_BYTES + TDREPORT_BYTES) << 16 | ord("T") << 8 | 1
_HEADER = struct.Struct("<HHIII")  # major, minor, type, size of the whole message, error
_MAJOR, _MINOR, _REQUEST, _RESPONSE = 1, 0, 0, 1
_HOST_CID = 2

Ioctl = Callable[[int, int, bytearray], int]
Connect = Callable[[], socket.socket]


def collect_tdreport(report_data: bytes, *, device: Path = DEVICE, ioctl: Ioctl = fcntl.ioctl) -> bytes:
    """A TDREPORT over 64 bytes. No evidence for anybody else: see `quote_of`."""
    if len(report_data) != INBLOB_BYTES:
        raise ValueError(f"report data has {INBLOB_BYTES} bytes, not {len(report_data)}")
    request = bytearray(report_data) + bytes(TDREPORT_BYTES)
    with opened(device, "Load tdx_guest, and start the VM as a TD") as descriptor:
        ioctl(descriptor, TDX_CMD_GET_REPORT0, request)
    return bytes(request[INBLOB_BYTES:])


def quote_of(tdreport: bytes, *, connect: Connect | None = None, seconds: float = 30.0) -> bytes:
    """The quote that the host's quoting service makes of a TDREPORT."""
    size = _HEADER.size + 8 + len(tdreport)
    request = (
        _HEADER.pack(_MAJOR, _MINOR, _REQUEST, size, 0) + struct.pack("<II", len(tdreport), 0) + tdreport
    )
    try:
        with (connect or _host)() as service:
            service.settimeout(seconds)
            service.sendall(len(request).to_bytes(4) + request)
            length = int.from_bytes(_exactly(service, 4))
            if not _HEADER.size + 8 <= length <= MAX_BLOB_BYTES:
                raise unavailable(f"the quoting service announces an answer of {length} bytes")
            answer = _exactly(service, length)
    except OSError as exc:
        raise unavailable(
            f"the host's quoting service does not answer: {exc}",
            f"Start QGS on the host, listening on vsock port {QGS_PORT}; a newer kernel (6.7) needs no vsock",
        ) from exc
    return _quote_in(answer)


def _host() -> socket.socket:
    service = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    service.settimeout(5)
    service.connect((_HOST_CID, QGS_PORT))
    return service


def _exactly(service: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        if not (chunk := service.recv(size - len(content))):
            raise ConnectionError("it closed the connection in the middle of its answer")
        content += chunk
    return bytes(content)


def _quote_in(answer: bytes) -> bytes:
    major, _, kind, size, error = _HEADER.unpack_from(answer)
    if error:
        raise unavailable(f"the quoting service refused with error {error:#x}", "The host's QGS log says why")
    chosen, length = struct.unpack_from("<II", answer, _HEADER.size)
    start = _HEADER.size + 8 + chosen
    if (major, kind, size) != (_MAJOR, _RESPONSE, len(answer)) or start + length != len(answer) or not length:
        raise unavailable("the quoting service's answer is not one to a request for a quote")
    return answer[start:]
