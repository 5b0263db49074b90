"""Clients over an attested transport, of both libraries, blocking and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from client_sdk import Attestation, async_attested_transport, attested_transport
from client_sdk.transport import Library
from tests.servers import MODEL

SECRET = "the secret prompt"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}]}
STREAMED = {**ASKED, "stream": True}
CHAT = "/v1/chat/completions"
LIBRARIES = pytest.mark.parametrize("http", [httpx, httpx2], ids=["httpx", "httpx2"])


def name_of(http: ModuleType) -> Library:
    return "httpx2" if http is httpx2 else "httpx"


def client_for(policy: str, http: Any = httpx, **options: Any) -> Any:
    return http.Client(transport=attested_transport(policy, name_of(http), **options))


def async_client_for(policy: str, http: Any = httpx, **options: Any) -> Any:
    return http.AsyncClient(transport=async_attested_transport(policy, name_of(http), **options))


def proven(response: Any) -> Attestation:
    found: Attestation = response.extensions["attestation"]
    return found


def ask_blocking(policy: str, origin: str, http: Any = httpx) -> Any:
    with client_for(policy, http) as client:
        return client.post(origin + CHAT, json=ASKED, headers={"Authorization": "Bearer secret-key"})


def ask_async(policy: str, origin: str, http: Any = httpx) -> Any:
    async def work() -> Any:
        async with async_client_for(policy, http) as client:
            return await client.post(
                origin + CHAT, json=ASKED, headers={"Authorization": "Bearer secret-key"}
            )

    return asyncio.run(work())


Ask = Callable[..., Any]
WORLDS = pytest.mark.parametrize("ask", [ask_blocking, ask_async], ids=["blocking", "async"])


class Clock:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead
