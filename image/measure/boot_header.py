"""A kernel as a VMM hands it over: as it is in its file, or with the loader's fields of its header filled in.

QEMU fills them in (`x86_load_linux`) before its firmware reads the kernel from the old fw_cfg items, and the firmware
measures what it read. Newer firmware reads the file as it is, where a newer QEMU offers it (`etc/boot/kernel`).
"""

from __future__ import annotations

from image.errors import ImageError

_LOADED_HIGH, _CAN_USE_HEAP = 0x01, 0x80
_ABOVE_4G = 0x02  # xloadflags: the initrd may lie above 4 GiB
_REAL_ADDRESS, _COMMAND_LINE_ADDRESS = 0x10000, 0x20000
_QEMU = 0xB0  # type_of_loader (Documentation/arch/x86/boot.rst)
_ACPI_DATA = 0x20000 + 0x8000
_Q35_LOW, _Q35_LOW_IF_MORE, _Q35_MORE = 0xB0000000, 0x80000000, 0xB0000000


def low_memory(memory: int) -> int:
    """How much of a q35's memory lies below 4 GiB (QEMU, `pc_q35_init`)."""
    low = _Q35_LOW_IF_MORE if memory >= _Q35_MORE else _Q35_LOW
    return min(memory, low)


def filled_in(kernel: bytes, *, initrd_size: int, memory: int) -> bytes:
    """The kernel with the fields that QEMU writes into its header, for a q35 with so much memory."""
    if kernel[0x202:0x206] != b"HdrS":
        raise ImageError("the kernel is no bzImage: its header has no HdrS")
    protocol = int.from_bytes(kernel[0x206:0x208], "little")
    if protocol < 0x20C or not kernel[0x211] & _LOADED_HIGH:
        raise ImageError(f"the kernel has boot protocol {protocol:#x}; QEMU's header is known from 0x20c on")
    header = bytearray(kernel[:0x1000])
    _put(header, 0x210, 1, _QEMU)
    header[0x211] |= _CAN_USE_HEAP
    _put(header, 0x224, 2, _COMMAND_LINE_ADDRESS - _REAL_ADDRESS - 0x200)
    _put(header, 0x228, 4, _COMMAND_LINE_ADDRESS)
    if initrd_size:
        _put(header, 0x218, 4, _initrd_address(kernel, initrd_size, memory))
        _put(header, 0x21C, 4, initrd_size)
    return bytes(header) + kernel[0x1000:]


def _initrd_address(kernel: bytes, initrd_size: int, memory: int) -> int:
    above = int.from_bytes(kernel[0x236:0x238], "little") & _ABOVE_4G
    highest = 0xFFFFFFFF if above else int.from_bytes(kernel[0x22C:0x230], "little")
    highest = min(highest, low_memory(memory) - _ACPI_DATA - 1)
    return (highest - initrd_size) & ~0xFFF


def _put(header: bytearray, offset: int, size: int, value: int) -> None:
    header[offset : offset + size] = value.to_bytes(size, "little")
