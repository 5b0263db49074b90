"""Evidence: fresh for a caller's nonce and rate-limited, or renewed in the background; accepted by the printed policy."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation._b64 import b64url_decode, b64url_encode
from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.evidence import MEDIA_TYPE, parse_evidence
from attestation.policy import parse_policy
from attestation.verify import verify
from enclave_server.evidence.attest import TokenBucket
from tests.caller import Caller
from tests.processes import until
from tests.servers import FakeEngine, LiveGateway, live_gateway

PATH = "/.well-known/attestation"


@pytest.mark.parametrize("tee", ["simulated-tdx", "simulated-snp"])
def test_policy_accepts_exactly_this_gateway(tmp_path: Path, engine: FakeEngine, tee: str) -> None:
    """The printed policy accepts the evidence, the verdict says simulated, and another configuration is refused."""
    with (
        live_gateway(tmp_path, engine=engine, tee=tee) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        assert caller.verdict.simulated
        assert caller.verdict.statement.model.names == (gateway.settings.model_name,)
        other = gateway.policy_text.replace(gateway.settings.digest().hex(), "00" * 32)
        with pytest.raises(AttestationError, match=Check.POLICY_CONFIG):
            caller.verify(other)


def test_another_simulator_is_refused(tmp_path: Path, gateway: LiveGateway, caller: Caller) -> None:
    """Evidence of a simulator whose root the policy does not name is not accepted."""
    root = gateway.tee.simulated_roots["intel"]
    assert root is not None
    with pytest.raises(AttestationError, match=Check.TDX_ROOT):
        caller.verify(gateway.policy_text.replace(root.spki_sha256.hex(), "00" * 32))
    with pytest.raises(AttestationError, match=Check.TDX_ROOT):
        caller.verify("[tdx]\nany_measurement = true\n[statement]\nany_model = true\nany_config = true\n")


def test_fresh(gateway: LiveGateway, caller: Caller) -> None:
    """A document for a nonce says so, is no cache's business, and fails for any other nonce."""
    nonce = secrets.token_bytes(32)
    answer = caller.http.get(PATH, params={"nonce": b64url_encode(nonce)})
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["attested-nonce"] == b64url_encode(nonce)
    assert answer.headers["cache-control"] == "no-store"
    policy = parse_policy(gateway.policy_text)
    with pytest.raises(AttestationError, match=Check.BINDING_REPORT_DATA):
        verify(parse_evidence(answer.content), policy, nonce=bytes(32), now=datetime.now(UTC))


def test_renewed(tmp_path: Path, engine: FakeEngine) -> None:
    """Without a nonce the gateway's own document is given out, which changes every few minutes."""
    with (
        live_gateway(tmp_path, engine=engine, evidence_renew_seconds=0.3) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        first = caller.http.get(PATH)
        nonce = b64url_decode(first.headers["attested-nonce"], Check.BINDING_NONCE, "nonce")
        policy = parse_policy(gateway.policy_text)
        verify(parse_evidence(first.content), policy, nonce=nonce, now=datetime.now(UTC))
        until(lambda: caller.http.get(PATH).headers["attested-nonce"] != first.headers["attested-nonce"])


@pytest.mark.parametrize("nonce", ["", "AAAA", "A" * 44, "!" * 43])
def test_malformed_nonce(caller: Caller, nonce: str) -> None:
    """A malformed nonce is 400 in OpenAI's shape."""
    answer = caller.http.get(PATH, params={"nonce": nonce})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_nonce")


def test_rate_limit(tmp_path: Path, engine: FakeEngine) -> None:
    """Fresh evidence is rationed, with Retry-After; the renewed document is not."""
    with (
        live_gateway(tmp_path, engine=engine, evidence_per_second=0.01, evidence_burst=2) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        answers = [caller.http.get(PATH, params={"nonce": "A" * 43}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 429, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 100
        assert answers[-1].json()["error"]["type"] == "rate_limit_error"
        assert caller.http.get(PATH).status_code == 200


def test_bucket() -> None:
    """Tokens come back at the rate, up to the burst, by the given clock."""
    now = [0.0]
    bucket = TokenBucket(2, 3, clock=lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.5
    assert bucket.take() == 0
    now[0] = 100
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


def test_restart_is_another_identity(gateway: LiveGateway, caller: Caller) -> None:
    """After a restart the keys are new, on the same port and under the same policy; old receipts' key is gone."""
    before = caller.verdict.statement
    gateway.restart()
    with Caller(gateway.origin, gateway.policy_text) as again:
        after = again.verdict.statement
    assert before.keys != after.keys
    assert (before.config, before.model) == (after.config, after.model)


def test_health_and_readiness(gateway: LiveGateway, caller: Caller, engine: FakeEngine) -> None:
    """Alive is always 200; ready only while the engine answers, else 503 with the reason by name."""
    assert caller.http.get("/healthz").status_code == 200
    assert caller.http.get("/readyz").json() == {"ready": True, "reason": None}
    engine.unready = "engine_starting"
    assert caller.http.get("/healthz").status_code == 200
    answer = caller.http.get("/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "engine_starting")
