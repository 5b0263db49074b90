"""Refusals for clients that let through nothing but errors of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
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
from client_sdk import (
    AsyncAttestedClient,
    AsyncOpenAI,
    AttestedClient,
    OpenAI,
    async_attested_transport,
    attested_transport,
    plain_refusals,
)
from client_sdk.kept import EVIDENCE_PATH
from client_sdk.refusals import as_error_of, carried
from tests.client_sdk.conftest import Recorded, Switch
from tests.servers import MODEL, FakeEngine, LiveGateway

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
    """A client that retries failures of the network retries this one, even where refusals go by it."""
    error = UnavailableError(Check.EVIDENCE_FETCH, "nobody there")
    with plain_refusals():
        assert carried(error, TheirError) is error


def test_what_no_other_try_will_mend_is_a_refusal() -> None:
    """Nothing was decided there either, and nothing but a person's doing changes that."""
    error = UnavailableError(Check.REFERENCES_MISSING, "no such file")
    both = carried(error, TheirError)
    assert isinstance(both, TheirError)
    assert isinstance(both, UnavailableError)


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
    """As libraries make it that are given an `AttestedClient`: neither tried again nor hidden."""

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


class Counted:
    """Two clients that ask where every connection is closed, and how many were made by then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, switch: Switch) -> None:
        monkeypatch.setattr("client_sdk.session.HOLD", timedelta(0))  # every try is an attestation
        monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
        switch.refuse, self.switch, self.url = True, switch, f"{switch.origin}/v1"

    async def error(self, client: openai.OpenAI | openai.AsyncOpenAI) -> Exception:
        self.switch.connections = 0
        try:
            if isinstance(client, openai.AsyncOpenAI):
                await client.chat.completions.create(**ASKED)
            else:
                client.chat.completions.create(**ASKED)
        except (AttestationError, openai.OpenAIError) as error:
            return error
        raise AssertionError("an answer from nobody")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    with Switch(0) as switch:
        yield Counted(monkeypatch, switch)


@pytest.mark.parametrize("retries", [0, 2])
async def test_who_cannot_be_reached_is_tried_as_often_as_was_said(counted: Counted, retries: int) -> None:
    """`max_retries` counts for evidence as for everything else, and then the reason is what our classes raise."""
    options: Any = {"base_url": counted.url, "policy": NOTHING, "api_key": "k", "max_retries": retries}
    for client in (OpenAI(**options), AsyncOpenAI(**options)):
        error = await counted.error(client)
        assert type(error) is UnavailableError
        assert error.check is Check.EVIDENCE_FETCH
        assert counted.switch.connections == 1 + retries


async def test_who_cannot_be_reached_is_a_failed_connection_to_openais_own_class(counted: Counted) -> None:
    """Tried again, as it does with every other, and then the cause of its error."""
    options: Any = {"base_url": counted.url, "api_key": "k"}
    for client in (
        openai.OpenAI(http_client=AttestedClient(NOTHING), **options),
        openai.AsyncOpenAI(http_client=AsyncAttestedClient(NOTHING), **options),
    ):
        error = await counted.error(client)
        assert isinstance(error, openai.APIConnectionError)
        assert isinstance(error.__cause__, UnavailableError)
        assert counted.switch.connections == 3


def test_a_connection_that_breaks_later_stays_openais(gateway: LiveGateway) -> None:
    """To an enclave that was verified: the network's failure is told as openai tells it."""
    with (
        Switch(gateway.settings.port) as switch,
        OpenAI(
            base_url=f"{switch.origin}/v1", policy=gateway.policy_text, api_key="k", max_retries=1
        ) as client,
    ):
        client.models.list()
        switch.refuse = True
        switch.cut()
        with pytest.raises(openai.APIConnectionError) as caught:
            client.chat.completions.create(**ASKED)
    assert not isinstance(caught.value.__cause__, AttestationError)


# ---------------------------------------------------------------------------------------------- past all that catch


class Library:
    """Retries and rewrites whatever goes wrong, as many do."""

    def __init__(self) -> None:
        self.tries = 0

    def call(self, work: Callable[[], Any]) -> Any:
        for _ in range(3):
            self.tries += 1
            with suppress(Exception):
                return work()
        raise RuntimeError("something went wrong")


def test_a_refusal_goes_by_whoever_would_retry_it(recorded: Recorded) -> None:
    """Of each client, and of one within another's block; outside of it they catch it as ever."""
    url, library = recorded.gateway.url, Library()
    options: Any = {"base_url": url, "api_key": "k"}
    transport = httpx.Client(transport=attested_transport(NOTHING, raise_as=TheirError))
    with (
        transport,
        OpenAI(policy=NOTHING, **options) as ours,
        openai.OpenAI(http_client=AttestedClient(NOTHING), **options) as theirs,
    ):
        ways: list[Callable[[], Any]] = [
            lambda: ours.chat.completions.create(**ASKED),
            lambda: theirs.chat.completions.create(**ASKED),
            lambda: transport.post(f"{url}/chat/completions", json=ASKED),
        ]
        for number, work in enumerate(ways, 1):
            with pytest.raises(VerificationError) as caught, plain_refusals():
                library.call(work)
            assert type(caught.value) is VerificationError
            assert caught.value.check is Check.TDX_ROOT
            assert library.tries == number
        with pytest.raises(RuntimeError):
            library.call(ways[0])
    assert set(recorded.recorder.paths) == {EVIDENCE_PATH}


async def test_tasks_within_the_block_and_nobody_else(gateway: LiveGateway) -> None:
    """It is in effect for what was started in it, and the next task has errors as they ever were."""
    options: Any = {"base_url": gateway.url, "policy": NOTHING, "api_key": "k"}
    async with AsyncOpenAI(**options) as client:

        async def ask() -> str:
            with suppress(Exception):
                await client.chat.completions.create(**ASKED)
            return "caught"

        other = asyncio.create_task(ask())
        with pytest.raises(VerificationError), plain_refusals():
            await asyncio.create_task(ask())
        assert await other == "caught"


@pytest.mark.parametrize("blocks", [True, False])
def test_a_refusal_in_the_middle_of_a_stream(recorded: Recorded, engine: FakeEngine, blocks: bool) -> None:
    """A stream that is cut goes by its reader in the block as well, blocking and async."""
    engine.behaviour.hang_after = 3
    gateway, library = recorded.gateway, Library()
    with Switch(gateway.settings.port) as switch:
        options: Any = {"base_url": f"{switch.origin}/v1", "policy": gateway.policy_text, "api_key": "k"}

        def blocking() -> None:
            with OpenAI(**options) as client:
                for _ in client.chat.completions.create(stream=True, **ASKED):
                    switch.cut()

        async def read() -> None:
            async with AsyncOpenAI(**options) as client:
                async for _ in await client.chat.completions.create(stream=True, **ASKED):
                    switch.cut()

        with pytest.raises(VerificationError) as caught, plain_refusals():
            library.call(blocking if blocks else lambda: asyncio.run(read()))
    assert caught.value.check in {Check.STREAM_TRUNCATED, Check.SEALED_TRUNCATED}
    assert library.tries == 1
