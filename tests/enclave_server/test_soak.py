"""Everything at once, for long: clients that vanish, half requests, huge ones, wrong bytes, slow bodies, sealed and pinned ones.

Nothing crashes, memory stays flat after a warm-up, no connection is left, and every answer that was received has a right
receipt. `SOAK_SECONDS` says how long the slow form takes (600), `SOAK_VLLM_SECONDS` the one with real vLLM (a tenth of it);
the short one runs with all other tests.
"""

from __future__ import annotations

import json
import math
import os
import random
import secrets
import socket
import statistics
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from attestation._b64 import b64url_encode
from attestation.errors import VerificationError
from attestation.receipt import Outcome
from client_sdk import Channel, OpenAI
from tests.caller import Caller, untrusting
from tests.processes import until
from tests.served import VLLM_SECONDS, Served, model_settings, served, vllm_settings
from tests.servers import MODEL, FakeEngine

LONG = float(os.environ.get("SOAK_SECONDS", "600"))
LONG_VLLM = float(os.environ.get("SOAK_VLLM_SECONDS", max(20, LONG / 10)))
CLIENTS = 12
BODY_SECONDS = 1.0
MEGABYTES = 10
SETTINGS: dict[str, Any] = {
    "drain_seconds": 2,
    "body_seconds": BODY_SECONDS,
    "max_in_flight": 8,
    "evidence_per_second": 100,
    "evidence_burst": 100,  # every SDK client here verifies anew
}
KINDS = ("VmRSS", "RssAnon", "RssShmem", "RssFile")


class Soak:
    """Clients of every kind against one gateway, and what they saw."""

    def __init__(self, gateway: Served, folder: Path, model: str, tidy: Callable[[], None]) -> None:
        self.gateway, self.model, self.tidy = gateway, model, tidy
        self.policy = folder / "policy.toml"
        self.policy.write_text(gateway.policy())
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.memory: list[str] = []  # of all processes of the gateway, once a minute and at rest
        self.over = threading.Event()
        self.began = time.monotonic()

    def run(self, seconds: float) -> list[tuple[int, int]]:
        """Memory (KiB) and open files of the worker, once a second."""
        self.over.clear()
        clients = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        samples, end = [], time.monotonic() + seconds
        while time.monotonic() < end and not self.wrong:
            time.sleep(min(1, seconds / 20))
            if time.monotonic() - self.began > 60 * len(self.memory):
                self.note("at work")
            samples.append(usage(self.worker()))
            self.tidy()
        self.over.set()
        for client in clients:
            client.join(60)
        return samples

    def worker(self) -> int:
        """The one that serves: the last child that the parent made."""
        return self.family()[-1]

    def family(self) -> list[int]:
        """The parent, the engine's keeper and the worker."""
        parent = self.gateway.process.pid
        return [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]

    def note(self, when: str) -> None:
        """A row of `memory`."""
        of_each = "   ".join(
            " ".join(f"{memory(pid)[kind]:>8}" for kind in KINDS) for pid in reversed(self.family())
        )
        self.memory.append(f"{time.monotonic() - self.began:>5.0f} s {when:<8}{of_each}")

    def table(self) -> str:
        """Where its memory is, as it went."""
        of_each = "   ".join(" ".join(f"{kind:>8}" for kind in KINDS) for _ in self.family())
        return "\n".join(
            [f"KiB of the worker, the engine's keeper and the parent\n{'':<16}{of_each}", *self.memory]
        )

    def _client(self, number: int) -> None:
        dice = random.Random(number)
        try:
            with Caller(self.gateway.origin, self.policy.read_text()) as caller:
                ways: list[Callable[[Caller], str]] = [
                    *(self.plain, self.plain, self.streamed, self.streamed),
                    *(
                        self.vanishing,
                        self.half,
                        self.huge,
                        self.not_utf8,
                        self.slow_body,
                        self.sealed,
                        self.pinned,
                    ),
                ]
                while not self.over.is_set():
                    way = dice.choice(ways)
                    self.seen[f"{way.__name__}: {way(caller)}"] += 1
        except Exception as exc:  # noqa: BLE001 - whatever it is, the test fails with it
            self.wrong.append("".join(traceback.format_exception(exc, limit=-4)))
            self.over.set()

    def plain(self, caller: Caller) -> str:
        return outcome(caller.chat("hello there", max_tokens=8))

    def streamed(self, caller: Caller) -> str:
        return outcome(caller.chat("hello there", max_tokens=8, stream=True))

    def huge(self, caller: Caller) -> str:
        try:
            return outcome(caller.chat("x" * (MEGABYTES << 20), max_tokens=1))
        except httpx.TransportError:
            return "cut"  # the refusal came while it was still sending

    def not_utf8(self, caller: Caller) -> str:
        answer = caller.post("/v1/chat/completions", b'{"model":"\xff","messages":[]}')
        assert answer.status in {400, 408, 503}
        return outcome(answer)

    def vanishing(self, caller: Caller) -> str:
        body = {"model": self.model, "prompt": "a b c", "max_tokens": 64, "stream": True}
        pieces = caller.stream("/v1/completions", body)
        next(pieces, b"")
        pieces.close()
        return "gone"

    def half(self, _: Caller) -> str:
        """A head that promises more than comes; then nobody is there."""
        to = urlsplit(self.gateway.origin)
        with (
            socket.create_connection((str(to.hostname), to.port or 0), timeout=60) as plain,
            untrusting().wrap_socket(plain) as connection,
        ):
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        return "gone"

    def slow_body(self, caller: Caller) -> str:
        """A body that takes longer than it may; the refusal's receipt covers what was read."""
        nonce, whole = (
            secrets.token_bytes(32),
            json.dumps({"model": self.model, "prompt": "x", "max_tokens": 4}).encode(),
        )

        def drip() -> Iterator[bytes]:
            yield whole[:9]
            time.sleep(2 * BODY_SECONDS)
            yield whole[9:]

        headers = {"Attested-Nonce": b64url_encode(nonce)}
        try:
            response = caller.http.post("/v1/completions", content=drip(), headers=headers)
        except httpx.TransportError:
            return "cut"  # the refusal came while it was still sending
        answer = caller.check(response, nonce, whole)
        assert answer.status in {200, 408, 503}  # 200: it had waited for its place meanwhile
        return outcome(answer)

    def sealed(self, _: Caller) -> str:
        try:
            return self._with_sdk(Channel.SEALED)
        except VerificationError as exc:  # on a machine this busy: refused before the seal had arrived
            if "status 408 (body_timeout)" not in exc.detail:
                raise
            return "408 outside the seal"

    def pinned(self, _: Caller) -> str:
        return self._with_sdk(Channel.PINNED)

    def _with_sdk(self, channel: Channel) -> str:
        message: Any = {"role": "user", "content": "hello"}
        with OpenAI(
            base_url=f"{self.gateway.origin}/v1",
            policy=self.policy,
            api_key="x",
            channel=channel,
            max_retries=2,
        ) as client:
            stream = client.chat.completions.create(
                model=self.model, messages=[message], stream=True, max_tokens=8
            )
            return f"{len(list(stream)) > 1}"


def outcome(answer: Any) -> str:
    return f"{answer.status} {answer.outcome}"


def usage(pid: int) -> tuple[int, int]:
    return memory(pid)["VmRSS"], len(list(Path(f"/proc/{pid}/fd").iterdir()))


def at_rest(pid: int, most: float) -> int:
    """Memory (KiB) once the worker has seen that it rests: it needs a moment, and on a busy machine more of them."""
    for moment in range(60):
        time.sleep(1)
        if moment >= 2 and usage(pid)[0] <= most:
            break
    return usage(pid)[0]


def memory(pid: int) -> dict[str, int]:
    """KiB by kind."""
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) for line in lines if line[0].rstrip(":") in KINDS}


def connections(port: int) -> int:
    """To the gateway's port, open ones only."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[1].split(":")[1], 16) == port and row[3] == "01" for row in rows)


def soak(
    gateway: Served,
    folder: Path,
    model: str,
    seconds: float,
    growth: float,
    tidy: Callable[[], None] = lambda: None,
) -> None:
    work = Soak(gateway, folder, model, tidy)
    worker, (_, files) = work.worker(), usage(work.worker())
    port = urlsplit(gateway.origin).port or 0
    kept = int(SETTINGS["max_in_flight"])  # connections to the engine, until the engine ends them
    busy, resting = list[int](), list[int]()
    for part in (0.25, 0.75):
        busy += [kilobytes for kilobytes, _ in work.run(seconds * part)]
        assert not work.wrong, "\n".join(work.wrong)
        assert work.worker() == worker, "a worker ended"
        assert gateway.ready()
        until(lambda: connections(port) == 0)
        until(lambda: usage(worker)[1] <= files + kept)
        resting.append(at_rest(worker, growth * resting[0] if resting else math.inf))
        work.note("at rest")
    first, last = resting
    print(  # noqa: T201
        f"\n{seconds:.0f} s: at rest {first} KiB, then {last} KiB; at work {statistics.median(busy):.0f} KiB, "
        f"at most {max(busy)} KiB; {dict(sorted(work.seen.items()))}\n{work.table()}"
    )
    assert last <= first * growth, f"{first} KiB became {last} KiB"
    assert any(Outcome.COMPLETE in what for what in work.seen)
    assert '"exchange failed"' not in gateway.log


def on_mock(engine: FakeEngine, folder: Path, seconds: float, growth: float) -> None:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    settings = {**SETTINGS, **model_settings(model, MODEL), "engine": f"http+unix://{engine.socket}"}
    with served(folder, **settings) as gateway:
        soak(gateway, folder, MODEL, seconds, growth, engine.requests.clear)  # it keeps every body


@pytest.mark.timeout(600)
def test_short(engine: FakeEngine, tmp_path: Path) -> None:
    """Five seconds: enough to see a crash, a connection that stays, a wrong receipt; of memory this sees the warm-up alone."""
    on_mock(engine, tmp_path, 5, 3)


@pytest.mark.slow
@pytest.mark.timeout(LONG + 300)
def test_long(engine: FakeEngine, tmp_path: Path) -> None:
    """What the worker holds at rest is the same within 5 % after a quarter of the time and at its end."""
    on_mock(engine, tmp_path, LONG, 1.05)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(LONG_VLLM + 3 * VLLM_SECONDS)
def test_vllm(tmp_path: Path) -> None:
    """With real vLLM behind; in a short time memory is still warming up."""
    with served(tmp_path, seconds=2 * VLLM_SECONDS, **{**vllm_settings(), **SETTINGS}) as gateway:
        soak(gateway, tmp_path, "tiny", LONG_VLLM, 1.05 if LONG_VLLM >= 300 else 1.1)
