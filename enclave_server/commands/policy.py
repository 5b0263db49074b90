"""The client policy that accepts exactly this gateway: what `enclave-server policy` prints.

Where the TEE is simulated it names the simulator's root, and says so: such a policy is for development only.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import assert_never

import typer

from attestation.evidence import CpuEvidence, SnpEvidence, TdxEvidence
from attestation.snp.report import parse_report
from attestation.tdx.quote import parse_quote
from attestation.vtpm import AzureEvidence, ReportType, parse_hcl_report
from enclave_server.commands.options import Config, EngineAddress, Workers, load
from enclave_server.evidence.tee import Tee, open_tee
from enclave_server.settings import Settings

_BOOT_PCRS = (4, 9, 11)
_WARNING = "# A SIMULATED TEE: this proves nothing about hardware. For development only.\n"
_ROOT = """\
[[roots.{vendor}]]
name = "{name}"
spki_sha256 = "{pin}"
"""


def show_policy(config: Config = None, workers: Workers = None, engine: EngineAddress = None) -> None:
    """Print the client policy (TOML) that accepts exactly this configuration."""
    settings = load(config, workers=workers, engine=engine)
    typer.echo(f"# Made by `enclave-server policy` on {datetime.now(UTC):%Y-%m-%d}.")
    typer.echo(policy_text(settings, open_tee(settings)), nl=False)


def policy_text(settings: Settings, tee: Tee) -> str:
    """TOML for `attestation.policy.parse_policy`."""
    parts = [_cpu(tee, sealed=settings.serving_seal)]
    if roots := tee.simulated_roots:
        named = [_ROOT.format(vendor=v, name=r.name, pin=r.spki_sha256.hex()) for v, r in roots.items()]
        parts = [_WARNING + "\n".join(named), *parts]
    gpus = settings.nvidia_gpus if settings.real_tee else settings.simulated_gpus
    parts.append(f"[gpu]\ncount = {gpus}\n" if gpus else "[gpu]\nrequired = false\n")
    parts.append(
        f'[statement]\nmodel_digests = ["{settings.model_digest}"]\nconfig_digests = ["{settings.digest().hex()}"]\n'
        + ("allow_external_engine = true\n" if settings.engine else "")
        + (f"max_engine_nodes = {settings.engine_nodes}\n" if settings.engine_nodes > 1 else "")
        + ("require_log = true\n" if settings.log_dir else "")
        + ("require_serving_seal = true\n" if settings.serving_seal else "")
    )
    return "\n".join(parts)


def _cpu(tee: Tee, *, sealed: bool) -> str:
    """The measurement, read out of evidence that this machine makes about nothing. A seal makes RTMR3 another in each boot."""
    return _cpu_of(tee.evidence(bytes(64)), sealed=sealed)


def _cpu_of(evidence: CpuEvidence, *, sealed: bool) -> str:
    match evidence:
        case TdxEvidence(quote):
            td = parse_quote(quote).td
            registers = {
                "mrtd": td.mrtd,
                "rtmr0": td.rtmr0,
                "rtmr1": td.rtmr1,
                "rtmr2": td.rtmr2,
            } | ({} if sealed else {"rtmr3": td.rtmr3})
            lines = "".join(f'{name} = "{value.hex()}"\n' for name, value in registers.items())
            config = f'mr_config_id = ["{td.mr_config_id.hex()}"]\n' if any(td.mr_config_id) else ""
            return f"[tdx]\n{config}\n[[tdx.measurements]]\n{lines}"
        case SnpEvidence(report):
            found = parse_report(report)
            config = f'host_data = ["{found.host_data.hex()}"]\n' if any(found.host_data) else ""
            return f'[snp]\nmeasurements = ["{found.measurement.hex()}"]\n{config}'
        case AzureEvidence():
            return _azure(evidence)
        case never:
            assert_never(never)


def _azure(evidence: AzureEvidence) -> str:
    """The paravisor's measurement, and the PCRs of what it started: boot loader or kernel, command line, unified image."""
    hcl = parse_hcl_report(evidence.hcl_report)
    if hcl.report_type is ReportType.TDX:
        hardware = _cpu_of(TdxEvidence(evidence.td_quote), sealed=True)
    else:
        hardware = _cpu_of(SnpEvidence(hcl.hardware_report), sealed=True)
    pcrs = [
        f'[[azure.pcrs]]\nindex = {index}\nvalues = ["{evidence.pcrs[index].hex()}"]\n'
        for index in _BOOT_PCRS
        if any(evidence.pcrs[index])
    ]
    vm = hcl.runtime_data.configuration
    loosened = "" if vm.secure_boot is True else "allow_no_secure_boot = true\n"
    loosened += "" if vm.console_enabled is False else "allow_console = true\n"
    return "\n".join(
        [f"[azure]\n{loosened}", *pcrs, hardware.replace("[tdx", "[azure.tdx").replace("[snp", "[azure.snp")]
    )
