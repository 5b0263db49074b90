"""Azure's evidence, from a real (software) TPM with the paravisor's report in its NV memory, judged as a client judges it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from attestation import vtpm
from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.collect import azure
from attestation.collect.azure import collect_azure
from attestation.errors import UnavailableError, VerificationError
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.vtpm import SimulatedVtpm, make_hcl_report
from attestation.vtpm import ReportType
from tests.tpm import Metadata, Tpm, azure_metadata, azure_tpm, needs_tpm

NONCE = bytes(range(32))
pytestmark = needs_tpm


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpm]:
    with azure_tpm(tmp_path_factory.mktemp("tpm")) as made:
        yield made


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with azure_metadata() as service:
        yield service


def test_what_is_collected_is_what_the_verifier_takes(tpm: Tpm, metadata: Metadata) -> None:
    """Hardware report, runtime data, key, quote and PCRs as one chain; the JSON survives the way to a client."""
    sim = SimulatedVtpm(SimulatedSnp())
    evidence = vtpm.parse_evidence(
        vtpm.dump_evidence(collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url))
    )
    now = datetime.now(UTC)
    claims = vtpm.verify(evidence, sim.collateral(now), sim.roots, now, nonce=NONCE)
    assert claims.nonce == NONCE
    assert set(claims.pcrs) == set(range(24))
    assert metadata.asked == [("/metadata/THIM/amd/certification", b"", "true")]
    with pytest.raises(VerificationError, match=Check.VTPM_NONCE):
        vtpm.verify(evidence, sim.collateral(now), sim.roots, now, nonce=bytes(32))


def test_the_vms_certificate_comes_along(tpm: Tpm, metadata: Metadata) -> None:
    """Azure hands out the VCEK, so that AMD need not be asked for it."""
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    metadata.answers["/metadata/THIM/amd/certification"] = (200, {"vcekCert": pem})
    evidence = collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url)
    assert vtpm.parse_evidence(vtpm.dump_evidence(evidence)).vcek.decode() == pem


def test_a_td_is_quoted_by_the_host(tpm: Tpm, metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    """On TDX the report in the vTPM is for this machine alone; the metadata service makes a quote of it."""
    report = b"TDREPORT".ljust(1024, b"\1").ljust(1184, b"\0")
    hcl = make_hcl_report(report, SimulatedVtpm(SimulatedSnp()).runtime_data({}), ReportType.TDX)
    run = azure.Tools.run
    monkeypatch.setattr(
        azure.Tools,
        "run",
        lambda self, *command: hcl if command[0] == "tpm2_nvread" else run(self, *command),
    )
    metadata.answers["/acc/tdquote"] = (200, {"quote": b64url_encode(b"a quote")})
    evidence = collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url)
    assert (evidence.td_quote, evidence.vcek) == (b"a quote", b"")
    assert json.loads(metadata.asked[0][1]) == {"report": b64url_encode(report[:1024])}
    assert json.loads(vtpm.dump_evidence(evidence))["td_quote"] == b64url_encode(b"a quote")


def test_what_can_fail(tpm: Tpm, metadata: Metadata, tmp_path: Path) -> None:
    """No tools, no TPM, no metadata service, a refusal of it: each is named."""

    def refused(**arguments: Any) -> str:
        with pytest.raises(UnavailableError) as caught:
            collect_azure(NONCE, **{"environment": tpm.environment, "metadata": metadata.url, **arguments})
        assert caught.value.check is Check.TEE_COLLECT
        return str(caught.value)

    assert "Install tpm2-tools" in refused(environment={"PATH": str(tmp_path)})
    assert "tpm2_nvread failed" in refused(environment={"TPM2TOOLS_TCTI": f"swtpm:path={tmp_path}/none"})
    assert "does not answer" in refused(metadata="http://127.0.0.1:9")
    metadata.answers.clear()
    assert "status 404" in refused()
    for nonce in (b"", bytes(33)):
        with pytest.raises(ValueError, match="1 to 32"):
            collect_azure(nonce)


def test_pcrs_that_change_meanwhile(tpm: Tpm, metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PCR that is extended between quote and reading makes another attempt, and in the end an error."""
    run, left = azure.Tools.run, [1]

    def extend_first(self: Any, *command: str) -> bytes:
        if command[0] == "tpm2_pcrread" and left[0]:
            left[0] -= 1
            tpm.tool("tpm2_pcrextend", "16:sha256=" + "ab" * 32)
        return run(self, *command)

    monkeypatch.setattr(azure.Tools, "run", extend_first)
    assert collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url).quote
    left[0] = 99
    with pytest.raises(UnavailableError, match="PCRs changed"):
        collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url)
