"""What no single setting can be held against: the rules of settings that belong together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attestation.errors import MalformedError
from attestation.tlog import parse_verifier_key
from enclave_server.choices import AccessMode, Isolation, SecretName, TeeKind
from enclave_server.engine.address import check_on_this_machine, parse_address

if TYPE_CHECKING:
    from enclave_server.settings import Settings


def check_together(settings: Settings) -> None:
    """Raises ValueError, which says which settings do not go together."""
    for check in (_engine, _metrics, _secrets, _certificate, _pack, _overlap, _seal, _log):
        check(settings)


def _engine(settings: Settings) -> None:
    if settings.engine is None and settings.engine_python is None:
        raise ValueError("engine_python (an engine to start) or engine (one that runs already) must be set")
    if settings.engine is not None:
        address = parse_address(settings.engine)
        if settings.tee is not TeeKind.SIMULATED_AZURE_SNP:  # its self-test has the engine outside
            check_on_this_machine(address)
    elif settings.engine_replicas > 1 or settings.engine_nodes > 1:
        raise ValueError("engine_replicas and engine_nodes are of an engine that runs already: set engine")


def _metrics(settings: Settings) -> None:
    if settings.metrics_port is None:
        return
    last = settings.metrics_port + settings.workers - 1
    if last > 65535:
        raise ValueError("metrics_port: each worker takes a port from there on, and these end at 65535")
    if settings.metrics_port <= settings.port <= last:
        raise ValueError(
            f"metrics_port: each worker takes a port from there on, and port {settings.port} is taken"
        )


def _secrets(settings: Settings) -> None:
    if bool(settings.secrets) != (settings.owner_key is not None):
        raise ValueError("secrets and owner_key belong together: set both or neither")
    if len(set(settings.secrets)) != len(settings.secrets):
        raise ValueError("secrets: each name once")
    if settings.access is not AccessMode.KEYS and {SecretName.DATABASE_URL, SecretName.KEY_PEPPER} & set(
        settings.secrets
    ):
        raise ValueError('secrets: database_url and key_pepper are for access = "keys"')
    if (settings.model_pack is not None) != (SecretName.MODEL_KEY in settings.secrets):
        raise ValueError("model_pack and the secret model_key belong together: set both or neither")


def _certificate(settings: Settings) -> None:
    if bool(settings.tls_names) != (SecretName.TLS_ISSUER in settings.secrets):
        raise ValueError("tls_names and the secret tls_issuer belong together: set both or neither")
    for name in settings.tls_names:
        if not re.fullmatch(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}", name):
            raise ValueError(f"tls_names: {name!r} is no DNS name in lower case")


def _pack(settings: Settings) -> None:
    if settings.model_pack is not None and settings.engine is not None:
        raise ValueError("model_pack is for an engine that the gateway starts: set engine_python")
    if (
        settings.model_pack is not None
        and settings.engine_isolation is not Isolation.NONE
        and settings.model_dir.is_relative_to("/dev/shm")  # noqa: S108
    ):
        raise ValueError("model_dir: the engine has a /dev/shm of its own; name another tmpfs")


def _overlap(settings: Settings) -> None:
    if settings.identity_overlap_minutes > settings.identity_hours * 30:
        raise ValueError("identity_overlap_minutes must be at most half of identity_hours")


def _seal(settings: Settings) -> None:
    if settings.serving_seal and settings.tee not in (TeeKind.TDX, TeeKind.SIMULATED_TDX):
        raise ValueError("serving_seal needs RTMR3, which only TDX has")


def _log(settings: Settings) -> None:
    if settings.log_url is None:
        if settings.log_key is not None:
            raise ValueError("log_key is that of the log at log_url, which is not set")
        return
    if settings.log_dir is None or settings.log_key is None:
        raise ValueError("log_url needs log_key, and log_dir for where each receipt is in that log")
    try:
        parse_verifier_key(settings.log_key)
    except MalformedError as exc:
        raise ValueError(f"log_key: {exc.detail}") from exc
