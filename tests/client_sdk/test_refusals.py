"""Refusals for clients that let through nothing but errors of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from attestation.checks import Check
from attestation.errors import (
    AttestationError,
    MalformedError,
    PolicyError,
    UnavailableError,
    VerificationError,
    Violation,
)
from client_sdk import AsyncAttestedClient, AttestedClient, async_attested_transport, attested_transport
from client_sdk.refusals import as_error_of
from tests.client_sdk.conftest import Recorded
from tests.servers import MODEL, free_port

NOTHING = "[tdx]\n"  # a policy that accepts nothing
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "the secret prompt"}]}


class TheirError(Exception):
    """Of a client that takes whatever else it meets for a failing network."""


REFUSALS: list[AttestationError] = [
    MalformedError(Check.EVIDENCE_FORMAT, "no JSON"),
    VerificationError(Check.TDX_ROOT, "another root", advice="Do not use it"),
    PolicyError([Violation(Check.POLICY_GPU, "a GPU", "none"), Violation(Check.POLICY_MODEL, "a", "b")]),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_an_error_of_both(error: AttestationError) -> None:
    """It is what it was in every respect, and one of theirs."""
    both = as_error_of(error, TheirError)
    assert isinstance(both, TheirError)
    assert isinstance(both, type(error))
    assert (str(both), both.args, vars(both)) == (str(error), error.args, vars(error))
    assert type(both).__name__ == type(error).__name__
    assert as_error_of(both, TheirError) is both
    assert as_error_of(error, None) is error


def test_what_another_try_may_mend_is_left_to_be_tried_again() -> None:
    """A client that retries failures of the network retries this one."""
    error = UnavailableError(Check.EVIDENCE_FETCH, "nobody there")
    assert as_error_of(error, TheirError) is error


def test_a_transport_raises_it(recorded: Recorded) -> None:
    """Blocking and async; without `raise_as` the errors are no one else's."""
    url = recorded.gateway.url + "/chat/completions"

    async def ask() -> None:
        transport = async_attested_transport(NOTHING, raise_as=TheirError)
        async with httpx.AsyncClient(transport=transport) as client:
            await client.post(url, json=ASKED)

    with pytest.raises(TheirError) as one:
        asyncio.run(ask())
    transport = attested_transport(NOTHING, raise_as=TheirError)
    with httpx.Client(transport=transport) as client, pytest.raises(TheirError) as other:
        client.post(url, json=ASKED)
    for caught in (one.value, other.value):
        assert isinstance(caught, AttestationError)
        assert caught.check is Check.TDX_ROOT
    transport = attested_transport(NOTHING)
    with httpx.Client(transport=transport) as client, pytest.raises(VerificationError) as plain:
        client.post(url, json=ASKED)
    assert type(plain.value) is VerificationError


def test_openais_own_client_lets_it_through_at_once(recorded: Recorded) -> None:
    """As libraries make it that are given an `AttestedClient`: neither tried again nor hidden; what cannot be reached is."""

    async def ask() -> None:
        async with openai.AsyncOpenAI(
            base_url=recorded.gateway.url, api_key="k", http_client=AsyncAttestedClient(NOTHING)
        ) as client:
            await client.chat.completions.create(**ASKED)

    with pytest.raises(AttestationError) as caught:
        asyncio.run(ask())
    assert isinstance(caught.value, openai.OpenAIError)
    with (
        openai.OpenAI(
            base_url=recorded.gateway.url, api_key="k", http_client=AttestedClient(NOTHING)
        ) as client,
        pytest.raises(VerificationError, match="root"),
    ):
        client.chat.completions.create(**ASKED)
    assert recorded.recorder.attestations() == 2, "one for each client"


def test_nobody_there_is_an_attestation_error_too() -> None:
    """Under openai 3.x, which hides no errors but its HTTP library's."""
    with (
        openai.OpenAI(
            base_url=f"https://127.0.0.1:{free_port()}/v1",
            api_key="k",
            max_retries=0,
            http_client=AttestedClient(NOTHING),
        ) as client,
        pytest.raises(UnavailableError),
    ):
        client.chat.completions.create(**ASKED)
