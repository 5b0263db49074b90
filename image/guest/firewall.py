"""What may come in and go out: answers to whoever connects to the gateway, and what the measured configuration opens."""

from __future__ import annotations

import subprocess

from image.guest.linux import Refused
from image.guest.settings import Guest

NFT = "/usr/sbin/nft"


def ruleset(guest: Guest) -> str:
    """For `nft -f`. Everything is dropped that no line names; IPv6 is off."""
    incoming = [
        "iifname lo accept",
        "ct state established,related accept",
        f"tcp dport {{ {', '.join(map(str, sorted(set(guest.ingress))))} }} ct state new accept",
    ]
    outgoing = ["oifname lo accept", "ct state established,related accept"]
    if guest.network == "dhcp":
        incoming.append("udp sport 67 udp dport 68 accept")  # a broadcast, which no connection is known of
        outgoing.append("udp sport 68 udp dport 67 accept")
    if guest.dns is not None:
        outgoing += [
            f"ip daddr {guest.dns} {protocol} dport 53 ct state new accept" for protocol in ("udp", "tcp")
        ]
    outgoing += [
        f"ip daddr {rule.network} {rule.protocol} dport {rule.port} ct state new accept"
        for rule in guest.egress
    ]
    chains = {"input": incoming, "forward": [], "output": outgoing}
    lines = ["flush ruleset", "table inet enclave {"]
    for hook, rules in chains.items():
        lines += [f"  chain {hook} {{", f"    type filter hook {hook} priority filter; policy drop;"]
        lines += [f"    {rule}" for rule in rules]
        lines += ["  }"]
    return "\n".join([*lines, "}", ""])


def close_network(guest: Guest) -> None:
    """Put the rules in force, all at once. Refused when the kernel does not take them."""
    done = subprocess.run(  # noqa: S603 - from the measured root
        [NFT, "-f", "-"], input=ruleset(guest), capture_output=True, text=True, check=False, env={}
    )
    if done.returncode != 0:
        raise Refused("egress rules", expected="nft to take them", found=done.stderr.strip()[:200])
