"""configfs-tsm as the kernel has it, without a TEE: a FUSE file system whose entries give out what a function signs.

with tsm(tmp_path / "report", sim.quote) as kernel:
    ...  # collect_tsm(Provider.TDX, data, folder=kernel.folder); kernel.errors.append(errno.EBUSY); kernel.others = 1

Real system calls and the kernel's own error numbers, but for the TEE's driver behind them. Needs root and /dev/fuse.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha384
from pathlib import Path

import pytest

LOOKUP, FORGET, GETATTR, SETATTR, MKDIR, RMDIR, OPEN, READ, WRITE = 1, 2, 3, 4, 9, 11, 14, 15, 16
RELEASE, FLUSH, INIT, INTERRUPT, BATCH_FORGET = 18, 25, 26, 36, 42
_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_SILENT = {FORGET, BATCH_FORGET, INTERRUPT}
_ROOT, _DIRECT_IO, _DETACH, _RTMR3 = 1, 1, 2, 2
_FILES = ("inblob", "outblob", "auxblob", "provider", "generation")
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Entry:
    """One directory below report/."""

    name: str
    inblob: bytes = b""
    generation: int = 0


@dataclass
class Kernel:
    """How the kernel behaves from now on."""

    folder: Path
    sign: Callable[[bytes], bytes]
    provider: str = "tdx_guest"
    table: bytes = b""  # SNP's certificates
    errors: list[int] = field(default_factory=list)  # of the next reads of outblob
    mkdir_errors: list[int] = field(default_factory=list)
    others: int = 0  # so many requests find that somebody else wrote in between
    delay: float = 0.0  # seconds until an outblob is there
    longer: int = 0  # bytes that follow the evidence
    entries: dict[int, Entry] = field(default_factory=dict)  # by node
    rtmr3: bytes = bytes(48)  # a file beside the entries, though the kernel has it elsewhere
    made: list[str] = field(default_factory=list)  # names, ever
    asked: list[bytes] = field(default_factory=list)
    _nodes: int = 1
    _open: dict[int, bytes] = field(default_factory=dict)  # content by file handle
    _handles: int = 0

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        return {
            INIT: self._start,
            LOOKUP: lambda node, body: self._entry_out(self._lookup(node, body)),
            GETATTR: self._status,
            SETATTR: self._status,
            MKDIR: lambda _, body: self._entry_out(self._mkdir(body[8:])),
            RMDIR: self._rmdir,
            OPEN: self._opened,
            READ: lambda node, body: self._read(node, *struct.unpack_from("<QQI", body)),
            WRITE: self._write,
            RELEASE: self._closed,
            FLUSH: lambda *_: b"",
        }.get(opcode, self._unknown)(node, body)

    def _unknown(self, _: int, __: bytes) -> bytes:
        raise OSError(errno.ENOSYS, "not there")

    def _start(self, _: int, __: bytes) -> bytes:
        return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 8, 8, 128 * 1024, 1, 32, 0, 0)

    def _status(self, node: int, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(node)

    def _rmdir(self, node: int, name: bytes) -> bytes:
        del self.entries[self._lookup(node, name)]
        return b""

    def _lookup(self, node: int, name: bytes) -> int:
        text = name.rstrip(b"\0").decode()
        if (node, text) == (_ROOT, "rtmr3:sha384"):
            return _RTMR3
        if node == _ROOT:
            found = [n for n, entry in self.entries.items() if entry.name == text]
        else:
            found = [node * 8 + _FILES.index(text)] if text in _FILES else []
        if not found:
            raise OSError(errno.ENOENT, "no such name")
        return found[0]

    def _mkdir(self, name: bytes) -> int:
        if self.mkdir_errors:
            raise OSError(self.mkdir_errors.pop(0), "as told")
        self._nodes += 1
        node = self._nodes << 16
        self.entries[node] = Entry(name.rstrip(b"\0").decode())
        self.made.append(self.entries[node].name)
        return node

    def _attributes(self, node: int) -> bytes:
        folder = node == _ROOT or node in self.entries
        if not folder and node != _RTMR3 and node // 8 not in self.entries:
            raise OSError(errno.ENOENT, "removed")
        mode = stat.S_IFDIR | 0o755 if folder else stat.S_IFREG | 0o644
        return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _entry_out(self, node: int) -> bytes:
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _opened(self, _: int, __: bytes) -> bytes:
        self._handles += 1
        return struct.pack("<QII", self._handles, _DIRECT_IO, 0)

    def _read(self, node: int, handle: int, offset: int, size: int) -> bytes:
        if handle not in self._open:
            known = node == _RTMR3
            self._open[handle] = (
                self.rtmr3 if known else self._content(self.entries[node // 8], _FILES[node % 8])
            )
        return self._open[handle][offset : offset + size]

    def _content(self, entry: Entry, name: str) -> bytes:
        if name == "provider":
            return f"{self.provider}\n".encode()
        if name == "generation":
            return f"{entry.generation}\n".encode()
        if not entry.inblob:
            raise OSError(errno.EINVAL, "nothing to sign")
        if name == "auxblob":
            return self.table
        if self.errors:
            raise OSError(self.errors.pop(0), "as told")
        asked_at = time.monotonic()
        while time.monotonic() < asked_at + self.delay:  # until a test makes it shorter
            time.sleep(0.01)
        self.asked.append(entry.inblob)
        if self.others:
            self.others -= 1
            entry.generation += 1
        return self.sign(entry.inblob) + bytes(self.longer)

    def _write(self, node: int, body: bytes) -> bytes:
        handle, _, size = struct.unpack_from("<QQI", body)
        content = body[40 : 40 + size]
        if node == _RTMR3:
            if size != 48:
                raise OSError(errno.EINVAL, "a digest has 48 bytes")
            self.rtmr3 = sha384(self.rtmr3 + content).digest()
        self._open[handle] = content
        return struct.pack("<II", size, 0)

    def _closed(self, node: int, body: bytes) -> bytes:
        """What was written counts from here on."""
        content = self._open.pop(struct.unpack_from("<Q", body)[0], b"")
        if node != _RTMR3 and _FILES[node % 8] == "inblob" and content:
            entry = self.entries[node // 8]
            entry.inblob, entry.generation = content, entry.generation + 1
        return b""


def _serve(kernel: Kernel, device: int, over: int) -> None:
    """Until it is over: a process that copied the mounts meanwhile keeps this one for itself, and its end is never seen here."""
    asked = select.poll()
    for descriptor in (device, over):
        asked.register(descriptor, select.POLLIN)
    while over not in dict(asked.poll()):
        try:
            request = os.read(device, 256 * 1024)
        except OSError:
            return  # unmounted
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        if opcode in _SILENT:
            continue
        try:
            code, content = 0, kernel.answer(opcode, node, request[_IN.size :])
        except OSError as exc:
            code, content = -(exc.errno or errno.EIO), b""
        except KeyError:
            code, content = -errno.ENOENT, b""
        try:
            os.write(device, _OUT.pack(_OUT.size + len(content), code, unique) + content)
        except OSError:
            continue  # whoever asked has gone


@contextmanager
def tsm(folder: Path, sign: Callable[[bytes], bytes], provider: str = "tdx_guest") -> Iterator[Kernel]:
    """Mounted at `folder` for as long as the block lasts; the test is skipped where that cannot be."""
    folder.mkdir(parents=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as exc:
        pytest.skip(f"no /dev/fuse: {exc}")
    options = f"fd={device},rootmode=40755,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if _LIBC.mount(b"tsm", os.fsencode(folder), b"fuse", 0, options):
        os.close(device)
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    kernel = Kernel(folder, sign, provider)
    over, end = os.pipe()
    thread = threading.Thread(target=_serve, args=(kernel, device, over), daemon=True)
    thread.start()
    try:
        yield kernel
    finally:
        _LIBC.umount2(os.fsencode(folder), _DETACH)
        os.close(end)
        thread.join(60)
        os.close(device)  # after its last reader: else that one reads what is opened next under this number
        os.close(over)
