"""`attested explain` as a person runs it: which event differs, which file makes it, what it was and should be."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import AttestationError
from attestation.release import Expected, ExpectedEvent, Release
from attestation.simulator.snp import MEASUREMENT, SimulatedSnp
from attestation.simulator.vtpm import SimulatedVtpm
from attestation.vtpm import dump_evidence as dump_azure
from client_sdk.boots import read_boot
from tests.attestation.measure.logs import (
    COMMAND_LINE,
    HASHES,
    INITRD,
    KERNEL,
    boot,
    log,
)
from tests.client_sdk.explained import (
    NAMES,
    REGISTERS,
    RELEASE,
    VM_CELL,
    Files,
    cell,
    changed,
    pcrs_after,
    td_after,
    told,
    tpm_log,
    without_mrtd,
)
from tests.client_sdk.pretend import SIMULATOR
from tests.vectors import needs_vectors, read


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


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


def test_another_firmware(files: Files) -> None:
    """MRTD is one value: what it should be, what it was, and what makes it."""
    quote = SIMULATOR.quote(bytes(64), td=replace(td_after(boot()), mrtd=b"\x09" * 48))
    said = told(files.put("quote.bin", quote), files.refs(), "--log", str(files.put("ccel", log(boot()))))
    assert f"was        {'09' * 48}" in said
    assert "made by OVMF.fd" in said
    assert "Another firmware file" in said


@pytest.mark.parametrize("measured", [b"uki", b"another"])
def test_a_vtpm(files: Files, measured: bytes) -> None:
    """PCRs by their log, inside of the evidence as Azure has it."""
    data = tpm_log(measured)
    evidence = SimulatedVtpm().evidence(bytes(32), pcrs=pcrs_after(data), event_log=data)
    refs = files.refs(Release(id="1.4", expected=(VM_CELL,)))
    said = told(files.put("azure.json", dump_azure(evidence)), refs, status=0 if measured == b"uki" else 1)
    assert ("PCR4: as expected" if measured == b"uki" else "PCR4: differs at event 1") in said


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


@given(st.binary(max_size=1300), st.binary(max_size=200) | st.just(log(boot())))
def test_any_bytes_are_a_boot_or_one_of_our_errors(data: bytes, other: bytes) -> None:
    """Whatever the files hold, a value or an error of ours comes of reading them."""
    quote = SIMULATOR.quote(bytes(64))
    for evidence in (data, quote[: len(data)] + data[:9], b'{"tpm_quote":' + data):
        with suppress(AttestationError):
            read_boot(evidence, other)


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
