"""Gives the one network interface its address and its route, by the old ioctls that need nothing but a socket."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import socket
import struct
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from image.guest import dhcp
from image.guest.linux import Refused
from image.guest.settings import Guest, Static

NETWORKS = Path("/sys/class/net")
RESOLV = Path("/run/resolv.conf")
_SET_FLAGS, _SET_ADDRESS, _SET_MASK, _ADD_ROUTE = (
    0x8914,
    0x8916,
    0x891C,
    0x890B,
)  # include/uapi/linux/sockios.h
_UP, _RUNNING = 0x1, 0x40
_ROUTE_UP, _ROUTE_GATEWAY, _ROUTE_HOST = 1, 2, 4


def bring_up(guest: Guest) -> int | None:
    """Loopback, and what the configuration says. Returns the seconds after which the address has to be asked for again."""
    _up("lo")
    RESOLV.write_text("" if guest.dns is None else f"nameserver {guest.dns}\n")
    if guest.network == "none":
        return None
    interface = the_interface()
    _up(interface)
    if isinstance(guest.network, Static):
        _configure(interface, guest.network.address, guest.network.router)
        return None
    return take_address(attempts=5)


def take_address(*, attempts: int) -> int:
    """Ask for an address by DHCP. Returns the seconds after which to ask again: half of the lease."""
    interface = the_interface()
    lease = dhcp.ask(interface, hardware_address(interface), attempts=attempts)
    _configure(interface, lease.address, lease.router)
    return lease.seconds // 2


def the_interface(networks: Path = NETWORKS) -> str:
    """The one that is not loopback. Refused when there is none, or several: which one would be the host's choice."""
    found = sorted(path.name for path in networks.iterdir() if path.name != "lo")
    if len(found) != 1:
        raise Refused("network", expected="one interface", found=" and ".join(found) or "none")
    return found[0]


def hardware_address(interface: str, networks: Path = NETWORKS) -> bytes:
    text = (networks / interface / "address").read_text().strip()
    if len(address := bytes.fromhex(text.replace(":", ""))) != 6:
        raise Refused("network", expected="an Ethernet address", found=text)
    return address


def route(destination: IPv4Address, gateway: IPv4Address | None, *, interface: int) -> bytes:
    """A struct rtentry (include/uapi/linux/route.h) of 64-bit Linux: to one machine, or by a gateway to all.
    `interface` is the address of its name in memory."""
    flags = _ROUTE_UP | (_ROUTE_HOST if gateway is None else _ROUTE_GATEWAY)
    mask = IPv4Address(0xFFFFFFFF if gateway is None else 0)
    addresses = (_sockaddr(destination), _sockaddr(gateway or IPv4Address(0)), _sockaddr(mask))
    return struct.pack("=8x 16s 16s 16s H 30x Q 24x", *addresses, flags, interface)


def _configure(interface: str, address: IPv4Interface, router: IPv4Address | None) -> None:
    _ioctl(_SET_ADDRESS, _request(interface, _sockaddr(address.ip)))
    _ioctl(_SET_MASK, _request(interface, _sockaddr(address.netmask)))
    name = ctypes.create_string_buffer(interface.encode())
    if (
        router is not None and router not in address.network
    ):  # as in clouds that make each machine its own network
        _ioctl(_ADD_ROUTE, route(router, None, interface=ctypes.addressof(name)))
    if router is not None:
        _ioctl(_ADD_ROUTE, route(IPv4Address(0), router, interface=ctypes.addressof(name)))


def _up(interface: str) -> None:
    _ioctl(_SET_FLAGS, _request(interface, struct.pack("=h 14x", _UP | _RUNNING)))


def _request(interface: str, value: bytes) -> bytes:
    """A struct ifreq."""
    return struct.pack("=16s 24s", interface.encode(), value)


def _sockaddr(address: IPv4Address) -> bytes:
    """A struct sockaddr_in."""
    return struct.pack("=H 2x 4s 8x", socket.AF_INET, address.packed)


def _ioctl(command: int, data: bytes) -> None:
    kept = contextlib.suppress(FileExistsError)  # a route stays as it is when an address is renewed
    with kept, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, command, data)
