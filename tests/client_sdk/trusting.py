"""What the tests of kept trust have in common: how old a verdict may get, and what renews it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

from client_sdk import Trust
from client_sdk.session import Verified
from tests.servers import MODEL

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello you"}]}
CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
AGE = timedelta(
    seconds=200
)  # so that receipts, which may be 300 s off, do not mind a clock that is put forward


def renewals() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "attestation-renewal"]


def settled() -> bool:
    return not renewals()


def verified(trust: Trust, url: str) -> Verified:
    state = trust.state(url)
    assert isinstance(state, Verified)
    return state
