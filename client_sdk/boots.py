"""What a file shows of a machine's boot, for `attested explain`: registers, and the events that lead to them. Not judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from attestation import snp, tdx, vtpm
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.evidence import SnpEvidence, TdxEvidence, parse_evidence
from attestation.measure import Algorithm, EventLog, LogKind, Registers, parse_log, replay, verify_log
from attestation.measure.explain import Boot
from attestation.measure.replay import initial
from attestation.references import References
from attestation.release import Release
from attestation.snp.product import product_of_cpuid
from attestation.snp.report import REPORT_BYTES, Report
from attestation.tdx import TdReport
from attestation.vtpm import VtpmMeasurement
from client_sdk.evidence_policy import EvidencePolicy

_UNPROVEN = "the log came without a quote: nothing vouches for it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One file's boot, and what has to be said beside it."""

    boot: Boot
    notes: tuple[str, ...] = ()
    report: Report | None = None  # of SEV-SNP, which has no log


def read_boot(data: bytes, log: bytes = b"") -> Shown:
    """The boot in an evidence document, a TDX quote, an SNP report, an Azure VM's evidence, or an event log alone."""
    text = data.lstrip()
    if text.startswith(b'{"__cmwc_t"') or (text[:1] == b"{" and b"__cmwc_t" in text):
        evidence = parse_evidence(data)
        match evidence.cpu:
            case TdxEvidence(quote):
                return _td(tdx.parse_quote(quote, padding=True).td, log or evidence.event_log)
            case SnpEvidence(report):
                return _guest(snp.parse_report(report))
            case vtpm.AzureEvidence() as azure:
                return _vm(azure, log)
    if text[:1] == b"{":
        return _vm(vtpm.parse_evidence(data), log)
    if len(data) == REPORT_BYTES:
        return _guest(snp.parse_report(data))
    if b"Spec ID Event03\0" in data[:64]:
        return _log_alone(parse_log(data))
    if data[:2] in (b"\x04\x00", b"\x05\x00"):
        return _td(tdx.parse_quote(data, padding=True).td, log)
    raise MalformedError(Check.EVIDENCE_FORMAT, "no evidence of a boot that this program knows")


def _td(td: TdReport, log: bytes) -> Shown:
    values = (td.rtmr0, td.rtmr1, td.rtmr2, td.rtmr3)
    registers = {"MRTD": td.mrtd} | {f"RTMR{i}": value for i, value in enumerate(values)}
    return _with_log("tdx", registers, Registers.rtmrs(values), log)


def _vm(evidence: vtpm.AzureEvidence, log: bytes) -> Shown:
    selected = vtpm.parse_quote(evidence.quote).selected
    pcrs = {i: evidence.pcrs[i] for i in selected}
    registers = {f"PCR{i}": value for i, value in pcrs.items()}
    return _with_log("vtpm", registers, Registers.pcrs(pcrs), log or evidence.event_log)


def _guest(report: Report) -> Shown:
    boot = Boot(platform="snp", registers={"MEASUREMENT": report.measurement})
    return Shown(boot=boot, report=report)


def _log_alone(log: EventLog) -> Shown:
    algorithm = Algorithm.SHA384 if log.kind is LogKind.CC else Algorithm.SHA256
    empty = {
        i: initial(log, i, algorithm) for i in range(log.kind.registers) if log.kind.name_of(i) != "MRTD"
    }
    values = empty | replay(log, algorithm)
    registers = {log.kind.name_of(i): value for i, value in values.items()}
    platform = "tdx" if log.kind is LogKind.CC else "vtpm"
    shown = _explained(platform, registers, Registers(kind=log.kind, algorithm=algorithm, values=values), log)
    return Shown(boot=shown.boot, notes=(_UNPROVEN,))


def _with_log(platform: str, registers: dict[str, bytes], values: Registers, log: bytes) -> Shown:
    if log:
        return _explained(platform, registers, values, parse_log(log))
    note = "there is no event log: which event differs cannot be told (--log gives one)"
    return Shown(boot=Boot(platform=platform, registers=registers), notes=(note,))


def _explained(platform: str, registers: dict[str, bytes], values: Registers, log: EventLog) -> Shown:
    """The events of each register that the log leads to; of another register it tells nothing."""
    if log.kind is not values.kind:
        raise MalformedError(
            Check.EVENTLOG_FORMAT, f"the log is of a {log.kind}, the evidence of a {values.kind}"
        )
    led = replay(log, values.algorithm)
    others = {i for i in {*led, *values.values} if led.get(i, values.values.get(i)) != values.values.get(i)}
    claims = verify_log(log, values, leave_out=others | (set(values.values) - set(led)))
    by_register = sorted(claims.events, key=lambda event: event.register)  # stable: the order within stays
    events = {name: tuple(group) for name, group in groupby(by_register, key=lambda event: event.register)}
    notes = tuple(
        f"{log.kind.name_of(i)}: the log does not lead to this value. It is of another boot, or more was measured later"
        for i in sorted(others & set(values.values))
    )
    return Shown(boot=Boot(platform=platform, registers=registers, events=events), notes=notes)


def releases_of(references: References) -> tuple[Release, ...]:
    """What is accepted, and what was and is revoked: a machine may run either."""
    revoked = (
        Release(id=f"{r.id} (revoked: {r.reason})", tdx=r.tdx, snp=r.snp, vtpm=r.vtpm)
        for r in references.revoked
    )
    return (*references.releases, *revoked)


def release_of(policy: EvidencePolicy) -> Release:
    """What a policy itself names, as a release without a name of its own."""
    azure = policy.azure
    pcrs = {
        f"pcr{p.index}": next(iter(p.values)) for p in (azure.pcrs if azure else ()) if len(p.values) == 1
    }
    known = {name: value for name, value in pcrs.items() if name in VtpmMeasurement.__dataclass_fields__}
    return Release(
        id="of the policy",
        tdx=policy.tdx.measurements if policy.tdx else (),
        snp=policy.snp.measurements if policy.snp else frozenset(),
        vtpm=(*(azure.measurements if azure else ()), *([VtpmMeasurement(**known)] if known else [])),
    )


def told_by_report(report: Report, releases: Sequence[Release]) -> list[str]:
    """What an SNP report says besides its digest that may tell which part is another one."""
    lines = []
    product = product_of_cpuid(report.cpuid) if report.cpuid is not None else None
    if product is not None:
        lines.append(f"the machine's CPU is a {product}: only CPU types that it can be come into question")
    if any(report.host_data):
        owners = [r.id for r in releases if report.host_data in r.config_files]
        known = (
            f"the configuration of release {', '.join(owners)}"
            if owners
            else "no configuration of these releases"
        )
        lines.append(f"HOST_DATA is {known} ({report.host_data.hex()})")
    return lines
