"""What this machine has seen under each name: the newest epoch, and Intel's newest evaluation of TCBs. It only goes up.

So nobody can lead a client back to an older release of an image or to an older list of known holes. The file is
`attested/seen.json` in the user's state directory; it holds names and numbers, and nothing that was asked or answered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from attestation._json import parse_json_object
from attestation._table import load_table
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, UnavailableError, VerificationError
from attestation.policy import Policy
from attestation.tdx import TdxClaims
from attestation.verdict import Verdict
from client_sdk.files import one_at_a_time, replace_file

MAX_BYTES = 1024 * 1024
_ADVICE = "Restore it from a backup; without it an older release cannot be told from a newer one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The highest numbers under one name."""

    epoch: int = 0
    tcb_evaluation: int = 0

    def joined(self, other: Seen) -> Seen:
        return Seen(
            epoch=max(self.epoch, other.epoch),
            tcb_evaluation=max(self.tcb_evaluation, other.tcb_evaluation),
        )


def default_path() -> Path:
    """Where the desktop's conventions have what programs remember."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local/state") / "attested/seen.json"


class Memory:
    """The file of numbers. Only policies with a name are looked up and remembered."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path or default_path()

    def apply(self, policy: Policy) -> Policy:
        """`policy` with what was seen before as its floor; refused when it is itself older than that."""
        release = policy.release
        if not release.name:
            return policy
        seen = self._read().get(release.name, Seen())
        if release.epoch < seen.epoch:
            raise VerificationError(
                Check.MEMORY_EPOCH,
                f"expected epoch {seen.epoch} of {release.name!r} or later, which was seen here before; found {release.epoch}",
                advice="An older policy or older references were put in place of newer ones; get the newest from their publisher",
            )
        if policy.tdx is None:
            return policy
        floor = max(policy.tdx.min_tcb_evaluation_data_number, seen.tcb_evaluation)
        return replace(policy, tdx=replace(policy.tdx, min_tcb_evaluation_data_number=floor))

    def remember(self, policy: Policy, verdict: Verdict) -> None:
        """Note what an accepted enclave has shown."""
        name, cpu = policy.release.name, verdict.cpu
        if not name:
            return
        evaluation = cpu.tcb_evaluation_data_number if isinstance(cpu, TdxClaims) else 0
        found = Seen(epoch=policy.release.epoch, tcb_evaluation=evaluation)
        if self._read().get(name, Seen()).joined(found) == self._read().get(name):
            return
        with self._locked():
            names = self._read()
            names[name] = names.get(name, Seen()).joined(found)
            self._write(names)

    def _read(self) -> dict[str, Seen]:
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise self._unusable(exc) from exc
        try:
            raw = parse_json_object(data, Check.MEMORY_STATE, str(self.path), limit=MAX_BYTES)
            names = raw.get("names")
            if raw.get("v") != 1 or not isinstance(names, dict):
                raise MalformedError(Check.MEMORY_STATE, "expected version 1 with names")
            return {
                name: load_table(Seen, s, f"names.{name}", Check.MEMORY_STATE) for name, s in names.items()
            }
        except MalformedError as exc:
            raise MalformedError(Check.MEMORY_STATE, f"{self.path}: {exc.detail}", advice=_ADVICE) from exc

    def _write(self, names: dict[str, Seen]) -> None:
        document = {"v": 1, "names": {name: asdict(seen) for name, seen in sorted(names.items())}}
        try:
            replace_file(self.path, json.dumps(document, indent=1).encode())
        except OSError as exc:
            raise self._unusable(exc) from exc

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, of all processes of this user."""
        try:
            with one_at_a_time(self.path):
                yield
        except OSError as exc:
            raise self._unusable(exc) from exc

    def _unusable(self, exc: OSError) -> AttestationError:
        return UnavailableError(
            Check.MEMORY_STATE,
            f"{self.path}: {exc.strerror or exc}",
            advice="A policy with a name needs a place to remember what was seen; make it writable, or drop [release] name",
        )
