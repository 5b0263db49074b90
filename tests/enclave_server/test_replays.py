"""What the gateway remembers of sealed requests: no recorded one is answered again, by any of its processes, whatever the clock."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from attestation import sealed
from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.sealed import seal_request
from attestation.sealed_head import RequestHead
from enclave_server.asgi import Receive, Scope, Send
from enclave_server.errors import ApiError
from enclave_server.identities import Identities
from enclave_server.identity import make_identity
from enclave_server.replays import WINDOW, Replays
from enclave_server.sealed import Sealed
from tests.processes import forked
from tests.servers import gateway_settings


def seen(replays: Replays, enc: bytes, now: float) -> bool:
    try:
        replays.check(enc, now)
    except VerificationError as error:
        assert error.check is Check.SEALED_REPLAY  # noqa: PT017
        return True
    return False


def test_replays_are_remembered_for_as_long_as_they_could_be_accepted() -> None:
    """A whole window, whenever they came; and not for ever."""
    for start in (0.0, 1.0, WINDOW - 0.1, WINDOW, WINDOW * 1.5):
        replays = Replays(1000, shared=start != 0)
        assert not seen(replays, b"zero", 0)
        assert not seen(replays, b"one", start)
        replays.remember(b"one", start)
        for later in (0.0, 1.0, WINDOW / 2, WINDOW - 0.01):
            assert seen(replays, b"one", start + later), (start, later)
        assert not seen(replays, b"one", start + 2 * WINDOW)


def test_a_pause_forgets_what_is_old_and_nothing_else() -> None:
    """After hours without a request nothing of before is left over, or taken for young."""
    replays = Replays(1000)
    replays.remember(b"one", 1)
    assert not seen(replays, b"one", 100 * WINDOW)
    replays.remember(b"two", 100 * WINDOW)
    assert seen(replays, b"two", 101 * WINDOW - 1)


def test_when_nothing_more_can_be_remembered_nothing_more_is_accepted() -> None:
    """It closes rather than forget, says for how long, and opens again."""
    replays = Replays(3)
    for enc in (b"one", b"two", b"three"):
        replays.check(enc, 1)
        replays.remember(enc, 1)
    with pytest.raises(ApiError) as caught:
        replays.check(b"four", 2)
    assert (caught.value.status, caught.value.code) == (503, "sealed_full")
    assert 0 < int(caught.value.headers["retry-after"]) <= WINDOW
    assert seen(replays, b"one", 3)
    assert not seen(replays, b"four", 2 * WINDOW + 2)


def test_all_that_was_remembered_is_found() -> None:
    """Also when it fills the tables to their limit, and after a turn."""
    replays = Replays(1000)
    keys = [number.to_bytes(4, "big") for number in range(1000)]
    for key in keys:
        replays.remember(key, 1)
    assert all(seen(replays, key, WINDOW - 1) for key in keys)
    assert all(seen(replays, key, WINDOW + 1) for key in keys[:500])


def test_their_memory_follows_what_is_remembered() -> None:
    """Room for a million is no memory; nor does each of a few requests take a page of its own."""

    def taken() -> int:
        maps = Path("/proc/self/smaps").read_text().split("VmFlags")
        return sum(int(one.split("Rss:")[1].split()[0]) for one in maps if "memfd:replays" in one)

    before, replays = taken(), Replays(1_000_000)
    for number in range(1000):
        enc = number.to_bytes(4, "big")
        replays.check(enc, 1)
        replays.remember(enc, 1)
    assert taken() - before <= 100  # KiB, of both tables
    assert all(seen(replays, number.to_bytes(4, "big"), 2) for number in range(1000))


def test_one_of_many_processes_gets_a_request() -> None:
    """The memory is shared with every process forked off: two of them never both accept what is sealed once."""
    replays, keys = Replays(1000), [number.to_bytes(4, "big") for number in range(200)]
    reader, writer = os.pipe()

    def take() -> None:
        won = bytearray()
        for key in keys:
            with suppress(VerificationError):
                replays.remember(key, 1)
                won += key
        os.write(writer, won)

    children = [forked(take) for _ in range(4)]
    os.close(writer)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    with os.fdopen(reader, "rb") as file:
        all_won = file.read()
    assert sorted(all_won[at : at + 4] for at in range(0, len(all_won), 4)) == keys
    assert all(seen(replays, key, 2) for key in keys)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_clock_that_is_set_back_makes_nothing_new(tmp_path: Path, workers: int) -> None:
    """Whoever sets the machine's clock cannot have a recorded request answered again, also not by a worker that saw no other time."""
    settings = gateway_settings(tmp_path)
    identity = make_identity(settings, engine_version="0")
    times = iter([1000.0, 1000.0 + 3 * WINDOW, 1000.0])
    inner, replays = Answering(), Replays(1000)
    apps = [
        Sealed(settings, Identities(identity), inner, replays=replays, wall_clock=lambda: next(times))
        for _ in range(workers)
    ]

    def request(at: float) -> bytes:
        return seal_request(
            RequestHead(method="GET", target="/v1/models"),
            b"",
            keys=identity.statement.keys,
            statement=identity.statement_digest,
            now=datetime.fromtimestamp(at, UTC),
        )[0]

    data = request(1000)
    for app, body in ((apps[0], data), (apps[-1], request(1000 + 3 * WINDOW)), (apps[0], data)):
        await post(app, body)
    assert (inner.answered, inner.refused) == (2, ["sealed_time"])


def test_nothing_is_remembered_of_a_time_that_was_forgotten() -> None:
    """A worker that read the clock before it was set, and remembers after another one forgot, is too late."""
    replays = Replays(1000)
    replays.remember(b"one", 1000)
    replays.remember(b"two", 1000 + 3 * WINDOW)
    assert replays.earliest == 1000 + 3 * WINDOW
    with pytest.raises(VerificationError) as caught:
        replays.remember(b"one", 1000)
    assert caught.value.check is Check.SEALED_TIME


class Answering:
    """An application that counts."""

    def __init__(self) -> None:
        self.answered = 0
        self.refused: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.answered += 1

    async def refuse(self, scope: Scope, send: Send, error: ApiError) -> None:
        self.refused.append(error.code)


async def post(app: Sealed, body: bytes) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    headers = [(b"content-type", sealed.REQUEST_TYPE.encode())]
    await app({"type": "http", "method": "POST", "headers": headers}, receive, send)
