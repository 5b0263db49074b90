"""No byte of a prompt leaves before the verdict: for every refusal, a server that keeps all it hears has heard nothing of it.

The server ends TLS itself and hands on a real enclave's evidence, so what it keeps is every byte that a client wrote.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.policy import parse_policy
from attestation.references import References, dump_envelope, dump_statement, sign
from attestation.release import Release, Revoked
from attestation.reviewers import ReferencesPolicy, Reviewer
from client_sdk import AsyncOpenAI, OpenAI, Trust, async_attested_transport, attested_transport
from client_sdk._bodies import Clock
from client_sdk.policy_toml import dump_policy
from client_sdk.sealing import Channel
from tests.caller import untrusting
from tests.client_sdk.conftest import Relay
from tests.client_sdk.live_proxy import CHAT, live_proxy
from tests.processes import until
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

SECRETS = (
    b"the secret prompt",
    b"secret-key",
    b"/v1",
    b"/sealed",
    b"POST /",
)  # what no nonce can have in it by chance
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
    references: Callable[[References], References] | None = None  # signed, beside the policy
    relay: Callable[[Relay, LiveGateway], None] = lambda relay, gateway: None
    off: timedelta = field(default_factory=timedelta)  # this machine's clock
    pinned_only: bool = False


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngine]:
    """One for all cases: none of them gets that far."""
    with FakeEngine(tmp_path_factory.mktemp("engine") / "engine.sock") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, engine: FakeEngine) -> Iterator[LiveGateway]:
    """One enclave for all cases, whose evidence is good."""
    with live_gateway(tmp_path_factory.mktemp("gateway"), engine=engine, evidence_burst=5000) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No references were seen before."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def without_root(policy: str) -> str:
    return policy[policy.index("[tdx]") :]


def other_measurement(policy: str) -> str:
    return policy.replace('mrtd = "', 'mrtd = "ff', 1).replace('00000000"\nrtmr0', '000000"\nrtmr0', 1)


def other_digest(name: str) -> Callable[[str], str]:
    return lambda policy: policy.replace(f'{name} = ["', f'{name} = ["{"ab" * 32}"] #')


def other_platform(policy: str) -> str:
    return policy[: policy.index("[tdx]")] + "[snp]\n" + policy[policy.index("[gpu]") :]


def signed(policy: str, change: Callable[[References], References], folder: Path) -> str:
    """A policy whose measurements stand in references, which a reviewer has signed after `change`."""
    full, key = parse_policy(policy), Ed25519PrivateKey.generate()
    assert full.tdx is not None
    release = Release(id="1.4", tdx=full.tdx.measurements)
    now = int(time())
    published = References(name="acme", epoch=3, issued=now, expires=now + 3600, releases=(release,))
    payload = dump_statement(change(published))
    file = folder / "signed.json"
    file.write_bytes(dump_envelope(payload, [sign(payload, key)]))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    wanted = ReferencesPolicy(file=str(file), name="acme", reviewers=(Reviewer(name="ann", key=public),))
    return dump_policy(replace(full, tdx=replace(full.tdx, measurements=()), references=wanted))


def revoked(references: References) -> References:
    (release,) = references.releases
    return replace(references, revoked=(Revoked(id="1.3", reason="CVE-2026-0001", tdx=release.tdx),))


def retired(references: References) -> References:
    (release,) = references.releases
    return replace(references, releases=(replace(release, until=int(time()) - 1),))


def another_release(references: References) -> References:
    (release,) = references.releases
    (measured,) = release.tdx
    return replace(references, releases=(replace(release, tdx=(replace(measured, mrtd=b"\xff" * 48),)),))


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
    "revoked release": Case(Check.POLICY_REVOKED, references=revoked),
    "retired release": Case(Check.POLICY_RETIRED, references=retired),
    "references to another release": Case(Check.TDX_MEASUREMENT, references=another_release),
    "ended references": Case(Check.POLICY_EXPIRED, references=lambda r: replace(r, expires=int(time()) - 1)),
    "stale evidence": Case(Check.BINDING_REPORT_DATA, relay=stale),
    "expired": Case(Check.TDX_ROOT_CRL_DATES, off=timedelta(days=400)),
    "not yet valid": Case(Check.TDX_ROOT_CRL_DATES, off=timedelta(days=-400)),
    "the statement has ended": Case(Check.STATEMENT_VALIDITY, off=timedelta(days=7, minutes=10)),
    "no evidence": Case(Check.EVIDENCE_FORMAT, relay=nonsense),
    "not ready": Case(Check.EVIDENCE_FETCH, relay=unready),
    "wrong TLS key": Case(Check.CHANNEL_TLS_KEY, pinned_only=True),
}


@dataclass(frozen=True)
class Asked:
    """How a prompt is tried to be sent."""

    policy: str
    clock: Clock
    origin: str
    channel: Channel
    folder: Path

    @property
    def trust(self) -> Trust:
        return Trust(self.policy, clock=self.clock)

    @property
    def openai(self) -> dict[str, Any]:
        options = {"api_key": "secret-key", "base_url": f"{self.origin}/v1", "max_retries": 2}
        return {**options, "policy": self.trust, "channel": self.channel}


def by_httpx(asked: Asked) -> set[str]:
    transport = attested_transport(asked.trust, channel=asked.channel)
    with httpx.Client(transport=transport) as client, pytest.raises(AttestationError) as caught:
        client.post(asked.origin + CHAT, json=ASKED, headers={"Authorization": "Bearer secret-key"})
    return everything(caught.value)


def by_httpx_async(asked: Asked) -> set[str]:
    async def work() -> None:
        transport = async_attested_transport(asked.trust, channel=asked.channel)
        async with httpx.AsyncClient(transport=transport) as client:
            await client.post(asked.origin + CHAT, json=ASKED, headers={"Authorization": "Bearer secret-key"})

    with pytest.raises(AttestationError) as caught:
        asyncio.run(work())
    return everything(caught.value)


def by_openai(asked: Asked) -> set[str]:
    with OpenAI(**asked.openai) as client, pytest.raises(AttestationError) as caught:
        client.chat.completions.create(**ASKED)
    return everything(caught.value)


def by_openai_async(asked: Asked) -> set[str]:
    async def work() -> None:
        async with AsyncOpenAI(**asked.openai) as client:
            await client.chat.completions.create(stream=True, **ASKED)

    with pytest.raises(AttestationError) as caught:
        asyncio.run(work())
    return everything(caught.value)


def by_proxy(asked: Asked) -> set[str]:
    with live_proxy(
        asked.folder, asked.policy, asked.origin, channel=asked.channel, clock=asked.clock
    ) as proxy:
        headers = {"Authorization": "Bearer secret-key"}
        answer = httpx.post(
            proxy.origin + CHAT, json=ASKED, headers=headers, verify=untrusting(), trust_env=False
        )
    error = answer.json()["error"]
    assert answer.headers["X-Attested"] in {"refused", "unavailable"}
    return {error["code"], *(v["check"] for v in error.get("violations", ()))}


def everything(error: AttestationError) -> set[str]:
    return {str(error.check), *(str(v.check) for v in getattr(error, "violations", ()))}


@pytest.mark.parametrize("ask", [by_httpx, by_httpx_async, by_openai, by_openai_async, by_proxy])
@pytest.mark.parametrize("case", REFUSED)
def test_nothing_of_a_request_reaches_a_refused_enclave(
    tmp_path: Path,
    relay: Relay,
    gateway: LiveGateway,
    engine: FakeEngine,
    case: str,
    ask: Callable[[Asked], set[str]],
) -> None:
    """From every client and over every channel: a question for evidence, in the same few headers, and not one byte else."""
    refused = REFUSED[case]
    refused.relay(relay, gateway)
    policy = refused.policy(gateway.policy_text)
    if refused.references is not None:
        policy = signed(policy, refused.references, tmp_path)
    for channel in Channel:
        if refused.pinned_only and not channel.pins:
            continue
        relay.heard = b""
        checks = ask(Asked(policy, lambda: datetime.now(UTC) + refused.off, relay.origin, channel, tmp_path))
        assert str(refused.check) in checks, channel
        assert EVIDENCE.fullmatch(relay.heard), relay.heard
        assert not [secret for secret in SECRETS if secret in relay.heard]
    assert not engine.requests


def test_the_same_references_are_accepted(tmp_path: Path, gateway: LiveGateway, engine: FakeEngine) -> None:
    """As they were published, they do: the refusals above are for what was changed."""
    policy = signed(gateway.policy_text, lambda references: references, tmp_path)
    asked = Asked(policy, lambda: datetime.now(UTC), gateway.origin, Channel.SEALED_AND_PINNED, tmp_path)
    with OpenAI(**asked.openai) as client:
        assert client.chat.completions.create(**ASKED).choices
    engine.requests.clear()


def test_the_server_would_have_heard_it(relay: Relay, gateway: LiveGateway) -> None:
    """The same server hears every word of a client that does not verify: the silence above is the client's."""
    timeout = httpx.Timeout(60, read=0.5)
    with pytest.raises(httpx.HTTPError):
        httpx.post(relay.origin + CHAT, json=ASKED, verify=untrusting(), trust_env=False, timeout=timeout)
    until(lambda: b"the secret prompt" in relay.heard)
