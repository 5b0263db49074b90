"""Everything an operator can choose, in one frozen object from a TOML file and `ENCLAVE_*` variables.

Unknown names are refused. The digest of the effective settings stands in the statement as `config`, so a client's
policy can name exactly one configuration. There are no secrets here: keys are made at boot, and what only the owner may
know comes when the enclave runs (`provisioning.py`).
"""

from __future__ import annotations

import os
import re
import tomllib
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self

import rfc8785
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from enclave_server.choices import AccessMode, ConfigIdentity, Isolation, SecretName, TeeKind
from enclave_server.engine.flags import check_environment, check_extra_flags
from enclave_server.model.manifest import ModelError
from enclave_server.model.signature import parse_public_key
from enclave_server.settings_checks import check_together

PREFIX = "ENCLAVE_"
Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseSettings):
    """The effective configuration. Relative paths are relative to the working directory."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=False, hide_input_in_errors=True
    )

    # where it listens
    host: str = "127.0.0.1"
    port: int = Field(default=8443, ge=0, le=65535)
    workers: int = Field(
        default=1, ge=1, le=256
    )  # processes that share one identity, each with its own socket

    # the model: its digest is what `enclave-server model digest DIR` prints
    model_dir: Path
    model_pack: Path | None = None  # encrypted; opened into model_dir, which then has to be memory
    model_name: str = Field(min_length=1, max_length=256)
    model_digest: Sha256Hex
    model_signing_key: str | None = None  # its publisher's public key in PEM; then model.sig must be by it

    # who the enclave is
    tee: TeeKind
    simulator_dir: Path | None = None
    simulated_gpus: int = Field(default=0, ge=0, le=8)
    identity_hours: float = Field(default=168, gt=0, le=8760)  # from a statement's beginning to its end
    identity_overlap_minutes: float = Field(
        default=120, gt=0
    )  # so long before it ends, its successor takes over; at most half of its life
    nvidia_gpus: int = Field(default=0, ge=0, le=64)  # so many real ones; more or fewer is an error
    config_identity: ConfigIdentity = ConfigIdentity.AUTO
    serving_seal: bool = False  # TDX: RTMR3 names this boot's sealing key; then each start takes a reboot
    evidence_seconds: Seconds = 30  # until hardware has answered; then the request fails and others go on
    evidence_renew_seconds: Seconds = 240
    evidence_per_second: float = Field(default=2, gt=0)  # evidence made on request, for a caller's nonce
    evidence_burst: int = Field(default=20, ge=1)
    image_build: str = "unknown"
    image_source: str = "unknown"

    # what vendors publish beside evidence, fetched in the background; see docs/collect.md
    collateral_dir: Path | None = None  # keeps it over restarts; may be filled by hand
    collateral_offline: bool = False  # ask nobody: only what lies in collateral_dir
    collateral_refresh_seconds: Seconds = 21_600
    pccs_url: str | None = None  # in place of Intel's own service
    amd_kds_url: str = "https://kdsintf.amd.com"
    nvidia_rim_url: str = "https://rim.attestation.nvidia.com/v1/rim"
    nvidia_ocsp_url: str | None = None  # in place of the responder that certificates name

    # in the certificates of its TLS keys, which the secret tls_issuer signs, for clients that do not attest
    tls_names: tuple[str, ...] = ()

    # the engine: a child process with a Python environment of its own, or one that runs already; see docs/engine.md
    engine_python: Path | None = None
    engine: str | None = None  # http+unix:///path, or http://127.0.0.1:port
    engine_tensor_parallel: int = Field(default=1, ge=1, le=1024)
    engine_pipeline_parallel: int = Field(default=1, ge=1, le=1024)
    engine_data_parallel: int = Field(default=1, ge=1, le=1024)
    engine_replicas: int = Field(default=1, ge=1, le=1024)  # behind vLLM's router at `engine`
    engine_nodes: int = Field(default=1, ge=1, le=1024)  # machines of the cluster whose head is at `engine`
    engine_dtype: str = "auto"
    engine_max_model_len: int | None = Field(default=None, ge=16)
    engine_max_num_seqs: int = Field(default=32, ge=1)
    engine_kv_cache_memory: str | None = None  # such as "512M"; a must on CPU
    engine_eager: bool = False
    engine_flags: tuple[str, ...] = ()
    engine_environment: dict[str, str] = {}
    engine_isolation: Isolation = Isolation.AUTO
    engine_user: str | None = (
        None  # it runs as; of a group that the gateway's user is in; see docs/operate.md
    )
    engine_start_seconds: Seconds = 900
    engine_restarts: int = Field(
        default=5, ge=0
    )  # in a row, without a minute of service between; then the gateway ends
    runtime_dir: Path | None = (
        None  # private place of the engine's socket; a new one under the system's when unset
    )

    # numbers for Prometheus: a listener of its own for each worker, on this port and those after it, without TLS
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=1, le=65535)

    # who may use it, see docs/access.md
    access: AccessMode = AccessMode.KEYS
    access_database: str = (
        "sqlite:///access.db"  # or postgresql://user@host/name; its password never stands here
    )
    owner_key: str | None = None  # Ed25519, PEM: whose secrets it takes; see docs/secrets.md
    secrets: tuple[SecretName, ...] = ()  # which it waits for before it answers
    access_refresh_seconds: float = Field(default=2, ge=0.1, le=60)  # so soon a revocation acts
    access_stale_seconds: Seconds = 60  # how long keys work when the database does not answer
    usage_flush_seconds: Seconds = 10
    key_requests_per_minute: int | None = Field(default=None, ge=1)  # of a key that has no limit of its own
    key_tokens_per_minute: int | None = Field(default=None, ge=1)
    key_concurrency: int | None = Field(default=64, ge=1)
    max_in_flight: int = Field(default=256, ge=1)  # so many bodies and answers are held at once
    max_queued: int = Field(default=256, ge=0)
    queue_seconds: Seconds = 10

    # checkpoints of a stream, each after an event: when so many events, or seconds, came since the last
    checkpoint_events: int = Field(default=1000, ge=1)
    checkpoint_seconds: float = Field(default=1, ge=0.01, le=86_400)

    # the log of receipts, see docs/log.md: the hash of each, in a log on disk, or in one that answers at `log_url`
    log_dir: Path | None = None
    log_seconds: float = Field(default=1, ge=0.01, le=3600)  # so often what came together is appended
    log_url: str | None = Field(default=None, pattern=r"^https?://[^?#]+$")
    log_key: str | None = None  # of the log at `log_url`: `<name>+<id>+<base64>`

    # limits of a request
    max_request_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    max_answer_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    max_headers: int = Field(default=100, ge=8)
    max_connections: int = Field(
        default=4096, ge=1
    )  # of a worker; beyond, that which has been without a request longest is closed
    sealed_remembered: int = Field(
        default=1_000_000, ge=1000
    )  # sealed requests of the last minutes, so that none is answered twice; 32 bytes each, refused when full
    body_seconds: Seconds = 60  # until a request's body has arrived
    engine_read_seconds: Seconds = 600  # until the engine's first byte, and between two
    request_seconds: Seconds = 3600
    drain_seconds: Seconds = 60  # what requests under way get to finish when the gateway is told to stop

    # the VM around it: nothing of the gateway's, read by the image's own start alone (`image/guest/settings.py`)
    guest: dict[str, Any] = {}

    @property
    def real_tee(self) -> bool:
        """Not a simulated one."""
        return not self.tee.startswith("simulated-")

    @property
    def config_identity_required(self) -> bool:
        return self.config_identity is ConfigIdentity.REQUIRED or (
            self.config_identity is ConfigIdentity.AUTO and self.real_tee
        )

    @classmethod
    def load(cls, file: Path | bytes | None = None, **changes: Any) -> Settings:
        """Settings from `file` or its content, overridden by ENCLAVE_* variables, overridden by `changes`."""
        _refuse_unknown_variables(set(cls.model_fields))
        values = {**_in_file(file), **EnvSettingsSource(cls)(), **changes}
        try:
            return cls(**values)
        except ValidationError as exc:
            told = [_told(problem) for problem in exc.errors()]
            if file is None and any(problem["type"] == "missing" for problem in exc.errors()):
                told.append("--config names the file that sets them; docs/operate.md has every setting")
            raise ValueError("\n".join(told)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but what `load` gives, which has looked at the variables already."""
        return (init_settings,)

    @classmethod
    def origins(cls, file: Path | bytes | None = None) -> dict[str, str]:
        """Where `load` takes each setting from: `environment`, `file` or `default`."""
        variables, values = EnvSettingsSource(cls)(), _in_file(file)
        places = dict.fromkeys(values, "file") | dict.fromkeys(variables, "environment")
        return {name: places.get(name, "default") for name in cls.model_fields}

    @field_validator("model_signing_key")
    @classmethod
    def _signing_key(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                parse_public_key(value)
        except ModelError as exc:
            raise ValueError(str(exc)) from exc
        return value

    @field_validator("engine_flags")
    @classmethod
    def _flags(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_extra_flags(value)

    @field_validator("engine_environment")
    @classmethod
    def _environment(cls, value: dict[str, str]) -> dict[str, str]:
        return check_environment(value)

    @field_validator("access_database")
    @classmethod
    def _database(cls, value: str) -> str:
        if not value.startswith(("sqlite:///", "postgresql://")):
            raise ValueError("must begin with sqlite:/// or postgresql://")
        if re.match(r"[a-z]+://[^/@]*:[^/@]*@|.*[?&]password=", value):
            raise ValueError("must hold no password: libpq finds it in PGPASSFILE or PGPASSWORD")
        return value

    @field_validator("owner_key")
    @classmethod
    def _owner(cls, value: str | None) -> str | None:
        if value is not None:
            read_owner_key(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_together(self)
        return self

    def effective(self) -> dict[str, Any]:
        """Plain values, as `enclave-server config` prints and `digest` covers them."""
        return self.model_dump(mode="json")

    def digest(self) -> bytes:
        """SHA-256 of the RFC 8785 canonical JSON of every setting."""
        return sha256(rfc8785.dumps(self.effective())).digest()


def read_owner_key(text: str) -> Ed25519PublicKey:
    """The public key in a PEM. ValueError for anything else."""
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, Ed25519PublicKey):
        return key
    raise ValueError("must be a PEM that holds one Ed25519 public key")


def _in_file(file: Path | bytes | None) -> dict[str, Any]:
    content = file.read_bytes() if isinstance(file, Path) else file
    try:
        return tomllib.loads(content.decode()) if content is not None else {}
    except ValueError as exc:
        raise ValueError(
            f"{file if isinstance(file, Path) else 'the configuration'} is no TOML: {exc}"
        ) from None


def _told(problem: ErrorDetails) -> str:
    """One line for whoever wrote the setting, without its value: that may be a secret in the wrong place."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{name}: there is no such setting{_meant(name)}"
    words = "must be set" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
    return f"{name}: {words}" if name and not words.startswith(f"{name}:") else words


def _meant(name: str) -> str:
    near = get_close_matches(name, Settings.model_fields, 1)
    return f"; did you mean {near[0]}?" if near else "; `enclave-server config` lists them"


def _refuse_unknown_variables(known: set[str]) -> None:
    names = {name for name in os.environ if name.upper().startswith(PREFIX)}
    unknown = sorted(name for name in names if name.upper().removeprefix(PREFIX).lower() not in known)
    if unknown:
        raise ValueError(
            f"unknown variables {unknown}: a setting is named {PREFIX}NAME, see `enclave-server config`"
        )
