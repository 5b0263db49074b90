"""The whole gateway on a machine whose kernel and vendors are stood in for: faults are named, it is not ready, and nothing unverified leaves."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha384
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError
from attestation.simulator.tdx import DEFAULT_TD
from enclave_server.choices import ConfigIdentity
from enclave_server.evidence import attest, collateral
from tests import servers
from tests.caller import Caller, untrusting
from tests.enclave_server.machine import Box, intel, machine
from tests.processes import until
from tests.servers import FakeEngine, LiveGateway

PATH = "/.well-known/attestation"


@contextmanager
def on_hardware(
    folder: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Iterator[tuple[Box, LiveGateway]]:
    """A gateway in a TD, as it is after its start."""
    monkeypatch.setattr(collateral, "_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(attest, "_RETRY_SECONDS", 0.2)
    with machine(folder, config_identity=ConfigIdentity.OFF, **changes) as box:
        monkeypatch.setattr(servers, "open_tee", lambda _: box.open())
        gateway = LiveGateway(box.settings, engine, None)
        root = intel().root
        gateway.policy_text += (
            f'[[roots.intel]]\nname = "{root.name}"\nspki_sha256 = "{root.spki_sha256.hex()}"\n'
        )
        gateway.start()
        try:
            yield box, gateway
        finally:
            gateway.stop()


def readiness(gateway: LiveGateway) -> str | None:
    """The reason that /readyz gives."""
    answer = httpx.get(f"{gateway.origin}/readyz", verify=untrusting(), trust_env=False)
    reason: str | None = answer.json()["reason"]
    assert answer.status_code == (503 if reason else 200)
    return reason


def test_a_verified_answer(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence from the kernel, collateral from the vendors, and a client that needs nothing but its policy."""
    with on_hardware(tmp_path, engine, monkeypatch) as (box, gateway):
        until(lambda: readiness(gateway) is None)
        with Caller(gateway.origin, gateway.policy_text) as caller:
            assert caller.chat("hello").body
            assert caller.verdict.cpu.root == box.roots.intel[0]
            other = gateway.policy_text.replace(box.roots.intel[0].spki_sha256.hex(), "00" * 32)
            with pytest.raises(AttestationError, match=Check.TDX_ROOT):
                caller.verify(other)


def test_a_slow_quote(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardware that does not answer fails the request for evidence in time, and holds up nothing else."""
    with on_hardware(tmp_path, engine, monkeypatch) as (box, gateway):
        until(lambda: readiness(gateway) is None)
        with Caller(gateway.origin, gateway.policy_text) as caller:
            made = len(box.kernel.asked)
            box.kernel.delay = 3600
            try:
                monkeypatch.setattr(gateway.attester, "_patience_seconds", 0.5)
                answer = caller.http.get(PATH, params={"nonce": "A" * 43})
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "evidence_failed")
                assert caller.chat("still here").body
                assert caller.http.get(PATH).status_code == 200
                assert readiness(gateway) is None
                assert len(box.kernel.asked) == made, "the hardware is still at it"
            finally:
                box.kernel.delay = 0


def test_a_tee_that_breaks(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """When evidence cannot be renewed any more, the gateway is not ready, and it comes back by itself."""
    with on_hardware(tmp_path, engine, monkeypatch, evidence_renew_seconds=0.2) as (box, gateway):
        until(lambda: readiness(gateway) is None)
        box.kernel.errors = [errno.EIO] * 10_000
        answer = httpx.get(
            f"{gateway.origin}{PATH}", params={"nonce": "A" * 43}, verify=untrusting(), trust_env=False
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "evidence_failed")
        assert "EIO" not in answer.text
        with monkeypatch.context() as patch:  # a minute later
            patch.setattr(attest.Attester, "age", property(lambda _: 61.0))
            assert readiness(gateway) == "evidence_stale"
        box.kernel.errors = []
        until(lambda: readiness(gateway) is None)


def test_a_quote_for_another_nonce(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence that is not about what was asked never leaves."""
    with on_hardware(tmp_path, engine, monkeypatch) as (box, gateway):
        until(lambda: readiness(gateway) is None)
        box.kernel.sign = lambda _: intel().quote(bytes(64))
        answer = httpx.get(
            f"{gateway.origin}{PATH}", params={"nonce": "A" * 43}, verify=untrusting(), trust_env=False
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "evidence_failed")


def test_the_serving_seal(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """RTMR3 names this boot's key, statements carry its seal, and the printed policy demands it; a second start is refused."""
    with on_hardware(tmp_path, engine, monkeypatch, serving_seal=True) as (box, gateway):
        box.kernel.sign = lambda data: intel().quote(data, td=replace(DEFAULT_TD, rtmr3=box.kernel.rtmr3))
        assert "require_serving_seal = true" in gateway.policy_text
        assert "rtmr3" not in gateway.policy_text
        until(lambda: readiness(gateway) is None)
        gateway.tee.begin_serving()
        with Caller(gateway.origin, gateway.policy_text) as caller:
            assert caller.chat("hello").body
            box.kernel.rtmr3 = sha384(
                box.kernel.rtmr3 + bytes(48)
            ).digest()  # something else is measured later
            with pytest.raises(AttestationError, match=Check.SERVING_SEAL):
                caller.verify(gateway.policy_text)
        with pytest.raises(UnavailableError, match="Restart the VM"):
            box.open().begin_serving()


def test_vendors_that_are_away(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without collateral it is not ready and clients refuse; when the vendors are back, so is it."""
    with on_hardware(tmp_path, engine, monkeypatch) as (box, gateway):
        until(lambda: readiness(gateway) is None)
        keeper = gateway.tee._keeper  # type: ignore[attr-defined]
        with Caller(gateway.origin, gateway.policy_text) as caller:
            pages, box.vendor.pages, keeper._kept = box.vendor.pages, {}, None
            assert readiness(gateway) == "collateral_missing"
            assert math.isnan(gateway.tee.state.left)
            with pytest.raises(AttestationError, match=Check.COLLATERAL_MISSING):
                caller.verify(gateway.policy_text)
            box.vendor.pages = pages
            assert keeper._try(offline=False)
            assert readiness(gateway) is None
