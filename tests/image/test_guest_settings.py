"""The table `[guest]`, and the firewall's rules that follow from it."""

from __future__ import annotations

import os
import shutil
import subprocess
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_server.settings import Settings
from image.guest.cmdline import Verity
from image.guest.firewall import ruleset
from image.guest.linux import Refused
from image.guest.settings import NAMES, Egress, Guest, Static, parse_guest

ROOT = Path(__file__).parents[2]
FULL = b"""
port = 9443
config_identity = "required"
[guest]
network = "192.0.2.10/24 via 192.0.2.1"
egress = ["tcp 192.0.2.7:5432", "udp 198.51.100.0/24:123"]
ingress = [9464]
dns = "192.0.2.53"
model = "%s:17:00ff"
state_megabytes = 64
gpus = true
""" % (b"ab" * 32)


def test_a_configuration_without_the_table_opens_nothing_but_the_gateway() -> None:
    """No network, no way out, one port in: whoever wants more says so."""
    assert parse_guest(b"") == Guest(ingress=(8443,))


def test_every_name_of_the_table_is_read() -> None:
    """One value of each."""
    assert parse_guest(FULL) == Guest(
        network=Static(address=IPv4Interface("192.0.2.10/24"), router=IPv4Address("192.0.2.1")),
        egress=(
            Egress(protocol="tcp", network=IPv4Network("192.0.2.7/32"), port=5432),
            Egress(protocol="udp", network=IPv4Network("198.51.100.0/24"), port=123),
        ),
        ingress=(9443, 9464),
        dns=IPv4Address("192.0.2.53"),
        model=Verity(root_hash=bytes.fromhex("ab" * 32), data_blocks=17, salt=b"\x00\xff"),
        state_megabytes=64,
        gpus=True,
    )


@pytest.mark.parametrize(
    "text",
    [
        "[guest",
        'config_identity = "off"',
        "guest = 1",
        "port = 0",
        "port = true",
        'port = "8443"',
        "[guest]\nshell = true",
        '[guest]\nnetwork = "on"',
        "[guest]\nnetwork = 1",
        '[guest]\nnetwork = "192.0.2.10/24 via 198.51.100.1"',
        '[guest]\nnetwork = "192.0.2.10/33 via 192.0.2.1"',
        '[guest]\nnetwork = "fd00::1/64 via fd00::2"',
        '[guest]\negress = "tcp 192.0.2.7:1"',
        '[guest]\negress = ["192.0.2.7:1"]',
        '[guest]\negress = ["tcp host.example:1"]',
        '[guest]\negress = ["tcp 192.0.2.7:0"]',
        '[guest]\negress = ["tcp 192.0.2.7:65536"]',
        '[guest]\negress = ["tcp 192.0.2.7/24:1"]',
        "[guest]\negress = [1]",
        "[guest]\ningress = [70000]",
        '[guest]\ndns = "resolver"',
        "[guest]\ndns = 3221225985",
        '[guest]\nmodel = "00:1:00"',
        "[guest]\nmodel = {}",
        "[guest]\nstate_megabytes = 0",
        "[guest]\ngpus = 1",
    ],
)
def test_what_is_not_exactly_a_setting_is_refused(text: str) -> None:
    """Nothing is guessed, and nothing unknown is passed over."""
    with pytest.raises(Refused, match="expected"):
        parse_guest(text.encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_settings_or_refused(content: bytes) -> None:
    """The file is measured, and may still be anything."""
    try:
        parse_guest(content)
    except Refused:
        return


@given(
    st.dictionaries(st.sampled_from(NAMES), st.one_of(st.integers(), st.text(), st.booleans()), max_size=4)
)
def test_any_values_are_settings_or_refused(values: dict[str, Any]) -> None:
    """Whatever type stands where another is expected."""
    table = "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())
    try:
        parse_guest(f"[guest]\n{table}".encode())
    except Refused:
        return


def _toml(value: object) -> str:
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
    return str(value).lower()


def test_nothing_goes_out_unless_the_table_says_so() -> None:
    """The rules of a machine without a word on its network: answers, and nothing else."""
    rules = ruleset(Guest(ingress=(8443,)))
    assert rules.count("policy drop") == 3
    assert [line.strip() for line in rules.splitlines() if "accept" in line] == [
        "iifname lo accept",
        "ct state established,related accept",
        "tcp dport { 8443 } ct state new accept",
        "oifname lo accept",
        "ct state established,related accept",
    ]


def test_rules_open_what_the_table_names() -> None:
    """Each way out is one line, with its protocol, network and port."""
    rules = ruleset(parse_guest(FULL))
    assert "tcp dport { 9443, 9464 } ct state new accept" in rules
    assert "ip daddr 192.0.2.7/32 tcp dport 5432 ct state new accept" in rules
    assert "ip daddr 198.51.100.0/24 udp dport 123 ct state new accept" in rules
    assert "ip daddr 192.0.2.53 udp dport 53 ct state new accept" in rules
    assert "dport 67" not in rules
    assert "udp sport 68 udp dport 67 accept" in ruleset(Guest(network="dhcp", ingress=(1,)))


@pytest.mark.skipif(not shutil.which("nft") or os.geteuid() != 0, reason="needs nft and root")
@pytest.mark.parametrize(
    "guest", [Guest(ingress=(8443,)), Guest(network="dhcp", ingress=(1,)), parse_guest(FULL)]
)
def test_the_kernel_takes_the_rules(guest: Guest) -> None:
    """Checked by nft in a network of its own, and not put in force."""
    command = ["unshare", "--net", "nft", "--check", "--file", "-"]
    done = subprocess.run(command, input=ruleset(guest), capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_gateway_takes_the_table_as_it_is_and_its_digest_covers_it() -> None:
    """The same file is both's, so what the machine does stands in the statement's configuration digest too."""
    gateway = (
        b'model_dir = "/m"\nmodel_name = "m"\nmodel_digest = "%s"\ntee = "tdx"\nengine_python = "/p"\n'
        % (b"0" * 64)
    )
    with_table = Settings.load(gateway + b'[guest]\nnetwork = "dhcp"\n')
    assert with_table.guest == {"network": "dhcp"}
    assert with_table.digest() != Settings.load(gateway).digest()


def test_every_name_is_in_the_operators_table() -> None:
    """docs/operate.md has the table `[guest]`, name for name."""
    table = (ROOT / "docs/operate.md").read_text().partition("| `[guest]` |")[2].partition("\n\n")[0]
    assert tuple(line.split("|")[1].strip() for line in table.splitlines()[2:]) == NAMES
