"""No byte of a prompt leaves before the verdict: for every refusal, a server that keeps all it hears has heard nothing of it.

The server ends TLS itself and hands on a real enclave's evidence, so what it keeps is every byte that a client wrote.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import AttestationError
from client_sdk import Trust, async_attested_transport, attested_transport
from client_sdk.transport import ChannelLike
from tests.caller import untrusting
from tests.client_sdk.conftest import Relay
from tests.servers import MODEL, FakeEngine, LiveGateway

SECRETS = (b"the secret prompt", b"secret-key", b"/v1", b"/sealed", b"POST")
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "the secret prompt"}]}
#: All that a client may say to an enclave that it has not accepted.
EVIDENCE = re.compile(
    rb"(GET /\.well-known/attestation\?nonce=[A-Za-z0-9_-]{43} HTTP/1\.1\r\n"
    rb"((Host|Accept|Accept-Encoding|User-Agent|Connection): [^\r\n]*\r\n)+\r\n)+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Case:
    """How an enclave comes to be refused, and by which check."""

    check: Check
    policy: Callable[[str], str] = lambda text: text
    relay: Callable[[Relay, LiveGateway], None] = lambda relay, gateway: None
    off: timedelta = field(default_factory=timedelta)  # this machine's clock
    pinned_only: bool = False


def without_root(policy: str) -> str:
    return policy[policy.index("[tdx]") :]


def other_measurement(policy: str) -> str:
    return policy.replace('mrtd = "', 'mrtd = "ff', 1).replace('00000000"\nrtmr0', '000000"\nrtmr0', 1)


def other_digest(name: str) -> Callable[[str], str]:
    return lambda policy: policy.replace(f'{name} = ["', f'{name} = ["{"ab" * 32}"] #')


def other_platform(policy: str) -> str:
    return policy[: policy.index("[tdx]")] + "[snp]\n" + policy[policy.index("[gpu]") :]


def stale(relay: Relay, gateway: LiveGateway) -> None:
    """Evidence of the very enclave, made for a nonce that nobody asks with now."""
    url = f"{gateway.origin}/.well-known/attestation?nonce={b64url_encode(secrets.token_bytes(32))}"
    relay.instead = httpx.get(url, verify=untrusting(), trust_env=False).content


def nonsense(relay: Relay, _: LiveGateway) -> None:
    relay.instead = b"{}"


def unready(relay: Relay, _: LiveGateway) -> None:
    relay.status = 503


REFUSED = {
    "wrong root": Case(Check.TDX_ROOT, without_root),
    "wrong measurement": Case(Check.TDX_MEASUREMENT, other_measurement),
    "wrong model": Case(Check.POLICY_MODEL, other_digest("model_digests")),
    "wrong configuration": Case(Check.POLICY_CONFIG, other_digest("config_digests")),
    "wrong platform": Case(Check.POLICY_PLATFORM, other_platform),
    "no GPU": Case(Check.POLICY_GPU, lambda policy: policy.replace("required = false", "required = true")),
    "expired lock": Case(
        Check.POLICY_EXPIRED, lambda policy: policy + "\n[release]\nexpires = 2026-01-01T00:00:00Z\n"
    ),
    "stale evidence": Case(Check.BINDING_REPORT_DATA, relay=stale),
    "expired": Case(Check.TDX_ROOT_CRL_DATES, off=timedelta(days=400)),
    "not yet valid": Case(Check.TDX_ROOT_CRL_DATES, off=timedelta(days=-400)),
    "the statement has ended": Case(Check.STATEMENT_VALIDITY, off=timedelta(days=7, minutes=10)),
    "no evidence": Case(Check.EVIDENCE_FORMAT, relay=nonsense),
    "not ready": Case(Check.EVIDENCE_FETCH, relay=unready),
    "wrong TLS key": Case(Check.CHANNEL_TLS_KEY, pinned_only=True),
}


def ask_blocking(trust: Trust, url: str, channel: ChannelLike) -> None:
    with httpx.Client(transport=attested_transport(trust, channel=channel)) as client:
        client.post(url, json=ASKED, headers={"Authorization": "Bearer secret-key"})


def ask_async(trust: Trust, url: str, channel: ChannelLike) -> None:
    async def work() -> None:
        async with httpx.AsyncClient(transport=async_attested_transport(trust, channel=channel)) as client:
            await client.post(url, json=ASKED, headers={"Authorization": "Bearer secret-key"})

    asyncio.run(work())


def everything(error: AttestationError) -> set[Check]:
    return {error.check, *(v.check for v in getattr(error, "violations", ()))}


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_of_a_request_reaches_a_refused_enclave(
    relay: Relay, gateway: LiveGateway, engine: FakeEngine, case: str
) -> None:
    """In every world and over every channel: a question for evidence, in the same few headers, and not one byte else."""
    refused = REFUSED[case]
    refused.relay(relay, gateway)
    channels: list[ChannelLike] = ["sealed+pinned", "pinned"]
    channels += [] if refused.pinned_only else ["sealed"]
    for ask in (ask_blocking, ask_async):
        for channel in channels:
            relay.heard = b""
            trust = Trust(refused.policy(gateway.policy_text), clock=lambda: datetime.now(UTC) + refused.off)
            with pytest.raises(AttestationError) as caught:
                ask(trust, relay.origin + "/v1/chat/completions", channel)
            assert refused.check in everything(caught.value), (ask, channel)
            assert EVIDENCE.fullmatch(relay.heard), relay.heard
            assert not [secret for secret in SECRETS if secret in relay.heard]
    assert not engine.requests


def test_the_server_would_have_heard_it(relay: Relay, gateway: LiveGateway) -> None:
    """The same server hears every word of a client that does not verify: the silence above is the client's."""
    with pytest.raises(httpx.HTTPError):
        httpx.post(
            relay.origin + "/v1/chat/completions", json=ASKED, verify=untrusting(), trust_env=False, timeout=1
        )
    assert b"the secret prompt" in relay.heard
