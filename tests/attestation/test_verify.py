"""The whole decision, from an evidence document to a verdict, for every simulated machine."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from attestation.binding import PURPOSE, Engine, Image, Keys, Model, Statement, gpu_nonce, report_data
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import AttestationError, MalformedError, PolicyError, UnavailableError
from attestation.evidence import Evidence, SnpEvidence, TdxEvidence, dump_evidence, parse_evidence
from attestation.measure import Algorithm, EventLogPolicy, parse_log, replay
from attestation.policy import Policy, StatementPolicy, parse_policy
from attestation.roots import Roots
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import SimulatedTdx
from attestation.simulator.tdx_quote import DEFAULT_TD
from attestation.snp.policy import SnpPolicy
from attestation.tdx.policy import TdxPolicy
from attestation.verify import verify
from tests.attestation.measure import logs
from tests.attestation.nvidia.token_makers import JWKS, nras

NOW = datetime(2026, 11, 21, tzinfo=UTC)
NONCE = bytes(range(32))
KEYS = Keys(
    receipt_ed25519=b"\x01" * 32,
    tls_spki_sha256=b"\x02" * 32,
    sealing_x_wing=b"\x05" * 1216,
    sealing_x25519=b"\x06" * 32,
)
STATEMENT = Statement(
    v=1,
    purpose=PURPOSE,
    keys=KEYS,
    not_before=int(NOW.timestamp()) - 60,
    not_after=int(NOW.timestamp()) + 3600,
    model=Model(names=("m",), digest=b"\x03" * 32),
    engine=Engine(name="vllm", version="0.32.0", flags=()),
    config=b"\x04" * 32,
    image=Image(build="b", source="s"),
)
TEXT = STATEMENT.to_bytes()
TDX, SNP = SimulatedTdx.create(), SimulatedSnp()
GPU = SimulatedNvidia.create(Machine(gpus=2))
ROOTS = GPU.trust(Roots(intel=(TDX.root,), amd=(SNP.root,)))
POLICY = Policy(
    roots=ROOTS,
    statement=StatementPolicy(
        model_digests=frozenset([b"\x03" * 32]), config_digests=frozenset([b"\x04" * 32])
    ),
    tdx=TdxPolicy(any_measurement=True),
    snp=SnpPolicy(any_measurement=True),
)


def _evidence(
    kind: str = "tdx", *, nonce: bytes = NONCE, gpus: bool = True, statement: bytes = TEXT
) -> Evidence:
    gpu = GPU.evidence(gpu_nonce(nonce, statement)) if gpus else b""
    bound = report_data(nonce, statement, gpu)
    nvidia = GPU.collateral(NOW)
    if kind == "tdx":
        cpu: Any = TdxEvidence(TDX.quote(bound))
        collateral = Collateral(intel=TDX.collateral(NOW), nvidia=nvidia)
    else:
        cpu = SnpEvidence(SNP.report(bound))
        collateral = Collateral(amd=SNP.collateral(NOW), nvidia=nvidia)
    return Evidence(statement=statement, cpu=cpu, gpu=gpu, collateral=collateral)


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_a_genuine_machine_is_accepted(kind: str) -> None:
    """CPU, GPUs, binding, statement and policy agree; the verdict says what it rests on and until when."""
    verdict = verify(parse_evidence(dump_evidence(_evidence(kind))), POLICY, nonce=NONCE, now=NOW)
    assert verdict.statement == STATEMENT
    assert len(verdict.gpus) == 2
    assert verdict.simulated
    assert NOW < verdict.valid_until <= STATEMENT.valid_until
    assert len(verdict.roots) == 3


def test_collateral_from_the_caller_takes_the_place_of_what_was_stapled() -> None:
    """A client may bring its own collateral, and an empty one is missing, not skipped."""
    evidence = _evidence()
    bare = dataclasses.replace(evidence, collateral=Collateral())
    assert verify(bare, POLICY, nonce=NONCE, now=NOW, collateral=evidence.collateral).statement == STATEMENT


def _refused(
    evidence: Evidence, policy: Policy = POLICY, nonce: bytes = NONCE, now: datetime = NOW
) -> AttestationError:
    with pytest.raises(AttestationError) as error:
        verify(evidence, policy, nonce=nonce, now=now)
    return error.value


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_missing_collateral_is_no_verdict(kind: str) -> None:
    """Without the vendor's collateral nothing can be decided."""
    evidence = dataclasses.replace(_evidence(kind), collateral=Collateral())
    error = _refused(evidence)
    assert isinstance(error, UnavailableError)
    assert error.check is Check.COLLATERAL_MISSING


@pytest.mark.parametrize("kind", ["tdx", "snp"])
@pytest.mark.parametrize(
    ("other", "check"),
    [
        ({"nonce": b"\xff" * 32}, Check.GPU_NONCE),
        ({"nonce": b"\xff" * 32, "gpus": False}, Check.BINDING_REPORT_DATA),
        (
            {"statement": dataclasses.replace(STATEMENT, config=b"\x05" * 32).to_bytes(), "gpus": False},
            Check.POLICY_CONFIG,
        ),
    ],
    ids=["another nonce, GPUs", "another nonce", "another configuration"],
)
def test_evidence_about_something_else_is_refused(kind: str, other: dict[str, Any], check: Check) -> None:
    """Evidence for another nonce or configuration is refused by name."""
    error = _refused(
        _evidence(kind, **other),
        dataclasses.replace(POLICY, gpu=dataclasses.replace(POLICY.gpu, required=False)),
    )
    assert error.check is check


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_no_part_can_come_from_another_answer(kind: str) -> None:
    """Statement, CPU evidence and GPU evidence of two genuine answers cannot be mixed."""
    ours, theirs = _evidence(kind), _evidence(kind, nonce=b"\xee" * 32)
    other = dataclasses.replace(STATEMENT, image=Image(build="x", source="s")).to_bytes()
    assert _refused(dataclasses.replace(ours, cpu=theirs.cpu)).check is Check.BINDING_REPORT_DATA
    assert _refused(dataclasses.replace(ours, gpu=theirs.gpu)).check is Check.GPU_NONCE
    assert _refused(dataclasses.replace(ours, gpu=b"")).check is Check.BINDING_REPORT_DATA
    assert _refused(dataclasses.replace(ours, statement=other)).check is Check.GPU_NONCE
    gone = _evidence(kind, gpus=False)
    assert _refused(dataclasses.replace(gone, statement=other)).check is Check.BINDING_REPORT_DATA


def test_gpu_evidence_of_another_boot_is_refused() -> None:
    """Another boot has other keys, so another statement, so another GPU nonce, even for the same client nonce."""
    other = dataclasses.replace(STATEMENT, keys=dataclasses.replace(KEYS, receipt_ed25519=b"\x07" * 32))
    relayed = dataclasses.replace(_evidence(), gpu=_evidence(statement=other.to_bytes()).gpu)
    assert _refused(relayed).check is Check.GPU_NONCE


def test_a_statement_out_of_time_is_refused() -> None:
    """Past not_after the evidence says nothing."""
    assert _refused(_evidence(), now=NOW + timedelta(seconds=3601)).check is Check.STATEMENT_VALIDITY


def test_a_nonce_of_another_length_is_malformed() -> None:
    """The caller's own nonce is checked too."""
    error = _refused(_evidence(), nonce=b"short")
    assert isinstance(error, MalformedError)
    assert error.check is Check.BINDING_NONCE


@pytest.mark.parametrize(
    ("policy", "checks"),
    [
        (Policy(roots=ROOTS), {Check.POLICY_PLATFORM, Check.POLICY_MODEL, Check.POLICY_CONFIG}),
        (dataclasses.replace(POLICY, tdx=None), {Check.POLICY_PLATFORM}),
        (dataclasses.replace(POLICY, statement=StatementPolicy(any_config=True)), {Check.POLICY_MODEL}),
        (dataclasses.replace(POLICY, statement=StatementPolicy(any_model=True)), {Check.POLICY_CONFIG}),
        (dataclasses.replace(POLICY, tdx=TdxPolicy()), {Check.TDX_MEASUREMENT}),
        (dataclasses.replace(POLICY, gpu=dataclasses.replace(POLICY.gpu, count=8)), {Check.POLICY_GPU}),
    ],
)
def test_every_violation_is_reported_at_once(policy: Policy, checks: set[Check]) -> None:
    """A policy refuses what it does not name, and says all of it."""
    error = _refused(_evidence(), policy)
    assert isinstance(error, PolicyError)
    assert {v.check for v in error.violations} == checks


def test_a_missing_gpu_is_refused_by_default() -> None:
    """A machine without GPU evidence is not accepted unless the policy says so."""
    error = _refused(_evidence(gpus=False))
    assert error.check is Check.POLICY_GPU
    relaxed = dataclasses.replace(POLICY, gpu=dataclasses.replace(POLICY.gpu, required=False))
    assert verify(_evidence(gpus=False), relaxed, nonce=NONCE, now=NOW).gpus == ()


@pytest.mark.parametrize(("kind", "check"), [("tdx", Check.TDX_ROOT), ("snp", Check.SNP_ROOT)])
def test_no_default_policy_trusts_the_simulator(kind: str, check: Check) -> None:
    """With the vendors' own roots, simulated evidence is refused at its root."""
    assert _refused(_evidence(kind), dataclasses.replace(POLICY, roots=Roots())).check is check


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[tdx",
        "colour = 1",
        "[tdx]\nallow_debugg = true",
        "[statement]\nmodel_digests = ['00']",
        "[gpu]\ncount = 'two'",
    ],
)
def test_a_policy_with_a_mistake_is_malformed(text: str) -> None:
    """Unknown keys and wrong types are errors, never ignored."""
    with pytest.raises(MalformedError) as error:
        parse_policy(text)
    assert error.value.check is Check.POLICY_FORMAT


def test_an_oversized_policy_is_malformed() -> None:
    """The limit comes before the parser."""
    with pytest.raises(MalformedError):
        parse_policy("#" * 2_000_000)


LOG = logs.log(logs.boot())
ANY_BOOT = EventLogPolicy(
    any_kernel=True, any_initrd=True, any_command_line=True, any_firmware_event=True, any_other_event=True
)


def _booted(log: bytes = LOG) -> Evidence:
    """Evidence of a TD whose registers are what `LOG` leads to; `log` is what comes along."""
    led = replay(parse_log(LOG), Algorithm.SHA384)
    registers: dict[str, Any] = {f"rtmr{i}": led.get(i + 1, bytes(48)) for i in range(4)}
    bound = report_data(NONCE, TEXT)
    quote = TDX.quote(bound, td=dataclasses.replace(DEFAULT_TD, **registers))
    return dataclasses.replace(_evidence(gpus=False), cpu=TdxEvidence(quote), event_log=log)


NO_GPU = dataclasses.replace(POLICY, gpu=dataclasses.replace(POLICY.gpu, required=False))


def test_an_event_log_that_replays_becomes_claims() -> None:
    """The log travels in the document, leads to the quote's registers, and the policy judges what it says."""
    policy = dataclasses.replace(NO_GPU, event_log=ANY_BOOT)
    verdict = verify(parse_evidence(dump_evidence(_booted())), policy, nonce=NONCE, now=NOW)
    assert verdict.boot is not None
    assert verdict.boot.events


def test_an_event_log_of_another_boot_is_refused() -> None:
    """A log that does not lead to the signed registers is refused, whether the policy asks for one or not."""
    other = logs.log([*logs.boot()[:-1]])
    assert _refused(_booted(other), NO_GPU).check is Check.EVENTLOG_REPLAY


def test_a_policy_on_the_boot_demands_a_log() -> None:
    """Without a log there is nothing to judge, and that is a refusal; with one, every event counts."""
    asks = dataclasses.replace(NO_GPU, event_log=EventLogPolicy())
    assert _refused(_booted(b""), asks).check is Check.EVENTLOG_MISSING
    error = _refused(_booted(), asks)
    assert isinstance(error, PolicyError)
    assert Check.EVENTLOG_KERNEL in {v.check for v in error.violations}


def test_an_event_log_beside_an_snp_report_is_refused() -> None:
    """An SEV-SNP report has nothing that a log could replay into; it is not passed over in silence."""
    evidence = dataclasses.replace(_evidence("snp", gpus=False), event_log=LOG)
    assert _refused(evidence, NO_GPU).check is Check.EVENTLOG_REPLAY


TOKEN_POLICY = dataclasses.replace(
    POLICY, gpu=dataclasses.replace(POLICY.gpu, allow_token=True, token_jwks=JWKS.decode())
)


def _token(nonce: bytes = NONCE) -> bytes:
    """NVIDIA's service's word on one GPU and one switch, asked as `verify` demands."""
    start = int(NOW.timestamp())
    said = {
        "eat_nonce": gpu_nonce(nonce, TEXT).hex(),
        "iat": start - 60,
        "nbf": start - 60,
        "exp": start + 600,
    }
    return nras(overall=said, gpu=said, extra=said)


def _vouched(token: bytes, gpu: bytes = b"", *, asked: bool = True) -> Evidence:
    """Evidence with a token that the machine has asked for itself, or that somebody else has put beside it."""
    bound = report_data(NONCE, TEXT, gpu, token if asked else b"")
    bare = _evidence(gpus=False)
    return dataclasses.replace(bare, cpu=TdxEvidence(TDX.quote(bound)), gpu=gpu, gpu_token=token)


@pytest.mark.parametrize("gpu", [b"", b"[{}]"], ids=["no evidence", "evidence of an unknown layout"])
def test_a_token_may_stand_in_where_the_policy_says_so(gpu: bytes) -> None:
    """A pinned service's token replaces evidence that is not there or cannot be read; it bounds the verdict."""
    document = parse_evidence(dump_evidence(_vouched(_token(), gpu)))
    verdict = verify(document, TOKEN_POLICY, nonce=NONCE, now=NOW)
    assert verdict.gpu_token is not None
    assert verdict.valid_until == NOW + timedelta(seconds=600)


@pytest.mark.parametrize("gpu", [b"", b"[{}]"], ids=["no evidence", "evidence of an unknown layout"])
def test_a_token_about_another_machines_gpus(gpu: bytes) -> None:
    """A host knows the GPU nonce, and can have another GPU vouched for: it counts only when the CPU has signed it."""
    assert _refused(_vouched(_token(), gpu, asked=False), TOKEN_POLICY).check is Check.BINDING_REPORT_DATA


def test_a_token_is_nothing_by_default() -> None:
    """Without `allow_token` the GPUs' own evidence is demanded, whatever a service says."""
    assert _refused(_vouched(_token())).check is Check.POLICY_GPU
    assert _refused(_vouched(_token(), b"[{}]")).check is Check.GPU_FORMAT


def test_a_token_must_be_for_this_machine_and_nonce() -> None:
    """A token asked for another nonce, or with no pinned keys to judge it by, is refused."""
    assert _refused(_vouched(_token(b"\xee" * 32)), TOKEN_POLICY).check is Check.GPU_TOKEN_NONCE
    unpinned = dataclasses.replace(POLICY, gpu=dataclasses.replace(POLICY.gpu, allow_token=True))
    assert isinstance(_refused(_vouched(_token()), unpinned), MalformedError)


def test_a_token_mends_nothing_that_is_wrong_with_the_evidence() -> None:
    """GPU evidence that is readable and refused stays refused, with the best of tokens beside it."""
    relayed = _evidence(nonce=b"\xee" * 32).gpu
    assert _refused(_vouched(_token(), relayed), TOKEN_POLICY).check is Check.GPU_NONCE
