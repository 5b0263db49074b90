"""RSA keys of simulated machines take seconds to make, so all of the tests' processes share some, kept for the next run too."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from attestation.simulator import pki, snp, vtpm
from attestation.simulator.snp import SnpKeys


def use(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A simulated machine that is given no keys gets those in `folder`."""

    def kept(name: str, bits: int = 4096) -> Any:
        return _alone(folder, lambda: pki.load_or_make_key(folder / name, lambda: pki.rsa_key(bits)))

    patch.setattr(snp, "process_keys", cache(lambda: _alone(folder, lambda: SnpKeys.load_or_create(folder))))
    patch.setattr(snp, "_stranger", cache(lambda: kept("stranger.pem")))
    patch.setattr(
        vtpm, "process_keys", cache(lambda: (kept("vtpm.pem", 2048), kept("vtpm-stranger.pem", 2048)))
    )


def put(folder: Path) -> None:
    """The same keys, to where a simulated machine on disk looks for its own."""
    for field in fields(SnpKeys):
        pki.load_or_make_key(folder / f"{field.name}.pem", partial(getattr, snp.process_keys(), field.name))


def _alone(folder: Path, make: Callable[[], Any]) -> Any:
    """One process after the other: the first makes what the others read."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return make()
