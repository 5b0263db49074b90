"""The whole gateway in an Azure confidential VM, whose TPM is software and whose hardware is simulated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError
from attestation.evidence import dump_evidence, parse_evidence
from attestation.policy import parse_policy
from attestation.roots import Roots
from attestation.simulator.snp import SimulatedSnp
from attestation.verify import verify
from attestation.vtpm import AzureEvidence
from client_sdk.lock import FIRST_SIGHT, lock
from enclave_server.evidence import hardware as module
from enclave_server.evidence.hardware import Hardware, Places
from tests import servers
from tests.caller import Caller
from tests.processes import until
from tests.servers import FakeEngine, LiveGateway, gateway_settings
from tests.tpm import Metadata, Tpm, azure_metadata, azure_tpm, needs_tpm
from tests.vendor import amd_pages, vendor_service

pytestmark = needs_tpm
SNP = SimulatedSnp()


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpm]:
    with azure_tpm(tmp_path_factory.mktemp("tpm")) as made:
        for index in (4, 11):  # what the VM booted
            made.tool("tpm2_pcrextend", f"{index}:sha256=" + "ab" * 32)
        yield made


@contextmanager
def azure(folder: Path, tpm: Tpm, **changes: Any) -> Iterator[tuple[Hardware, Metadata]]:
    """A VM as its gateway opens it."""
    with azure_metadata() as metadata, vendor_service(amd_pages(SNP, datetime.now(UTC))) as vendor:
        settings = gateway_settings(folder, tee="azure-snp", amd_kds_url=vendor.url)
        settings = settings.model_copy(update={"config_identity": "off", **changes})
        places = Places(tpm=tpm.environment["TPM2TOOLS_TCTI"], metadata=metadata.url)
        hardware = Hardware(settings, places=places, roots=Roots(amd=(SNP.root,)))
        try:
            yield hardware, metadata
        finally:
            hardware.close()


def test_a_verified_answer(
    tmp_path: Path, engine: FakeEngine, tpm: Tpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vTPM's quote is about the statement, the CPU vouches for the vTPM, AMD for the CPU; the printed policy accepts it."""
    with azure(tmp_path, tpm) as (hardware, _):
        monkeypatch.setattr(servers, "open_tee", lambda _: hardware)
        gateway = LiveGateway(
            gateway_settings(tmp_path, tee="azure-snp", config_identity="off"), engine, None
        )
        root = f'[[roots.amd]]\nname = "{SNP.root.name}"\nspki_sha256 = "{SNP.root.spki_sha256.hex()}"\n'
        gateway.policy_text += root
        gateway.start()
        try:
            until(lambda: hardware.state.unready is None)
            with Caller(gateway.origin, gateway.policy_text) as caller:
                assert caller.chat("hello").body
                verdict = caller.verdict
                for other in (
                    gateway.policy_text.replace("index = 11", "index = 12"),
                    gateway.policy_text.replace("[azure", "[tdx").split("[[tdx.pcrs")[0] + "\n" + root,
                ):
                    with pytest.raises(AttestationError):
                        caller.verify(other)
                with pytest.raises(AttestationError, match=Check.POLICY_PLATFORM):
                    caller.verify("[snp]\nany_measurement = true\n[gpu]\nrequired = false\n" + root)
        finally:
            gateway.stop()
    assert verdict.vtpm is not None
    assert set(verdict.vtpm.pcrs) == set(range(24))
    again = parse_evidence(dump_evidence(verdict.evidence))
    policy, now = parse_policy(gateway.policy_text), datetime.now(UTC)
    assert verify(again, policy, nonce=verdict.nonce, now=now).cpu == verdict.cpu
    with pytest.raises(AttestationError, match=Check.BINDING_REPORT_DATA):
        verify(again, policy, nonce=bytes(32), now=now)
    locked = lock(verdict, policy, name="x", expires=None)
    assert locked.azure is not None
    assert [pcr.index for pcr in locked.azure.pcrs] == [4, 11]
    assert FIRST_SIGHT.azure is not None
    assert FIRST_SIGHT.azure.any_pcrs


def test_other_hardware_than_the_settings_name(tmp_path: Path, tpm: Tpm) -> None:
    """An SEV-SNP machine is not taken for a TDX one."""
    with pytest.raises(UnavailableError, match="runs on SNP"), azure(tmp_path, tpm, tee="azure-tdx"):
        pass


def test_a_quote_for_another_nonce(tmp_path: Path, tpm: Tpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the TPM says about something else is not given out."""
    with azure(tmp_path, tpm) as (hardware, _):
        other = hardware.evidence(bytes(64))
        assert isinstance(other, AzureEvidence)
        monkeypatch.setattr(module, "collect_azure", lambda *_, **__: other)
        with pytest.raises(UnavailableError, match="evidence is about"):
            hardware.evidence(b"\x01" * 64)


def test_no_metadata_service(tmp_path: Path, tpm: Tpm) -> None:
    """Without Azure's service there is no evidence, and the error says so."""
    with azure(tmp_path, tpm) as (hardware, metadata):
        metadata.answers.clear()
        with pytest.raises(UnavailableError, match="status 404"):
            hardware.evidence(bytes(64))
