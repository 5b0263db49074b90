"""Every fault that docs/incidents.md lists has a test that it is named, that the gateway is not ready, and that nothing unverified leaves.

Most stand where their part is tested; `FAULTS` says where. Those that concern the whole gateway and stand nowhere else are here.
"""

from __future__ import annotations

import ast
import os
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.evidence import parse_evidence
from attestation.policy import parse_policy
from attestation.receipt import Outcome
from attestation.verify import verify
from enclave_server.model.manifest import ModelProblem
from enclave_server.model.pack import write_pack
from enclave_server.provisioning import check_values
from tests.caller import Caller, untrusting
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.fake_vllm import set_plan, starts
from tests.enclave_server.test_gateway_on_hardware import PATH, on_hardware, readiness
from tests.processes import until
from tests.served import served
from tests.servers import FakeEngine

ROOT = Path(__file__).parents[2]
FAULTS = {
    "missing device": (
        "evidence/test_hardware.py",
        "test_no_tee",
        "test_command.py",
        "test_refused_configuration",
    ),
    "collector error": ("test_gateway_on_hardware.py", "test_a_tee_that_breaks"),
    "changed generation": ("test_faults.py", "test_changed_generation"),
    "slow quote": ("test_gateway_on_hardware.py", "test_a_slow_quote"),
    "quote for another nonce": ("test_gateway_on_hardware.py", "test_a_quote_for_another_nonce"),
    "expired collateral": ("test_faults.py", "test_expired_collateral"),
    "unreachable collateral": ("test_gateway_on_hardware.py", "test_vendors_that_are_away"),
    "full disk: collateral": ("evidence/test_hardware.py", "test_a_full_disk"),
    "full disk: log of receipts": ("receipts/test_log.py", "test_a_gateway_that_cannot_log_answers_nothing"),
    "full memory: encrypted pack": ("model/test_pack_place.py", "test_no_room"),
    "killed engine": (
        "test_faults.py",
        "test_killed_engine",
        "inference/test_failures.py",
        "test_engine_dies_in_mid_stream",
    ),
    "wrong model file": ("test_command.py", "test_another_model"),
    "model file that changes": ("model/test_check.py", "test_changed_after_it_was_hashed"),
    "truncated pack": ("test_faults.py", "test_truncated_pack"),
    "altered pack": ("model/test_pack_served.py", "test_altered_on_the_disk"),
    "wrong configuration digest": ("test_config_identity.py", "test_another_file"),
    "secret from the wrong owner": ("test_provisioning.py", "test_refused_by_name"),
}


def test_every_fault_has_its_test_and_its_row() -> None:
    """The table in docs/incidents.md and the tests name the same faults."""
    table = (ROOT / "docs/incidents.md").read_text().partition("## Faults, by what they look like")[2]
    assert re.findall(r"^\| ([a-z][^|]+) \|", table, re.MULTILINE)[1:] == list(FAULTS)
    for places in FAULTS.values():
        for file, name in zip(places[::2], places[1::2], strict=True):
            tree = ast.parse((Path(__file__).parent / file).read_text())
            functions = {
                n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert name in functions, (file, name)


def test_changed_generation(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence that somebody else may have asked for is thrown away; when it is always so, there is none, and none is made up."""
    with on_hardware(tmp_path, engine, monkeypatch) as (box, gateway):
        until(lambda: readiness(gateway) is None)
        box.kernel.others = 1
        asked = f"{gateway.origin}{PATH}"
        assert (
            httpx.get(asked, params={"nonce": "A" * 43}, verify=untrusting(), trust_env=False).status_code
            == 200
        )
        box.kernel.others = 10_000
        answer = httpx.get(asked, params={"nonce": "A" * 43}, verify=untrusting(), trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "evidence_failed")
        box.kernel.others = 0


def test_expired_collateral(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the vendors' own end has passed and nothing newer comes, it is not ready, and clients of that time refuse."""
    with on_hardware(tmp_path, engine, monkeypatch) as (box, gateway):
        until(lambda: readiness(gateway) is None)
        keeper = gateway.tee._keeper  # type: ignore[attr-defined]
        late = datetime.now(UTC) + timedelta(seconds=gateway.tee.state.left + 1)
        keeper._now = lambda: late
        box.vendor.pages = {}
        assert readiness(gateway) == "collateral_expired"
        with Caller(gateway.origin, gateway.policy_text) as caller:
            answer = caller.http.get(PATH, params={"nonce": "A" * 43})
            policy = parse_policy(gateway.policy_text)
            with pytest.raises(AttestationError) as refused:
                verify(parse_evidence(answer.content), policy, nonce=bytes(32), now=late)
            assert refused.value.check.startswith("tdx.")
            assert refused.value.check.endswith("_dates")


def test_killed_engine(tmp_path: Path) -> None:
    """After kill -9 it is not ready and says why; whoever asks meanwhile gets a signed error; then it answers again."""
    values = {**fake_settings(tmp_path), "drain_seconds": 1}
    with (
        served(tmp_path / "gateway", engine_isolation="none", **values) as gateway,
        Caller(gateway.origin, gateway.policy()) as caller,
    ):
        set_plan(tmp_path / "python", never_ready=True)
        os.kill(starts(tmp_path / "python")[0]["pid"], signal.SIGKILL)
        until(lambda: caller.http.get("/readyz").json()["reason"] == "engine_restarting")
        answer = caller.chat("hello")
        assert (answer.status, answer.outcome) == (503, Outcome.ERROR)
        until(lambda: len(starts(tmp_path / "python")) == 2)
        set_plan(tmp_path / "python")
        os.kill(starts(tmp_path / "python")[1]["pid"], signal.SIGKILL)
        gateway.until_ready(240)
        assert caller.chat("hello").outcome is Outcome.COMPLETE


def test_truncated_pack(tmp_path: Path) -> None:
    """A pack that was cut is seen when the key comes: the key is refused by name, and the gateway goes on waiting."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    pack = tmp_path / "model.pack"
    write_pack(tmp_path / "model", pack, b"k" * 32, model_id="me/model@1")
    check_values({"model_key": b"k" * 32}, pack=pack)
    os.truncate(pack, pack.stat().st_size - 1)
    with pytest.raises(AttestationError, match=ModelProblem.PACK) as refused:
        check_values({"model_key": b"k" * 32}, pack=pack)
    assert refused.value.check is Check.SECRET_VALUE
