"""A policy that accepts exactly what one enclave has shown, and nothing older: the content of `attest.lock`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from attestation.nvidia.policy import GpuPolicy, driver_key, vbios_key
from attestation.nvidia.verify import GpuClaims
from attestation.policy import Policy, StatementPolicy
from attestation.release import Limited
from attestation.release_policy import ReleasePolicy
from attestation.snp.floors import TcbFloor
from attestation.snp.policy import SnpPolicy
from attestation.snp.verify import SnpClaims
from attestation.tdx import TdxClaims, TdxMeasurement, TdxPolicy
from attestation.verdict import Verdict
from attestation.vtpm import PcrPolicy, VtpmClaims, VtpmPolicy

#: What is demanded of an enclave of which nothing is known: everything but what it runs.
FIRST_SIGHT = Policy(
    statement=StatementPolicy(any_model=True, any_config=True),
    tdx=TdxPolicy(any_measurement=True, any_mr_config_id=True, any_mr_owner=True, any_mr_owner_config=True),
    snp=SnpPolicy(any_measurement=True, any_host_data=True),
    azure=VtpmPolicy(
        tdx=TdxPolicy(
            any_measurement=True, any_mr_config_id=True, any_mr_owner=True, any_mr_owner_config=True
        ),
        snp=SnpPolicy(any_measurement=True, any_host_data=True),
        any_pcrs=True,
    ),
)
_BOOT_PCRS = (4, 9, 11)  # what was started, initrd and command line, the parts of a unified kernel image


def lock(
    verdict: Verdict, accepted: Policy, *, name: str, expires: datetime | None, machine: bool = False
) -> Policy:
    """The policy that pins what `verdict` found: what runs, on which platform, and how up to date it is at least.

    Everything else is taken from `accepted`, under which the verdict was reached. With `machine`, it has to be this very
    machine.
    """
    cpu, statement = verdict.cpu, verdict.statement
    demanded = replace(
        accepted,
        references=None,
        release=replace(
            accepted.release,
            name=name,
            expires=_earlier(expires, accepted.release),
            limited=_limits(verdict, accepted),
            accepted=(),
        ),
        statement=StatementPolicy(
            model_digests=frozenset({statement.model.digest}),
            config_digests=frozenset({statement.config}),
            require_log=statement.keys.log_ed25519 is not None,
            require_serving_seal=bool(verdict.evidence.serving_seal),
            secrets_digests=frozenset({statement.secrets} if statement.secrets else ()),
        ),
        gpu=_gpu(verdict.gpus, accepted.gpu),
        tdx=None,
        snp=None,
        azure=None,
    )
    if verdict.vtpm is not None:
        azure = accepted.taking(*accepted.release.accepted).azure or VtpmPolicy()
        return replace(demanded, azure=_azure(verdict.vtpm, azure, machine=machine))
    if isinstance(cpu, TdxClaims):
        sealed = bool(verdict.evidence.serving_seal)  # then RTMR3 is another in each boot
        return replace(demanded, tdx=_tdx(cpu, accepted.tdx or TdxPolicy(), machine=machine, sealed=sealed))
    return replace(demanded, snp=_snp(cpu, accepted.snp or SnpPolicy(), machine=machine))


def _limits(verdict: Verdict, accepted: Policy) -> tuple[Limited, ...]:
    """Of the releases that are all of what was found, of those that run, and of those whose model or configuration a limit is on."""
    candidates = accepted.candidates(verdict.cpu, verdict.statement, verdict.verified_at, verdict.vtpm)
    whole = [candidate.release for candidate in candidates if candidate.accepted]
    bound = accepted.release.limits(verdict.cpu, verdict.vtpm, verdict.statement)
    found = dict.fromkeys([*whole, *(one for _, releases in bound for one in releases)])
    unlimited = all(one.until is None and one.machines is None for one in found)
    return () if unlimited else tuple(found)


def _earlier(expires: datetime | None, release: ReleasePolicy) -> datetime | None:
    known = [end for end in (expires, release.expires) if end is not None]
    return min(known) if known else None


def _tdx(claims: TdxClaims, accepted: TdxPolicy, *, machine: bool, sealed: bool) -> TdxPolicy:
    td = claims.td
    rtmr3 = None if sealed else td.rtmr3
    return replace(
        accepted,
        measurements=(
            TdxMeasurement(mrtd=td.mrtd, rtmr0=td.rtmr0, rtmr1=td.rtmr1, rtmr2=td.rtmr2, rtmr3=rtmr3),
        ),
        any_measurement=False,
        mr_config_id=frozenset({td.mr_config_id}),
        any_mr_config_id=False,
        mr_owner=frozenset({td.mr_owner}),
        any_mr_owner=False,
        mr_owner_config=frozenset({td.mr_owner_config}),
        any_mr_owner_config=False,
        min_tcb_evaluation_data_number=claims.tcb_evaluation_data_number,
        min_tee_tcb_svn=td.tee_tcb_svn,
        ppid=frozenset({claims.platform.ppid}) if machine else accepted.ppid,
    )


def _snp(claims: SnpClaims, accepted: SnpPolicy, *, machine: bool) -> SnpPolicy:
    report, tcb = claims.report, claims.reported_tcb
    floor = TcbFloor(
        product=claims.product,
        fmc=tcb.fmc,
        bootloader=tcb.bootloader,
        tee=tcb.tee,
        snp=tcb.snp,
        microcode=tcb.microcode,
    )
    return replace(
        accepted,
        measurements=frozenset({report.measurement}),
        any_measurement=False,
        host_data=frozenset({report.host_data}) if any(report.host_data) else frozenset(),
        any_host_data=False,
        min_guest_svn=report.guest_svn,
        tcb_floors=(*(f for f in accepted.tcb_floors if f.product is claims.product), floor),
        chip_ids=frozenset({claims.chip_id}) if machine and claims.chip_id else accepted.chip_ids,
    )


def _azure(claims: VtpmClaims, accepted: VtpmPolicy, *, machine: bool) -> VtpmPolicy:
    """The paravisor, and the PCRs that the policy named; those of kernel and command line when it named none."""
    hardware = claims.hardware
    named = [pcr.index for pcr in accepted.pcrs] or [i for i in _BOOT_PCRS if any(claims.pcrs.get(i, b""))]
    pcrs = tuple(PcrPolicy(index=i, values=frozenset({claims.pcrs[i]})) for i in named)
    accepted = replace(
        accepted, measurements=tuple(m for m in accepted.measurements if m.matches(claims.pcrs))
    )
    if isinstance(hardware, TdxClaims):
        tdx = _tdx(hardware, accepted.tdx or TdxPolicy(), machine=machine, sealed=False)
        return replace(accepted, tdx=tdx, snp=None, pcrs=pcrs, any_pcrs=False)
    snp = _snp(hardware, accepted.snp or SnpPolicy(), machine=machine)
    return replace(accepted, tdx=None, snp=snp, pcrs=pcrs, any_pcrs=False)


def _gpu(claims: Sequence[GpuClaims], accepted: GpuPolicy) -> GpuPolicy:
    gpus = [claim for claim in claims if not claim.switch]
    if not gpus:
        return accepted  # none, or a service's token stood in for them
    return replace(
        accepted,
        count=len(gpus),
        archs=frozenset(claim.arch for claim in claims),
        min_driver=min((gpu.driver for gpu in gpus), key=driver_key),
        min_vbios=min((gpu.vbios for gpu in gpus), key=vbios_key),
    )
