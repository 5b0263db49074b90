"""A policy as it stands now: its file, the signed references beside it, and what this machine has seen before.

Files are read again for each attestation, and a file that changes calls for one before another request leaves: so a
revocation acts at once, also in a process that lives long.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError
from attestation.keyless import MAX_BUNDLE_BYTES
from attestation.policy import MAX_POLICY_BYTES, Policy, parse_policy
from attestation.references import References, merge
from attestation.reviewers import ReferencesPolicy
from attestation.verdict import Verdict
from client_sdk.memory import Memory

PolicyLike = Policy | PathLike[str] | str
Notice = Callable[[Path], None]  # told of a file before it is read, whether it is there or not
_NO_POLICY = "The operator publishes one, or `attested lock URL -o FILE` writes one from what is there now"


def _unnoticed(_: Path) -> None: ...


def load_policy(policy: PolicyLike, notice: Notice = _unnoticed) -> Policy:
    """A policy as it is, from a file, or from TOML text: text has a line break, a `[` or a `=`, a file's name has not.

    Signed references that it names are read and merged; a relative name of theirs is beside the policy's file.
    """
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, str) and any(c in policy for c in "\n[="):
        return with_references(parse_policy(policy), Path(), notice)
    file = Path(policy)
    notice(file)
    return with_references(parse_policy(read_policy_text(file)), file.parent, notice)


def read_policy_text(file: Path) -> str:
    """The text of a policy file. One that cannot be read leaves the question open: UnavailableError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_POLICY_BYTES + 1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        detail = f"cannot read the policy {file}: {reason or 'no reason given'}"
        raise UnavailableError(Check.POLICY_FORMAT, detail, advice=_NO_POLICY) from exc
    if len(data) > MAX_POLICY_BYTES:
        raise MalformedError(
            Check.POLICY_FORMAT, f"{file}: more than the {MAX_POLICY_BYTES} bytes of a policy"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise MalformedError(Check.POLICY_FORMAT, f"{file} is no policy: not UTF-8 text") from exc


def with_references(policy: Policy, folder: Path, notice: Notice = _unnoticed) -> Policy:
    """`policy` with the references that it names, verified and merged."""
    found = references_of(policy, folder, notice)
    return policy if found is None else merge(policy, found)


def references_of(policy: Policy, folder: Path, notice: Notice = _unnoticed) -> References | None:
    """The references that a policy in this folder names, verified."""
    wanted = policy.references
    return None if wanted is None else wanted.verify(*_published(wanted, folder, notice))


def reviewed(file: Path) -> tuple[Policy, str]:
    """What `load_policy` makes of a file, and which references it names and whose signatures of them hold, in words.

    The words are empty where it names none. Every file is read once, so they are about what is in the policy.
    """
    policy = parse_policy(read_policy_text(file))
    wanted = policy.references
    if wanted is None:
        return policy, ""
    found, signers = wanted.reviewed(*_published(wanted, file.parent, _unnoticed))
    words = f"{found.name!r}, epoch {found.epoch}, signed by {', '.join(signers)}"
    return merge(policy, found), words


def _published(wanted: ReferencesPolicy, folder: Path, notice: Notice) -> tuple[bytes, dict[str, bytes]]:
    """What is beside the policy: the references, and of the other files those that are there."""
    for name in (wanted.file, *wanted.files):
        notice(folder / name)
    data = _read(folder / wanted.file)
    if data is None:
        raise UnavailableError(
            Check.REFERENCES_MISSING,
            f"{folder / wanted.file}: no such file",
            advice="Put the signed references beside the policy, or drop [references] from it",
        )
    read = {name: _read(folder / name) for name in wanted.files}
    return data, {name: content for name, content in read.items() if content is not None}


def _read(file: Path) -> bytes | None:
    """What is in a file beside the policy; None where there is none: a reviewer may not have signed yet."""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BUNDLE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UnavailableError(
            Check.REFERENCES_MISSING, f"{file}: {exc.strerror or 'cannot be read'}"
        ) from exc


class Files:
    """The files that a policy was read from, as they were right before."""

    def __init__(self) -> None:
        self._stamps: dict[str, tuple[int, int, int] | None] = {}  # by its path, which every request asks for

    def notice(self, file: Path) -> None:
        self._stamps[str(file)] = _stamp(str(file))

    def changed(self) -> bool:
        """Whether one of them is another by now, or there, or gone."""
        return any(_stamp(file) != stamp for file, stamp in self._stamps.items())


def _stamp(file: str) -> tuple[int, int, int] | None:
    """What differs where a file was written or put in its place; None where there is none."""
    try:
        found = os.stat(file)  # noqa: PTH116 - a Path's own takes twice as long
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Terms:
    """On what terms enclaves are accepted from now on."""

    def __init__(self, policy: PolicyLike, memory: Memory | None = None) -> None:
        self._source, self._memory = policy, memory or Memory()
        self.policy()  # what is wrong with it is said at once

    def policy(self) -> Policy:
        """The policy of the next attestation."""
        return self.read()[0]

    def read(self) -> tuple[Policy, Files]:
        """The policy of the next attestation, and what it was read from."""
        files = Files()
        return self._memory.apply(load_policy(self._source, files.notice)), files

    def accepted(self, policy: Policy, verdict: Verdict) -> None:
        """An enclave was accepted under `policy`."""
        self._memory.remember(policy, verdict)
