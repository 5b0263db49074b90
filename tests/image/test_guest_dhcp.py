"""DHCP: what is sent, what is believed of the answers, and an exchange over a real socket."""

from __future__ import annotations

import socket
import struct
import threading
from ipaddress import IPv4Address, IPv4Interface
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.guest import dhcp
from image.guest.dhcp import ACK, DISCOVER, NAK, OFFER, REQUEST, Lease, NotOursError, message, parse
from image.guest.linux import Refused

HARDWARE, TRANSACTION = bytes.fromhex("525400123456"), 0x01020304
MASK, ROUTER, LEASE, KIND, SERVER = (
    b"\xff\xff\xff\0",
    b"\xc0\0\x02\x01",
    b"\0\0\x0e\x10",
    53,
    b"\xc0\0\x02\x02",
)


def answer(kind: int = ACK, *, address: str = "192.0.2.15", **changes: bytes) -> bytes:
    """A server's datagram."""
    options = {1: MASK, 3: ROUTER, 51: LEASE, 53: bytes((kind,)), 54: SERVER}
    options |= {int(name.removeprefix("o")): value for name, value in changes.items()}
    header = struct.pack(
        "!4BI2H4s4s4s4s16s192x4s",
        *(2, 1, 6, 0, TRANSACTION, 0, 0, bytes(4), IPv4Address(address).packed, bytes(4), bytes(4)),
        *(HARDWARE, b"\x63\x82\x53\x63"),
    )
    return header + b"".join(bytes((name, len(value))) + value for name, value in options.items()) + b"\xff"


def test_an_answer_gives_address_mask_router_and_lease() -> None:
    """And nothing else of what it says: a name server in it is passed over."""
    lease = parse(answer(o6=b"\x06\x06\x06\x06", o15=b"evil.example"), TRANSACTION, HARDWARE)
    assert lease == Lease(
        kind=ACK,
        address=IPv4Interface("192.0.2.15/24"),
        router=IPv4Address("192.0.2.1"),
        server=IPv4Address("192.0.2.2"),
        seconds=3600,
    )


def test_a_network_without_a_router_and_one_of_a_single_machine() -> None:
    """The first stays among its neighbours; the second is what some clouds give."""
    assert parse(answer(o3=b""), TRANSACTION, HARDWARE).router is None
    alone = parse(answer(o1=b"\xff" * 4), TRANSACTION, HARDWARE)
    assert alone.address == IPv4Interface("192.0.2.15/32")


def test_a_refusal_carries_no_address() -> None:
    """A NAK has a server and its word."""
    assert parse(answer(NAK), TRANSACTION, HARDWARE).kind == NAK


@pytest.mark.parametrize(("given_seconds", "taken"), [(0, 60), (0xFFFFFFFF, 7 * 86_400), (7200, 7200)])
def test_leases_are_bounded(given_seconds: int, taken: int) -> None:
    """A host can neither have the guest ask without end nor never again."""
    assert parse(answer(o51=given_seconds.to_bytes(4)), TRANSACTION, HARDWARE).seconds == taken


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        answer()[:239],
        answer()[:245],
        b"\x01" + answer()[1:],
        answer(o53=b""),
        answer(o53=b"\x02\x02"),
        answer(o53=b"\x09"),
        answer(o54=b"\0"),
        answer(o1=b"\xff\0\xff\0"),
        answer(o1=b"\xff\xff\xff"),
        answer(o3=b"\x01\x02"),
        answer(o51=b"\x01"),
        answer(address="0.0.0.0"),  # noqa: S104 - no address to bind to
        answer(address="127.0.0.1"),
        answer(address="224.0.0.1"),
        answer(address="255.255.255.255"),
        answer().replace(HARDWARE, bytes(6)),
        answer().replace(TRANSACTION.to_bytes(4), bytes(4)),
        answer().replace(b"\x63\x82\x53\x63", bytes(4)),
    ],
)
def test_an_answer_that_is_not_ours_or_malformed_is_passed_over(datagram: bytes) -> None:
    """The next one may be better."""
    with pytest.raises(NotOursError):
        parse(datagram, TRANSACTION, HARDWARE)


@given(st.binary(max_size=600))
def test_any_datagram_is_an_answer_or_passed_over(datagram: bytes) -> None:
    """The host sends what it likes."""
    for content in (datagram, answer()[:240] + datagram):
        try:
            assert parse(content, TRANSACTION, HARDWARE).kind in (OFFER, ACK, NAK)
        except NotOursError:
            continue


def test_a_request_names_what_was_offered() -> None:
    """Address and server of the offer, in the options that RFC 2131 asks for."""
    offer = parse(answer(OFFER), TRANSACTION, HARDWARE)
    request = message(REQUEST, TRANSACTION, HARDWARE, offer=offer)
    assert request[:4] == b"\x01\x01\x06\0"
    assert request[4:8] == TRANSACTION.to_bytes(4)
    assert request[28:34] == HARDWARE
    options = dict(dhcp._options(request[240:]))
    assert options[53] == bytes((REQUEST,))
    assert options[50] == IPv4Address("192.0.2.15").packed
    assert options[54] == SERVER
    assert 50 not in dict(dhcp._options(message(DISCOVER, TRANSACTION, HARDWARE)[240:]))


class Link:
    """One end of a pair of datagram sockets, which `ask` takes for its own."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def sendto(self, data: bytes, address: tuple[str, int]) -> None:
        assert address == ("255.255.255.255", 67)
        self.end.send(data)

    def settimeout(self, seconds: float) -> None:
        self.end.settimeout(seconds)

    def recv(self, size: int) -> bytes:
        return self.end.recv(size)

    def setsockopt(self, *_: object) -> None: ...

    def bind(self, address: tuple[str, int]) -> None:
        assert address == ("", 68)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def serve(server: socket.socket, kinds: list[int]) -> None:
    """Answer each message in turn, with noise before it."""
    for kind in kinds:
        asked = server.recv(2048)
        server.send(b"noise")
        server.send(answer(kind).replace(TRANSACTION.to_bytes(4), asked[4:8]))


@pytest.mark.parametrize(("kinds", "attempts"), [([OFFER, ACK], 1), ([OFFER, NAK, OFFER, ACK], 2)])
def test_an_address_is_asked_for_until_it_is_given(
    kinds: list[int], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discover, offer, request, acknowledge, over a real socket; a refusal begins anew."""
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with client, server:
        thread = threading.Thread(target=serve, args=(server, kinds))
        thread.start()
        monkeypatch.setattr("image.guest.dhcp.socket.socket", lambda *_: Link(client))
        lease = dhcp.ask("eth0", HARDWARE, attempts=attempts)
        thread.join()
    assert lease.address == IPv4Interface("192.0.2.15/24")


def test_a_network_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many attempts, by the interface's name."""
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    monkeypatch.setattr(dhcp, "_FIRST_WAIT", 0.01)
    with client, server:
        monkeypatch.setattr("image.guest.dhcp.socket.socket", lambda *_: Link(client))
        with pytest.raises(Refused, match="eth0, found none in 2 attempts"):
            dhcp.ask("eth0", HARDWARE, attempts=2)
