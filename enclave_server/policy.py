"""The client policy that accepts exactly this gateway: what `enclave-server policy` prints.

Where the TEE is simulated it names the simulator's root, and says so: such a policy is for development only.
"""

from __future__ import annotations

from typing import assert_never

from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.snp.report import parse_report
from attestation.tdx.quote import parse_quote
from enclave_server.settings import Settings
from enclave_server.tee import Tee

_WARNING = "# A SIMULATED TEE: this proves nothing about hardware. For development only.\n"
_ROOT = """\
[[roots.{vendor}]]
name = "{name}"
spki_sha256 = "{pin}"
"""


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
        + ("require_log = true\n" if settings.log_dir else "")
        + ("require_serving_seal = true\n" if settings.serving_seal else "")
    )
    return "\n".join(parts)


def _cpu(tee: Tee, *, sealed: bool) -> str:
    """The measurement, read out of evidence that this machine makes about nothing. A seal makes RTMR3 another in each boot."""
    match tee.evidence(bytes(64)):
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
        case never:
            assert_never(never)
