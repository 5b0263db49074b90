"""Whom the proxy listens to. Any page in a browser on this machine can reach a port on loopback; none of them is a caller.

A name that somebody points at 127.0.0.1 shows in `Host` (DNS rebinding), a page that calls across origins in `Origin` or
`Sec-Fetch-Site`. Programs send neither a stranger's name nor an origin.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from client_sdk.proxy.errors import api_error
from client_sdk.proxy.http import Answer, Head, Headers

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Loopback's own names are always good. Every other one is named by whoever starts the proxy."""

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    exposed: bool = False  # then an address is as good as loopback's: an address cannot be rebound

    def check(self, head: Head) -> Answer | None:
        """The answer to those who are no callers."""
        if not self._is_ours(head.all(b"host")):
            return api_error(
                403, "host_not_allowed", "the Host header names neither this machine nor an --allow-host"
            )
        origins = head.all(b"origin")
        if origins and not self._allowed(origins):
            return api_error(
                403, "origin_not_allowed", "pages in browsers are refused unless --allow-origin names theirs"
            )
        sites = set(head.all(b"sec-fetch-site"))
        if not origins and sites - {b"none", b"same-origin"} and head.target != "/":
            return api_error(403, "origin_not_allowed", "another site's page asked for this")
        return None

    def preflight(self, head: Head) -> Answer | None:
        """The answer to a browser that asks whether an allowed page may call."""
        if head.method != "OPTIONS" or not head.all(b"access-control-request-method"):
            return None
        wanted = b", ".join(head.all(b"access-control-request-headers"))
        headers = [
            *self.cors(head),
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", wanted or b"content-type"),
            (b"access-control-max-age", b"600"),
        ]
        return Answer(status=204, headers=headers)

    def cors(self, head: Head) -> Headers:
        """What lets an allowed page read its answer; nothing for anybody else."""
        origins = head.all(b"origin")
        if not origins or not self._allowed(origins):
            return ()
        return (
            (b"access-control-allow-origin", origins[0]),
            (b"access-control-expose-headers", b"*"),
            (b"vary", b"origin"),
        )

    def _allowed(self, origins: list[bytes]) -> bool:
        return len(origins) == 1 and origins[0].decode("latin-1") in self.origins

    def _is_ours(self, hosts: list[bytes]) -> bool:
        match = _HOST.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if match is None:
            return False
        name = match[1].lower()
        if name == "localhost" or name in self.hosts:
            return True
        try:
            return ipaddress.ip_address(name.strip("[]")).is_loopback or self.exposed
        except ValueError:
            return False
