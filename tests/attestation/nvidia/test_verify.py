"""Verification as a whole: freshness, relayed GPUs, altered transcripts, and judging the time on every call."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from attestation.binding import gpu_nonce
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, VerificationError
from attestation.nvidia import verify, verify_all
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.devices import dump_list, parse_list
from attestation.nvidia.evidence import Arch, parse_evidence
from attestation.nvidia.identity import read_identity
from attestation.nvidia.verify import verify_signature
from attestation.roots import VENDOR, Roots
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.nvidia_report import dice_extension
from attestation.simulator.pki import Signer, issue, name, p256_key, p384_key
from tests.attestation.nvidia.conftest import NONCE, NOW, ask


def test_claims(nvidia: SimulatedNvidia) -> None:
    """Claims say what the GPU is, what was compared, and until when the collateral counts."""
    (claims,) = ask(nvidia)
    assert (claims.arch, claims.chip, claims.driver) == (Arch.HOPPER, "GH100", "580.95.05")
    assert claims.measured == tuple(i for i in range(50) if i != 35)
    assert (claims.missing_rims, claims.unchecked) == ((), ())
    assert (claims.root, claims.rim_root) == (nvidia.device_root, nvidia.rim_root)
    assert claims.collateral_expires == NOW + timedelta(days=2)


def test_nothing_in_nothing_out() -> None:
    """No list is no GPU; the policy says whether that will do."""
    assert verify_all(b"", NONCE, None, VENDOR, NOW) == ()


def test_parsed_evidence_will_do(nvidia: SimulatedNvidia) -> None:
    """`verify` takes a report as bytes or parsed."""
    (device,) = nvidia.devices(NONCE)
    collateral, roots = nvidia.collateral(NOW), nvidia.trust(VENDOR)
    from_bytes = verify(device.report, device.chain, NONCE, collateral, roots, NOW)
    assert verify(parse_evidence(device.report), device.chain, NONCE, collateral, roots, NOW) == from_bytes


@pytest.mark.parametrize("moved", ["nonce", "statement", "machine"])
def test_moved_evidence_is_refused(nvidia: SimulatedNvidia, moved: str) -> None:
    """GPU evidence that was made for another nonce, or another boot's or machine's statement, is refused."""
    nonce, statement = b"n" * 32, b"this boot's statement"
    asked = {
        "nonce": gpu_nonce(b"m" * 32, statement),
        "statement": gpu_nonce(nonce, b"the statement of this machine's last boot"),
        "machine": gpu_nonce(nonce, b"another machine's statement"),
    }[moved]
    collateral, roots = nvidia.collateral(NOW), nvidia.trust(VENDOR)
    with pytest.raises(VerificationError) as error:
        verify_all(nvidia.evidence(asked), gpu_nonce(nonce, statement), collateral, roots, NOW)
    assert error.value.check is Check.GPU_NONCE


def test_another_chips_certificates(nvidia: SimulatedNvidia) -> None:
    """A report under the chain of another GPU of the same maker is not signed by it."""
    one, two = SimulatedNvidia.create(Machine(gpus=2)).devices(NONCE)
    other = replace(one, chain=two.chain)
    with pytest.raises(VerificationError) as error:
        verify_all(dump_list([other]), NONCE, None, _trusting(other.chain), NOW)
    assert error.value.check is Check.GPU_SIGNATURE


def _trusting(chain: bytes) -> Roots:
    """The vendors' roots, with the last certificate of `chain` in NVIDIA's place."""
    from cryptography import x509

    from attestation.simulator.pki import pin

    last = x509.load_pem_x509_certificates(chain)[-1]
    return replace(VENDOR, nvidia_device=(pin(Signer(last, p384_key())),))


def test_a_switch_is_no_gpu() -> None:
    """A switch's certificates do not make a GPU's report, nor the reverse."""
    machine = SimulatedNvidia.create(Machine(gpus=1, switches=1))
    gpu, switch = machine.devices(NONCE)
    with pytest.raises(VerificationError) as error:
        verify_all(dump_list([replace(switch, arch=gpu.arch)]), NONCE, None, machine.trust(VENDOR), NOW)
    assert error.value.check is Check.GPU_ARCH


def test_chains_have_five_certificates(nvidia: SimulatedNvidia) -> None:
    """A shorter or longer chain is malformed, also when it ends in the right root."""
    (device,) = nvidia.devices(NONCE)
    parts = device.chain.decode().split("-----END CERTIFICATE-----\n")[:-1]
    pems = [f"{part}-----END CERTIFICATE-----\n" for part in parts]
    for chain in (pems[:4], pems[1:], [*pems, pems[-1]], []):
        with pytest.raises(MalformedError):
            verify(device.report, "".join(chain).encode(), NONCE, NvidiaCollateral(), VENDOR, NOW)


def test_time_is_judged_on_every_call(nvidia: SimulatedNvidia) -> None:
    """What is remembered of signatures does not make old collateral young."""
    collateral, evidence, roots = nvidia.collateral(NOW), nvidia.evidence(NONCE), nvidia.trust(VENDOR)
    verify_all(evidence, NONCE, collateral, roots, NOW)
    with pytest.raises(VerificationError) as error:
        verify_all(evidence, NONCE, collateral, roots, NOW + timedelta(days=3))
    assert error.value.check is Check.GPU_OCSP_VALIDITY
    with pytest.raises(VerificationError) as error:
        verify_all(evidence, NONCE, collateral, roots, NOW + timedelta(days=400))
    assert error.value.check is Check.GPU_RIM_VALIDITY


def test_a_stranger_in_the_signatures_shape(nvidia: SimulatedNvidia) -> None:
    """Zero, overlong and swapped halves of a signature do not verify."""
    (device,) = nvidia.devices(NONCE)
    good = parse_evidence(device.report)
    swapped = good.signature[48:] + good.signature[:48]
    for signature in (bytes(96), b"\xff" * 96, swapped):
        with pytest.raises(VerificationError) as error:
            verify(
                replace(good, signature=signature),
                device.chain,
                NONCE,
                NvidiaCollateral(),
                nvidia.trust(VENDOR),
                NOW,
            )
        assert error.value.check is Check.GPU_SIGNATURE


def test_signatures_are_of_p384() -> None:
    """A leaf with a key on another curve has signed no report."""
    evidence = parse_evidence(SimulatedNvidia.create().devices(NONCE)[0].report)
    leaf = issue(name("leaf"), p256_key(), None, not_before=NOW, not_after=NOW + timedelta(days=1), ca=False)
    with pytest.raises(VerificationError) as error:
        verify_signature(evidence, leaf.cert)
    assert error.value.check is Check.GPU_SIGNATURE


@pytest.mark.slow
def test_every_flipped_bit_is_refused(nvidia: SimulatedNvidia) -> None:
    """No bit of the signed transcript or of its signature can change."""
    (device,) = nvidia.devices(NONCE)
    roots, report = nvidia.trust(VENDOR), bytearray(device.report)
    for position in range(len(report) * 8):
        report[position // 8] ^= 1 << position % 8
        with pytest.raises(AttestationError) as error:
            verify(bytes(report), device.chain, NONCE, NvidiaCollateral(), roots, NOW)
        assert error.value.check in {Check.GPU_FORMAT, Check.GPU_SIGNATURE}
        report[position // 8] ^= 1 << position % 8


def test_some_flipped_bits_are_refused(nvidia: SimulatedNvidia) -> None:
    """One bit of every 41st byte, in the fast run."""
    (device,) = nvidia.devices(NONCE)
    roots = nvidia.trust(VENDOR)
    for position in range(0, len(device.report), 41):
        report = bytearray(device.report)
        report[position] ^= 1 << position % 8
        with pytest.raises(AttestationError):
            verify(bytes(report), device.chain, NONCE, NvidiaCollateral(), roots, NOW)


DICE = dice_extension(Arch.HOPPER, p384_key().public_key(), b"f" * 48).value


@pytest.mark.parametrize(
    "value",
    [
        b"",
        DICE[:-1],
        DICE + b"\0",
        b"\x30\x00",
        b"\x30\x85" + DICE,
        b"\x31" + DICE[1:],
        DICE.replace(b"\x04\x30", b"\x05\x30"),
    ],
    ids=[
        "nothing",
        "cut short",
        "one byte more",
        "an empty sequence",
        "a false length",
        "a set",
        "no octet string",
    ],
)
def test_bad_dice_extensions(nvidia: SimulatedNvidia, value: bytes) -> None:
    """A leaf without a readable firmware digest is malformed."""
    for oid in ("2.23.133.5.4.1", "2.23.133.5.4.1.1", "1.2.3"):
        leaf = _leaf(oid, value)
        with pytest.raises(MalformedError) as error:
            read_identity([leaf.cert, leaf.cert])
        assert error.value.check is Check.GPU_FORMAT


def _leaf(oid: str, value: bytes) -> Signer:
    from cryptography import x509

    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
    return issue(
        name("GH100 A01 GSP FMC LF"),
        p384_key(),
        None,
        not_before=NOW,
        not_after=NOW + timedelta(days=1),
        ca=None,
        extensions=[(extension, False)],
    )


def test_lists_name_each_device(nvidia: SimulatedNvidia) -> None:
    """Every device of a list is verified, not only the first."""
    machine = SimulatedNvidia.create(Machine(gpus=2))
    first, second = machine.devices(NONCE)
    stale = machine.devices(bytes(32))[1]
    collateral, roots = machine.collateral(NOW), machine.trust(VENDOR)
    assert len(verify_all(dump_list([first, second]), NONCE, collateral, roots, NOW)) == 2
    with pytest.raises(VerificationError) as error:
        verify_all(dump_list([first, stale]), NONCE, collateral, roots, NOW)
    assert error.value.check is Check.GPU_NONCE
    assert len(parse_list(dump_list([first, stale]))) == 2
