"""Other providers' evidence: real vendors' in these formats, and all of it from the command line."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner, Result

from attestation.checks import Check
from attestation.collateral import AmdCollateral, Collateral, IntelCollateral
from attestation.errors import PolicyError
from attestation.nitro import parse_document
from attestation.nvidia.policy import GpuPolicy
from attestation.roots import VENDOR
from attestation.tdx.quote import parse_quote
from client_sdk.amd_file import dump_amd
from client_sdk.cli import app
from client_sdk.evidence_policy import RAW
from client_sdk.foreign.judge import BOUND, CHANNEL, FRESH
from client_sdk.policy_toml import dump_policy
from client_sdk.present import State
from tests.client_sdk.evidence_files import NOW, amd
from tests.client_sdk.foreign_judged import (
    NITRIDING,
    NONCE,
    OTHER,
    TINFOIL,
    accepted,
    documents,
    given_collateral,
    judge,
    one,
    refused,
    roots,
    state,
    terms,
)
from tests.client_sdk.foreign_servers import (
    HPKE,
    SERVER,
    dstack,
    nitriding,
    ratls,
    serving,
    tinfoil_v2,
    wrap_v2,
)
from tests.servers import LiveGateway
from tests.vectors import needs_vectors, read

# Real vendors' evidence in these formats ───────────────────────────────────────────────────────────────────


@needs_vectors
def test_a_real_quote_of_a_dstack_machine_is_judged_at_its_time() -> None:
    """Intel's signatures; its report data is one signing address and one nonce of ones."""
    quote = read("tdx/quotes/private-ml-sdk-v4-d20fa0.bin")
    signed = parse_quote(quote, padding=True).td.report_data
    report = {
        "signing_algo": "ed25519",
        "signing_address": signed[:32].hex(),
        "intel_quote": quote.hex(),
    }
    given = IntelCollateral.parse(read("tdx/collateral/tdx-20a06f000000-20250902-ev17.json"))
    when = terms(datetime.fromtimestamp(1758093775, UTC), VENDOR)
    collateral = Collateral(intel=given)
    judged = accepted(judge(one(report), signed[32:], terms=when, collateral=collateral))
    assert judged.roots == [VENDOR.intel[0]]
    assert state(judged, FRESH) is State.PASSED
    refused(judge(one(report), OTHER, terms=when, collateral=collateral), Check.FOREIGN_NONCE)
    report["signing_address"] = "00" * 32
    refused(judge(one(report), terms=when, collateral=collateral), Check.FOREIGN_BINDING)


@needs_vectors
@pytest.mark.parametrize("name", ["attestation-rs-genoa-v5-vcek-7ea4da", "trustee-genoa-v3-vcek-227a64"])
def test_a_real_snp_report_in_a_tinfoil_document_is_judged_and_not_taken_for_this_server(name: str) -> None:
    """AMD's signatures hold; the key that it names is not at the end of this connection."""
    folder = f"snp/{name}"
    given = AmdCollateral(vek=read(f"{folder}/vek.der"), chain=read(f"{folder}/chain.pem"), crl=b"")
    machine = one(wrap_v2(read(f"{folder}/report.bin"), tdx=False))
    now = terms(datetime(2026, 6, 1, tzinfo=UTC), VENDOR)
    judged = judge(machine, certificate=SERVER.der, terms=now, collateral=Collateral(amd=given))
    refused(judged, Check.FOREIGN_TLS_KEY)
    assert state(judged, BOUND) is State.PASSED
    assert state(judged, "nothing in the chain is revoked") is State.NOT_REACHED


@needs_vectors
def test_real_gpus_in_a_dstack_report_are_judged_by_our_own_verifier() -> None:
    """Four real H100s that answered for one nonce; NVIDIA's chains, signatures and nonce hold, for another nonce they do not."""
    listed = json.loads(read("nvidia/lists/sdk-multi-gpu-hopper-x4.json"))
    nonce = bytes.fromhex(listed[0]["nonce"])
    items = [{name: item[name] for name in ("evidence", "certificate")} for item in listed]

    def put(report: dict[str, Any]) -> None:
        report["nvidia_payload"] = json.dumps({"arch": "HOPPER", "evidence_list": items})

    trusted = replace(roots(), nvidia_device=VENDOR.nvidia_device)
    lenient = GpuPolicy(
        allow_protected_pcie=True,
        allow_missing_rim=True,
        allow_unknown_revocation=True,
        allow_unreported_state=True,
    )
    when = terms(trusted=trusted, gpu=lenient)
    given = replace(given_collateral(), nvidia=None)
    judged = judge(one(dstack(nonce, change=put)), nonce, terms=when, collateral=given)
    assert isinstance(judged.error, PolicyError)  # four of eight GPUs came along, and no switch
    assert {violation.check for violation in judged.error.violations} == {Check.GPU_SWITCH}
    assert state(judged, "GPUs: made for this nonce") is State.PASSED
    assert state(judged, "GPUs: NVIDIA's reference manifests") is State.NOT_REACHED
    assert len(judged.claims["gpus"]) == 4
    refused(judge(one(dstack(NONCE, change=put)), NONCE, terms=when, collateral=given), Check.GPU_NONCE)


@needs_vectors
def test_a_real_nitriding_document_is_judged_at_its_time() -> None:
    """Amazon's signatures, a nonce of twenty bytes and two digests."""
    document = read("nitro/og-evm-65ce31.cbor")
    when = terms(parse_document(document).timestamp, VENDOR)
    machine, nonce = one(b64encode(document)), bytes.fromhex("0123456789abcdef0123456789abcdef01234567")
    judged = accepted(judge(machine, nonce, terms=when))
    assert state(judged, FRESH) is State.PASSED
    assert state(judged, CHANNEL) is State.NOT_REACHED
    refused(judge(machine, nonce[::-1], terms=when), Check.FOREIGN_NONCE)
    refused(judge(machine, certificate=SERVER.der, terms=when), Check.FOREIGN_TLS_KEY)


# The command line ──────────────────────────────────────────────────────────────────────────────────────────


def attested(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def policy(tmp_path: Path) -> str:
    """A policy that trusts the simulated vendors, and wants nothing else."""
    file = tmp_path / "policy.toml"
    file.write_text(dump_policy(replace(RAW, roots=roots())))
    return str(file)


def test_verify_prints_the_chain_and_what_is_not_covered(tmp_path: Path) -> None:
    """One calm table; a stranger's root is said to prove nothing about hardware."""
    (tmp_path / "doc").write_bytes(tinfoil_v2())
    (tmp_path / "kds.json").write_bytes(dump_amd(amd().collateral(NOW)))
    (tmp_path / "tls.pem").write_text(SERVER.pem)
    (tmp_path / "ark.pem").write_bytes(_root(amd().collateral(NOW).chain))
    arguments = [
        *("evidence", "foreign", str(tmp_path / "doc"), "--tls", str(tmp_path / "tls.pem")),
        *("--collateral", str(tmp_path / "kds.json"), "--root", str(tmp_path / "ark.pem"), "--offline"),
    ]
    done = attested(*arguments)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("ACCEPTED  doc: Tinfoil document, version 2")
    for part in (
        "not covered: the nonce",
        "SIMULATED",
        f"hpke_x25519: {HPKE.hex()}",
        "not judged: no policy",
    ):
        assert part in done.output
    found = json.loads(attested(*arguments, "--json").stdout)
    assert found["verdict"] == "accept"
    assert found["machines"][0]["claims"]["format"] == "tinfoil-v2"
    assert {"link": FRESH, "state": "not reached"} in found["machines"][0]["links"]


def _root(chain: bytes) -> bytes:
    _, mark, last = chain.rpartition(b"-----BEGIN")
    return mark + last


def test_verify_of_an_address_leaves_with_the_outcomes_code(tmp_path: Path) -> None:
    """Malformed 2, not authentic 3, could not decide 5; without a policy only vendors' roots are trusted."""
    kds = tmp_path / "kds.json"
    kds.write_bytes(dump_amd(amd().collateral(NOW)))
    with serving(tmp_path, {TINFOIL: tinfoil_v2()}) as server:
        done = attested("verify", server.url, "--collateral", str(kds))
        assert done.exit_code == 3, done.output
        assert "snp.root" in done.output
        assert attested("verify", server.url, "--provider", "dstack").exit_code == 5
    with serving(tmp_path, {TINFOIL: b"{}"}) as server:
        done = attested("verify", server.url, "--provider", "tinfoil", "--json")
        assert done.exit_code == 2
        assert json.loads(done.stdout)["check"] == "foreign.format"


def test_with_a_policy_alone_other_formats_are_never_asked_for(tmp_path: Path, policy: str) -> None:
    """A program that verifies by a policy of ours cannot be handed another format in its place."""
    Path(policy).write_text(dump_policy(replace(RAW, roots=roots(), nitro=None)))
    with serving(tmp_path, {TINFOIL: tinfoil_v2()}) as server:
        done = attested("verify", server.url, "--policy", policy)
        assert done.exit_code == 5, done.output
        assert not any(TINFOIL in asked for asked in server.asked)


def test_verify_with_a_policy_and_a_provider_judges_by_the_policys_tables(
    tmp_path: Path, policy: str
) -> None:
    """Roots, platform and GPUs are those of the policy."""
    with serving(tmp_path, {NITRIDING: nitriding}) as server:
        done = attested("verify", server.url, "--policy", policy, "--provider", "nitriding")
    assert done.exit_code == 0, done.output
    assert "made for this nonce" in done.output


def test_a_gateway_of_ours_needs_a_policy(gateway: LiveGateway) -> None:
    """Our own path is asked first; without a policy there is nothing to judge it by, and that is said."""
    done = attested("verify", gateway.origin)
    assert done.exit_code == 64
    assert "--policy" in done.output


def test_a_certificate_is_read_as_pem_and_as_der() -> None:
    """They say the same."""
    signer = ratls("dstack")
    assert one(signer.pem.encode()) == one(signer.cert.public_bytes(Encoding.DER))


def test_inspect_reads_a_document_without_judging_it(tmp_path: Path) -> None:
    """What it holds, and what it leaves open, in words."""
    for number, data in enumerate(documents()[:3]):
        file = tmp_path / str(number)
        file.write_bytes(data)
        done = attested("inspect", str(file))
        assert done.exit_code == 0, done.output
        assert done.output.startswith("another provider's evidence: read, not judged")
        assert "not_covered" in done.output
    (tmp_path / "broken").write_bytes(b'{"format":"x"}')
    assert attested("inspect", str(tmp_path / "broken")).exit_code == 2
