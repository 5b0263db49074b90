"""The engine's own user: it can neither read the gateway's files nor touch its processes."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path


def open_to(name: str, private: Path) -> tuple[int, int]:
    """Let that user pass to `private`, the engine's directory, and say who it is: user and group id.

    The directory above stays the gateway's own; the engine's group may pass through it, and list nothing.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ValueError(f"engine_user: there is no user {name!r}") from None
    if entry.pw_uid in (0, os.geteuid()):
        raise ValueError("engine_user: must be neither root nor the gateway's own user")
    if os.geteuid() != 0 and entry.pw_gid not in os.getgroups():
        raise ValueError(f"engine_user: the gateway's user has to be in the group of {name!r}")
    above = private.parent
    if not stat.S_IMODE(above.stat().st_mode) & stat.S_IXOTH:
        os.chown(above, -1, entry.pw_gid)
        above.chmod(0o710)
    return entry.pw_uid, entry.pw_gid
