"""The proxy as programs use it: OpenAI's own client and plain HTTP, in front of the real gateway."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from client_sdk.proxy.guard import Guard
from client_sdk.sealing import Channel
from client_sdk.streams import Verify
from tests.caller import untrusting
from tests.client_sdk.conftest import Recorded
from tests.client_sdk.live_proxy import ASKED, CHAT, STREAMED, LiveProxy, live_proxy
from tests.client_sdk.test_cli import attested
from tests.servers import FakeEngine, LiveGateway, live_gateway

ODD = b': a comment\n\nevent: x\ndata: {"id":1,"choices":[],  "n":1.0}\n\nid: 7\ndata: {"id":2}\ndata:\n\ndata: [DONE]\n\n'


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeEngine, LiveGateway]]:
    """One gateway for all tests here that leave it as it was."""
    folder = tmp_path_factory.mktemp("proxy")
    with FakeEngine(folder / "engine.sock") as engine, live_gateway(folder, engine=engine) as gateway:
        yield engine, gateway


@pytest.fixture
def engine(rig: tuple[FakeEngine, LiveGateway]) -> FakeEngine:
    """Its engine, well again."""
    rig[0].reset()
    return rig[0]


@pytest.fixture
def gateway(rig: tuple[FakeEngine, LiveGateway], engine: FakeEngine) -> LiveGateway:
    """The gateway."""
    return rig[1]


@pytest.fixture
def proxy(tmp_path: Path, gateway: LiveGateway) -> Iterator[LiveProxy]:
    """A proxy in front of the gateway."""
    with live_proxy(tmp_path, gateway.policy_text, gateway.origin) as running:
        yield running


@pytest.fixture
def caller(proxy: LiveProxy) -> Iterator[httpx.Client]:
    """A client that knows nothing of attestation."""
    with httpx.Client(base_url=proxy.origin, verify=untrusting(), trust_env=False) as client:
        yield client


def claims(response: httpx.Response) -> dict[str, Any]:
    """What the receipt in an answer's header says."""
    body = response.headers["Attested-Receipt"].split(".")[1]
    value: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return value


# ---------------------------------------------------------------------------------------------------- what passes


def test_openais_own_client(proxy: LiveProxy) -> None:
    """Nothing but the base URL changes, plain and streamed."""
    with openai.OpenAI(base_url=proxy.url, api_key="none") as client:
        assert [m.id for m in client.models.list()] == ["fake-model"]
        plain: Any = client.chat.completions.create(**ASKED)
        assert plain.choices[0].message.content == "You said: hello"
        stream: Any = client.chat.completions.create(**STREAMED)
        assert "".join(c.delta.content or "" for e in stream for c in e.choices) == "You said: hello"


async def test_openais_async_client(proxy: LiveProxy) -> None:
    """Many at once."""
    async with openai.AsyncOpenAI(base_url=proxy.url, api_key="none") as client:
        stream: Any = await client.chat.completions.create(**STREAMED)
        assert "".join([c.delta.content or "" async for e in stream for c in e.choices]) == "You said: hello"


def test_bytes_of_a_plain_exchange(caller: httpx.Client, engine: FakeEngine) -> None:
    """The enclave signs exactly what the caller sent, and the caller gets exactly what the enclave signed."""
    body = json.dumps(ASKED, indent=3).replace("hello", "h\\u00e9llo").encode() + b"\n \n"
    response = caller.post(f"{CHAT}?x=%20y", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200
    nonce = response.headers["Attested-Nonce"]
    salt = base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))
    receipt = claims(response)
    assert receipt["request"]["path"] == f"{CHAT}?x=%20y"
    assert receipt["request"]["digest"] == sha256(salt + body).hexdigest()
    assert receipt["response"]["digest"] == sha256(salt + response.content).hexdigest()
    assert engine.requests[-1].body == body


@pytest.mark.parametrize("split", [False, True])
def test_bytes_of_a_stream(caller: httpx.Client, engine: FakeEngine, split: bool) -> None:
    """A stream's bytes are the engine's, whatever they are and however they were cut."""
    engine.behaviour.split = split
    first = caller.post(CHAT, json=STREAMED)
    assert first.content.endswith(b"data: [DONE]\n\n")
    assert first.headers["X-Attested"] == "as-read"
    engine.behaviour.raw_stream = ODD
    assert caller.post(CHAT, json=STREAMED).content == ODD


def test_bytes_of_a_form(caller: httpx.Client, engine: FakeEngine) -> None:
    """A recording is passed on with its boundary and every byte, whatever looks like a boundary in it."""
    sound = b"RIFF" + bytes(range(256)) * 4000 + b"\r\n--\r\n"
    files = {"file": ("a.wav", sound, "audio/wav")}
    response = caller.post("/v1/audio/transcriptions", data={"model": ASKED["model"]}, files=files)
    sent = response.request.read()
    nonce = response.headers["Attested-Nonce"]
    salt = base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))
    assert (response.status_code, response.headers["X-Attested"]) == (200, "verified")
    assert claims(response)["request"]["digest"] == sha256(salt + sent).hexdigest()
    seen = engine.requests[-1]
    assert (seen.body, seen.headers["Content-Type"]) == (sent, response.request.headers["Content-Type"])


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("HEAD", "/v1/models", {}, 405),
        ("DELETE", "/v1/models", {}, 405),
        ("POST", "/v1/nothing", {}, 404),
        ("POST", CHAT, {"Content-Encoding": "gzip"}, 415),
    ],
)
def test_what_the_enclave_does_not_serve(
    caller: httpx.Client, engine: FakeEngine, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """The enclave says so itself, signed; no engine is asked."""
    response = caller.request(method, path, content=b"{}" if method == "POST" else None, headers=headers)
    assert (response.status_code, response.headers["X-Attested"]) == (status, "verified")
    assert claims(response)["request"]["method"] == method
    assert bool(response.content) is (method != "HEAD")
    assert not engine.requests


def test_what_an_answer_says_of_its_proof(caller: httpx.Client, gateway: LiveGateway) -> None:
    """Headers name the enclave, its statement and the receipt; that a TEE is simulated is not hidden."""
    headers = caller.post(CHAT, json=ASKED).headers
    assert headers["X-Attested"] == "verified"
    assert headers["X-Attested-Enclave"] == gateway.origin
    assert headers["X-Attested-Statement"] == gateway.identity.statement_digest.hex()
    assert headers["X-Attested-Simulated"] == "true"
    assert headers["X-Attested-Receipt"].startswith("rcpt-")


def test_a_streams_receipt_is_a_trailer_for_those_who_ask(proxy: LiveProxy) -> None:
    """The receipt is known only at the end."""
    body = json.dumps(STREAMED).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    assert b"\r\n0\r\nx-attested-receipt: rcpt-" in proxy.raw(f"{head}TE: trailers\r\n\r\n".encode() + body)
    assert proxy.raw(f"{head}\r\n".encode() + body).endswith(b"\r\n0\r\n\r\n")


def test_the_enclaves_own_errors(caller: httpx.Client, gateway: LiveGateway) -> None:
    """What the gateway refuses comes back as it is, with its receipt."""
    response = caller.post(CHAT, content=b"{")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert (claims(response)["outcome"], response.headers["X-Attested"]) == ("error", "verified")


def test_events_are_not_held_back(caller: httpx.Client, engine: FakeEngine) -> None:
    """Each event is passed on when it comes: the last of them before the engine, which then hangs, has ended."""
    engine.behaviour.hang_after = 3
    with caller.stream("POST", CHAT, json=STREAMED) as response:
        events = (line for line in response.iter_lines() if line.startswith("data: {"))
        assert len([next(events) for _ in range(3)]) == 3


def test_before_use(tmp_path: Path, engine: FakeEngine) -> None:
    """Nothing is passed on that is not proven yet."""
    engine.behaviour.delay = 0.1
    with (
        live_gateway(tmp_path, engine=engine, checkpoint_events=2) as gateway,
        live_proxy(tmp_path, gateway.policy_text, gateway.origin, verify=Verify.BEFORE_USE) as proxy,
        httpx.Client(base_url=proxy.origin) as client,
        client.stream("POST", CHAT, json=STREAMED) as response,
    ):
        reads = list(response.iter_raw())
    assert response.headers["X-Attested"] == "before-use"
    assert b"".join(reads).endswith(b"data: [DONE]\n\n")
    assert all(read.count(b"\n\n") >= 2 for read in reads[:-1])


# -------------------------------------------------------------------------------------------------- keys and pages


def test_the_callers_key_is_passed_through(tmp_path: Path, recorded: Recorded, engine: FakeEngine) -> None:
    """The gateway judges the caller's key; nothing of the connection's own headers goes with it."""
    with (
        live_proxy(
            tmp_path, recorded.gateway.policy_text, recorded.gateway.origin, channel=Channel.PINNED
        ) as proxy,
        httpx.Client(base_url=proxy.origin) as client,
    ):
        headers = {
            "Authorization": "Bearer mine",
            "X-Mine": "1",
            "Cookie": "a=b",
            "Connection": "X-Hop",
            "X-Hop": "1",
        }
        assert client.post(CHAT, json=ASKED, headers=headers).status_code == 200
    sent = recorded.recorder.requests[-1][1]
    assert (sent[b"authorization"], sent[b"x-mine"]) == (b"Bearer mine", b"1")
    assert not {b"cookie", b"x-hop"} & sent.keys()
    assert sent[b"host"] == recorded.gateway.origin.removeprefix("https://").encode()


def test_a_key_of_the_proxys_own(tmp_path: Path, recorded: Recorded) -> None:
    """It takes the place of every key that a caller sends."""
    with (
        live_proxy(
            tmp_path,
            recorded.gateway.policy_text,
            recorded.gateway.origin,
            channel=Channel.PINNED,
            api_key="the-proxys",
        ) as proxy,
        httpx.Client(base_url=proxy.origin) as client,
    ):
        client.get("/v1/models", headers={"Authorization": "Bearer mine", "X-Api-Key": "mine"})
    sent = recorded.recorder.requests[-1][1]
    assert sent[b"authorization"] == b"Bearer the-proxys"
    assert b"x-api-key" not in sent


def test_the_status_pages_tell_what_is_trusted_and_nothing_of_what_passed(caller: httpx.Client) -> None:
    """Chain, deadlines, counts and failures; no prompt, answer or key. The page loads nothing and runs nothing."""
    assert caller.get("/status.json").json()["enclaves"][0]["state"] == "unverified"
    secret = {**ASKED, "messages": [{"role": "user", "content": "a-marked-prompt-7f3a"}]}
    for body in (secret, {**secret, "stream": True}, {**secret, "nonsense": "a-marked-field"}):
        caller.post(CHAT, json=body, headers={"Authorization": "Bearer a-marked-key"})
    status = caller.get("/status.json").json()
    (enclave,) = status["enclaves"]
    assert enclave["state"] == "verified"
    assert [line["state"] for line in enclave["links"]].count("passed") == 6
    assert {k: status["counts"][k] for k in ("requests", "verified", "streams", "under_way")} == {
        "requests": 3,
        "verified": 3,
        "streams": 1,
        "under_way": 0,
    }
    page = caller.get("/")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    style = page.text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page.headers["Content-Security-Policy"]
    assert "SIMULATED" in page.text
    assert "<script" not in page.text
    assert "http" not in page.text.replace("http-equiv", "").replace(enclave["url"], "")
    for text in (page.text, json.dumps(status)):
        assert "a-marked" not in text
        assert "You said" not in text


def test_kept_exchanges_can_be_audited(tmp_path: Path, gateway: LiveGateway) -> None:
    """--save keeps what `attested audit` verifies, readable by its owner alone."""
    folder = tmp_path / "kept"
    folder.mkdir()
    with (
        live_proxy(tmp_path, gateway.policy_text, gateway.origin, save=folder) as proxy,
        httpx.Client(base_url=proxy.origin) as client,
    ):
        client.post(CHAT, json=ASKED)
        client.post(CHAT, json=STREAMED)
        folder.chmod(0o500)
        folder.rename(tmp_path / "moved")
        assert client.post(CHAT, json=ASKED).status_code == 200
        counts = client.get("/status.json").json()["counts"]
    assert (counts["saved"], counts["not_saved"]) == (2, 1)
    (tmp_path / "moved").chmod(0o700)
    files = sorted((tmp_path / "moved").iterdir())
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    done = attested("audit", str(tmp_path / "moved"), "--policy", str(tmp_path / "proxy-policy.toml"))
    assert "2 of 2 exchanges hold" in done.stdout


# ---------------------------------------------------------------------------------------------------- who may call

REFUSED: dict[str, tuple[str, dict[str, str]]] = {
    "a name that somebody points at this machine": ("host_not_allowed", {"Host": "evil.example:80"}),
    "a name that begins like ours": ("host_not_allowed", {"Host": "localhost.evil.example"}),
    "an address that is not this machine's": ("host_not_allowed", {"Host": "10.0.0.1:8642"}),
    "nonsense for a name": ("host_not_allowed", {"Host": "localhost@evil"}),
    "a page of another site": ("origin_not_allowed", {"Origin": "https://evil.example"}),
    "a page of nowhere": ("origin_not_allowed", {"Origin": "null"}),
    "a picture in a page": ("origin_not_allowed", {"Sec-Fetch-Site": "cross-site"}),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("path", [CHAT, "/status.json"])
def test_pages_in_browsers_are_no_callers(
    caller: httpx.Client, engine: FakeEngine, case: str, path: str
) -> None:
    """DNS rebinding and requests across origins are refused before the body is read."""
    code, headers = REFUSED[case]
    response = caller.post(path, json=ASKED, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (403, code)
    assert "access-control-allow-origin" not in response.headers
    assert not engine.requests


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:5", "[::1]:80"])
def test_names_of_this_machine(caller: httpx.Client, host: str) -> None:
    """Loopback's own names, with any port: it may be forwarded."""
    assert caller.get("/status.json", headers={"Host": host}).status_code == 200


def test_an_allowed_page_and_an_allowed_name(tmp_path: Path, gateway: LiveGateway) -> None:
    """Whoever starts the proxy may name a page that can call and read, preflight included, and names of the machine."""
    guard = Guard(origins=frozenset({"http://localhost:3000"}), hosts=frozenset({"host.docker.internal"}))
    with (
        live_proxy(tmp_path, gateway.policy_text, gateway.origin, guard=guard) as proxy,
        httpx.Client(base_url=proxy.origin, headers={"Host": "host.docker.internal:80"}) as client,
    ):
        origin = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = client.options(CHAT, headers=origin | asked)
        assert (preflight.status_code, preflight.headers["Access-Control-Allow-Headers"]) == (
            204,
            "authorization",
        )
        answer = client.post(CHAT, json=ASKED, headers=origin)
        assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert client.post(CHAT, json=ASKED, headers={"Origin": "http://localhost:3001"}).status_code == 403


def test_only_the_api_is_passed_on(caller: httpx.Client, engine: FakeEngine) -> None:
    """Other paths say what is missing."""
    for path in ("/chat/completions", "/v1", "/healthz", "/%76%31/models"):
        response = caller.post(path, json=ASKED)
        assert response.status_code == 404
        assert "/v1" in response.json()["error"]["message"]
    assert not engine.requests


def test_sleep(tmp_path: Path, recorded: Recorded) -> None:
    """When the calendar has moved on without the running clock, connections are new; a clock that runs changes nothing."""
    asleep = timedelta(0)
    with (
        live_proxy(
            tmp_path,
            recorded.gateway.policy_text,
            recorded.gateway.origin,
            monotonic=lambda: time.monotonic() - asleep.total_seconds(),
        ) as proxy,
        httpx.Client(base_url=proxy.origin) as client,
    ):
        (upstream,) = proxy.proxy.upstreams
        ways = []
        for slept in (0, 5, 3600):
            asleep += timedelta(seconds=slept)
            assert client.post(CHAT, json=ASKED).status_code == 200
            ways.append(upstream._way)
    assert ways[0] is ways[1] is not ways[2]
