"""The real TEEs: evidence from this machine's CPU and GPUs, held against what was asked before it leaves."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.binding import tpm_nonce
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.collect import registers, sev_guest, tdx_guest, tsm
from attestation.collect.azure import METADATA, collect_azure
from attestation.collect.certificates import Certificate, parse_certificates
from attestation.collect.tsm import Provider, Tries, TsmReport, collect_tsm
from attestation.collect_nvidia import collect_gpus
from attestation.errors import AttestationError, MalformedError, UnavailableError
from attestation.evidence import CpuEvidence, SnpEvidence, TdxEvidence
from attestation.measure import Registers, parse_log, verify_log
from attestation.nvidia.devices import parse_list
from attestation.nvidia.evidence import NONCE_BYTES, parse_evidence
from attestation.roots import VENDOR, Root, Roots
from attestation.serving import make_seal, sealed_register, separator
from attestation.snp.report import parse_report
from attestation.snp.verify import SnpClaims
from attestation.tdx.quote import parse_quote
from attestation.tdx.verify import TdxClaims
from attestation.vtpm import AzureEvidence, ReportType, parse_hcl_report
from attestation.vtpm import parse_quote as parse_tpm_quote
from enclave_server.choices import TeeKind
from enclave_server.evidence.collateral import CollateralKeeper, CollateralState, Sample
from enclave_server.log import log
from enclave_server.settings import Settings

_AZURE = {TeeKind.AZURE_SNP: ReportType.SNP, TeeKind.AZURE_TDX: ReportType.TDX}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where Linux has the hardware's interfaces."""

    tsm: Path = tsm.TSM
    sev_guest: Path = sev_guest.DEVICE
    tdx_guest: Path = tdx_guest.DEVICE
    acpi: Path = registers.ACPI
    registers: Path = registers.REGISTERS
    tpm: str = "device:/dev/tpmrm0"  # as tpm2-tools names it
    metadata: str = METADATA


class Hardware:
    """A TDX or SEV-SNP guest or an Azure VM on either, with NVIDIA GPUs where the settings say so."""

    def __init__(self, settings: Settings, *, places: Places = Places(), roots: Roots = VENDOR) -> None:
        self._settings, self._places = settings, places
        self._asked = threading.Lock()
        self._tries = Tries(total_s=settings.evidence_seconds)
        self._seal_key = Ed25519PrivateKey.generate() if settings.serving_seal else None
        self._keeper = CollateralKeeper(settings, self._sample, roots)
        self._log = self._boot_log(self.evidence(secrets.token_bytes(tsm.INBLOB_BYTES)))  # is it here at all?

    def evidence(self, report_data: bytes) -> CpuEvidence:
        return self._collect(report_data)[0]

    def gpus(self, nonce: bytes) -> bytes:
        if not self._settings.nvidia_gpus:
            return b""
        with self._asked:
            found = collect_gpus(nonce)
        check_gpus(found, nonce, self._settings.nvidia_gpus)
        return found

    def collateral(self) -> Collateral:
        self._keeper.start()
        return self._keeper.current

    def event_log(self) -> bytes:
        return self._log

    @property
    def state(self) -> CollateralState:
        return self._keeper.state

    @property
    def simulated_roots(self) -> Mapping[str, Root]:
        return {}

    def begin_serving(self) -> None:
        if self._seal_key is None:
            return
        key, folder = self._seal_key.public_key().public_bytes_raw(), self._places.registers
        if any(registers.read_register(registers.RTMR3, folder=folder)):
            raise UnavailableError(
                Check.TEE_COLLECT,
                "RTMR3 was extended in this boot already, so it cannot name this start's key alone",
                advice="Restart the VM: with serving_seal a gateway starts once in each boot, and nothing else may extend RTMR3",
            )
        registers.extend_rtmr3(separator(key), folder=folder)
        if registers.read_register(registers.RTMR3, folder=folder) != sealed_register(key):
            raise UnavailableError(Check.TEE_COLLECT, "RTMR3 does not hold what it was extended with")

    def seal(self, statement: bytes) -> bytes:
        return make_seal(self._seal_key, statement) if self._seal_key is not None else b""

    def refresh(self) -> TdxClaims | SnpClaims:
        return self._keeper.refresh()

    def close(self) -> None:
        """Fetch nothing any more."""
        self._keeper.close()

    def _collect(self, report_data: bytes) -> tuple[CpuEvidence, bytes]:
        """Evidence, and the certificates that came with it. One request at a time: the hardware does no more either."""
        cpu: CpuEvidence
        with self._asked:
            if self._settings.tee is TeeKind.TDX:
                cpu, table = TdxEvidence(without_padding(self._quote(report_data))), b""
            elif self._settings.tee in _AZURE:
                cpu, table = self._azure(report_data), b""
            else:
                collected = self._report(report_data)
                cpu, table = SnpEvidence(collected.outblob), collected.auxblob
        check_report_data(cpu, report_data)
        return cpu, table

    def _azure(self, report_data: bytes) -> AzureEvidence:
        evidence = collect_azure(
            tpm_nonce(report_data),
            environment={"TPM2TOOLS_TCTI": self._places.tpm},
            metadata=self._places.metadata,
            seconds=self._settings.evidence_seconds,
        )
        found = parse_hcl_report(evidence.hcl_report).report_type
        if found is not _AZURE[self._settings.tee]:
            raise UnavailableError(
                Check.TEE_COLLECT,
                f"the VM runs on {found.name}, the settings name {self._settings.tee!r}",
                advice="Set `tee` to what this machine is",
            )
        return evidence

    def _quote(self, report_data: bytes) -> bytes:
        places = self._places
        if places.tsm.is_dir() or not places.tdx_guest.exists():
            return collect_tsm(Provider.TDX, report_data, folder=places.tsm, tries=self._tries).outblob
        report = tdx_guest.collect_tdreport(report_data, device=places.tdx_guest)
        return tdx_guest.quote_of(report, seconds=self._settings.evidence_seconds)

    def _report(self, report_data: bytes) -> TsmReport:
        places = self._places
        if places.tsm.is_dir() or not places.sev_guest.exists():
            return collect_tsm(Provider.SNP, report_data, folder=places.tsm, tries=self._tries)
        return sev_guest.collect_sev_guest(report_data, device=places.sev_guest)

    def _sample(self) -> Sample:
        cpu, table = self._collect(secrets.token_bytes(tsm.INBLOB_BYTES))
        nonce = secrets.token_bytes(NONCE_BYTES)
        return Sample(cpu=cpu, vek=_vek(table), gpu=self.gpus(nonce), gpu_nonce=nonce)

    def _boot_log(self, cpu: CpuEvidence) -> bytes:
        """The log of the boot, where it leads to the registers that the CPU signs; another would only be refused."""
        if not isinstance(cpu, TdxEvidence) or not (
            content := registers.read_event_log(folder=self._places.acpi)
        ):
            return b""
        td = parse_quote(cpu.quote).td
        try:
            verify_log(parse_log(content), Registers.rtmrs((td.rtmr0, td.rtmr1, td.rtmr2, td.rtmr3)))
        except AttestationError as exc:
            log.warning("event log left out", reason=str(exc.check))
            return b""
        return content


def without_padding(quote: bytes) -> bytes:
    """The quote without the zeros that device files put behind it."""
    padding = parse_quote(quote, padding=True).padding
    return quote[: len(quote) - padding]


def check_report_data(cpu: CpuEvidence, asked: bytes) -> None:
    """The hardware's answer is about what was asked, whoever else asks it at the same time."""
    match cpu:
        case TdxEvidence(quote):
            found = parse_quote(quote).td.report_data
        case SnpEvidence(report):
            found = parse_report(report).report_data
        case AzureEvidence(quote=quote):
            found, asked = parse_tpm_quote(quote).extra_data, tpm_nonce(asked)
        case never:
            assert_never(never)
    if found != asked:
        raise UnavailableError(
            Check.TEE_COLLECT,
            f"asked for report data {asked.hex()[:32]}…, the evidence is about {found.hex()[:32]}…",
            advice="Somebody else in this VM asks for evidence too, or the driver is broken",
        )


def check_gpus(data: bytes, nonce: bytes, count: int) -> None:
    """So many devices, each about this nonce."""
    devices = parse_list(data)
    if len(devices) != count:
        raise UnavailableError(
            Check.GPU_COLLECT, f"the settings say nvidia_gpus = {count}, the driver has {len(devices)}"
        )
    for number, device in enumerate(devices):
        if parse_evidence(device.report).nonce != nonce:
            raise UnavailableError(Check.GPU_COLLECT, f"GPU {number} answered for another nonce")


def _vek(table: bytes) -> bytes | None:
    """The host's endorsement certificate; a table that cannot be read counts as none, AMD has the certificate too."""
    try:
        found = parse_certificates(table)
    except MalformedError as exc:
        log.warning("host's certificate refused", reason=str(exc.check))
        return None
    return found.get(Certificate.VCEK) or found.get(Certificate.VLEK)
