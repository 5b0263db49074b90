"""`attested doctor`: every step between a machine and a verdict, each of them broken once."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client_sdk import doctor as module
from client_sdk.deadline import Deadline
from client_sdk.doctor import Doctor, Health
from client_sdk.sealing import Channel
from tests.client_sdk.conftest import Relay
from tests.client_sdk.test_cli import attested
from tests.servers import FakeEngine, LiveGateway, free_port, live_gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """One gateway for all."""
    folder = tmp_path_factory.mktemp("doctor")
    with FakeEngine(folder / "engine.sock") as engine, live_gateway(folder, engine=engine) as running:
        yield running


@pytest.fixture
def policy(tmp_path: Path, gateway: LiveGateway) -> Path:
    """A policy that accepts the gateway."""
    file = tmp_path / "policy.toml"
    file.write_text(gateway.policy_text)
    return file


def examined(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and each step by its name."""
    done = attested("doctor", *arguments, "--json")
    answer = json.loads(done.stdout)
    assert answer["ok"] == (done.returncode == 0)
    return done.returncode, {step.pop("step"): step for step in answer["steps"]}


def failed(steps: dict[str, Any]) -> list[str]:
    return [name for name, step in steps.items() if step["state"] == "failed"]


def test_all_is_well(gateway: LiveGateway, policy: Path) -> None:
    """One line for each step, and what was found."""
    done = attested("doctor", gateway.origin, "--policy", str(policy))
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    assert all(line.startswith("ok  ") for line in lines)
    assert "SIMULATED" in done.stdout
    assert "TLS ends in the enclave" in lines[-1]
    assert "\x1b" not in done.stdout


def test_without_a_policy_nothing_is_judged(gateway: LiveGateway) -> None:
    """What can be seen is seen; the verdict is not reached, which is not a failure and no acceptance."""
    code, steps = examined(gateway.origin)
    assert (code, failed(steps)) == (5, [])
    assert [n for n, s in steps.items() if s["state"] == "not reached"] == [
        "the policy file",
        "the verdict",
        "the channel",
    ]


def test_without_anything() -> None:
    """The installation alone, and words for what was not looked at: a script must not take it for a verdict."""
    code, steps = examined()
    assert code == 5
    assert [n for n, s in steps.items() if s["state"] == "ok"] == ["this installation"]
    done = attested("doctor")
    assert (done.returncode, done.stdout.splitlines()[-1][:38]) == (
        5,
        "no verdict, without URL and --policy: ",
    )


def test_a_policy_alone(policy: Path) -> None:
    """It is read; there is nobody to judge by it."""
    done = attested("doctor", "--policy", str(policy))
    assert done.returncode == 5
    assert "no verdict, without URL: " in done.stdout
    code, steps = examined("--policy", str(policy))
    assert (code, steps["the policy file"]["state"], failed(steps)) == (5, "ok", [])


def test_a_broken_policy(gateway: LiveGateway, policy: Path) -> None:
    """The file is named, and the rest is still looked at."""
    policy.write_text("[nonsense]\n")
    code, steps = examined(gateway.origin, "--policy", str(policy))
    assert (code, failed(steps)) == (2, ["the policy file"])
    assert steps["the policy file"]["check"] == "policy.format"
    assert steps["evidence"]["state"] == "ok"
    assert steps["the verdict"]["state"] == "not reached"


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "localhost:1", "https://", "https://[", "https://h:99999999"]
)
def test_what_is_no_address(url: str) -> None:
    """Said in words."""
    code, steps = examined(url)
    assert (code, len(failed(steps))) == (5, 1)
    assert failed(steps)[0] in {"the address", "name resolution"}
    assert steps[failed(steps)[0]]["advice"]


def test_a_name_that_nobody_knows() -> None:
    """RFC 2606 keeps it unknown."""
    code, steps = examined("https://enclave.invalid:8443")
    assert (code, failed(steps)) == (5, ["name resolution"])


def test_nobody_there(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection; a proxy that is not used is mentioned."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    code, steps = examined(f"https://127.0.0.1:{free_port()}", "--policy", str(policy))
    assert (code, failed(steps)) == (5, ["a connection"])
    assert "HTTPS_PROXY" in steps["a connection"]["advice"]
    assert steps["TLS"]["state"] == "not reached"


def test_no_tls_there() -> None:
    """A plain server."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            for _ in range(2):
                server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        code, steps = examined(f"https://127.0.0.1:{server.getsockname()[1]}")
        thread.join(60)
    assert (code, failed(steps)) == (5, ["TLS"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked whether the gateway is ready is given a tenth of a second, and not ten: these here never answer."""
    monkeypatch.setattr(module, "Deadline", lambda _: Deadline(0.1))


@pytest.mark.usefixtures("impatient")
def test_something_that_is_no_gateway(relay: Relay) -> None:
    """A TLS server that answers nothing: readiness and evidence fail, and are not mixed up."""
    code, steps = examined(relay.origin)
    assert code == 5
    assert "the gateway is ready" in failed(steps)
    assert steps["TLS"]["state"] == "ok"


@pytest.mark.usefixtures("impatient")
def test_another_tls_key(relay: Relay, policy: Path) -> None:
    """Evidence that holds behind a key that does not: the advice names balancers."""
    code, steps = examined(relay.origin, "--policy", str(policy))
    assert code == 3
    assert steps["the verdict"]["state"] == "ok"
    assert steps["the channel"]["check"] == "channel.tls_key"
    assert "--channel sealed" in steps["the channel"]["advice"]


def test_a_gateway_that_is_not_ready(tmp_path: Path) -> None:
    """Its own reason is shown."""
    with FakeEngine(tmp_path / "engine.sock") as engine, live_gateway(tmp_path, engine=engine) as gateway:
        engine.unready = "loading the model"
        code, steps = examined(gateway.origin)
    assert (code, failed(steps)) == (5, ["the gateway is ready"])
    assert "loading the model" in steps["the gateway is ready"]["found"]


def test_a_policy_that_refuses(gateway: LiveGateway, policy: Path) -> None:
    """The verdict's check and exit code."""
    policy.write_text(gateway.policy_text.replace("model_digests", "#"))
    code, steps = examined(gateway.origin, "--policy", str(policy))
    assert (code, failed(steps)) == (4, ["the verdict"])
    assert steps["the verdict"]["check"] == "policy.model"


@pytest.mark.parametrize(("hours", "words"), [(2, "ahead of"), (-2, "behind")])
def test_a_clock_that_is_wrong(gateway: LiveGateway, hours: int, words: str) -> None:
    """Compared with the enclave's Date."""
    now = datetime.now(UTC) + timedelta(hours=hours)
    findings = Doctor(gateway.origin, None, Channel.SEALED, now, vendors=False).examine()
    (clocks,) = [f for f in findings if f.step == "the clocks agree"]
    assert clocks.health is Health.FAILED
    assert words in clocks.found


def test_vendors_are_asked_only_when_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else leaves this machine for anybody but the enclave."""
    monkeypatch.setattr(
        "client_sdk.doctor._services", lambda: [("a vendor", f"http://127.0.0.1:{free_port()}")]
    )
    assert "a vendor answers" not in examined()[1]
    code, steps = examined("--vendors")
    assert (code, failed(steps)) == (5, ["a vendor answers"])
