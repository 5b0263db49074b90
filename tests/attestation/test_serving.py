"""The serving seal: only the key that RTMR3 names seals a statement, and RTMR3 names one key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha384
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.binding import report_data
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import AttestationError, MalformedError, PolicyError, VerificationError
from attestation.evidence import Evidence, SnpEvidence, TdxEvidence, dump_evidence, parse_evidence
from attestation.policy import Policy, StatementPolicy
from attestation.roots import Roots
from attestation.serving import make_seal, sealed_register, separator
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import DEFAULT_TD, SimulatedTdx
from attestation.snp.policy import SnpPolicy
from attestation.tdx import TdxPolicy
from attestation.verify import verify
from client_sdk.lock import lock
from enclave_server.identity import make_identity
from tests.servers import gateway_settings

NONCE = bytes(range(32))
KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
TDX, SNP = SimulatedTdx.create(), SimulatedSnp()


@pytest.fixture
def statement(tmp_path: Path) -> bytes:
    return make_identity(gateway_settings(tmp_path), engine_version="1").statement_bytes


def evidence(statement: bytes, *, seal: bytes, rtmr3: bytes | None = None) -> Evidence:
    """Of a TD that measured the key's separator into RTMR3, or has another value there."""
    td = replace(DEFAULT_TD, rtmr3=sealed_register(PUBLIC) if rtmr3 is None else rtmr3)
    made = Evidence(
        statement=statement,
        cpu=TdxEvidence(TDX.quote(report_data(NONCE, statement), td=td)),
        serving_seal=seal,
        collateral=Collateral(intel=TDX.collateral(datetime.now(UTC))),
    )
    return parse_evidence(dump_evidence(made))


def policy(*, required: bool = True) -> Policy:
    return Policy(
        roots=Roots(intel=(TDX.root,), amd=(SNP.root,)),
        statement=StatementPolicy(any_model=True, any_config=True, require_serving_seal=required),
        tdx=TdxPolicy(any_measurement=True),
        snp=SnpPolicy(any_measurement=True),
        gpu=replace(Policy().gpu, required=False),
    )


def test_a_sealed_statement(statement: bytes) -> None:
    """Accepted where it is demanded, and where it is not."""
    for required in (True, False):
        verdict = verify(
            evidence(statement, seal=make_seal(KEY, statement)),
            policy(required=required),
            nonce=NONCE,
            now=datetime.now(UTC),
        )
        assert verdict.evidence.serving_seal


def test_the_register(statement: bytes) -> None:
    """The bytes that docs/protocol.md has."""
    event = sha384(b"attested-inference/serving/v1\0" + PUBLIC).digest()
    assert separator(PUBLIC) == event
    assert sealed_register(PUBLIC) == sha384(bytes(48) + event).digest()


def test_without_a_seal(statement: bytes) -> None:
    """Refused where it is demanded, among the other violations."""
    plain = evidence(statement, seal=b"")
    verify(plain, policy(required=False), nonce=NONCE, now=datetime.now(UTC))
    with pytest.raises(PolicyError) as caught:
        verify(plain, policy(), nonce=NONCE, now=datetime.now(UTC))
    assert [violation.check for violation in caught.value.violations] == [Check.SERVING_SEAL]


LATER = Ed25519PrivateKey.generate()  # of something that began after the gateway


@pytest.mark.parametrize(
    ("seal", "rtmr3"),
    [
        (lambda s: make_seal(LATER, s), None),
        (lambda s: PUBLIC + make_seal(LATER, s)[32:], None),
        (lambda s: make_seal(KEY, s + b" "), None),
        (lambda s: make_seal(KEY, s), bytes(48)),
        (lambda s: make_seal(LATER, s), sha384(sealed_register(PUBLIC) + separator(LATER.public_key().public_bytes_raw())).digest()),
        (lambda s: make_seal(KEY, s), sha384(sealed_register(PUBLIC) + bytes(48)).digest()),
    ],
    ids=["other key", "other signature", "other statement", "not measured", "measured later", "something measured later"],
)  # fmt: skip
@pytest.mark.parametrize("required", [True, False])
def test_a_seal_that_does_not_hold(
    statement: bytes, seal: Callable[[bytes], bytes], rtmr3: bytes | None, required: bool
) -> None:
    """Whoever starts later has neither the key nor a register that names another one alone; demanded or not, it is refused."""
    with pytest.raises(VerificationError) as caught:
        verify(
            evidence(statement, seal=seal(statement), rtmr3=rtmr3),
            policy(required=required),
            nonce=NONCE,
            now=datetime.now(UTC),
        )
    assert caught.value.check is Check.SERVING_SEAL


@pytest.mark.parametrize("size", [1, 95, 97])
def test_a_seal_of_another_size(statement: bytes, size: int) -> None:
    """It has 96 bytes."""
    with pytest.raises(MalformedError, match=Check.SERVING_SEAL):
        verify(evidence(statement, seal=bytes(size)), policy(), nonce=NONCE, now=datetime.now(UTC))


def test_snp_has_no_such_register(statement: bytes) -> None:
    """A seal beside an SEV-SNP report means nothing, and is refused."""
    document = Evidence(
        statement=statement,
        cpu=SnpEvidence(SNP.report(report_data(NONCE, statement))),
        serving_seal=make_seal(KEY, statement),
        collateral=Collateral(amd=SNP.collateral(datetime.now(UTC))),
    )
    with pytest.raises(AttestationError, match=Check.SERVING_SEAL):
        verify(document, policy(required=False), nonce=NONCE, now=datetime.now(UTC))


def test_a_locked_policy_outlives_the_boot(statement: bytes) -> None:
    """A policy made from a sealed enclave demands the seal, and does not pin the register that changes with each boot."""
    verdict = verify(
        evidence(statement, seal=make_seal(KEY, statement)), policy(), nonce=NONCE, now=datetime.now(UTC)
    )
    locked = lock(verdict, policy(), name="x", expires=None)
    assert locked.statement.require_serving_seal
    assert locked.tdx is not None
    assert locked.tdx.measurements[0].rtmr3 is None
    again = evidence(
        statement,
        seal=make_seal(LATER, statement),
        rtmr3=sealed_register(LATER.public_key().public_bytes_raw()),
    )
    verify(again, replace(locked, release=Policy().release), nonce=NONCE, now=datetime.now(UTC))
