"""GET /log/…: the log of receipts, for anybody to read. Files as they are on disk, and one receipt's proof."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Response

from attestation.errors import AttestationError
from attestation.tlog import LogProof, TileReader, VerifierKey, dump_proof, parse_checkpoint
from attestation.tlog.merkle import inclusion_proof
from attestation.tlog.note import parse_note
from attestation.tlog.proof import MEDIA_TYPE
from attestation.tlog.tiles import CHECKPOINT, Fetch
from enclave_server.errors import ApiError
from enclave_server.log import failure, log
from enclave_server.receipts.remote import fetch
from enclave_server.receipts.store import PREVIOUS, Index, read_file
from enclave_server.settings import Settings

_LOG = re.compile(r"(?:([0-9a-f]{64})/)?(.+)")  # the key of a log, unless it is this boot's; a resource of it
_TILE = re.compile(
    r"tile/(?:entries|[0-9]|[1-5][0-9]|6[0-3])/(?:x[0-9]{3}/)*[0-9]{3}(?:\.p/[1-9][0-9]{0,2})?"
)
_PROOF = re.compile(r"proof/([0-9a-f]{64})")
_FOREVER, _NOW = "public, max-age=31536000, immutable", "no-cache"


def add_log_routes(control: FastAPI, settings: Settings, key: VerifierKey) -> None:
    """Serve this boot's log, and those of earlier boots that are still on disk."""
    log_dir = settings.log_dir
    assert log_dir is not None  # noqa: S101 - a log has a directory

    @control.get("/log/{path:path}")
    def resource(path: str) -> Response:  # no coroutine: it reads files
        match = _LOG.fullmatch(path)
        name, rest = match.groups() if match else (None, "")
        folder = log_dir / (name or key.key.hex())
        read = _reader(settings, folder, key)
        if rest in {CHECKPOINT, PREVIOUS}:
            return _found(read(rest), MEDIA_TYPE, _NOW)
        if _TILE.fullmatch(rest):
            return _found(read(rest), "application/octet-stream", _FOREVER)
        if asked := _PROOF.fullmatch(rest):
            return _found(
                _prove(read, Index(folder), bytes.fromhex(asked[1])), MEDIA_TYPE, _NOW, "not_logged"
            )
        raise _none("not_found")


def _reader(settings: Settings, folder: Path, key: VerifierKey) -> Fetch:
    """Where the resources of a log are read: elsewhere, when this boot's is kept there."""
    if settings.log_url is not None and folder.name == key.key.hex():
        return partial(_elsewhere, settings.log_url)
    return partial(read_file, folder)


def _elsewhere(url: str, path: str) -> bytes | None:
    try:
        return None if path == PREVIOUS else fetch(url, path)
    except AttestationError as exc:
        log.warning("log does not answer", **failure(exc))
        raise ApiError(502, "log_unavailable", "The log does not answer.", retry_after=5) from None


def _prove(read: Callable[[str], bytes | None], index: Index, entry: bytes) -> bytes | None:
    """The proof of one entry in the log as it stands; None when it is not in it yet, or not at all."""
    number, checkpoint = index.find(entry), read(CHECKPOINT)
    if number is None or checkpoint is None:
        return None
    size = parse_checkpoint(parse_note(checkpoint).text).size
    if number >= size:
        return None
    hashes = inclusion_proof(number, size, TileReader(read, size).nodes)
    return dump_proof(LogProof(index=number, hashes=tuple(hashes), checkpoint=checkpoint))


def _found(data: bytes | None, media_type: str, caching: str, otherwise: str = "not_found") -> Response:
    if data is None:
        raise _none(otherwise)
    return Response(data, media_type=media_type, headers={"Cache-Control": caching})


def _none(code: str) -> ApiError:
    words = {
        "not_found": "The log has no such resource.",
        "not_logged": "The log has no such receipt, or not yet.",
    }
    return ApiError(404, code, words[code])
