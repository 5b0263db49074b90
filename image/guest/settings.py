"""The table `[guest]` of the configuration: what the machine does before the gateway starts. docs/operate.md has every name.

The gateway's own settings stand in the same file, which the launch measured; of those only the port and `config_identity` are read
here. Unknown names are refused, as everywhere.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from image.guest.cmdline import Verity, parse_verity
from image.guest.linux import Refused

NAMES = ("network", "egress", "ingress", "dns", "model", "state_megabytes", "gpus")
_STATIC = re.compile(r"(\S+/[0-9]{1,2}) via (\S+)")
_RULE = re.compile(r"(tcp|udp) ([0-9./]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """An address that the configuration names."""

    address: IPv4Interface
    router: IPv4Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """Where the machine may open connections to."""

    protocol: str
    network: IPv4Network
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """The table, and the port that the gateway listens on."""

    network: Static | str = "none"  # or dhcp
    egress: tuple[Egress, ...] = ()
    ingress: tuple[int, ...] = ()  # TCP ports; the gateway's is the first
    dns: IPv4Address | None = None
    model: Verity | None = None
    state_megabytes: int = 256  # of /var/lib/enclave, in memory
    gpus: bool = False


def parse_guest(content: bytes) -> Guest:
    """The guest's settings in a configuration file. Refused: whatever is not exactly one of them."""
    try:
        values = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as exc:
        raise _refused("TOML", str(exc)[:120]) from None
    if values.get("config_identity") == "off":
        raise _refused('config_identity = "required", or "auto" on a real TEE', "off")
    table = values.get("guest", {})
    if not isinstance(table, dict) or (unknown := sorted(set(table) - set(NAMES))):
        raise _refused(f"a table of {', '.join(NAMES)}", unknown if isinstance(table, dict) else table)
    port = _port(values.get("port", 8443))
    return Guest(
        network=_network(table.get("network", "none")),
        egress=tuple(_egress(rule) for rule in _list(table, "egress")),
        ingress=(port, *(_port(other) for other in _list(table, "ingress"))),
        dns=None if "dns" not in table else _address(table["dns"]),
        model=None if "model" not in table else _model(table["model"]),
        state_megabytes=_between(table.get("state_megabytes", 256), 1, 1 << 20),
        gpus=_truth(table.get("gpus", False)),
    )


def _network(value: object) -> Static | str:
    if value in ("dhcp", "none"):
        return str(value)
    found = _STATIC.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise _refused('network = "dhcp", "none" or "<address>/<bits> via <router>"', value)
    try:
        static = Static(address=IPv4Interface(found[1]), router=IPv4Address(found[2]))
    except ValueError as exc:
        raise _refused("network: IPv4 addresses", str(exc)) from None
    if static.router not in static.address.network:
        raise _refused(f"network: a router in {static.address.network}", static.router)
    return static


def _egress(value: object) -> Egress:
    found = _RULE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise _refused('egress: "tcp <address or network>:<port>", or udp', value)
    try:
        network = IPv4Network(found[2])
    except ValueError as exc:
        raise _refused("egress: an IPv4 network", str(exc)) from None
    return Egress(protocol=found[1], network=network, port=_port(int(found[3])))


def _model(value: object) -> Verity:
    """In the form that the root has on the command line."""
    if not isinstance(value, str):
        raise _refused('model = "<root hash>:<data blocks>:<salt>"', value)
    return parse_verity(value, name="model")


def _address(value: object) -> IPv4Address:
    try:
        return IPv4Address(value if isinstance(value, str) else "")
    except ValueError:
        raise _refused("dns: an IPv4 address", value) from None


def _list(table: Mapping[str, object], name: str) -> list[object]:
    value = table.get(name, [])
    if not isinstance(value, list):
        raise _refused(f"{name}: a list", value)
    return value


def _port(value: object) -> int:
    return _between(value, 1, 65535)


def _between(value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _refused(f"a number from {least} to {most}", value)
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise _refused("gpus: true or false", value)
    return value


def _refused(expected: str, found: object) -> Refused:
    return Refused("configuration", expected=expected, found=str(found)[:120])
