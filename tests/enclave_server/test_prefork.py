"""Workers: one identity in several processes, each of which may die and be replaced."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation.receipt import Outcome
from enclave_server.prefork import MAX_DEATHS, SharedStatus
from enclave_server.settings import Settings
from tests.caller import Caller
from tests.enclave_server.fake_settings import fake_settings
from tests.processes import alive, forked, links, running_with, until
from tests.served import Served, served
from tests.servers import free_port


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return values_in(tmp_path)


def values_in(folder: Path) -> dict[str, Any]:
    return {**fake_settings(folder, delay=0.02, chunks=10), "drain_seconds": 60, "workers": 2}


@pytest.fixture
def gateway(tmp_path: Path, values: dict[str, Any]) -> Iterator[Served]:
    with served(tmp_path / "gateway", **values) as running:
        yield running


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests that only look at it."""
    folder = tmp_path_factory.mktemp("steady")
    with served(folder / "gateway", **values_in(folder), metrics_port=free_port(2)) as running:
        yield running


def children(gateway: Served) -> dict[int, str]:
    """The processes that the parent forked, with what each says of itself: `worker` has the port open, `keeper` not."""
    port = f"{int(gateway.origin.rpartition(':')[2]):04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {line.split()[9] for line in lines if line.split()[1].endswith(f":{port}")}
    found = {}
    try:
        forked = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    except OSError:  # it has ended
        return {}
    for pid in forked:
        opened = links(int(pid))
        sockets = {link.removeprefix("socket:[").rstrip("]") for link in opened if link.startswith("socket:")}
        found[int(pid)] = "worker" if sockets & listening else "keeper"
    return found


def workers(gateway: Served) -> list[int]:
    return sorted(pid for pid, kind in children(gateway).items() if kind == "worker")


def series(gateway: Served, answers: int = 24) -> dict[str, list[int]]:
    """The counters seen, by the part of the id that names a worker; each answer comes over a connection of its own."""
    seen: dict[str, list[int]] = {}
    policy = gateway.policy()
    with Caller(gateway.origin, policy) as caller:
        for _ in range(answers):
            response = caller.http.get(
                "/v1/models", headers={"Connection": "close", "Attested-Nonce": "A" * 43}
            )
            receipt = caller.check(response, bytes(32), b"").receipt
            name, _, number = receipt.id.rpartition("-")
            assert int(number) == receipt.counter
            seen.setdefault(name, []).append(receipt.counter)
    return seen


def test_one_identity(steady: Served) -> None:
    """Both workers answer, under one statement, with receipts that no other has; counters go up in each."""
    seen = series(steady)
    assert len(seen) == 2
    assert all(counters == list(range(1, len(counters) + 1)) for counters in seen.values())


def test_worker_killed(gateway: Served) -> None:
    """A worker that dies is replaced by one with the same keys; the engine and the other worker do not notice."""
    before = workers(gateway)
    with Caller(gateway.origin, gateway.policy()) as caller:
        engine, statement = gateway.engine_pid(), caller.verdict.statement
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(workers(gateway)) == 2 and workers(gateway) != before)
    gateway.until_ready(240)
    until(lambda: len(series(gateway, 8)) == 2)
    with Caller(gateway.origin, gateway.policy()) as caller:
        assert caller.verdict.statement == statement
    assert gateway.engine_pid() == engine
    assert '"event": "worker ended, another takes its place"' in gateway.log


def _moved_on(gateway: Served, before: list[int]) -> bool:
    """Other workers serve, or nobody does any more."""
    return workers(gateway) not in ([], before) or gateway.process.poll() is not None


def test_workers_that_always_die(gateway: Served) -> None:
    """Workers that die again and again end the gateway, with a reason."""
    killed = 0
    # on a slow machine the first may not count any more when the last one dies
    while gateway.process.poll() is None:
        now = workers(gateway)
        for worker in now[:1]:
            os.kill(worker, signal.SIGKILL)
            killed += 1
        until(partial(_moved_on, gateway, now))
    assert killed > MAX_DEATHS
    assert gateway.process.returncode == 1
    assert '"event": "gateway gives up"' in gateway.log


def test_keeper_killed(gateway: Served, tmp_path: Path) -> None:
    """Without the process that looks after the engine the gateway ends, and so does the engine."""
    keeper = next(pid for pid, kind in children(gateway).items() if kind == "keeper")
    os.kill(keeper, signal.SIGKILL)
    assert gateway.process.wait(240) == 1
    until(lambda: not running_with(str(tmp_path / "python")))


def test_parent_killed(gateway: Served, tmp_path: Path) -> None:
    """After kill -9 of the parent no worker is left, nor anything of the engine."""
    family = list(children(gateway))
    assert len(family) == 3
    gateway.process.kill()
    gateway.process.wait()
    until(lambda: not any(map(alive, family)))
    until(lambda: not running_with(str(tmp_path / "python")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain(gateway: Served, tmp_path: Path, number: int) -> None:
    """Told to stop, once or more, every worker finishes its streams and takes no new connection; then the engine ends."""
    policy, begun = gateway.policy(), threading.Barrier(7)
    asked = {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}], "stream": True}

    def chat(caller: Caller) -> Outcome:
        return caller.watch("/v1/chat/completions", asked, lambda: begun.wait(120)).outcome

    with ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        callers = [stack.enter_context(Caller(gateway.origin, policy)) for _ in range(6)]
        streams = [pool.submit(chat, caller) for caller in callers]
        begun.wait(120)
        gateway.process.send_signal(number)
        time.sleep(0.05)
        gateway.process.send_signal(number)
        assert [stream.result() for stream in streams] == [Outcome.COMPLETE] * 6
    assert gateway.process.wait(90) == 0
    assert not running_with(str(tmp_path / "python"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(gateway.origin.rpartition(":")[2])))


def test_memory_is_private(steady: Served) -> None:
    """The keys are in the parent and in each worker: of none may a core dump be made, nor may others look into it."""
    for pid in [steady.process.pid, *children(steady)]:
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if "core file" in line).split()[4:6] == ["0", "0"]
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0  # root's, whoever runs it: PR_SET_DUMPABLE is off


def test_metrics_of_each(steady: Served) -> None:
    """Each worker has a listener for Prometheus of its own, at the port of the settings and the one after it; docs/access.md has each name."""
    port = Settings.load(steady.config).metrics_port
    assert port is not None

    def ready(number: int) -> bool:
        try:
            text = httpx.get(f"http://127.0.0.1:{port + number}/metrics", trust_env=False).text
        except httpx.ConnectError:  # one of them is ready before the other
            return False
        return "enclave_ready 1.0" in text

    for number in range(2):
        until(partial(ready, number))
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE enclave_")}
    told = (Path(__file__).resolve().parents[2] / "docs/access.md").read_text()
    assert names
    assert not [name for name in names if f"`{name}`" not in told]


def test_shared_status() -> None:
    """What the keeper writes is what another process reads."""
    status = SharedStatus()
    assert status.unready == "engine_starting"

    def keep() -> None:
        status.unready = None
        status.restarts += 300

    assert os.waitpid(forked(keep), 0)[1] == 0
    assert (status.restarts, status.unready or "") == (300, "")
    with pytest.raises(ValueError, match="tuple"):
        status.unready = "no such reason"
