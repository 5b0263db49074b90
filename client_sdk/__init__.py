"""The verifying client: drop-ins for OpenAI's classes, and a transport for everything that speaks httpx.

Names load what they need when they are first used: `import client_sdk` is quick, and needs no openai.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attestation.checks import Check
    from attestation.errors import (
        AttestationError,
        MalformedError,
        PolicyError,
        UnavailableError,
        VerificationError,
    )
    from attestation.policy import Policy
    from client_sdk.openai import AsyncAttestedClient, AsyncOpenAI, AttestedClient, OpenAI
    from client_sdk.receipts import Attestation
    from client_sdk.refusals import plain_refusals
    from client_sdk.sealing import Channel
    from client_sdk.terms import load_policy
    from client_sdk.transport import Trust, async_attested_transport, attestation_of, attested_transport

__all__ = [
    "AsyncAttestedClient",
    "AsyncOpenAI",
    "Attestation",
    "AttestationError",
    "AttestedClient",
    "Channel",
    "Check",
    "MalformedError",
    "OpenAI",
    "Policy",
    "PolicyError",
    "Trust",
    "UnavailableError",
    "VerificationError",
    "async_attested_transport",
    "attestation_of",
    "attested_transport",
    "load_policy",
    "plain_refusals",
]

_HOMES = {
    "attestation.checks": ("Check",),
    "attestation.errors": (
        "AttestationError",
        "MalformedError",
        "PolicyError",
        "UnavailableError",
        "VerificationError",
    ),
    "attestation.policy": ("Policy",),
    "client_sdk.openai": ("AsyncAttestedClient", "AsyncOpenAI", "AttestedClient", "OpenAI"),
    "client_sdk.receipts": ("Attestation",),
    "client_sdk.refusals": ("plain_refusals",),
    "client_sdk.sealing": ("Channel",),
    "client_sdk.terms": ("load_policy",),
    "client_sdk.transport": ("Trust", "async_attested_transport", "attestation_of", "attested_transport"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
