"""`attested explain` as a person runs it: which event differs, which file makes it, what it was and should be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import AttestationError
from attestation.evidence import Evidence, TdxEvidence, dump_evidence
from attestation.measure import Algorithm, parse_log, replay
from attestation.policy import Policy
from attestation.references import References, dump_envelope, dump_references, dump_statement, sign
from attestation.release import Expected, ExpectedEvent, LeftOut, Release, Revoked
from attestation.reviewers import ReferencesPolicy, Reviewer
from attestation.simulator.snp import MEASUREMENT, SimulatedSnp
from attestation.simulator.tdx import DEFAULT_TD
from attestation.simulator.vtpm import PCRS, SimulatedVtpm
from attestation.snp import SnpPolicy
from attestation.tdx import TdReport, TdxMeasurement, TdxPolicy
from attestation.vtpm import PcrPolicy, VtpmMeasurement, VtpmPolicy
from attestation.vtpm import dump_evidence as dump_azure
from client_sdk.boots import read_boot
from client_sdk.policy_toml import dump_policy
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
from tests.vectors import needs_vectors, read

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


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def told(evidence: Path, refs: Path, *options: str, status: int = 1) -> str:
    done = attested("explain", str(evidence), "--refs", str(refs), *options)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def changed(measured: bytes, new: bytes) -> list[Entry]:
    return [(r, t, new if m == measured else m, d) for r, t, m, d in boot()]


@pytest.mark.parametrize("signed", [False, True])
def test_what_was_predicted_is_what_was_measured(files: Files, signed: bool) -> None:
    """All registers as expected, and the one that cannot be predicted is called that; exit status 0."""
    said = told(files.document(boot()), files.refs(signed=signed), status=0)
    assert "tdx: compared, not verified" in said
    assert "release 1.4.0, profile qemu10, shape h200x8, boot direct is what was measured" in said
    assert [f"  {name}: as expected" in said for name in ("MRTD", *REGISTERS)] == [True] * 4
    assert "  RTMR3: not predicted: what runs in the VM extends it" in said


@pytest.mark.parametrize(
    ("measured", "register", "position"),
    [(KERNEL, "RTMR1", 1), (INITRD, "RTMR2", 2), (COMMAND_LINE.encode("utf-16le") + b"\0\0", "RTMR2", 1)],
    ids=["kernel", "initrd", "command line"],
)
def test_another_file(files: Files, measured: bytes, register: str, position: int) -> None:
    """Register, event, file, what it should be and what it was."""
    said = told(files.document(changed(measured, b"another")), files.refs())
    what, source = NAMES[measured]
    assert "is nearest" in said
    assert f"  {register}: differs at event {position}: it is another one" in said
    assert f"should be  {what}, {HASHES[12](measured).hexdigest()}" in said
    assert HASHES[12](b"another").hexdigest() in said
    assert f"made by {source}" in said


def test_a_file_of_an_older_release(files: Files) -> None:
    """An initrd that was left over from the release before is called so; a revoked one is named with its reason."""
    older = Release(id="1.3.0", expected=(expected(changed(INITRD, b"old initrd")),))
    newer = replace(RELEASE, expected=(expected(changed(KERNEL, b"new kernel")),))
    mixed = [(r, t, {KERNEL: b"new kernel", INITRD: b"old initrd"}.get(m, m), d) for r, t, m, d in boot()]
    said = told(files.document(mixed), files.refs(newer, older))
    assert "release 1.4.0" in said
    assert "which is the old initrd of release 1.3.0" in said
    td = td_after(boot())
    gone = Revoked(id="1.2", reason="CVE", tdx=(TdxMeasurement(mrtd=td.mrtd, rtmr1=td.rtmr1),))
    assert "1.2 (revoked: CVE)" in told(files.document(boot()), files.refs(older, revoked=(gone,)), status=0)


def test_a_log_beside_a_quote(files: Files) -> None:
    """Without a log the register and what makes it; with one, the event."""
    entries = changed(KERNEL, b"another")
    quote, refs = files.quote(entries), files.refs()
    said = told(quote, refs)
    assert "RTMR1: differs" in said
    assert "made by vmlinuz, firmware" in said
    assert "it holds what was started" in said
    assert "there is no event log" in said
    with_log = told(quote, refs, "--log", str(files.put("ccel.bin", log(entries))))
    assert "RTMR1: differs at event 1" in with_log


def test_a_log_of_another_boot(files: Files) -> None:
    """A log that does not lead to the quote's registers explains none of them, and that is said."""
    said = told(files.document(changed(KERNEL, b"another"), shown=boot()), files.refs())
    assert "note: RTMR1: the log does not lead to this value" in said
    assert "differs at event" not in said


def test_a_log_alone(files: Files) -> None:
    """A log is explained too, and is nobody's word."""
    said = told(
        files.put("ccel.bin", log(boot())), files.refs(replace(RELEASE, expected=(without_mrtd(),))), status=0
    )
    assert "nothing vouches for it" in said


def without_mrtd() -> Expected:
    cell = expected()
    return replace(cell, events=tuple(e for e in cell.events if e.register != "MRTD"))


def test_another_firmware(files: Files) -> None:
    """MRTD is one value: what it should be, what it was, and what makes it."""
    quote = SIMULATOR.quote(bytes(64), td=replace(td_after(boot()), mrtd=b"\x09" * 48))
    said = told(files.put("quote.bin", quote), files.refs(), "--log", str(files.put("ccel", log(boot()))))
    assert f"was        {'09' * 48}" in said
    assert "made by OVMF.fd" in said
    assert "Another firmware file" in said


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


@pytest.mark.parametrize("measured", [b"uki", b"another"])
def test_a_vtpm(files: Files, measured: bytes) -> None:
    """PCRs by their log, inside of the evidence as Azure has it."""
    data = tpm_log(measured)
    evidence = SimulatedVtpm().evidence(bytes(32), pcrs=pcrs_after(data), event_log=data)
    refs = files.refs(Release(id="1.4", expected=(VM_CELL,)))
    said = told(files.put("azure.json", dump_azure(evidence)), refs, status=0 if measured == b"uki" else 1)
    assert ("PCR4: as expected" if measured == b"uki" else "PCR4: differs at event 1") in said


def cell(shape: str, value: bytes) -> Expected:
    event = ExpectedEvent(register="MEASUREMENT", what="launch digest", source="OVMF.fd", sha384=value)
    return Expected(platform="snp", profile="qemu", shape=shape, boot="direct", events=(event,))


def test_a_launch_digest(files: Files) -> None:
    """The cell that it is, when it is one; else what can be said without a log."""
    report = files.put("report.bin", SimulatedSnp().report(bytes(64)))
    cells = (cell("small", b"\x01" * 48), cell("h200x1", MEASUREMENT))
    said = told(report, files.refs(Release(id="1.4", expected=cells)), status=0)
    assert "shape h200x1, boot direct is what was measured" in said
    unknown = told(report, files.refs(Release(id="1.4", expected=cells[:1])))
    assert "MEASUREMENT: differs" in unknown
    assert "nothing tells which of them is another one" in unknown
    assert "the machine's CPU is a" in unknown


def test_nothing_matches(files: Files) -> None:
    """Where no release has a value or a file of the boot none is called the nearest; they are listed, and --all compares them."""
    report = files.put("report.bin", SimulatedSnp().report(bytes(64)))
    refs = files.refs(Release(id="1.4", expected=(cell("small", b"\x01" * 48), cell("h200x1", b"\x02" * 48))))
    said = told(report, refs)
    assert "Nothing matches: no value and no file of these 2" in said
    assert "nearest" not in said
    assert "shape small, boot direct\n" in said
    assert said.count("MEASUREMENT: differs") == 0
    assert told(report, refs, "--all").count("has nothing in common with what was measured") == 2
    assert json.loads(told(report, refs, "--json"))["cells"] == []
    strange = [(r, t, b"strange" + m if m in NAMES else m, d) for r, t, m, d in boot()]
    strange = [
        (r, t, b"s" + m if r == 1 else m, d) for r, t, m, d in strange
    ]  # the marks are those of any boot
    other = (without_mrtd(), replace(without_mrtd(), shape="small"))
    log_alone = files.put("ccel.bin", log(strange))
    assert "Nothing matches" in told(log_alone, files.refs(replace(RELEASE, expected=other)))


def test_several_are_as_near(files: Files) -> None:
    """Of two that fit as well the first is shown, and that there is another one is said."""
    twins = (expected(), replace(expected(), shape="small"))
    said = told(files.document(changed(KERNEL, b"another")), files.refs(replace(RELEASE, expected=twins)))
    assert "shape h200x8, boot direct is nearest, as near as 1 more (--all)" in said


@pytest.mark.parametrize("known", [True, False])
def test_host_data_tells_of_the_configuration(files: Files, known: bool) -> None:
    """HOST_DATA names the configuration that the VM was launched with: of a release, or of none."""
    config = b"\x05" * 32
    report = SimulatedSnp().report(bytes(64), host_data=config)
    release = Release(
        id="1.4", expected=(cell("small", bytes(48)),), config_files=frozenset({config} if known else ())
    )
    said = told(files.put("report.bin", report), files.refs(release))
    assert ("the configuration of release 1.4" if known else "no configuration of these releases") in said


def test_references_that_say_nothing(files: Files) -> None:
    """Nothing of this platform is in the references: nothing can be compared, which is no success."""
    said = told(files.document(boot()), files.refs(Release(id="1", snp=frozenset({bytes(48)}))))
    assert "say nothing of tdx" in said


def test_a_policy(files: Files) -> None:
    """A policy's own measurements are compared by value."""
    td, vm = td_after(boot()), SimulatedVtpm()
    policy = Policy(
        tdx=TdxPolicy(measurements=(TdxMeasurement(mrtd=td.mrtd, rtmr2=b"\x01" * 48),)),
        snp=SnpPolicy(measurements=frozenset({MEASUREMENT})),
        azure=VtpmPolicy(
            measurements=(VtpmMeasurement(pcr11=bytes(32)),),
            pcrs=(
                PcrPolicy(index=4, values=frozenset({PCRS[4]})),
                PcrPolicy(index=1, values=frozenset({PCRS[1]})),
            ),
        ),
    )
    file = files.put("policy.toml", dump_policy(policy).encode())
    done = attested("explain", str(files.document(boot())), "--policy", str(file))
    assert done.returncode == 1
    assert "release of the policy is nearest" in done.stdout
    assert "RTMR2: differs" in done.stdout
    azure = files.put("azure.json", dump_azure(vm.evidence(bytes(32))))
    assert attested("explain", str(azure), "--policy", str(file)).returncode == 0


def test_for_programs(files: Files) -> None:
    """--json prints one object, --all every cell."""
    cells = (expected(), replace(expected(changed(KERNEL, b"x")), shape="small"))
    refs = files.refs(replace(RELEASE, expected=cells))
    said = json.loads(told(files.document(boot()), refs, "--json", "--all", status=0))
    assert [c["cell"]["shape"] for c in said["cells"]] == ["h200x8", "small"]
    assert (said["same"], said["judged"]) == (True, False)
    (differs,) = (r for r in said["cells"][1]["registers"] if r["state"] == "differs")
    assert differs["difference"]["expected"]["source"] == "firmware"


@given(st.binary(max_size=1300), st.binary(max_size=200) | st.just(log(boot())))
def test_any_bytes_are_a_boot_or_one_of_our_errors(data: bytes, other: bytes) -> None:
    """Whatever the files hold, a value or an error of ours comes of reading them."""
    quote = SIMULATOR.quote(bytes(64))
    for evidence in (data, quote[: len(data)] + data[:9], b'{"tpm_quote":' + data):
        with suppress(AttestationError):
            read_boot(evidence, other)


def test_what_cannot_be_explained(files: Files) -> None:
    """What is no evidence, no references, or neither --refs nor --policy, by their exit codes."""
    assert attested("explain", str(files.put("x", b"nothing")), "--refs", str(files.refs())).returncode == 2
    document = files.document(boot())
    assert attested("explain", str(document), "--refs", str(files.put("r", b"{}"))).returncode == 2
    assert attested("explain", str(document)).returncode == 64
    wrong = attested(
        "explain",
        str(files.quote(boot())),
        "--refs",
        str(files.refs()),
        "--log",
        str(files.put("t", tpm_log(b"uki"))),
    )
    assert wrong.returncode == 2


def test_the_references_of_a_policy(files: Files) -> None:
    """A policy's references are read as it names them, with every event; unsigned ones are refused."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    wanted = ReferencesPolicy(file="signed.json", name="acme", reviewers=(Reviewer(name="ann", key=public),))
    file = files.put("policy.toml", dump_policy(Policy(tdx=TdxPolicy(), references=wanted)).encode())
    payload = dump_statement(replace(ISSUED, releases=(RELEASE,)))
    document = files.document(changed(KERNEL, b"another"))
    files.put("signed.json", dump_envelope(payload, [sign(payload, key)]))
    done = attested("explain", str(document), "--policy", str(file))
    assert done.returncode == 1
    assert "made by vmlinuz" in done.stdout
    files.put("signed.json", dump_envelope(payload, []))
    assert attested("explain", str(document), "--policy", str(file)).returncode == 3


@needs_vectors
def test_a_real_td(files: Files) -> None:
    """The quote and log of a live TD: all its registers by its own events. Another machine booted the same, and shows a log that is not of that boot."""
    live = {
        n: (read(f"eventlog/ccel-cdai-live{n}.quote.bin"), read(f"eventlog/ccel-cdai-live{n}.bin"))
        for n in (1, 2)
    }
    shown = read_boot(*live[2]).boot
    assert set(shown.events) >= set(REGISTERS)
    events = [
        ExpectedEvent(register=name, what=str(e.role), source=str(e.role), sha384=e.digest)
        for name in REGISTERS
        for e in shown.events[name]
    ]
    cell = Expected(platform="tdx", profile="", shape="", boot="", events=tuple(events))
    refs = files.refs(Release(id="live", expected=(cell,)))
    log_file = files.put("ccel.bin", live[2][1])
    assert "RTMR2: as expected" in told(files.put("q2", live[2][0]), refs, "--log", str(log_file), status=0)
    other = told(
        files.put("q1", live[1][0]), refs, "--log", str(files.put("ccel1.bin", live[1][1])), status=0
    )
    assert "note: RTMR2: the log does not lead to this value" in other
