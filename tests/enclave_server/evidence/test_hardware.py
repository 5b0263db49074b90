"""The real TEEs, on a machine whose kernel and vendors are stood in for: what is checked before anything leaves."""

from __future__ import annotations

import errno
import json
import math
import socket
import struct
import subprocess
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from attestation.checks import Check
from attestation.collect import sev_guest, tdx_guest
from attestation.collect.certificates import Certificate
from attestation.collect.tsm import TsmReport
from attestation.errors import UnavailableError
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.nvidia.devices import dump_list
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.snp import SimulatedSnp, SnpDefect
from attestation.simulator.tdx import TdxDefect
from attestation.tdx.quote import parse_quote
from attestation.verify import hardware_of, verify_cpu
from enclave_server.evidence import hardware as module
from enclave_server.evidence.hardware import Hardware
from tests.enclave_server.machine import intel, machine
from tests.processes import until
from tests.vendor import intel_pages, responder, rim_pages

DATA = bytes(range(64))


def ready(hardware: Hardware) -> bool:
    hardware.collateral()
    return hardware.state.unready is None


@pytest.mark.parametrize("tee", ["tdx", "snp"])
def test_evidence_and_collateral(tmp_path: Path, tee: str) -> None:
    """Evidence for the data asked, and in the background the collateral that clients accept it with."""
    with machine(tmp_path, tee) as box:
        hardware = box.open()
        evidence = hardware.evidence(DATA)
        assert hardware.state.unready == "collateral_missing"
        assert math.isnan(hardware.state.left)
        until(lambda: ready(hardware))
        claims = hardware_of(verify_cpu(evidence, hardware.collateral(), box.roots, datetime.now(UTC)))
        assert claims.report_data == DATA
        assert hardware.state.left == pytest.approx(
            (claims.collateral_expires - datetime.now(UTC)).total_seconds(), abs=60
        )
        assert not hardware.state.failing
        assert not box.kernel.entries


def test_padding_is_cut_off(tmp_path: Path) -> None:
    """Zeros that a driver puts behind a quote would be refused by clients."""
    with machine(tmp_path) as box:
        box.kernel.longer = 500
        evidence = box.open().evidence(DATA)
        assert isinstance(evidence, TdxEvidence)
        assert parse_quote(evidence.quote).padding == 0


@pytest.mark.parametrize("tee", ["tdx", "snp"])
def test_evidence_about_something_else_is_not_given_out(tmp_path: Path, tee: str) -> None:
    """A quote for another nonce is a named error, wherever the mistake was made."""
    with machine(tmp_path, tee) as box:
        hardware, sign = box.open(), box.kernel.sign
        box.kernel.sign = lambda _: sign(bytes(64))
        with pytest.raises(UnavailableError, match="evidence is about 0000") as caught:
            hardware.evidence(DATA)
        assert caught.value.check is Check.TEE_COLLECT


def test_no_tee(tmp_path: Path) -> None:
    """A gateway whose settings name a TEE that is not there does not start."""
    with machine(tmp_path) as box:
        box.kernel.provider = "sev_guest"
        with pytest.raises(UnavailableError, match="the settings name"):
            box.open()
        box.kernel.mkdir_errors = [errno.ENXIO]
        with pytest.raises(UnavailableError, match="ENXIO"):
            box.open()


def test_older_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without configfs-tsm the device files are asked."""
    with machine(tmp_path) as box:
        (tmp_path / "tdx_guest").touch()
        monkeypatch.setattr(tdx_guest, "collect_tdreport", lambda data, device: b"TDREPORT" + data)
        monkeypatch.setattr(tdx_guest, "quote_of", lambda report, seconds: intel().quote(report[8:]))
        box.kernel.folder = tmp_path / "none"
        assert isinstance(box.open().evidence(DATA), TdxEvidence)
    snp = SimulatedSnp()
    with machine(tmp_path / "snp", "snp") as box:
        (tmp_path / "snp/sev-guest").touch()
        report = TsmReport(snp.report(DATA), b"")
        monkeypatch.setattr(
            sev_guest,
            "collect_sev_guest",
            lambda data, device: replace(report, outblob=snp.report(data)),
        )
        box.kernel.folder = tmp_path / "none"
        assert isinstance(box.open().evidence(DATA), SnpEvidence)


# the host's certificates


def table(vcek: bytes) -> bytes:
    guid = bytes.fromhex(Certificate.VCEK.replace("-", ""))
    return guid + struct.pack("<II", 48, len(vcek)) + bytes(24) + vcek


def test_the_hosts_certificate_spares_a_request(tmp_path: Path) -> None:
    """AMD is not asked for a certificate that the host has handed over."""
    with machine(tmp_path, "snp") as box:
        box.kernel.table = table(SimulatedSnp().collateral().vek)
        hardware = box.open()
        until(lambda: ready(hardware))
        assert len(box.vendor.asked) == 2
        assert not [path for path in box.vendor.asked if "blSPL" in path]


@pytest.mark.parametrize(
    "bad", [table(SimulatedSnp().collateral(defect=SnpDefect.VEK_OTHER_TCB).vek), table(b"not DER"), b"\x01" * 30]
)  # fmt: skip
def test_a_stale_certificate_of_the_host(tmp_path: Path, bad: bytes) -> None:
    """Hosts keep certificates of an older TCB: then AMD is asked."""
    with machine(tmp_path, "snp") as box:
        box.kernel.table = bad
        hardware = box.open()
        until(lambda: ready(hardware))
        assert [path for path in box.vendor.asked if "blSPL" in path]


# GPUs


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every GPU of the settings, for this nonce; manifests and OCSP answers are stapled with the CPU's collateral."""
    nvidia = SimulatedNvidia.create(Machine(gpus=2))
    monkeypatch.setattr(module, "collect_gpus", nvidia.evidence)
    with machine(tmp_path, nvidia_gpus=2) as box:
        now = datetime.now(UTC)
        box.vendor.pages |= rim_pages(nvidia.evidence(bytes(32)), nvidia.collateral(now))
        box.vendor.answer = responder(nvidia.collateral(now))
        box.roots = nvidia.trust(box.roots)
        hardware = box.open()
        until(lambda: ready(hardware))
        stapled = hardware.collateral().nvidia
        assert stapled is not None
        assert len(stapled.rims) == 2
        assert hardware.state.left < 2 * 86400
        assert json.loads(hardware.gpus(bytes(32)))
        with pytest.raises(UnavailableError, match="another nonce"):
            module.check_gpus(nvidia.evidence(bytes(32)), b"\x01" * 32, 2)
        with pytest.raises(UnavailableError, match="nvidia_gpus = 8, the driver has 2") as caught:
            module.check_gpus(dump_list(nvidia.devices(bytes(32))), bytes(32), 8)
        assert caught.value.check is Check.GPU_COLLECT


def test_without_gpus_no_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs needs no NVIDIA library."""
    monkeypatch.setattr(module, "collect_gpus", lambda _: pytest.fail("asked"))
    with machine(tmp_path) as box:
        assert box.open().gpus(bytes(32)) == b""


# the boot's log


def test_a_log_that_explains_nothing_is_left_out(tmp_path: Path) -> None:
    """Clients refuse a log that does not lead to the registers, so the gateway does not hand one out."""
    with machine(tmp_path) as box:
        assert box.open().event_log() == b""
        (tmp_path / "acpi/data").mkdir(parents=True)
        (tmp_path / "acpi/data/CCEL").write_bytes(b"not a log")
        assert box.open().event_log() == b""


# collateral over time


def test_unreachable_at_boot_with_a_cache(tmp_path: Path) -> None:
    """What was kept on disk serves at once, while nobody answers."""
    with machine(tmp_path, collateral_dir=tmp_path / "kept") as box:
        first = box.open()
        until(lambda: ready(first))
        first.close()
        box.vendor.pages = {}
        asked = len(box.vendor.asked)
        again = box.open()
        until(lambda: ready(again))
        assert again.collateral().intel == first.collateral().intel
        assert len(box.vendor.asked) == asked


def test_unreachable_at_boot_without_a_cache(tmp_path: Path) -> None:
    """No collateral, and readiness says so; evidence is given all the same, for clients that bring their own."""
    with machine(tmp_path) as box:
        box.vendor.pages = {}
        hardware = box.open()
        hardware.collateral()
        until(lambda: hardware.state.failing)
        assert hardware.state.unready == "collateral_missing"
        assert hardware.collateral().intel is None
        assert isinstance(hardware.evidence(DATA), TdxEvidence)


def test_offline(tmp_path: Path) -> None:
    """With egress closed, only what the operator has put into the folder is used, and nobody is asked."""
    kept = tmp_path / "kept"
    with machine(tmp_path, collateral_dir=kept) as box:
        first = box.open()
        until(lambda: ready(first))
        first.close()
        box.vendor.asked.clear()
        offline = box.open(collateral_offline=True)
        until(lambda: ready(offline))
        empty = box.open(collateral_offline=True, collateral_dir=tmp_path / "empty")
        empty.collateral()
        until(lambda: empty.state.failing)
        assert empty.state.unready == "collateral_missing"
        assert box.vendor.asked == []


def test_expired(tmp_path: Path) -> None:
    """Collateral past its end is no longer ready, is not renewed by a dead vendor, and never counts as verified."""
    with machine(tmp_path) as box:
        hardware = box.open()
        until(lambda: ready(hardware))
        keeper = hardware._keeper
        end = datetime.now(UTC) + timedelta(seconds=hardware.state.left + 1)
        keeper._now = lambda: end
        assert hardware.state.unready == "collateral_expired"
        assert not keeper._try(offline=False)
        assert hardware.state == replace(hardware.state, unready="collateral_expired", failing=True)


def test_collateral_that_does_not_verify_is_not_stapled(tmp_path: Path) -> None:
    """A vendor's answer that clients would refuse is refused here first, by name."""
    with machine(tmp_path) as box:
        bad = intel_pages(intel().collateral(datetime.now(UTC), defect=TdxDefect.PCK_REVOKED))
        crl = next(path for path in bad if "pckcrl" in path)
        box.vendor.pages["/pccs/sgx/certification/v4/pckcrl?ca=platform&encoding=der"] = bad[crl]
        hardware = box.open()
        hardware.collateral()
        until(lambda: hardware.state.failing)
        assert hardware.state.unready == "collateral_missing"
        assert hardware.collateral().intel is None


def test_renewal(tmp_path: Path) -> None:
    """It is fetched again after the refresh time, or when half of what is left is over, whichever comes first."""
    with machine(tmp_path, collateral_refresh_seconds=3600) as box:
        hardware = box.open()
        until(lambda: ready(hardware))
        keeper = hardware._keeper
        assert keeper._until_next() == 3600
        end = datetime.now(UTC) + timedelta(seconds=hardware.state.left)
        for before, wait in ((1000, 500), (100, 60), (-10, 60)):  # seconds before the end
            keeper._now = lambda now=end - timedelta(seconds=before): now  # type: ignore[misc]
            assert keeper._until_next() == pytest.approx(wait, abs=5)


def test_nobody_waits_for_a_slow_vendor(tmp_path: Path) -> None:
    """While the vendor takes its time, evidence and the state are given at once."""
    with machine(tmp_path) as box, socket.create_server(("127.0.0.1", 0)) as silent:
        hardware = box.open(pccs_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        hardware.collateral()
        asking, _ = silent.accept()
        with asking:
            assert asking.recv(65536).startswith(b"GET ")
            hardware.collateral()
            assert isinstance(hardware.evidence(DATA), TdxEvidence)
            assert hardware.state.unready == "collateral_missing"
            asking.setblocking(False)
            with pytest.raises(BlockingIOError):  # who asked waits on, and has not given up
                asking.recv(1)
        hardware._keeper._stop.set()


def test_a_full_disk(tmp_path: Path) -> None:
    """What cannot be written is stapled all the same, and the numbers say that the cache is broken."""
    folder = tmp_path / "kept"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        with machine(tmp_path, collateral_dir=folder) as box:
            hardware = box.open()
            until(lambda: ready(hardware))
            assert hardware.state.failing
            hardware.close()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_one_worker_fetches_for_all(tmp_path: Path) -> None:
    """Workers that share a folder ask the vendor once."""
    with machine(tmp_path, collateral_dir=tmp_path / "kept") as box:
        workers = [box.open() for _ in range(4)]
        threads = [threading.Thread(target=worker.collateral) for worker in workers]
        for thread in threads:
            thread.start()
        until(lambda: all(ready(worker) for worker in workers))
        until(lambda: not any(worker.state.failing for worker in workers))
        assert len(box.vendor.asked) == 4
