"""The SGX extension of a PCK certificate: which platform this is, and its microcode SVNs. Judges nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from attestation.checks import Check
from attestation.errors import MalformedError

_SGX = "1.2.840.113741.1.13.1"
_OID = x509.ObjectIdentifier(_SGX)
# DER of 1.2.840.113741.1.13.1; every name in the extension is this and one or two more arcs
_PREFIX = bytes.fromhex("2a864886f84d010d01")
_BOOL, _INT, _OCTETS, _OBJECT, _ENUM, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What Intel's certificate says about the machine. Optional fields are None on single-package platforms."""

    ppid: bytes
    fmspc: bytes
    pce_id: bytes
    pce_svn: int
    cpu_svn: bytes
    sgx_components: tuple[int, ...]
    sgx_type: int
    platform_instance_id: bytes | None = None
    dynamic_platform: bool | None = None
    cached_keys: bool | None = None
    smt_enabled: bool | None = None


def parse_platform(cert: x509.Certificate) -> Platform:
    """The SGX extension of `cert`."""
    try:
        value = cert.extensions.get_extension_for_oid(_OID).value
    except x509.ExtensionNotFound as exc:
        raise MalformedError(Check.TDX_PCK_EXTENSION, "the PCK certificate has no SGX extension") from exc
    der = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    try:
        return _parse(der)
    except (ValueError, KeyError, IndexError) as exc:
        raise MalformedError(
            Check.TDX_PCK_EXTENSION, f"the PCK certificate's SGX extension: {exc!r}"
        ) from exc


@lru_cache(maxsize=512)
def _parse(der: bytes) -> Platform:
    fields = _table(_only(der, _SEQUENCE), _PREFIX)
    tcb = _table(_typed(fields[2], _SEQUENCE), _PREFIX + b"\x02")
    config = _table(_typed(fields[7], _SEQUENCE), _PREFIX + b"\x07") if 7 in fields else {}
    components = tuple(_uint(tcb[i], 1) for i in range(1, 17))
    return Platform(
        ppid=_octets(fields[1], 16),
        fmspc=_octets(fields[4], 6),
        pce_id=_octets(fields[3], 2),
        pce_svn=_uint(tcb[17], 2),
        cpu_svn=_octets(tcb[18], 16),
        sgx_components=components,
        sgx_type=int.from_bytes(_typed(fields[5], _ENUM), "big"),
        platform_instance_id=_octets(fields[6], 16) if 6 in fields else None,
        dynamic_platform=_bool(config[1]) if 1 in config else None,
        cached_keys=_bool(config[2]) if 2 in config else None,
        smt_enabled=_bool(config[3]) if 3 in config else None,
    )


Element = tuple[int, bytes]  # DER tag and content


def _elements(data: bytes) -> list[Element]:
    """The DER elements that `data` consists of: single-byte tags, definite lengths below 64 KiB."""
    elements = []
    position = 0
    while position < len(data):
        tag, size = data[position], data[position + 1]
        position += 2
        if size in (0x81, 0x82):
            width = size - 0x80
            size = int.from_bytes(data[position : position + width], "big")
            position += width
        elif size >= 0x80:
            raise ValueError("a DER length that is not used here")
        if position + size > len(data):
            raise ValueError("a DER element is longer than what holds it")
        elements.append((tag, data[position : position + size]))
        position += size
    return elements


def _only(data: bytes, tag: int) -> bytes:
    (element,) = _elements(data)
    return _typed(element, tag)


def _table(data: bytes, prefix: bytes) -> dict[int, Element]:
    """SEQUENCEs of an object identifier, one arc below `prefix`, and a value, by that arc."""
    start = bytes((_OBJECT, len(prefix) + 1)) + prefix
    table: dict[int, Element] = {}
    for element in _elements(data):
        entry = _typed(element, _SEQUENCE)
        arc = entry[len(start)]
        if not entry.startswith(start) or arc in table:
            raise ValueError(f"unexpected or repeated object identifier in {entry.hex()}")
        (table[arc],) = _elements(entry[len(start) + 1 :])
    return table


def _typed(element: Element, tag: int) -> bytes:
    if element[0] != tag:
        raise ValueError(f"DER tag {element[0]:#x}, expected {tag:#x}")
    return element[1]


def _octets(element: Element, size: int) -> bytes:
    data = _typed(element, _OCTETS)
    if len(data) != size:
        raise ValueError(f"{len(data)} octets, expected {size}")
    return data


def _uint(element: Element, size: int) -> int:
    data = _typed(element, _INT)
    value = int.from_bytes(data, "big", signed=True)
    if not data or not 0 <= value < 1 << 8 * size:
        raise ValueError(f"integer {value} does not fit {size} bytes")
    return value


def _bool(element: Element) -> bool:
    data = _typed(element, _BOOL)
    if data not in (b"\x00", b"\xff"):
        raise ValueError("not a DER boolean")
    return data == b"\xff"
