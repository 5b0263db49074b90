"""The transport against the real gateway: nothing leaves before the verdict, and every answer has its receipt."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import httpx
import httpx2
import pytest
from aiohttp import web

from attestation.checks import Check
from attestation.errors import (
    AttestationError,
    MalformedError,
    PolicyError,
    UnavailableError,
    VerificationError,
)
from attestation.receipt import Outcome
from client_sdk import attested_transport, load_policy
from tests.client_sdk.conftest import Switch
from tests.client_sdk.transported import (
    ASKED,
    CHAT,
    LIBRARIES,
    SECRET,
    STREAMED,
    async_client_for,
    client_for,
    proven,
)
from tests.servers import MODEL, FakeEngine, LiveGateway

# ------------------------------------------------------------------------------------------------------- answers


@LIBRARIES
def test_plain(gateway: LiveGateway, http: Any) -> None:
    """An answer comes with its verdict and receipt; the next one needs no attestation."""
    with client_for(gateway.policy_text, http) as client:
        for counter in (1, 2):
            response = client.post(gateway.origin + CHAT, json=ASKED)
            assert SECRET in response.json()["choices"][0]["message"]["content"]
            receipt = proven(response).receipt
            assert receipt is not None
            assert (receipt.counter, receipt.outcome) == (counter, Outcome.COMPLETE)
            assert proven(response).verdict.simulated


@LIBRARIES
def test_fields_that_are_not_the_callers(gateway: LiveGateway, http: Any) -> None:
    """No coding, and this request's nonce, are asked for in place of what the caller wrote, whose request stays as it was."""
    own, left = {"Accept-Encoding": "gzip", "Attested-Nonce": "mine"}, {}

    def trace(step: str, info: Any) -> None:
        if step.endswith("send_request_headers.started"):
            left.update({name.lower(): value for name, value in info["request"].headers})

    for channel in ("sealed+pinned", "pinned"):
        with client_for(gateway.policy_text, http, channel=channel) as client:
            response = client.post(
                gateway.origin + CHAT, json=ASKED, headers=own, extensions={"trace": trace}
            )
        assert proven(response).receipt is not None
        assert {name: response.request.headers[name] for name in own} == own
        assert left[b"accept-encoding"] == b"identity"
        assert channel != "pinned" or left[b"attested-nonce"].decode() == response.headers["Attested-Nonce"]


@LIBRARIES
def test_a_header_that_is_not_ascii(gateway: LiveGateway, http: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP lets a value have any byte above: it comes out of a seal as it would come without one."""
    fields = {"Content-Type": "application/json; x=\u00fc"}
    monkeypatch.setattr(
        web, "json_response", lambda data: web.Response(body=json.dumps(data).encode(), headers=fields)
    )
    found = []
    for channel in ("sealed+pinned", "pinned"):
        with client_for(gateway.policy_text, http, channel=channel) as client:
            found.append(client.post(gateway.origin + CHAT, json=ASKED))
    assert dict(found[0].headers.raw)[b"content-type"] == dict(found[1].headers.raw)[b"content-type"]
    assert found[0].headers["content-type"] == found[1].headers["content-type"] == fields["Content-Type"]
    assert proven(found[0]).receipt is not None


@LIBRARIES
def test_streamed(gateway: LiveGateway, engine: FakeEngine, http: Any) -> None:
    """Events arrive as they are made; the receipt is there at the end, and not before."""
    engine.behaviour.split = True
    with client_for(gateway.policy_text, http) as client:
        with client.stream("POST", gateway.origin + CHAT, json=STREAMED) as response:
            lines = response.iter_lines()
            assert next(lines).startswith('data: {"id"')
            assert proven(response).receipt is None
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert not [line for line in rest if "attested" in line]
        assert proven(response).receipt is not None


@LIBRARIES
async def test_async(gateway: LiveGateway, http: Any) -> None:
    """The same for `AsyncClient`, plain and streamed."""
    async with async_client_for(gateway.policy_text, http) as client:
        response = await client.post(gateway.origin + CHAT, json=ASKED)
        assert proven(response).receipt is not None
        async with client.stream("POST", gateway.origin + CHAT, json=STREAMED) as streamed:
            lines = [line async for line in streamed.aiter_lines()]
        assert lines[-2:] == ["data: [DONE]", ""]
        assert proven(streamed).receipt is not None


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("HEAD", "/v1/models", 405)],
)
def test_errors_have_receipts(gateway: LiveGateway, method: str, path: str, status: int) -> None:
    """What the gateway refuses is signed like any answer."""
    with client_for(gateway.policy_text) as client:
        response = client.request(method, gateway.origin + path)
        assert response.status_code == status
        receipt = proven(response).receipt
        assert receipt is not None
        assert receipt.outcome is Outcome.ERROR


def test_an_error_before_the_whole_request_was_read(gateway: LiveGateway) -> None:
    """A request that is too large is refused with a receipt over the part that was read."""
    with client_for(gateway.policy_text) as client:
        body = b"x" * (gateway.settings.max_request_bytes + 1)
        response = client.post(gateway.origin + CHAT, content=body)
        assert response.status_code == 413
        receipt = proven(response).receipt
        assert receipt is not None
        assert receipt.request.length < len(body)


def test_a_request_in_pieces(gateway: LiveGateway) -> None:
    """A body that a generator makes is signed like any other."""
    with client_for(gateway.policy_text) as client:
        parts = (b'{"model":"', MODEL.encode(), b'","messages":[{"role":"user","content":"x"}]}')
        assert client.post(gateway.origin + CHAT, content=iter(parts)).status_code == 200


def test_the_gateways_own_routes_have_a_verdict_and_no_receipt(gateway: LiveGateway) -> None:
    """/healthz and its like carry nothing of a user's; of anything else an answer without a receipt is none."""
    with client_for(gateway.policy_text, channel="pinned") as client:
        response = client.get(gateway.origin + "/healthz")
        assert response.status_code == 200
        assert proven(response).receipt is None
        assert proven(response).verdict.statement.model.names == (MODEL,)
        with pytest.raises(VerificationError) as caught:
            client.get(gateway.origin + "/anything-else")
        assert caught.value.check is Check.RECEIPT_MISSING


def test_behind_a_seal_there_is_only_v1(gateway: LiveGateway) -> None:
    """The gateway's own routes go over the pinned connection as they are; anything else is asked for sealed."""
    with client_for(gateway.policy_text) as client:
        assert client.get(gateway.origin + "/healthz").status_code == 200
        other = client.get(gateway.origin + "/anything-else")
        assert (other.status_code, other.json()["error"]["code"]) == (404, "not_found")
        assert proven(other).receipt is not None
    with client_for(gateway.policy_text, channel="sealed") as client:
        with pytest.raises(VerificationError) as caught:
            client.get(gateway.origin + "/healthz")
        assert caught.value.check is Check.CHANNEL_UNPROTECTED


@LIBRARIES
def test_the_engines_death_is_told_and_signed(gateway: LiveGateway, engine: FakeEngine, http: Any) -> None:
    """An aborted stream hands over the error event and then raises; the receipt says aborted."""
    engine.behaviour.die_after = 2
    got = []
    with client_for(gateway.policy_text, http) as client:
        with client.stream("POST", gateway.origin + CHAT, json=STREAMED) as response:
            with pytest.raises(VerificationError) as caught:
                got += list(response.iter_lines())
            receipt = proven(response).receipt
        assert caught.value.check is Check.RECEIPT_OUTCOME
        assert receipt is not None
        assert receipt.outcome is Outcome.ABORTED


@LIBRARIES
async def test_a_broken_connection_is_a_truncated_stream(
    gateway: LiveGateway, engine: FakeEngine, http: Any
) -> None:
    """A connection that breaks in mid-stream is named for what it is, in both worlds; none of httpx's errors hides it."""
    engine.behaviour.hang_after = 2
    with Switch(gateway.settings.port) as switch:
        async with (
            async_client_for(gateway.policy_text, http) as client,
            client.stream("POST", switch.origin + CHAT, json=STREAMED) as response,
        ):
            lines = response.aiter_lines()
            await anext(lines)
            switch.cut()
            with pytest.raises(VerificationError) as caught:
                [line async for line in lines]
    assert caught.value.check is Check.STREAM_TRUNCATED
    assert not isinstance(caught.value, http.HTTPError)


# -------------------------------------------------------------------------------------------------------- policies


def test_a_policy_is_a_file_text_or_itself(gateway: LiveGateway, tmp_path: Any) -> None:
    """Whatever form a policy comes in, it says the same."""
    file = tmp_path / "policy.toml"
    file.write_text(gateway.policy_text)
    policy = load_policy(gateway.policy_text)
    assert load_policy(file) == load_policy(str(file)) == load_policy(policy) == policy


@pytest.mark.parametrize("policy", ["", "no-such-file.toml", "no-such-file\0", "[nonsense]", "a = 1", "\n="])
def test_a_policy_is_read_when_a_client_is_made(policy: str) -> None:
    """And not when it is too late: what is no policy is malformed, a file that cannot be read leaves the question open."""
    is_text = any(c in policy for c in "\n[=")
    with pytest.raises(MalformedError if is_text else UnavailableError) as caught:
        attested_transport(policy)
    assert caught.value.check is Check.POLICY_FORMAT


def test_a_policy_file_that_is_no_text(tmp_path: Any) -> None:
    """Bytes that are not UTF-8 are no policy."""
    file = tmp_path / "policy.toml"
    file.write_bytes(b"\xff")
    with pytest.raises(MalformedError):
        load_policy(file)


# ----------------------------------------------------------------------------------------------------- the package


def test_importing_needs_no_openai() -> None:
    """`import client_sdk` loads neither openai nor a web framework."""
    program = (
        "import sys, client_sdk\n"
        "client_sdk.attested_transport\n"
        "assert not {'openai', 'fastapi', 'httpx2', 'enclave_server'} & set(sys.modules), sys.modules\n"
        "assert set(dir(client_sdk)) == set(client_sdk.__all__)\n"
        "[getattr(client_sdk, name) for name in client_sdk.__all__]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    import client_sdk

    assert client_sdk.__all__ == sorted(client_sdk.__all__)
    with pytest.raises(AttributeError):
        client_sdk.Nonsense  # noqa: B018


def test_errors_are_nobody_elses() -> None:
    """No error of ours is one of httpx's, httpx2's or openai's, which clients retry and hide."""
    import openai

    for kind in (AttestationError, MalformedError, VerificationError, PolicyError, UnavailableError):
        assert not issubclass(kind, (httpx.HTTPError, httpx2.HTTPError, openai.OpenAIError, OSError))
