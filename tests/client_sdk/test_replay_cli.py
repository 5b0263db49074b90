"""`attested replay`: an answer of the real gateway, saved, and run again by a gateway that was started anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation.bundle import dump_bundle, parse_bundle
from client_sdk.exits import ExitCode
from client_sdk.transport import attested_transport
from tests.client_sdk.test_cli import Done, attested
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
WHOLE = len("You said: hello")


@pytest.fixture
def gateway(tmp_path: Path, engine: FakeEngine) -> Iterator[LiveGateway]:
    """With an engine that says it computes in float32."""
    with live_gateway(tmp_path, engine=engine, engine_dtype="float32") as running:
        (tmp_path / "policy.toml").write_text(running.policy_text)
        yield running


class Auditor:
    """Saves an answer, and has it run again."""

    def __init__(self, folder: Path, gateway: LiveGateway) -> None:
        self.gateway, self.file, self.policy = gateway, folder / "answer.json", folder / "policy.toml"

    def record(self, headers: Any = (("Attested-Replay", "1"),), **more: Any) -> None:
        with httpx.Client(transport=attested_transport(self.policy)) as client:
            answer = client.post(
                f"{self.gateway.url}/chat/completions", json={**CHAT, **more}, headers=dict(headers)
            )
            answer.extensions["attestation"].save(self.file)

    def replay(self, *options: str, engine: str = "") -> Done:
        where = engine or self.gateway.origin
        return attested("replay", str(self.file), "--policy", str(self.policy), "--engine", where, *options)

    def judge(self, *options: str, engine: str = "") -> tuple[int, Any]:
        done = self.replay("--json", *options, engine=engine)
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def auditor(tmp_path: Path, gateway: LiveGateway) -> Auditor:
    return Auditor(tmp_path, gateway)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("method", ["rerun", "prefill"])
def test_equal(auditor: Auditor, stream: bool, method: str) -> None:
    """An honest answer is equal on a node with other keys, whichever way it is compared."""
    auditor.record(stream=stream)
    auditor.gateway.restart()
    code, found = auditor.judge("--method", method)
    assert (code, found["verdict"], found["engine_attested"]) == (0, "equal", True)
    assert (found["compared"]["tokens"], found["dtype"], found["tolerance"]) == (WHOLE, "float32", 1e-4)


def test_a_chat_with_a_seed(auditor: Auditor) -> None:
    """From one command to the other."""
    save = ("--save", str(auditor.file), "--policy", str(auditor.policy))
    assert attested("chat", auditor.gateway.origin, "hello", "--seed", "7", *save).returncode == 0
    assert auditor.judge()[1]["verdict"] == "equal"


def test_in_words(auditor: Auditor) -> None:
    """One calm line for people."""
    auditor.record()
    done = auditor.replay()
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"EQUAL  {WHOLE} tokens of 1 choice(s), run again at https://")


@pytest.mark.parametrize("method", ["rerun", "prefill"])
def test_an_engine_that_lied(auditor: Auditor, engine: FakeEngine, method: str) -> None:
    """One token that the model would not have chosen: found where it stands, with both candidates."""
    engine.behaviour.text = "You sAid: hello"
    auditor.record(stream=True)
    engine.behaviour.text = None
    code, found = auditor.judge("--method", method)
    assert (code, found["verdict"], found["check"]) == (ExitCode.NOT_AUTHENTIC, "diverged", "replay.tokens")
    assert found["divergence"] == {
        "where": "output",
        "choice": 0,
        "position": 5,
        "recorded": {"token": ord("A"), "logprob": -5.0},
        "engine": {"token": ord("a"), "logprob": -0.1},
    }
    done = auditor.replay("--method", method)
    assert done.stdout.startswith(
        "DIVERGED\n[replay.tokens] output token 5 of choice 0: recorded was token 65"
    )


def test_an_altered_answer(auditor: Auditor) -> None:
    """Token ids that were changed after the enclave signed them: refused by the receipt, before anything is run again."""
    auditor.record()
    bundle = parse_bundle(auditor.file.read_bytes())
    (exchange,) = bundle.exchanges
    assert exchange.response is not None
    response = exchange.response.replace(b'"token_ids": [89', b'"token_ids": [88')
    assert response != exchange.response
    altered = replace(bundle, exchanges=(replace(exchange, response=response),))
    auditor.file.write_bytes(dump_bundle(altered))
    seen = len(auditor.gateway.engine.requests)
    code, found = auditor.judge()
    assert (code, found["verdict"], found["check"]) == (ExitCode.NOT_AUTHENTIC, "refused", "receipt.response")
    assert len(auditor.gateway.engine.requests) == seen


def test_bodies_in_files(auditor: Auditor, tmp_path: Path) -> None:
    """A bundle of digests is enough where somebody else has the bytes."""
    auditor.record()
    bundle = parse_bundle(auditor.file.read_bytes())
    (exchange,) = bundle.exchanges
    (tmp_path / "request").write_bytes(exchange.request or b"")
    (tmp_path / "response").write_bytes(exchange.response or b"")
    bare = replace(exchange, request=None, response=None)
    auditor.file.write_bytes(dump_bundle(replace(bundle, exchanges=(bare,))))
    assert auditor.judge()[1]["check"] == "replay.request"
    files = ("--request", str(tmp_path / "request"), "--response", str(tmp_path / "response"))
    assert auditor.judge(*files)[0] == 0
    (tmp_path / "request").write_bytes(b"{}")
    assert auditor.judge(*files)[1]["check"] == "receipt.request"
    assert auditor.replay("--exchange", "1").returncode == ExitCode.USAGE


@pytest.mark.parametrize(
    ("asked", "check"),
    [({"temperature": 1}, "replay.request"), ({"headers": ()}, "replay.digest")],
)
def test_not_replayable(auditor: Auditor, asked: Any, check: str) -> None:
    """What cannot be told is told as that, with an exit code of its own."""
    auditor.record(**asked)
    code, found = auditor.judge()
    assert (code, found["verdict"], found["check"]) == (ExitCode.UNDECIDED, "not_replayable", check)


def test_another_engine(auditor: Auditor, tmp_path: Path, engine: FakeEngine) -> None:
    """A node with other flags gets no prompt."""
    auditor.record()
    with live_gateway(tmp_path, engine=engine, engine_dtype="bfloat16") as other:
        auditor.policy.write_text(auditor.policy.read_text().replace(*_configs(auditor.gateway, other)))
        seen = len(engine.requests)
        code, found = auditor.judge(engine=other.origin)
    assert (code, found["check"]) == (ExitCode.UNDECIDED, "replay.engine"), found
    assert "--dtype=bfloat16" in found["detail"]
    assert [request.path for request in engine.requests[seen:]] == ["/v1/models"]


def _configs(one: LiveGateway, other: LiveGateway) -> tuple[str, str]:
    """The digest of one gateway's configuration, and of both, for a policy."""
    mine, theirs = (gateway.identity.statement.config.hex() for gateway in (one, other))
    return f'"{mine}"', f'"{mine}", "{theirs}"'


def test_a_node_that_the_policy_refuses(auditor: Auditor, tmp_path: Path, engine: FakeEngine) -> None:
    """It is verified before it gets anything."""
    auditor.record()
    with live_gateway(tmp_path, engine=engine, engine_dtype="bfloat16") as other:
        assert auditor.replay(engine=other.origin).returncode == ExitCode.POLICY


def test_nobody_there(auditor: Auditor) -> None:
    """An address that does not answer leaves the question open."""
    auditor.record()
    assert auditor.judge(engine="https://127.0.0.1:1")[0] == ExitCode.UNDECIDED


def test_an_engine_that_refuses(auditor: Auditor, engine: FakeEngine) -> None:
    """Its words are told."""
    auditor.record()
    engine.behaviour.status = 400
    code, found = auditor.judge()
    assert (code, found["check"]) == (ExitCode.UNDECIDED, "replay.answer")
    assert "as told" in found["detail"]


def test_an_unattested_engine(auditor: Auditor, engine: FakeEngine) -> None:
    """vLLM itself on its socket, when that is said; the outcome says that nobody attests it."""
    auditor.record()
    url = f"http+unix://{engine.socket}"
    assert auditor.replay(engine=url).returncode != 0
    done = auditor.replay("--unattested-engine", engine=url)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("EQUAL")
    assert "UNATTESTED" in done.stdout
    engine.behaviour.version = "0.0.1"
    assert auditor.judge("--unattested-engine", engine=url)[1]["check"] == "replay.engine"
