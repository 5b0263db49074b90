"""Evidence through configfs-tsm: one entry a request, and every way in which the kernel or the host can be unwell."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attestation.checks import Check
from attestation.collect.tsm import TSM, Provider, Tries, collect_tsm, prepared_name
from attestation.errors import UnavailableError
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import SimulatedTdx
from attestation.snp.report import parse_report
from attestation.tdx.quote import parse_quote
from tests.tsm import Kernel, tsm

DATA = bytes(range(64))
SIM = SimulatedTdx.create()


class Waits(list[float]):
    """Stands for `time.sleep`, and remembers."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with tsm(tmp_path / "report", SIM.quote) as mounted:
        yield mounted


def refused(kernel: Kernel, provider: Provider = Provider.TDX, **tries: float) -> UnavailableError:
    """What the collector says; no entry is left behind."""
    with pytest.raises(UnavailableError) as caught:
        collect_tsm(
            provider,
            DATA,
            folder=kernel.folder,
            tries=Tries(sleep=Waits(), **tries),  # type: ignore[arg-type]
        )
    assert caught.value.check is Check.TEE_COLLECT
    assert not kernel.entries
    return caught.value


def test_a_quote(kernel: Kernel) -> None:
    """One request, one entry under a name of its own, and nothing left."""
    report = collect_tsm(Provider.TDX, DATA, folder=kernel.folder)
    assert parse_quote(report.outblob).td.report_data == DATA
    assert report.auxblob == b""
    assert (kernel.asked, kernel.entries, len(kernel.made)) == ([DATA], {}, 1)


def test_a_report_with_certificates(tmp_path: Path) -> None:
    """On SNP the table of certificates comes beside the report."""
    with tsm(tmp_path / "report", SimulatedSnp().report, provider="sev_guest") as kernel:
        kernel.table = b"table"
        report = collect_tsm(Provider.SNP, DATA, folder=kernel.folder)
    assert parse_report(report.outblob).report_data == DATA
    assert report.auxblob == b"table"


def test_at_once(kernel: Kernel) -> None:
    """Requests of many threads never share an entry, and each gets its own answer."""
    wanted = [bytes([number]) * 64 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda data: collect_tsm(Provider.TDX, data, folder=kernel.folder), wanted)
        assert [parse_quote(report.outblob).td.report_data for report in found] == wanted
    assert len(set(kernel.made)) == 16
    assert not kernel.entries


def test_entries_that_root_has_prepared(kernel: Kernel) -> None:
    """Where there are any, nobody makes another; threads that come together take one each, and leave it as it was."""
    for number in range(2):
        (kernel.folder / prepared_name(number)).mkdir()
    wanted = [bytes([number]) * 64 for number in range(12)]
    patience = Tries(attempts=100, first_wait_s=0.01, sleep=lambda _: time.sleep(0.01))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(
            lambda data: collect_tsm(Provider.TDX, data, folder=kernel.folder, tries=patience), wanted
        )
        assert [parse_quote(report.outblob).td.report_data for report in found] == wanted
    assert kernel.made == [entry.name for entry in kernel.entries.values()] == ["prepared-0", "prepared-1"]


def test_prepared_entries_that_are_all_in_use(kernel: Kernel) -> None:
    """A request waits for one, and not for ever."""
    (kernel.folder / "prepared-0").mkdir()
    with (kernel.folder / "prepared-0" / "generation").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match="all prepared entries are in use"):
            collect_tsm(Provider.TDX, DATA, folder=kernel.folder, tries=Tries(sleep=Waits()))
    assert collect_tsm(Provider.TDX, DATA, folder=kernel.folder).outblob


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.EAGAIN])
def test_a_busy_host_is_asked_again(kernel: Kernel, number: int) -> None:
    """What passes is waited for, with growing pauses, in a new entry each time."""
    kernel.errors = [number, number]
    waits = Waits()
    assert collect_tsm(Provider.TDX, DATA, folder=kernel.folder, tries=Tries(sleep=waits)).outblob
    assert not kernel.entries
    if number != errno.EINTR:  # Python itself asks again after that one
        assert waits == [0.05, 0.1]
        assert len(kernel.made) == 3


def test_a_host_that_stays_busy(kernel: Kernel) -> None:
    """Patience ends, and the error has the kernel's own word and what helps."""
    kernel.errors = [errno.ETIMEDOUT] * 9
    error = refused(kernel, attempts=3)
    assert "ETIMEDOUT" in error.detail
    assert "3 attempts" in error.detail
    assert len(kernel.made) == 3
    kernel.errors = [errno.EBUSY] * 9
    assert "EBUSY" in refused(kernel, total_s=0.0).detail


def test_another_writer_is_noticed(kernel: Kernel) -> None:
    """A generation that moved by more than our own write may mean somebody else's evidence: asked again, then refused."""
    kernel.others = 1
    assert collect_tsm(Provider.TDX, DATA, folder=kernel.folder, tries=Tries(sleep=Waits())).outblob
    assert len(kernel.made) == 2
    kernel.others = 99
    assert "generation went from 0 to 2" in refused(kernel, attempts=2).detail


def test_an_answer_without_end(kernel: Kernel) -> None:
    """What is longer than evidence can be does not fill the memory."""
    kernel.longer = 1024 * 1024
    assert "outblob has more than" in refused(kernel).detail


def test_an_empty_answer(tmp_path: Path) -> None:
    """No bytes are no evidence."""
    with tsm(tmp_path / "report", lambda _: b"") as kernel:
        assert "empty" in refused(kernel).detail


def test_another_tee_than_the_settings_name(kernel: Kernel) -> None:
    """An SNP guest is not taken for a TD, nor the reverse."""
    error = refused(kernel, Provider.SNP)
    assert "'tdx_guest'" in error.detail
    assert "tee" in error.advice


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EACCES, "user"), (errno.ENXIO, "registered"), (errno.EIO, "refused")]
)
def test_the_kernels_refusals(kernel: Kernel, number: int, words: str) -> None:
    """An error that waiting does not mend is raised at once, with advice."""
    kernel.mkdir_errors = [number]
    error = refused(kernel)
    assert errno.errorcode[number] in error.detail
    assert words in error.advice
    assert not kernel.made


def test_no_configfs(tmp_path: Path) -> None:
    """A machine without the interface is told how to get it."""
    with pytest.raises(UnavailableError, match=r"\[tee\.collect\] there is no .*Mount configfs"):
        collect_tsm(Provider.TDX, DATA, folder=tmp_path / "config/tsm/report")


def test_report_data_has_64_bytes(tmp_path: Path) -> None:
    """Shorter data would be padded by the hardware, and mean something else."""
    with pytest.raises(ValueError, match="64 bytes"):
        collect_tsm(Provider.TDX, b"short", folder=tmp_path)


@pytest.mark.hardware
def test_this_machine() -> None:
    """On a confidential VM: real evidence over the bytes that were asked for."""
    if not TSM.is_dir():
        pytest.skip("not a confidential VM with configfs-tsm")
    data = os.urandom(64)
    if Path("/dev/tdx_guest").exists():
        quote = collect_tsm(Provider.TDX, data).outblob
        assert parse_quote(quote, padding=True).td.report_data == data
    else:
        assert parse_report(collect_tsm(Provider.SNP, data).outblob).report_data == data
