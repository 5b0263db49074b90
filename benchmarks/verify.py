"""How long verification takes beside the cryptography it cannot do without. `make bench-verify` prints the table.

Every round runs all contenders on the same evidence, one after the other, so that a busy machine slows all alike; what
counts is the median of the ratios of the rounds. "cold" forgets everything this process has verified before; "warm" knows
the collateral and the CA certificates from another piece of evidence, and never this piece itself.

    python -m benchmarks.verify [rounds]
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha512
from itertools import pairwise
from statistics import median
from time import perf_counter, thread_time
from types import ModuleType
from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from attestation import nvidia, snp, tdx
from attestation._x509 import parse_chain, parse_crl
from attestation.checks import Check
from attestation.nvidia.devices import parse_list
from attestation.nvidia.evidence import parse_evidence
from attestation.nvidia.ocsp import parse_answer
from attestation.nvidia.policy import GpuPolicy
from attestation.nvidia.rim import load_rim
from attestation.roots import Roots
from attestation.simulator import SimulatedTdx
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.snp import SimulatedSnp
from attestation.snp.policy import AUTHENTIC_ONLY
from attestation.snp.vek import parse_vek
from attestation.tdx import TdxPolicy

NOW = datetime.now(UTC).replace(microsecond=0)
ROUNDS = 25
Work = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One measured ratio beside its goal."""

    what: str
    beside: str
    ours_ms: float
    theirs_ms: float
    ratio: float
    goal: float

    def __str__(self) -> str:
        met = "met" if self.ratio <= self.goal else "MISSED"
        times = f"{self.ours_ms:8.3f} {self.theirs_ms:8.3f}"
        return f"{self.what:28} {self.beside:34} {times}   {self.ratio:5.2f} ≤ {self.goal:<5.2f} {met}"


def forget() -> None:
    """Clear every cache of the verifiers, as in a process that has seen nothing."""
    for name, module in list(sys.modules.items()):
        if name.startswith("attestation") and not name.startswith("attestation.simulator"):
            _clear(module)


def _clear(module: ModuleType) -> None:
    for value in vars(module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


def compare(
    what: str,
    beside: str,
    goal: float,
    rounds: int,
    ours: Callable[[int], Work],
    theirs: Callable[[int], Work],
) -> Row:
    """`ours(i)` and `theirs(i)` prepare round i, untimed, and return what is timed."""
    mine, other = [], []
    for number in range(rounds + 1):
        a, b = _time(ours(number)), _time(theirs(number))
        if number:  # the first round loads code
            mine.append(a)
            other.append(b)
    ratio = median(a / b for a, b in zip(mine, other, strict=True))
    return Row(what, beside, median(mine) * 1e3, median(other) * 1e3, ratio, goal)


def _time(work: Work) -> float:
    """Seconds of this thread's CPU: what other processes do meanwhile is not our time."""
    start = thread_time()
    work()
    return thread_time() - start


def _all(checks: Sequence[Work]) -> Work:
    def run() -> None:
        for check in checks:
            check()

    return run


def _cold(verify: Work) -> Work:
    forget()
    return verify


def _warm(other: Work, verify: Work) -> Work:
    """Only what `other` and this evidence have in common is known."""
    forget()
    other()
    return verify


def bench_tdx(rounds: int) -> Iterator[Row]:
    machine = SimulatedTdx.create()
    collateral = machine.collateral(NOW)
    quotes = [machine.quote(sha512(bytes([i])).digest()) for i in range(rounds + 2)]
    theirs = dcap_qvl.QuoteCollateralV3.from_json(collateral.to_json().decode())
    seconds, policy = int(NOW.timestamp()), TdxPolicy(any_measurement=True)

    def ours(number: int) -> Work:
        def verify() -> None:
            violations = policy.check(tdx.verify(quotes[number], collateral, (machine.root,), NOW), NOW)
            if violations:
                raise AssertionError(violations)

        return verify

    def reference(number: int) -> Work:
        return partial(dcap_qvl.verify_with_root_ca, quotes[number], theirs, machine.root_der, seconds)

    yield compare("TDX, cold", "dcap-qvl", 1.3, rounds, lambda i: _cold(ours(i)), reference)
    yield compare("TDX, warm", "dcap-qvl", 0.5, rounds, lambda i: _warm(ours(i + 1), ours(i)), reference)


def bench_snp(rounds: int) -> Iterator[Row]:
    machine = SimulatedSnp()
    collateral = machine.collateral(NOW)
    reports = [machine.report(sha512(bytes([i])).digest()) for i in range(rounds + 2)]

    def ours(number: int) -> Work:
        def verify() -> None:
            violations = AUTHENTIC_ONLY.check(
                snp.verify(reports[number], collateral, (machine.root,), NOW), NOW
            )
            if violations:
                raise AssertionError(violations)

        return verify

    vek = parse_vek(collateral.vek)
    ask, ark = parse_chain(collateral.chain, Check.SNP_CHAIN, "chain", length=2)
    crl = parse_crl(collateral.crl, Check.SNP_CRL_SIGNATURE, "CRL")
    chain = [_issued(ark, ark), _issued(ask, ark), _issued(vek.cert, ask), _signed_crl(crl, ark)]

    def one(number: int) -> Work:
        report = reports[number]
        r, s = snp.parse_report(report).signature
        return partial(vek.key.verify, encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(SHA384()))

    yield compare(
        "SNP, cold",
        "its 5 signature checks alone",
        1.5,
        rounds,
        lambda i: _cold(ours(i)),
        lambda i: _all([*chain, one(i)]),
    )
    yield compare(
        "SNP, warm", "one P-384 verification", 1.5, rounds, lambda i: _warm(ours(i + 1), ours(i)), one
    )


def bench_gpu(rounds: int, gpus: int) -> Iterator[Row]:
    machine = SimulatedNvidia.create(Machine(gpus=gpus))
    collateral, roots = machine.collateral(NOW), machine.trust(Roots())
    nonces = [sha512(bytes([i])).digest()[:32] for i in range(rounds + 2)]
    evidence = [machine.evidence(nonce) for nonce in nonces]
    policy = GpuPolicy()

    def ours(number: int) -> Work:
        def verify() -> None:
            claims = nvidia.verify_all(evidence[number], nonces[number], collateral, roots, NOW)
            if violations := policy.check(claims, NOW):
                raise AssertionError(violations)

        forget()
        for rim in collateral.rims:  # parsed before, as the goal has it
            load_rim(rim)
        return verify

    name = "one GPU" if gpus == 1 else f"{gpus} GPUs"

    def raw(number: int) -> Work:
        return _all(list(_gpu_checks(evidence[number], collateral)))

    count = len(list(_gpu_checks(evidence[0], collateral)))
    yield compare(f"{name}, manifests parsed", f"its {count} signature checks alone", 2.0, rounds, ours, raw)


def _gpu_checks(evidence: bytes, collateral: Any) -> Iterator[Work]:
    """Each different signature that one verification rests on, once."""
    issuers: dict[tuple[x509.Certificate, x509.Certificate], None] = {}
    for device in parse_list(evidence):
        chain = parse_chain(device.chain, Check.GPU_FORMAT, "chain", length=5)
        issuers |= dict.fromkeys(pairwise(chain))
        report, key = parse_evidence(device.report), chain[0].public_key()
        half = len(report.signature) // 2
        r, s = (int.from_bytes(part, "big") for part in (report.signature[:half], report.signature[half:]))
        yield partial(_p384(key).verify, encode_dss_signature(r, s), report.signed, ec.ECDSA(SHA384()))
    for rim in collateral.rims:
        issuers |= dict.fromkeys(pairwise(load_rim(rim).chain))
    certs = {cert for pair in issuers for cert in pair}
    for der in collateral.ocsp:
        answer = parse_answer(der)
        (single,) = answer.singles
        issuer = next(i for c, i in issuers if c.serial_number == single.serial)
        responder = answer.certificates[0] if answer.certificates else issuer
        if responder not in certs:
            issuers[responder, issuer] = None
        yield partial(
            _p384(responder.public_key()).verify,
            answer.signature,
            answer.signed,
            ec.ECDSA(_HASH[answer.hash_name]),
        )
    yield from (_issued(cert, issuer) for cert, issuer in issuers)


_HASH = {"sha256": SHA256(), "sha384": SHA384()}


def _p384(key: Any) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("expected an elliptic curve key")
    return key


def _issued(cert: x509.Certificate, issuer: x509.Certificate) -> Work:
    """The signature of `cert` alone, by an issuer that is already parsed."""
    return _verification(
        issuer.public_key(), cert.signature, cert.tbs_certificate_bytes, cert.signature_hash_algorithm
    )


def _signed_crl(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> Work:
    return _verification(
        issuer.public_key(), crl.signature, crl.tbs_certlist_bytes, crl.signature_hash_algorithm
    )


def _verification(key: Any, signature: bytes, data: bytes, algorithm: Any) -> Work:
    if isinstance(key, rsa.RSAPublicKey):
        pss = padding.PSS(padding.MGF1(SHA384()), SHA384.digest_size)
        return partial(key.verify, signature, data, pss, SHA384())
    return partial(key.verify, signature, data, ec.ECDSA(algorithm))


def bench_import(statement: str) -> str:
    """Seconds that a fresh interpreter takes for an import, over one that imports nothing."""

    def run(code: str) -> float:
        start = perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return perf_counter() - start

    seconds = median(run(statement) - run("pass") for _ in range(7))
    return f"{statement:63} {seconds:8.3f} s            ≤ 0.35 {'met' if seconds < 0.35 else 'MISSED'}"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print(f"{'ours':28} {'beside':34} {'ours ms':>8} {'its ms':>8}   ratio   goal")
    for bench in (bench_tdx, bench_snp, partial(bench_gpu, gpus=1), partial(bench_gpu, gpus=8)):
        gc.collect()
        gc.disable()  # as timeit does: a collection falls on whoever runs when it is due
        for row in bench(rounds):
            print(row, flush=True)
    gc.enable()
    for statement in ("import client_sdk", "import client_sdk.transport", "import attestation.verify"):
        print(bench_import(statement), flush=True)


if __name__ == "__main__":
    main()
