"""Boots, and what a release expects of them, for the tests of `attested explain`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from attestation.evidence import Evidence, TdxEvidence, dump_evidence
from attestation.measure import Algorithm, parse_log, replay
from attestation.references import References, dump_envelope, dump_references, dump_statement
from attestation.release import Expected, ExpectedEvent, LeftOut, Release, Revoked
from attestation.simulator.tdx import DEFAULT_TD
from attestation.simulator.vtpm import PCRS
from attestation.tdx import TdReport
from tests.attestation.measure.logs import (
    COMMAND_LINE,
    HASHES,
    INITRD,
    KERNEL,
    Entry,
    boot,
    entry,
    header,
    log,
)
from tests.client_sdk.pretend import SIMULATOR, PretendEnclave
from tests.client_sdk.test_cli import attested

REGISTERS = ("RTMR0", "RTMR1", "RTMR2")


NAMES = {
    KERNEL: ("kernel", "vmlinuz"),
    INITRD: ("initrd", "initrd"),
    COMMAND_LINE.encode("utf-16le") + b"\0\0": ("command line", "cmdline"),
    b"old initrd": ("old initrd", "initrd"),
}


ISSUED = References(name="acme", epoch=1, issued=0, expires=2**31, releases=())


def expected(entries: list[Entry] | None = None) -> Expected:
    """What was computed of the boot that `logs.boot` makes."""
    events = []
    for register, _, measured, _ in entries or boot():
        what, source = NAMES.get(measured, ("mark", "firmware"))
        events.append(
            ExpectedEvent(
                register=f"RTMR{register - 1}", what=what, source=source, sha384=HASHES[12](measured).digest()
            )
        )
    mrtd = ExpectedEvent(register="MRTD", what="firmware", source="OVMF.fd", sha384=DEFAULT_TD.mrtd)
    left = LeftOut(register="RTMR3", reason="what runs in the VM extends it")
    return Expected(
        platform="tdx",
        profile="qemu10",
        shape="h200x8",
        boot="direct",
        events=(mrtd, *events),
        left_out=(left,),
    )


RELEASE = Release(id="1.4.0", expected=(expected(),))


def td_after(entries: list[Entry]) -> TdReport:
    values = replay(parse_log(log(entries)), Algorithm.SHA384)
    return replace(DEFAULT_TD, rtmr0=values[1], rtmr1=values[2], rtmr2=values[3])


@dataclass
class Files:
    """A folder with a machine's evidence and references."""

    folder: Path

    def refs(self, *releases: Release, revoked: tuple[Revoked, ...] = (), signed: bool = False) -> Path:
        references = replace(ISSUED, releases=releases or (RELEASE,), revoked=revoked)
        data = dump_envelope(dump_statement(references), []) if signed else dump_references(references)
        return self.put("refs.json", data)

    def put(self, name: str, data: bytes) -> Path:
        (self.folder / name).write_bytes(data)
        return self.folder / name

    def quote(self, entries: list[Entry]) -> Path:
        return self.put("quote.bin", SIMULATOR.quote(bytes(64), td=td_after(entries)))

    def document(self, entries: list[Entry], *, shown: list[Entry] | None = None) -> Path:
        """An evidence document of a TD that booted so, and the log that it shows."""
        quote = SIMULATOR.quote(bytes(64), td=td_after(entries))
        evidence: Evidence = replace(
            PretendEnclave().evidence(bytes(32)),
            cpu=TdxEvidence(quote),
            event_log=log(entries if shown is None else shown),
        )
        return self.put("evidence.json", dump_evidence(evidence))


def told(evidence: Path, refs: Path, *options: str, status: int = 1) -> str:
    done = attested("explain", str(evidence), "--refs", str(refs), *options)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def changed(measured: bytes, new: bytes) -> list[Entry]:
    return [(r, t, new if m == measured else m, d) for r, t, m, d in boot()]


def without_mrtd() -> Expected:
    cell = expected()
    return replace(cell, events=tuple(e for e in cell.events if e.register != "MRTD"))


VM_CELL = Expected(
    platform="vtpm",
    profile="",
    shape="",
    boot="uki",
    events=(
        ExpectedEvent(register="PCR4", what="UKI", source="enclave.efi", sha256=HASHES[11](b"uki").digest()),
    ),
)


def tpm_log(*measured: bytes) -> bytes:
    body = b"".join(entry(4, 0x80000003, m, b"path", algorithms=(11,)) for m in measured)
    return header(kind=0, algorithms=((11, 32),)) + body


def pcrs_after(data: bytes) -> tuple[bytes, ...]:
    values: Mapping[int, bytes] = replay(parse_log(data), Algorithm.SHA256)
    return tuple(values.get(i, value) for i, value in enumerate(PCRS))


def cell(shape: str, value: bytes) -> Expected:
    event = ExpectedEvent(register="MEASUREMENT", what="launch digest", source="OVMF.fd", sha384=value)
    return Expected(platform="snp", profile="qemu", shape=shape, boot="direct", events=(event,))
