"""Enough of DHCP (RFC 2131, 2132) to be given an IPv4 address. Everything here is the host's word: it owns the network anyway.

Address, mask, router and time of lease are taken, and nothing else: no name server, no name, no time, no route to elsewhere.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from image.guest.linux import Refused

DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6
MASK, ROUTER, ASKED, LEASE, KIND, SERVER, WANTED, END = 1, 3, 50, 51, 53, 54, 55, 255
_COOKIE = b"\x63\x82\x53\x63"
_HEADER = "!4B I 2H 4s 4s 4s 4s 16s 192x 4s"
_LENGTH = struct.calcsize(_HEADER)
_BROADCAST = 0x8000
_FIRST_WAIT = 2.0  # seconds, doubled at each attempt
_LEASE_LEAST, _LEASE_MOST = 60, 7 * 86_400


class NotOursError(ValueError):
    """Some other datagram, or one that is malformed: the next one may be better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a server gives."""

    kind: int
    address: IPv4Interface
    router: IPv4Address | None
    server: IPv4Address
    seconds: int


def message(kind: int, transaction: int, hardware: bytes, *, offer: Lease | None = None) -> bytes:
    """A DISCOVER, or a REQUEST of what was offered."""
    header = struct.pack(_HEADER, 1, 1, 6, 0, transaction, 0, _BROADCAST, *(bytes(4),) * 4, hardware, _COOKIE)
    options = bytes((KIND, 1, kind, WANTED, 3, MASK, ROUTER, LEASE))
    if offer is not None:
        options += bytes((ASKED, 4)) + offer.address.packed + bytes((SERVER, 4)) + offer.server.packed
    return header + options + bytes((END,))


def parse(datagram: bytes, transaction: int, hardware: bytes) -> Lease:
    """A server's answer to us. NotOursError for anything else."""
    if len(datagram) < _LENGTH:
        raise NotOursError("short")
    code, kind_of, length, _, found, _, _, _, address, _, _, client, cookie = struct.unpack_from(
        _HEADER, datagram
    )
    if (code, kind_of, length, found, client[:6], cookie) != (2, 1, 6, transaction, hardware, _COOKIE):
        raise NotOursError("another's")
    options = dict(_options(datagram[_LENGTH:]))
    kind = _exactly(options, KIND, 1)[0]
    server = IPv4Address(_exactly(options, SERVER, 4))
    if kind == NAK:
        return Lease(kind=kind, address=IPv4Interface(0), router=None, server=server, seconds=0)
    mask = int.from_bytes(_exactly(options, MASK, 4))
    bits = mask.bit_count()
    router = options.get(ROUTER, b"")[:4]
    if (
        kind not in (OFFER, ACK)
        or mask != (0xFFFFFFFF << 32 - bits) & 0xFFFFFFFF
        or len(router) not in (0, 4)
    ):
        raise NotOursError("malformed")
    given = IPv4Interface((address, bits))
    if given.ip.is_unspecified or given.ip.is_multicast or given.ip.is_loopback or given.ip.is_reserved:
        raise NotOursError("no address of a machine")
    return Lease(
        kind=kind,
        address=given,
        router=IPv4Address(router) if router else None,
        server=server,
        seconds=min(max(int.from_bytes(_exactly(options, LEASE, 4)), _LEASE_LEAST), _LEASE_MOST),
    )


def ask(interface: str, hardware: bytes, *, attempts: int) -> Lease:
    """Discover, offer, request, acknowledge. Refused when nobody answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        link.bind(("", 68))
        for attempt in range(attempts):
            transaction = int.from_bytes(os.urandom(4))
            wait = _FIRST_WAIT * 2**attempt
            offer = _exchange(link, message(DISCOVER, transaction, hardware), transaction, hardware, wait)
            if offer is None or offer.kind != OFFER:
                continue
            request = message(REQUEST, transaction, hardware, offer=offer)
            lease = _exchange(link, request, transaction, hardware, wait)
            if lease is not None and lease.kind == ACK:
                return lease
    raise Refused(
        "network", expected=f"an address by DHCP on {interface}", found=f"none in {attempts} attempts"
    )


def _exchange(
    link: socket.socket, out: bytes, transaction: int, hardware: bytes, wait: float
) -> Lease | None:
    link.sendto(out, ("255.255.255.255", 67))
    end = time.monotonic() + wait
    while (left := end - time.monotonic()) > 0:
        link.settimeout(left)
        try:
            return parse(link.recv(2048), transaction, hardware)
        except TimeoutError:
            return None
        except NotOursError:
            continue
    return None


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data) and data[position] != END:
        if data[position] == 0:
            position += 1
            continue
        if position + 2 > len(data) or position + 2 + data[position + 1] > len(data):
            raise NotOursError("an option that is cut short")
        start = position + 2
        yield data[position], data[start : start + data[position + 1]]
        position = start + data[position + 1]


def _exactly(options: dict[int, bytes], name: int, length: int) -> bytes:
    value = options.get(name, b"")
    if len(value) != length:
        raise NotOursError(f"option {name}")
    return value
