"""What the hardware signs: one statement, one nonce and the GPUs' evidence, in 64 bytes.

The statement says who the enclave is: its public keys, the model, the engine and the configuration. It is
RFC 8785 canonical JSON, so that there is exactly one text for one meaning. `docs/protocol.md` §2 has the bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256, sha512
from hmac import compare_digest
from typing import Any

import rfc8785

from attestation._json import parse_json_object
from attestation._table import load_table
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError

NONCE_BYTES = 32
MAX_STATEMENT_BYTES = 64 * 1024
VERSION = 1
PURPOSE = "attested-inference/enclave"
_REPORT_DATA = b"attested-inference/report-data/v1\x00"
_GPU_NONCE = b"attested-inference/gpu-nonce/v1\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The public half of this boot's keys; one role per key."""

    receipt_ed25519: bytes = field(metadata={"size": 32})
    tls_spki_sha256: bytes = field(metadata={"size": 32})
    sealing_x_wing: bytes = field(metadata={"size": 1216})  # ML-KEM-768, then X25519
    sealing_x25519: bytes = field(metadata={"size": 32})
    log_ed25519: bytes | None = field(
        default=None, metadata={"size": 32}
    )  # of the log of receipts, where one is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Which weights answer: `digest` is the SHA-256 of the manifest of every model file."""

    names: tuple[str, ...]
    digest: bytes = field(metadata={"size": 32})


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """How many processes and machines run the model. Each is a copy of it (replicas, data) or a part (tensor, pipeline)."""

    external: bool = (
        False  # the gateway did not start the engine: version, flags and model are its operator's word
    )
    nodes: int = 1  # machines; the evidence speaks of the gateway's own alone
    replicas: int = 1
    data_parallel: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    def well_formed(self) -> bool:
        counts = (self.nodes, self.replicas, self.data_parallel, self.tensor_parallel, self.pipeline_parallel)
        return all(0 < count < 2**16 for count in counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What runs the model, and the flags that change its answers."""

    name: str
    version: str
    flags: tuple[str, ...]
    topology: Topology | None = None  # None: one process that the gateway started, on one device


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the image says of itself. It proves nothing alone: hold it against the measurement."""

    build: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The identity of one running enclave. Untrusted until `check_binding` tied it to verified claims."""

    v: int
    purpose: str
    keys: Keys
    not_before: int  # Unix seconds
    not_after: int
    model: Model
    engine: Engine
    config: bytes = field(metadata={"size": 32})  # digest of the gateway's whole effective configuration
    image: Image
    config_file: bytes | None = field(default=None, metadata={"size": 32})  # where its digest was measured
    secrets: bytes | None = field(default=None, metadata={"size": 32})  # salted digest of what the owner gave
    log_origin: str | None = (
        None  # of a log that somebody else runs; a gateway's own has its key in its origin
    )

    def to_bytes(self) -> bytes:
        """The canonical text, the only one that hashes to this statement's digest."""
        return rfc8785.dumps(_hexed(asdict(self)))

    @property
    def valid_until(self) -> datetime:
        return datetime.fromtimestamp(self.not_after, UTC)


def parse_statement(data: bytes) -> Statement:
    """Read a statement; anything but its canonical text is malformed."""
    raw = parse_json_object(data, Check.STATEMENT_FORMAT, "statement", limit=MAX_STATEMENT_BYTES)
    if raw.get("v") != VERSION or raw.get("purpose") != PURPOSE:
        raise MalformedError(
            Check.STATEMENT_FORMAT,
            f"expected version {VERSION} for {PURPOSE!r}, found version {raw.get('v')!r} for {raw.get('purpose')!r}",
        )
    statement = load_table(Statement, raw, "statement", Check.STATEMENT_FORMAT)
    if not 0 <= statement.not_before < statement.not_after < 2**38:
        raise MalformedError(Check.STATEMENT_FORMAT, "not_before and not_after are not a span of time")
    if statement.engine.topology is not None and not statement.engine.topology.well_formed():
        raise MalformedError(Check.STATEMENT_FORMAT, "engine.topology: counts begin at 1")
    try:
        canonical = statement.to_bytes()
    except (rfc8785.CanonicalizationError, UnicodeError) as exc:
        raise MalformedError(Check.STATEMENT_FORMAT, f"no canonical form ({exc})") from exc
    if canonical != data:
        raise MalformedError(Check.STATEMENT_FORMAT, "the text is not in RFC 8785 canonical form")
    return statement


def report_data(nonce: bytes, statement: bytes, gpu_evidence: bytes = b"", gpu_token: bytes = b"") -> bytes:
    """The 64 bytes that the CPU's evidence must carry. The one function that server and client share.

    A service's token about the GPUs is covered too: the GPU nonce is no secret, so a host could ask for one about another
    machine's GPUs. Only what this machine's measured code has itself asked for counts.
    """
    gpus = sha256(gpu_evidence).digest()
    if gpu_token:
        gpus = sha256(gpus + sha256(gpu_token).digest()).digest()
    return sha512(_REPORT_DATA + _nonce(nonce) + sha256(statement).digest() + gpus).digest()


def gpu_nonce(nonce: bytes, statement: bytes) -> bytes:
    """The 32 bytes that each GPU is asked with, so that neither half can come from another machine's answer."""
    return sha256(_GPU_NONCE + _nonce(nonce) + sha256(statement).digest()).digest()


def tpm_nonce(data: bytes) -> bytes:
    """Report data as a vTPM is asked with it: 32 bytes, which every TPM has room for."""
    return sha256(data).digest()


def check_binding(
    found: bytes,
    nonce: bytes,
    statement: bytes,
    gpu_evidence: bytes = b"",
    gpu_token: bytes = b"",
    *,
    tpm: bool = False,
) -> None:
    """The evidence that carries `found` was made for this nonce, this statement and these GPUs, or this word about them."""
    if not any(found):
        raise VerificationError(
            Check.BINDING_REPORT_DATA, "the report_data is all zero: the evidence commits to nothing"
        )
    expected = report_data(nonce, statement, gpu_evidence, gpu_token)
    expected = tpm_nonce(expected) if tpm else expected
    if not compare_digest(found, expected):
        raise VerificationError(
            Check.BINDING_REPORT_DATA,
            f"expected {expected.hex()[:32]}…, found {found.hex()[:32]}…: the evidence was made for another nonce, "
            "another statement or other GPU evidence",
            advice="Ask again with a fresh nonce; if it stays, the answer comes from another machine or was altered",
        )


def check_statement_time(statement: Statement, now: datetime) -> None:
    """`now` lies in the statement's own span of validity."""
    if not statement.not_before <= now.timestamp() <= statement.not_after:
        start = datetime.fromtimestamp(statement.not_before, UTC)
        raise VerificationError(
            Check.STATEMENT_VALIDITY,
            f"the statement is valid from {start:%Y-%m-%dT%H:%M:%SZ} to {statement.valid_until:%Y-%m-%dT%H:%M:%SZ}, "
            f"asked at {now:%Y-%m-%dT%H:%M:%SZ}",
            advice="Fetch the evidence again, and compare this machine's clock with the enclave's",
        )


def _nonce(nonce: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise MalformedError(Check.BINDING_NONCE, f"a nonce has {NONCE_BYTES} bytes, found {len(nonce)}")
    return nonce


def _hexed(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: _hexed(v) for k, v in value.items() if v is not None}
    return [_hexed(v) for v in value] if isinstance(value, tuple) else value
