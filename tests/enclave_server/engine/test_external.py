"""An engine that somebody else runs: found, named in the statement, watched, and never trusted with more than it says."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation.checks import Check
from attestation.errors import PolicyError
from attestation.receipt import Outcome
from enclave_server.engine.address import check_on_this_machine, parse_address
from enclave_server.engine.external import find_external
from enclave_server.engine.installed import EngineError
from enclave_server.engine.kept import POLL_SECONDS
from enclave_server.engine.topology import commands, topology
from enclave_server.settings import Settings
from enclave_server.waiting import Few
from tests.begun import run
from tests.caller import Caller, untrusting
from tests.processes import running_with, until
from tests.served import Served, model_settings, served
from tests.servers import MODEL, VERSION, FakeEngine, free_port


def values_for(engine: FakeEngine, folder: Path, **values: Any) -> dict[str, Any]:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    fixed = {"engine": f"http+unix://{engine.socket}", "drain_seconds": 1}
    return {**model_settings(model, MODEL), **fixed, **values}


@contextmanager
def behind(engine: FakeEngine, folder: Path, **values: Any) -> Iterator[Served]:
    with served(folder, **values_for(engine, folder, **values)) as gateway:
        yield gateway


@contextmanager
def waiting(engine: FakeEngine, folder: Path, **values: Any) -> Iterator[Served]:
    """A gateway that was started, and no more."""
    gateway = Served(folder, values_for(engine, folder, **values))
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.process.kill()
        gateway.process.wait(60)


def answers(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/healthz"))
    except httpx.TransportError:
        return False


def shown(port: int) -> bytes:
    """The certificate that a client is shown there."""
    with (
        socket.create_connection(("127.0.0.1", port), 60) as plain,
        untrusting().wrap_socket(plain) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def test_answers_and_says_so(engine: FakeEngine, tmp_path: Path) -> None:
    """No engine is started; answers have receipts, and the statement claims no flags and says that the engine is external."""
    with behind(engine, tmp_path) as gateway, Caller(gateway.origin, gateway.policy()) as caller:
        assert caller.chat("hello").outcome is Outcome.COMPLETE
        said = caller.verdict.statement.engine
        assert said.topology is not None
        assert said.topology.external
        assert (said.version, said.flags) == (VERSION, ())
        assert '"engine starts"' not in gateway.log


def test_refused_unless_allowed(engine: FakeEngine, tmp_path: Path) -> None:
    """A policy that does not allow such an engine refuses the enclave by name."""
    with behind(engine, tmp_path) as gateway, Caller(gateway.origin, gateway.policy()) as caller:
        policy = gateway.policy()
        assert "allow_external_engine = true\n" in policy
        with pytest.raises(PolicyError) as refused:
            caller.verify(policy.replace("allow_external_engine = true\n", ""))
        assert [violation.check for violation in refused.value.violations] == [Check.POLICY_ENGINE]


def test_readiness_follows(engine: FakeEngine, tmp_path: Path) -> None:
    """An engine that goes away makes the gateway unready, and one that comes back makes it ready again."""
    with behind(engine, tmp_path) as gateway:
        engine.down()
        until(lambda: not gateway.ready())
        with Caller(gateway.origin, gateway.policy()) as caller:
            answer = caller.chat("hello")
            assert (answer.status, answer.error) == (503, "engine_unavailable")
        engine.up()
        gateway.until_ready(240)


def test_one_of_several_is_away(engine: FakeEngine, tmp_path: Path) -> None:
    """A router whose replicas are not all there says that it is unhealthy, and ready: it can answer, as long as one is."""
    with behind(engine, tmp_path, engine_replicas=2) as gateway:
        engine.behaviour.replica_away = True
        time.sleep(4 * POLL_SECONDS)
        with Caller(gateway.origin, gateway.policy()) as caller:
            assert caller.chat("hello").outcome is Outcome.COMPLETE
            assert gateway.ready()
        engine.behaviour.healthy = False
        until(lambda: not gateway.ready())


@pytest.mark.parametrize("workers", [1, 2])
def test_alive_while_it_waits(engine: FakeEngine, tmp_path: Path, workers: int) -> None:
    """Until the engine is there it lives and is not ready; nothing else is answered, and what it was asked with is no key of
    the statement. Then the same port serves, and nobody is left of those who answered first."""
    engine.down()
    with waiting(engine, tmp_path, workers=workers) as gateway:
        with httpx.Client(base_url=gateway.origin, verify=untrusting(), trust_env=False) as client:
            until(lambda: answers(client))
            with ExitStack() as silent:  # strangers who only connect do not make it look dead
                for _ in range(Few.most + 1):
                    stranger = silent.enter_context(socket.create_connection(("127.0.0.1", gateway.port), 60))
                    silent.enter_context(untrusting().wrap_socket(stranger))
                assert client.get("/healthz").status_code == 200
            assert client.get("/healthz").json() == {"alive": True}
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()) == (
                503,
                {"ready": False, "reason": "engine_unreachable"},
            )
            for path in ("/.well-known/attestation", "/v1/models"):
                refused = client.post(path, json={}) if path.startswith("/v1") else client.get(path)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert refused.json()["error"]["code"] == "engine_unavailable"
        before = shown(gateway.port)
        engine.up()
        gateway.until_ready(240)
        assert shown(gateway.port) != before
        with Caller(gateway.origin, gateway.policy()) as caller:
            assert caller.chat("hello").outcome is Outcome.COMPLETE
        # and the parent, and the keeper of the engine; who answered before may be about to end
        until(lambda: len(running_with(str(gateway.config))) == workers + 2)


def test_waits_no_longer_than_it_should(engine: FakeEngine, tmp_path: Path) -> None:
    """An engine that never comes ends the gateway, with whoever answered for it."""
    engine.down()
    with waiting(engine, tmp_path, engine_start_seconds=1) as gateway:
        assert gateway.process.wait(240) == 1
        assert "nothing healthy answers" in gateway.log
        until(lambda: not running_with(str(gateway.config)))


def test_another_name(engine: FakeEngine) -> None:
    """An engine that does not serve the model's name is refused before anything is signed."""
    with pytest.raises(EngineError, match="model_name is 'another'"):
        find_external(engine.socket, model="another", seconds=60)


def test_nobody_there(tmp_path: Path) -> None:
    """Without an engine the wait ends with an error that says so."""
    with pytest.raises(EngineError, match="nothing healthy"):
        find_external(("127.0.0.1", free_port()), model=MODEL, seconds=0.1)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1:8000",
        "http://engine:8000",
        "http://localhost:8000",  # a name
        "http://127.0.0.1",
        "http://127.0.0.1:8000/v1",
        "http://user@127.0.0.1:8000",
        "https://127.0.0.1:8000",
        "http+unix://relative/path",
        "http+unix:///a%2Fb",
        "http+unix:///" + 107 * "x",
        "/run/vllm.sock",
    ],
)
def test_addresses_refused(url: str) -> None:
    """Only a socket, or a numeric loopback address with its port."""
    with pytest.raises(ValueError, match=r"http|loopback|path|port"):
        check_on_this_machine(parse_address(url))


def test_addresses() -> None:
    """Each form as it is used."""
    assert parse_address("http+unix:///run/vllm.sock") == Path("/run/vllm.sock")
    assert parse_address("http+unix:///" + 106 * "x") == Path("/" + 106 * "x")
    assert parse_address("http://127.0.0.1:8000") == ("127.0.0.1", 8000)
    assert parse_address("http://[::1]:8000") == ("::1", 8000)


def settings(**values: Any) -> Settings:
    fixed: dict[str, Any] = {
        "model_dir": Path("/m"),
        "model_name": "m",
        "model_digest": "0" * 64,
        "tee": "simulated-tdx",
    }
    return Settings(**fixed, **values)


def test_what_settings_refuse() -> None:
    """No engine at all, and replicas or machines of an engine that the gateway would start."""
    with pytest.raises(ValueError, match="must be set"):
        settings()
    with pytest.raises(ValueError, match="runs already"):
        settings(engine_python="/p", engine_replicas=2)


def test_topology() -> None:
    """One child with one worker has none; everything else is told, and becomes vLLM's flags."""
    assert topology(settings(engine_python="/p")) is None
    child = settings(engine_python="/p", engine_tensor_parallel=4, engine_pipeline_parallel=2)
    said = topology(child)
    assert said is not None
    assert (said.external, said.tensor_parallel, said.pipeline_parallel, said.nodes) == (False, 4, 2, 1)
    [_, line] = commands(child)
    assert "--tensor-parallel-size=4 --pipeline-parallel-size=2" in line
    assert "ray" not in line


def test_commands_of_replicas() -> None:
    """A vLLM for each group of GPUs, all hardened, and the router at the address that the gateway asks."""
    lines = list(
        commands(settings(engine="http://127.0.0.1:8000", engine_replicas=2, engine_tensor_parallel=2))
    )
    servers = [line for line in lines if "api_server" in line]
    assert [line.split()[1] for line in servers] == ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3"]
    assert all("--no-trust-remote-code" in line and "--no-enable-log-requests" in line for line in servers)
    assert "--worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002" in lines[-1]
    assert lines[-1].endswith("--port 8000")
    assert "export VLLM_PLUGINS=''" in lines


def test_commands_of_a_socket() -> None:
    """What a killed engine left is removed first, for no other can start on it; `runtime_dir` is where it may write."""
    *lines, remove, start = commands(
        settings(engine="http+unix:///run/a b.sock", runtime_dir=Path("/run/other"))
    )
    assert lines[0] == "mkdir -m 700 -p /run/other"
    assert "export HOME=/run/other" in lines
    assert remove == "rm -f '/run/a b.sock'"
    assert "'--uds=/run/a b.sock'" in start


def test_commands_of_a_cluster() -> None:
    """Ray's head and workers, which know each other by a token, and vLLM on them."""
    lines = list(
        commands(settings(engine="http+unix:///run/vllm.sock", engine_nodes=2, engine_pipeline_parallel=2))
    )
    assert any(line.startswith("ray start --head") for line in lines)
    assert lines.index("export RAY_AUTH_MODE=token") < next(
        n for n, line in enumerate(lines) if "ray start" in line
    )
    assert any(
        line.startswith("ray get-auth-token --generate") for line in lines
    )  # ends a Ray without tokens
    assert all(
        "RAY_AUTH_MODE=token" in line for line in lines if line.startswith("#") and "ray start" in line
    )
    assert "--pipeline-parallel-size=2 --distributed-executor-backend=ray" in lines[-1]
    assert "--uds=/run/vllm.sock" in lines[-1]


def test_printed(tmp_path: Path) -> None:
    """`enclave-server engine command` prints lines that a shell can read."""
    file = tmp_path / "enclave.toml"
    file.write_text(
        'model_dir = "/m"\nmodel_name = "a \'b"\ntee = "simulated-tdx"\n'
        f'model_digest = "{"0" * 64}"\nengine = "http://127.0.0.1:8000"\nengine_replicas = 2\n'
    )
    printed = run("engine", "command", "--config", str(file)).stdout
    subprocess.run(["bash", "-n"], input=printed, text=True, check=True)
