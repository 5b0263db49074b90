"""The proxy when something is wrong: the caller gets an error that says what, and never something that was not proven."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from client_sdk.sealing import Channel
from client_sdk.streams import Verify
from tests.client_sdk.conftest import Recorded, Relay, Switch
from tests.client_sdk.live_proxy import ASKED, CHAT, STREAMED, LiveProxy, live_proxy
from tests.client_sdk.test_tamper_live import Meddler
from tests.processes import until
from tests.servers import FakeEngine, LiveGateway, free_port, live_gateway


def without_root(policy: str) -> str:
    return policy[policy.index("[tdx]") :]


def another_model(policy: str) -> str:
    return policy.replace("model_digests", "#")


REFUSALS: dict[str, tuple[str, Callable[[str], str]]] = {
    "a root that is not trusted": ("tdx.root", without_root),
    "a model that is not accepted": ("policy.model", another_model),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_nothing_is_sent_to_a_refused_enclave(tmp_path: Path, recorded: Recorded, case: str) -> None:
    """The error has OpenAI's shape, the check, what was expected and found; OpenAI's client does not try again."""
    check, change = REFUSALS[case]
    gateway = recorded.gateway
    with live_proxy(tmp_path, change(gateway.policy_text), gateway.origin) as proxy:
        for asked in (ASKED, STREAMED):
            with (
                openai.OpenAI(base_url=proxy.url, api_key="a-marked-key") as client,
                pytest.raises(openai.InternalServerError) as caught,
            ):
                client.chat.completions.create(**asked)
            assert (caught.value.status_code, caught.value.code) == (502, check)
            assert caught.value.response.headers["X-Attested"] == "refused"
            assert caught.value.response.headers["X-Attested-Check"] == check
            error: Any = caught.value.body
            assert {"detail", "advice", "enclave"} <= error.keys()
            violations = error.get("violations", [])
            assert [v["check"] for v in violations] == ([check] if check == "policy.model" else [])
            assert all(v["expected"] and v["found"] for v in violations)
        status = httpx.get(f"{proxy.origin}/status.json").json()
    assert status["enclaves"][0]["state"] == "refused"
    assert status["counts"]["refused"] == len(status["failures"]) == 2
    assert set(recorded.recorder.paths) == {"/.well-known/attestation"}
    assert not any(b"a-marked-key" in str(request).encode() for request in recorded.recorder.requests)


def test_somebody_with_another_key(tmp_path: Path, relay: Relay, gateway: LiveGateway) -> None:
    """Real evidence relayed from behind another TLS key: not a byte of the request is sent."""
    with live_proxy(tmp_path, gateway.policy_text, relay.origin) as proxy:
        response = httpx.post(proxy.origin + CHAT, json=ASKED)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "channel.tls_key")
    assert b"hello" not in relay.heard
    assert b"/sealed" not in relay.heard


def test_nobody_there(tmp_path: Path, gateway: LiveGateway) -> None:
    """Not reachable is not refused, and worth another try."""
    with live_proxy(tmp_path, gateway.policy_text, f"https://127.0.0.1:{free_port()}") as proxy:
        response = httpx.post(proxy.origin + CHAT, json=ASKED)
        page = httpx.get(proxy.origin).text
    assert (response.status_code, response.json()["error"]["code"]) == (503, "evidence.fetch")
    assert response.headers["X-Attested"] == "unavailable"
    assert "x-should-retry" not in response.headers
    assert "unreachable" in page


# ------------------------------------------------------------------------------------------------------- tampering


@dataclass
class Tampered:
    gateway: LiveGateway
    meddler: Meddler
    proxy: LiveProxy


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tampered]:
    """A proxy, the real gateway, and somebody between them who can read and change what is not sealed."""
    folder, meddler = tmp_path_factory.mktemp("proxy"), Meddler()
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, wrap=meddler.wrap) as gateway,
        live_proxy(folder, gateway.policy_text, gateway.origin, channel=Channel.PINNED) as proxy,
    ):
        yield Tampered(gateway, meddler, proxy)


@pytest.fixture
def tampered(rig: Tampered) -> Iterator[Tampered]:
    """The one in the middle does nothing yet."""
    yield rig
    rig.meddler.edit = None


def replaced(old: bytes, new: bytes) -> Callable[..., Any]:
    return lambda status, headers, body: (status, headers, body.replace(old, new))


def test_a_changed_answer_is_not_passed_on(tampered: Tampered) -> None:
    """One changed word, and the caller sees none of it."""
    tampered.meddler.edit = replaced(b"hello", b"HELLO")
    response = httpx.post(tampered.proxy.origin + CHAT, json=ASKED)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "receipt.response")
    assert b"HELLO" not in response.content
    assert response.headers["x-should-retry"] == "false"


def read_cut(proxy: LiveProxy, meanwhile: Callable[[], object] = bool) -> bytes:
    """All that came of a stream, which must not end well."""
    read = bytearray()

    def read_all() -> None:
        with httpx.stream("POST", proxy.origin + CHAT, json=STREAMED) as response:
            for part in response.iter_raw():
                read.extend(part)
                meanwhile()

    with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
        read_all()
    return bytes(read)


STREAM_CHANGES: dict[str, tuple[str, Callable[..., Any]]] = {
    "a changed word": ("receipt.response", replaced(b'"content":"You', b'"content":"NOT')),
    "a cut stream": ("stream.truncated", lambda s, h, body: (s, h, body[:400])),
    "a stream without its receipt": (
        "stream.truncated",
        lambda s, h, body: (s, h, body[: body.index(b": attested")]),
    ),
    "an early end": (
        "receipt.response",
        lambda s, h, body: (s, h, b"data: [DONE]\n\n" + body[body.index(b": attested") :]),
    ),
}


@pytest.mark.parametrize("case", STREAM_CHANGES)
def test_a_changed_stream_ends_in_an_error_and_never_cleanly(tampered: Tampered, case: str) -> None:
    """An error event, no [DONE], and a connection that ends before the body does."""
    check, tampered.meddler.edit = STREAM_CHANGES[case]
    read = read_cut(tampered.proxy)
    last = read.rstrip(b"\n").rpartition(b"\n\n")[2]
    assert last.startswith(b"event: error\ndata: {")
    assert json.loads(last.partition(b"data: ")[2])["error"]["code"] == check
    assert b"[DONE]" not in read
    with (
        openai.OpenAI(base_url=tampered.proxy.url, api_key="k") as client,
        pytest.raises(openai.APIError, match=check.replace(".", r"\.")),
    ):
        list(client.chat.completions.create(**STREAMED))


def test_before_use_passes_on_nothing_of_a_changed_stream(tmp_path: Path, tampered: Tampered) -> None:
    """With --verify before-use the changed word is not seen at all."""
    tampered.meddler.edit = replaced(b'"content":"You', b'"content":"NOT')
    gateway = tampered.gateway
    with live_proxy(
        tmp_path, gateway.policy_text, gateway.origin, channel=Channel.PINNED, verify=Verify.BEFORE_USE
    ) as proxy:
        body = json.dumps(STREAMED).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = proxy.raw(head.encode() + body)
    assert b"NOT" not in answer
    assert b"event: error" in answer


def test_curl_notices(tampered: Tampered) -> None:
    """A program in another language: its exit code says that the stream is not whole."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    command = [curl, "-sN", tampered.proxy.origin + CHAT, "-d", json.dumps(STREAMED)]
    command += ["-H", "Content-Type: application/json"]
    whole = subprocess.run(command, capture_output=True, timeout=240, check=False)
    assert (whole.returncode, whole.stdout.endswith(b"data: [DONE]\n\n")) == (0, True)
    tampered.meddler.edit = replaced(b'"content":"You', b'"content":"NOT')
    cut = subprocess.run(command, capture_output=True, timeout=240, check=False)
    assert cut.returncode == 18  # "transfer closed with outstanding read data remaining"
    assert b"event: error" in cut.stdout


# ------------------------------------------------------------------------------ restarts, lost networks, fail-over


def test_an_enclave_that_restarts_is_verified_again(tmp_path: Path, recorded: Recorded) -> None:
    """New keys, another statement, no error."""
    gateway = recorded.gateway
    with live_proxy(tmp_path, gateway.policy_text, gateway.origin) as proxy:
        before = httpx.post(proxy.origin + CHAT, json=ASKED)
        gateway.stop()
        assert httpx.post(proxy.origin + CHAT, json=ASKED).status_code == 503
        gateway.start()
        after = httpx.post(proxy.origin + CHAT, json=ASKED)
    assert (before.status_code, after.status_code) == (200, 200)
    assert before.headers["X-Attested-Statement"] != after.headers["X-Attested-Statement"]


def test_the_policy_is_read_again(tmp_path: Path, gateway: LiveGateway) -> None:
    """What is not accepted any more is refused at the next attestation, without a restart of the proxy."""
    with live_proxy(tmp_path, gateway.policy_text, gateway.origin) as proxy:
        assert httpx.post(proxy.origin + CHAT, json=ASKED).status_code == 200
        (tmp_path / "proxy-policy.toml").write_text(another_model(gateway.policy_text))
        gateway.restart()
        response = httpx.post(proxy.origin + CHAT, json=ASKED)
        state = httpx.get(f"{proxy.origin}/status.json").json()["enclaves"][0]["state"]
    assert (response.status_code, response.json()["error"]["code"]) == (502, "policy.model")
    assert state == "refused"


def test_a_network_that_is_lost(tmp_path: Path, gateway: LiveGateway, engine: FakeEngine) -> None:
    """The stream that was cut ends in an error event; the next request finds its way."""
    engine.behaviour.delay = 0.1
    with (
        Switch(gateway.settings.port) as switch,
        live_proxy(tmp_path, gateway.policy_text, switch.origin) as proxy,
    ):
        read = read_cut(proxy, meanwhile=switch.cut)
        assert b'"code":"stream.truncated"' in read or b'"code":"sealed.truncated"' in read
        assert httpx.post(proxy.origin + CHAT, json=ASKED).status_code == 200


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[list[LiveGateway], list[FakeEngine], LiveProxy]]:
    """Two enclaves behind one proxy."""
    with ExitStack() as stack:
        gateways, engines = [], []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            if name == "two":  # the same vendor's machines
                shutil.copytree(tmp_path / "one" / "simulator", folder / "simulator")
            engines.append(stack.enter_context(FakeEngine(folder / "engine.sock")))
            gateways.append(stack.enter_context(live_gateway(folder, engine=engines[-1])))
        policy = both(*(gateway.policy_text for gateway in gateways))
        origins = [gateway.origin for gateway in gateways]
        yield gateways, engines, stack.enter_context(live_proxy(tmp_path, policy, *origins))


def both(one: str, other: str) -> str:
    """A policy that accepts the configurations of both gateways."""
    digests = next(line for line in other.splitlines() if line.startswith("config_digests"))
    inside = digests.partition("[")[2].partition("]")[0]
    return one.replace("config_digests = [", f"config_digests = [{inside}, ")


Pair = tuple[list[LiveGateway], list[FakeEngine], LiveProxy]


def test_fail_over(pair: Pair) -> None:
    """The next enclave answers when the first is gone, after it was verified itself, and stays the one that is asked."""
    (one, two), _, proxy = pair
    with httpx.Client(base_url=proxy.origin) as client:
        assert client.post(CHAT, json=ASKED).headers["X-Attested-Enclave"] == one.origin
        one.stop()
        for _ in range(2):
            answer = client.post(CHAT, json=ASKED)
            assert (answer.status_code, answer.headers["X-Attested-Enclave"]) == (200, two.origin)
        one.start()
        assert client.post(CHAT, json=ASKED).headers["X-Attested-Enclave"] == two.origin
        two.stop()
        assert client.post(CHAT, json=ASKED).headers["X-Attested-Enclave"] == one.origin
        states = {e["url"]: e["state"] for e in client.get("/status.json").json()["enclaves"]}
    assert states[one.origin] == "verified"


def test_an_enclave_that_says_it_cannot(pair: Pair) -> None:
    """A signed 503 is a promise that nothing was done: another one may do it."""
    (one, two), engines, proxy = pair
    engines[0].unready = "starting"
    engines[0].down()
    answer = httpx.post(proxy.origin + CHAT, json=ASKED)
    assert (answer.status_code, answer.headers["X-Attested-Enclave"]) == (200, two.origin)
    engines[1].down()
    answer = httpx.post(proxy.origin + CHAT, json=ASKED)
    assert (answer.status_code, answer.headers["X-Attested"]) == (503, "verified")
    assert one.origin != two.origin


def test_what_was_sent_is_not_sent_again(pair: Pair) -> None:
    """A request that an enclave may have begun on is an error, not a second request; a GET may be asked twice."""
    (one, two), engines, proxy = pair
    with Switch(one.settings.port) as switch:
        (first, _) = proxy.proxy.upstreams
        first.url = httpx.URL(switch.origin)
        engines[0].behaviour.hang_after = 0

        def cut_when_asked() -> None:
            until(lambda: engines[0].requests)
            switch.cut()

        cutting = threading.Thread(target=cut_when_asked)
        cutting.start()
        answer = httpx.post(proxy.origin + CHAT, json=ASKED)
        cutting.join()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "enclave_unreachable")
    assert not engines[1].requests
    assert httpx.post(proxy.origin + CHAT, json=ASKED).headers["X-Attested-Enclave"] == two.origin
