"""The public API as a user's code has it. Not executed: type-checked, strictly, by mypy and by pyright (`test_typing.py`)."""

# pyright: strict

from datetime import timedelta
from pathlib import Path

import httpx
import httpx2
import openai
from openai.types.chat import ChatCompletionMessageParam

import client_sdk
from client_sdk import (
    AsyncAttestedClient,
    AsyncOpenAI,
    Attestation,
    AttestationError,
    AttestedClient,
    Channel,
    Check,
    MalformedError,
    OpenAI,
    Policy,
    PolicyError,
    Trust,
    UnavailableError,
    VerificationError,
    async_attested_transport,
    attestation_of,
    attested_transport,
    load_policy,
    plain_refusals,
)

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]


def a_client_is_openais() -> openai.OpenAI:
    client = OpenAI(
        base_url="https://enclave/v1", policy="policy.toml", api_key="k", max_retries=3, timeout=20
    )
    answer = client.chat.completions.create(model="m", messages=MESSAGES)
    text: str | None = answer.choices[0].message.content
    for chunk in client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
        text = chunk.choices[0].delta.content
    other: openai.OpenAI = client.with_options(timeout=5)
    return client if text else other


async def an_async_client_is_openais(path: Path) -> openai.AsyncOpenAI:
    async with AsyncOpenAI(
        base_url="https://enclave/v1", policy=path, api_key="k", verify="before_use", channel="sealed"
    ) as client:
        answer = await client.chat.completions.create(model="m", messages=MESSAGES)
        tokens: int | None = answer.usage.total_tokens if answer.usage else None
        async for chunk in await client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
            tokens = chunk.created or tokens
        return client


def what_is_proven(client: openai.OpenAI) -> bytes:
    answer = client.chat.completions.create(model="m", messages=MESSAGES)
    proof: Attestation = attestation_of(answer)
    if proof.receipt is not None:
        outcome: str = proof.receipt.outcome
        proof.save("answer.json", with_bytes=not outcome)
        proof.save(Path("answer.json"), log_seconds=10.0)
        exchanges: int = len(proof.bundle(with_bytes=False).exchanges) + proof.proven
        return proof.origin.encode() if exchanges else b""
    late: bool = proof.verdict.valid_until < proof.verdict.verified_at + timedelta(days=1)
    simulated: bool = proof.verdict.simulated and proof.attested
    return proof.verdict.statement_digest if simulated and late else proof.verdict.statement.model.digest


def one_trust_for_all(policy: Policy) -> list[object]:
    trust = Trust(policy, max_age=timedelta(minutes=10))
    verdict = trust.verify("https://enclave")
    names, left = verdict.statement.model.names, verdict.valid_until - trust.clock()
    return [
        names[0],
        left.total_seconds(),
        trust.state("https://enclave"),
        OpenAI(base_url="https://enclave/v1", policy=trust, api_key="k"),
        OpenAI(base_url="https://enclave/v1", http_client=AttestedClient(trust, timeout=3), api_key="k"),
        AsyncOpenAI(base_url="https://enclave/v1", http_client=AsyncAttestedClient(trust), api_key="k"),
    ]


def transports(policy: Policy | str | Path) -> None:
    with httpx.Client(transport=attested_transport(policy)) as client:
        client.get("https://enclave/v1/models").raise_for_status()
    with httpx2.Client(transport=attested_transport(policy, "httpx2", channel=Channel.PINNED)) as client2:
        client2.get("https://enclave/v1/models").raise_for_status()
    httpx.AsyncClient(transport=async_attested_transport(policy, max_age=timedelta(minutes=1)))
    httpx2.AsyncClient(transport=async_attested_transport(Trust(policy), "httpx2"))


def errors() -> Check:
    try:
        load_policy("policy.toml")
    except PolicyError as error:
        return error.violations[0].check
    except UnavailableError as error:
        return error.check if error.advice else Check.EVIDENCE_FETCH
    except (MalformedError, VerificationError) as error:
        return error.check
    except AttestationError as error:
        text: str = error.detail
        return Check(text)
    return Check.POLICY_FORMAT if client_sdk.OpenAI is OpenAI else Check.POLICY_MODEL


def refusals_go_by(client: OpenAI) -> str | None:
    with plain_refusals():
        answer = client.chat.completions.create(model="m", messages=MESSAGES)
    return answer.choices[0].message.content
