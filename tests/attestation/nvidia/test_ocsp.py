"""OCSP answers: who may sign them, which certificate they are about, and nonces where a caller asked with one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.ocsp import Answer, check_revocation, parse_answer
from attestation.nvidia.verify import verify_all
from attestation.roots import VENDOR
from attestation.simulator import pki
from attestation.simulator.nvidia import SimulatedNvidia
from attestation.simulator.nvidia_pki import DEVICE_NAMES, FROM, TO, answer, authorities, derive, issue
from attestation.simulator.pki import Signer, p256_key, p384_key
from tests.attestation.nvidia.conftest import NONCE, NOW, is_malformed, outcome

ROOT, FAMILY, PROVISIONER = authorities(p384_key(), DEVICE_NAMES)
_SHA384 = SHA384()
CHAIN = [PROVISIONER.cert, FAMILY.cert]
GOOD = answer(PROVISIONER.cert, FAMILY, NOW, defect=None, nonce=None)


def check(*answers: bytes, nonce: bytes | None = None) -> tuple[str, ...]:
    """The certificates of a chain of one link that `answers` leave unknown."""
    return check_revocation([CHAIN], NvidiaCollateral(ocsp=answers, ocsp_nonce=nonce), NOW)[0]


def refused(*answers: bytes, nonce: bytes | None = None) -> Check:
    """The check by which `answers` are refused."""
    with pytest.raises(VerificationError) as error:
        check(*answers, nonce=nonce)
    return error.value.check


def by_issuer(
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    *,
    signer: Signer = FAMILY,
    named: Signer = FAMILY,
    encoding: ocsp.OCSPResponderEncoding = ocsp.OCSPResponderEncoding.NAME,
    algorithm: HashAlgorithm = _SHA384,
) -> bytes:
    """An answer that the issuer signs itself, without a responder's certificate."""
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=PROVISIONER.cert,
            issuer=FAMILY.cert,
            algorithm=algorithm,
            cert_status=status,
            this_update=NOW - timedelta(hours=1),
            next_update=NOW + timedelta(hours=1),
            revocation_time=NOW if status is ocsp.OCSPCertStatus.REVOKED else None,
            revocation_reason=None,
        )
        .responder_id(encoding, named.cert)
    )
    return builder.sign(signer.key, SHA384()).public_bytes(Encoding.DER)


def test_good() -> None:
    """An answer by a responder, or by the issuer under its name or key, covers the certificate."""
    assert check(GOOD) == ()
    for encoding in ocsp.OCSPResponderEncoding:
        for algorithm in (SHA1(), SHA256(), SHA384()):  # noqa: S303  # RFC 6960 names certificates by SHA-1
            assert check(by_issuer(encoding=encoding, algorithm=algorithm)) == ()


def test_without_answer_nothing_is_known() -> None:
    """No answer, and answers about other certificates, leave the certificate unknown."""
    other = answer(FAMILY.cert, ROOT, NOW, defect=None, nonce=None)
    assert check() == check(other) == ("Provisioner ICA",)


def test_one_revoking_answer_is_enough() -> None:
    """A good answer does not outweigh a revoking one, in either order."""
    revoked = by_issuer(ocsp.OCSPCertStatus.REVOKED)
    assert refused(GOOD, revoked) is refused(revoked, GOOD) is Check.GPU_REVOKED


def test_one_good_answer_is_enough_over_unknown() -> None:
    """A responder that does not know the certificate says nothing against it."""
    unknown = by_issuer(ocsp.OCSPCertStatus.UNKNOWN)
    assert check(unknown) == ("Provisioner ICA",)
    assert check(unknown, GOOD) == ()


def test_strangers_do_not_answer() -> None:
    """An answer signed by a root above, or by a stranger under the issuer's name, is not the issuer's."""
    assert refused(by_issuer(named=ROOT, signer=ROOT)) is Check.GPU_OCSP
    stranger = Signer(FAMILY.cert, derive(FAMILY.key, "stranger"))
    forged = issue("Identity", stranger.key, None, ca=True)
    assert refused(by_issuer(named=forged, signer=forged)) is Check.GPU_OCSP


def test_nonces() -> None:
    """Where the caller asked with a nonce, the answer must carry it; where not, it may."""
    with_nonce = answer(PROVISIONER.cert, FAMILY, NOW, defect=None, nonce=b"n" * 16)
    assert check(with_nonce) == check(with_nonce, nonce=b"n" * 16) == ()
    assert refused(with_nonce, nonce=b"m" * 16) is refused(GOOD, nonce=b"n" * 16) is Check.GPU_OCSP_NONCE


def test_nonces_of_a_whole_machine(nvidia: SimulatedNvidia) -> None:
    """Collateral that the caller asked for itself is held to the caller's nonce."""
    collateral, roots = nvidia.collateral(NOW, nonce=b"n" * 16), nvidia.trust(VENDOR)
    assert verify_all(nvidia.evidence(NONCE), NONCE, collateral, roots, NOW)
    with pytest.raises(VerificationError) as error:
        verify_all(nvidia.evidence(NONCE), NONCE, replace(collateral, ocsp_nonce=b"m"), roots, NOW)
    assert error.value.check is Check.GPU_OCSP_NONCE


def test_responders_have_dates() -> None:
    """A responder whose certificate is past its date does not answer."""
    until = timedelta(days=365 * 40)
    late = check_revocation([CHAIN], NvidiaCollateral(), NOW + until)[0]
    assert late == ("Provisioner ICA",)
    with pytest.raises(VerificationError) as error:
        check_revocation([CHAIN], NvidiaCollateral(ocsp=(GOOD,)), NOW + until)
    assert error.value.check is Check.GPU_OCSP


def test_unsuccessful_answers_are_malformed() -> None:
    """ "Try later" and "unauthorized" are no answers."""
    for status in (ocsp.OCSPResponseStatus.TRY_LATER, ocsp.OCSPResponseStatus.UNAUTHORIZED):
        der = ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)
        with pytest.raises(MalformedError, match=status.name) as error:
            parse_answer(der)
        assert error.value.check is Check.GPU_OCSP


def test_every_truncation_is_refused() -> None:
    """No prefix of an answer is an answer, and nothing may follow one."""
    for data in (*(GOOD[:length] for length in range(len(GOOD))), GOOD + b"\0", GOOD + bytes(64 * 1024)):
        with pytest.raises(MalformedError):
            parse_answer(data)


@given(st.binary(max_size=100), st.integers(min_value=0, max_value=len(GOOD)))
def test_any_bytes(noise: bytes, start: int) -> None:
    """Any bytes, and any damage to an answer, give a value or a MalformedError."""
    for data in (noise, GOOD[:start] + noise + GOOD[start + len(noise) :]):
        found = outcome(parse_answer, data)
        assert isinstance(found, Answer) or is_malformed(found, Check.GPU_OCSP)


def test_issuers_of_other_kinds() -> None:
    """NVIDIA's keys are EC keys: an answer about a certificate of an RSA issuer covers nothing."""
    issuer = issue("RSA", derive(FAMILY.key, "x"), None, ca=True)
    rsa = pki.issue(pki.name("RSA"), pki.rsa_key(2048), None, not_before=FROM, not_after=TO, ca=True)
    der = answer(PROVISIONER.cert, issuer, NOW, defect=None, nonce=None)
    chains = [[PROVISIONER.cert, rsa.cert]]
    assert check_revocation(chains, NvidiaCollateral(ocsp=(der,)), NOW)[0] == ("Provisioner ICA",)


def test_other_curves_and_hashes() -> None:
    """Issuers may hold P-256 keys."""
    issuer = issue("small", p256_key(), None, ca=True)
    cert = issue("subject", p384_key(), issuer, ca=False)
    chains = [[cert.cert, issuer.cert]]
    der = answer(cert.cert, issuer, NOW, defect=None, nonce=None)
    assert check_revocation(chains, NvidiaCollateral(ocsp=(der,)), NOW)[0] == ()
