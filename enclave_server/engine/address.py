"""Where an engine listens: a Unix socket, or a port of this machine's own loopback."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

Address = Path | tuple[str, int]

_UNIX = "http+unix://"
_MAX_SOCKET_PATH = 107  # unix(7): `sun_path` has 108 bytes, with the zero at its end


def parse_address(url: str) -> Address:
    """`http+unix:///path/of/socket`, or `http://127.0.0.1:8000`: a host by its number, never by a name."""
    if url.startswith(_UNIX):
        path = Path(url.removeprefix(_UNIX))
        if not path.is_absolute() or any(part in url for part in "%?#"):
            raise ValueError("engine: after http+unix:// comes the socket's absolute path")
        if (length := len(os.fsencode(path))) > _MAX_SOCKET_PATH:
            raise ValueError(
                f"engine: a socket's path has at most {_MAX_SOCKET_PATH} bytes, this one {length}"
            )
        return path
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("engine: must be http://host:port or http+unix:///path, and nothing more")
    try:
        host = str(ipaddress.ip_address(parts.hostname or ""))
    except ValueError:  # a name, which may come to mean another machine
        raise _elsewhere() from None
    if parts.port is None:
        raise ValueError("engine: must name the port")
    return host, parts.port


def check_on_this_machine(address: Address) -> None:
    """Raises ValueError for another host, which would see prompts in the clear."""
    if not isinstance(address, Path) and not ipaddress.ip_address(address[0]).is_loopback:
        raise _elsewhere()


def _elsewhere() -> ValueError:
    return ValueError("engine: must be on this machine's loopback: what goes to an engine is not encrypted")
