"""A log of receipts as a client sees it: what it holds now, whether it is the one that was seen before, and proofs.

`visit` decides, over bytes that `LogClient` fetches. Nothing that a log says is believed: checkpoints are signed by the key that was
verified, and everything else is proven against them; so the connection needs no protection, and nothing secret is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import httpx

from attestation.binding import Statement
from attestation.bundle import Bundle
from attestation.checks import Check
from attestation.errors import UnavailableError, VerificationError
from attestation.tlog import (
    Checkpoint,
    TileReader,
    VerifierKey,
    check_logged,
    log_key,
    own_key,
    parse_checkpoint,
    predecessor_entry,
    receipt_entry,
    verify_checkpoint,
)
from attestation.tlog.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from attestation.tlog.note import parse_note
from attestation.tlog.proof import MAX_PROOF_BYTES
from client_sdk.deadline import Deadline
from client_sdk.tls import unpinned_context

PREFIX = "/log"
MAX_BOOTS = 1000  # between two visits
SECONDS = 15.0
FETCH_SECONDS = 60.0  # for all of one resource, however slowly it comes
_POLL_SECONDS = 0.25
#: Reads a resource of the log of a key.
FetchOf = Callable[[VerifierKey, str], bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What a log was found to be."""

    note: bytes  # the signed checkpoint
    checkpoint: Checkpoint
    before: Checkpoint | None = None  # what was seen the last time, of which this is the continuation
    boots: int = 0  # logs that were begun since then, each after the end of the one before


class LogClient:
    """Reads logs over HTTP: those of a gateway, or one at its own address."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.rstrip("/")
        self._http = httpx.Client(verify=unpinned_context(), timeout=SECONDS, trust_env=False)
        self._deadline = Deadline(FETCH_SECONDS)

    @classmethod
    def of_gateway(cls, url: str) -> Self:
        """For the logs of the gateway at this URL, whatever path it has."""
        try:
            return cls(str(httpx.URL(url).copy_with(path=PREFIX, query=None, fragment=None)))
        except httpx.InvalidURL as exc:
            raise UnavailableError(Check.LOG_FETCH, f"{url}: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline.__exit__(None, None, None)
        self._http.close()

    def fetch(self, path: str) -> bytes | None:
        """A resource; None where there is none."""
        deadline, url = self._deadline, f"{self._prefix}/{path}"
        deadline.start()
        try:
            data = self._read(url, path)
            if deadline.passed:  # what ends with its connection looks whole
                raise TimeoutError
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as exc:
            late = f"not all of {path} came within {FETCH_SECONDS:.0f} s"
            detail = late if deadline.passed else f"{type(exc).__name__}: {exc}"
            raise UnavailableError(Check.LOG_FETCH, f"{self._prefix}: {detail}") from exc
        finally:
            deadline.stop()
        return data

    def _read(self, url: str, path: str) -> bytes | None:
        with self._http.stream("GET", url, extensions={"trace": self._deadline.trace}) as answer:
            if answer.status_code == 404:
                return None
            if answer.status_code != 200:
                raise UnavailableError(Check.LOG_FETCH, f"{path}: status {answer.status_code}")
            data = b""
            for part in answer.iter_bytes():
                data += part
                if len(data) > MAX_PROOF_BYTES:
                    raise UnavailableError(Check.LOG_FETCH, f"{path}: more than {MAX_PROOF_BYTES} bytes")
            return data

    def fetch_of(self, key: VerifierKey, path: str) -> bytes | None:
        """A resource of the log of this key; a gateway keeps those of earlier boots too."""
        return self.fetch(f"{key.key.hex()}/{path}" if own_key(key.name) else path)

    def prove(self, token: str, statement: Statement, seconds: float = 0.0) -> bytes:
        """The proof that a receipt is logged, verified; waits for it so long."""
        key, until = log_key(statement), time.monotonic() + seconds
        path = f"{key.key.hex()}/proof/{receipt_entry(token).hex()}"
        while (proof := self.fetch(path)) is None:
            if time.monotonic() >= until:
                raise UnavailableError(
                    Check.LOG_FETCH,
                    "the log has no such receipt, or not yet",
                    advice="Ask again after the gateway's log_seconds; a receipt that never comes is a reason to ask why",
                )
            time.sleep(_POLL_SECONDS)
        check_logged(proof, token, key)
        return proof


def prove_bundle(client: LogClient, bundle: Bundle, statement: Statement, seconds: float = 0.0) -> Bundle:
    """The bundle with a proof for each exchange; one that is there already is verified."""
    until, key = time.monotonic() + seconds, log_key(statement)
    exchanges = []
    for exchange in bundle.exchanges:
        if exchange.log is not None:
            check_logged(exchange.log, exchange.receipt, key)
            exchanges.append(exchange)
        else:
            proof = client.prove(exchange.receipt, statement, max(0.0, until - time.monotonic()))
            exchanges.append(replace(exchange, log=proof))
    return replace(bundle, exchanges=tuple(exchanges))


def visit(
    fetch: FetchOf, key: VerifierKey, seen: bytes | None, witnesses: Sequence[VerifierKey] = ()
) -> Visit:
    """What the log of `key` is now; and that it continues what was `seen` (a signed checkpoint), if anything was."""
    note = fetch(key, "checkpoint")
    if note is None:
        raise UnavailableError(
            Check.LOG_FETCH, "there is no checkpoint", advice="Is there a log at this address?"
        )
    checkpoint = verify_checkpoint(note, key, witnesses)
    if seen is None:
        return Visit(note=note, checkpoint=checkpoint)
    before = parse_checkpoint(parse_note(seen).text)
    boots, at_key, at = 0, key, checkpoint
    while at.origin != before.origin:
        if (boots := boots + 1) > MAX_BOOTS:
            raise _cut_off(before)
        at_key, at = _predecessor(fetch, at_key, at, before)
    read = TileReader(lambda path: fetch(at_key, path), at.size)
    proof: list[bytes] = []
    if before.size <= at.size:
        proof = consistency_proof(before.size, at.size, read.nodes)
    verify_consistency(before.size, before.root, at.size, at.root, proof)
    return Visit(note=note, checkpoint=checkpoint, before=before, boots=boots)


def _predecessor(
    fetch: FetchOf, key: VerifierKey, checkpoint: Checkpoint, sought: Checkpoint
) -> tuple[VerifierKey, Checkpoint]:
    """The end of the log before, to which the first entry of this one commits."""
    previous = fetch(key, "previous") if own_key(key.name) else None
    if not previous:
        raise _cut_off(sought)
    read = TileReader(lambda path: fetch(key, path), checkpoint.size)
    proof = inclusion_proof(0, checkpoint.size, read.nodes) if checkpoint.size else []
    with suppress(VerificationError):
        leaf = leaf_hash(predecessor_entry(previous))
        verify_inclusion(leaf, 0, checkpoint.size, proof, checkpoint.root)
        before = own_key(parse_checkpoint(parse_note(previous).text).origin)
        if before is not None:
            return before, verify_checkpoint(previous, before)
    raise VerificationError(
        Check.LOG_PREDECESSOR,
        f"the first entry of {key.name[:48]}… does not commit to what is served as the end of the log before",
        advice="Somebody changed the gateway's log directory; keep both checkpoints",
    )


def _cut_off(sought: Checkpoint) -> VerificationError:
    return VerificationError(
        Check.LOG_PREDECESSOR,
        f"no log of this gateway follows the one that was seen with {sought.size} entries, {sought.origin[:48]}…",
        advice="The log was put aside, or this is another gateway: ask its operator, and keep the checkpoint that was seen",
    )
