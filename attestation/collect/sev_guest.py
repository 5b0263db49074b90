"""SEV-SNP reports from /dev/sev-guest, for kernels without configfs-tsm (5.19 to 6.6).

The structures are those of <linux/sev-guest.h>. The answer's firmware header is AMD 56860, MSG_REPORT_RSP.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
from collections.abc import Callable
from pathlib import Path

from attestation.collect._device import opened
from attestation.collect._errors import unavailable
from attestation.collect.tsm import INBLOB_BYTES, TsmReport
from attestation.snp.report import REPORT_BYTES

DEVICE = Path("/dev/sev-guest")
_CERTIFICATES = 16 * 1024  # the most that the driver takes; whole pages
_REPORT_AT = 32
_BUSY = 2  # exitinfo2, of the host

#: fcntl.ioctl, as far as it is used here: the request's number, and a structure that is read and written.
Ioctl = Callable[[int, int, ctypes.Structure], int]


class _ReportRequest(ctypes.Structure):
    _fields_ = [("user_data", ctypes.c_uint8 * 64), ("vmpl", ctypes.c_uint32), ("rsvd", ctypes.c_uint8 * 28)]


class _ExtendedRequest(ctypes.Structure):
    _fields_ = [("data", _ReportRequest), ("certs_address", ctypes.c_uint64), ("certs_len", ctypes.c_uint32)]


class _Response(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint8 * 4000)]


class _Message(ctypes.Structure):
    _fields_ = [
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("fw_error", ctypes.c_uint32),
        ("vmm_error", ctypes.c_uint32),
    ]


def _iowr(number: int) -> int:
    return 3 << 30 | ctypes.sizeof(_Message) << 16 | ord("S") << 8 | number


SNP_GET_REPORT, SNP_GET_EXT_REPORT = _iowr(0), _iowr(2)


def collect_sev_guest(report_data: bytes, *, device: Path = DEVICE, ioctl: Ioctl = fcntl.ioctl) -> TsmReport:
    """A report over 64 bytes, with the host's certificate table where it gives one."""
    if len(report_data) != INBLOB_BYTES:
        raise ValueError(f"report data has {INBLOB_BYTES} bytes, not {len(report_data)}")
    with opened(device, "Load sev-guest, and start the VM with SEV-SNP on") as descriptor:
        return _extended(descriptor, report_data, ioctl)


def _extended(descriptor: int, report_data: bytes, ioctl: Ioctl) -> TsmReport:
    """With certificates; hosts that know none refuse, and are asked without."""
    table = ctypes.create_string_buffer(_CERTIFICATES)
    plain = _ReportRequest(user_data=(ctypes.c_uint8 * 64)(*report_data))
    request = _ExtendedRequest(data=plain, certs_address=ctypes.addressof(table), certs_len=_CERTIFICATES)
    try:
        return TsmReport(_call(descriptor, SNP_GET_EXT_REPORT, request, ioctl), _trimmed(table.raw))
    except OSError as exc:
        if exc.errno not in (errno.EIO, errno.ENOTTY, errno.EINVAL):
            raise
    return TsmReport(_call(descriptor, SNP_GET_REPORT, plain, ioctl), b"")


def _call(descriptor: int, number: int, request: ctypes.Structure, ioctl: Ioctl) -> bytes:
    response = _Response()
    message = _Message(
        msg_version=1, req_data=ctypes.addressof(request), resp_data=ctypes.addressof(response)
    )
    try:
        ioctl(descriptor, number, message)
    except OSError as exc:
        if message.vmm_error == _BUSY:
            raise unavailable("/dev/sev-guest: the host is busy", "Ask again in a moment") from exc
        raise
    data = bytes(response.data)
    status, size = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    if status or size != REPORT_BYTES:
        raise unavailable(f"the firmware answers with status {status:#x} and a report of {size} bytes")
    return data[_REPORT_AT : _REPORT_AT + REPORT_BYTES]


def _trimmed(table: bytes) -> bytes:
    """A buffer that nobody wrote to is no table."""
    return table if any(table) else b""
