"""An Azure confidential VM's evidence in the gateway's document: bound by its vTPM, judged by its own table."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.binding import report_data, tpm_nonce
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, PolicyError
from attestation.evidence import Evidence, dump_evidence, parse_evidence
from attestation.policy import Policy, StatementPolicy
from attestation.simulator.vtpm import PCRS, SimulatedVtpm, VtpmDefect
from attestation.snp import SnpPolicy
from attestation.verify import verify
from attestation.vtpm import PcrPolicy, VtpmPolicy
from enclave_server.identity import make_identity
from tests.servers import gateway_settings

NONCE = bytes(range(32))
VM = SimulatedVtpm()
ANY = SnpPolicy(any_measurement=True)
POLICY = Policy(
    roots=VM.roots,
    statement=StatementPolicy(any_model=True, any_config=True),
    azure=VtpmPolicy(snp=ANY, pcrs=(PcrPolicy(index=11, values=frozenset({PCRS[11]})),)),
    gpu=replace(Policy().gpu, required=False),
)


@pytest.fixture
def statement(tmp_path: Path) -> bytes:
    return make_identity(gateway_settings(tmp_path), engine_version="1").statement_bytes


def document(statement: bytes, *, nonce: bytes = NONCE, defect: VtpmDefect | None = None) -> Evidence:
    """As a client gets it."""
    cpu = VM.evidence(tpm_nonce(report_data(nonce, statement)), defect)
    made = Evidence(statement=statement, cpu=cpu, collateral=VM.collateral(datetime.now(UTC)))
    return parse_evidence(dump_evidence(made))


def test_accepted(statement: bytes) -> None:
    """The hardware's claims and the vTPM's, in one verdict that ends with AMD's collateral."""
    verdict = verify(document(statement), POLICY, nonce=NONCE, now=datetime.now(UTC))
    assert verdict.vtpm is not None
    assert verdict.cpu == verdict.vtpm.hardware
    assert verdict.vtpm.pcrs[11] == PCRS[11]
    assert verdict.simulated
    assert verdict.valid_until <= verdict.cpu.collateral_expires


def test_the_round_trip_keeps_everything(statement: bytes) -> None:
    """Optional parts too."""
    cpu = replace(VM.evidence(bytes(32)), vcek=b"-----BEGIN", td_quote=b"quote", event_log=b"log")
    made = Evidence(statement=statement, cpu=cpu)
    assert parse_evidence(dump_evidence(made)) == made


def test_bound_to_nonce_and_statement(statement: bytes) -> None:
    """A quote for another nonce or another statement is refused, as on any hardware."""
    with pytest.raises(AttestationError, match=Check.BINDING_REPORT_DATA):
        verify(document(statement, nonce=bytes(32)), POLICY, nonce=NONCE, now=datetime.now(UTC))
    other = replace(document(statement), cpu=document(statement + b" ").cpu)
    with pytest.raises(AttestationError, match=Check.BINDING_REPORT_DATA):
        verify(other, POLICY, nonce=NONCE, now=datetime.now(UTC))
    plain = replace(document(statement), cpu=VM.evidence(report_data(NONCE, statement)[:32]))
    with pytest.raises(AttestationError, match=Check.BINDING_REPORT_DATA):
        verify(plain, POLICY, nonce=NONCE, now=datetime.now(UTC))


@pytest.mark.parametrize(
    ("defect", "check"),
    [
        (VtpmDefect.OTHER_KEY, Check.VTPM_SIGNATURE),
        (VtpmDefect.PCR_ALTERED, Check.VTPM_PCR_DIGEST),
        (VtpmDefect.RUNTIME_DATA_ALTERED, Check.VTPM_RUNTIME_DATA),
    ],
)
def test_defects(statement: bytes, defect: VtpmDefect, check: Check) -> None:
    """What is wrong with the chain from the CPU to the quote is named."""
    with pytest.raises(AttestationError) as caught:
        verify(document(statement, defect=defect), POLICY, nonce=NONCE, now=datetime.now(UTC))
    assert caught.value.check is check


def test_judged_by_its_own_table(statement: bytes) -> None:
    """A policy for SEV-SNP says nothing of a machine whose measurement is Microsoft's; PCRs have to be named."""
    evidence = document(statement)
    with pytest.raises(PolicyError) as caught:
        verify(evidence, replace(POLICY, azure=None, snp=ANY), nonce=NONCE, now=datetime.now(UTC))
    assert [(v.check, v.expected, v.found) for v in caught.value.violations] == [
        (Check.POLICY_PLATFORM, "snp", "azure")
    ]
    with pytest.raises(PolicyError, match=r"vtpm\.pcr"):
        verify(evidence, replace(POLICY, azure=VtpmPolicy(snp=ANY)), nonce=NONCE, now=datetime.now(UTC))
    with pytest.raises(PolicyError, match=r"snp\.measurement"):
        verify(
            evidence,
            replace(POLICY, azure=VtpmPolicy(snp=SnpPolicy(), any_pcrs=True)),
            nonce=NONCE,
            now=datetime.now(UTC),
        )


def test_a_seal_means_nothing_here(statement: bytes) -> None:
    """RTMR3 is not the guest's."""
    with pytest.raises(AttestationError, match=Check.SERVING_SEAL):
        verify(
            replace(document(statement), serving_seal=bytes(96)), POLICY, nonce=NONCE, now=datetime.now(UTC)
        )


def test_not_a_document_of_azures(statement: bytes) -> None:
    """The part under this media type is read strictly."""
    text = dump_evidence(document(statement))
    with pytest.raises(MalformedError):
        parse_evidence(text.replace(b"azure-evidence+json", b"tdx-quote", 1).replace(b'"cpu"', b'"cpu "'))
