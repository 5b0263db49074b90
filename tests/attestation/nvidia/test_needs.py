"""What evidence needs of NVIDIA's services: the names and certificates that it will be judged with."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.x509 import ocsp

from attestation._x509 import parse_chain
from attestation.checks import Check
from attestation.nvidia.devices import GpuDevice, dump_list
from attestation.nvidia.evidence import Arch
from attestation.nvidia.needs import OCSP_URL, needed_ocsp, needed_rims
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from tests.attestation.nvidia.conftest import NONCE, NOW
from tests.vectors import manifest, needs_vectors, read


def test_a_whole_machine() -> None:
    """Eight GPUs and four switches of one kind need three manifests, and an answer for each certificate once."""
    machine = SimulatedNvidia.create(Machine(gpus=8, switches=4))
    evidence, collateral = machine.evidence(NONCE), machine.collateral(NOW)
    assert needed_rims(evidence) == (
        "NV_GPU_DRIVER_GH100_580.95.05",
        "NV_GPU_VBIOS_1010_0200_882_960074001A",
        "NV_SWITCH_BIOS_5612_0002_890_9610550001",
    )
    questions = needed_ocsp(evidence, collateral.rims)
    asked = {ocsp.load_der_ocsp_request(q.request).serial_number for q in questions}
    answered = {
        s.serial_number for der in collateral.ocsp for s in ocsp.load_der_ocsp_response(der).responses
    }
    assert asked == answered
    assert len(questions) == len(asked) == 12 + 2 + 3
    assert {q.url for q in questions} == {OCSP_URL}


def test_blackwell_has_names_of_its_own() -> None:
    """A Blackwell driver's manifest is not asked for under Hopper's name."""
    names = needed_rims(SimulatedNvidia.create(Machine(arch=Arch.BLACKWELL)).evidence(NONCE))
    assert names[0] == "NV_GPU_CC_DRIVER_GB100_580.95.05"


REPORTS = [e for e in manifest("nvidia") if e["kind"].startswith("SPDM")]


@needs_vectors
@pytest.mark.parametrize("entry", REPORTS, ids=lambda entry: entry["id"])
def test_real_devices(entry: dict[str, Any]) -> None:
    """Real evidence needs manifests under the names that NVIDIA's files bear, and three answers at the responder it names."""
    report, chain = (read(path) for path in entry["files"])
    arch = {"gh": Arch.HOPPER, "gb": Arch.BLACKWELL, "ls": Arch.LS10}[str(entry["id"])[:2]]
    data = dump_list([GpuDevice(report=report, chain=chain, arch=arch)])
    names, questions = needed_rims(data), needed_ocsp(data, [])
    if "535" in entry["id"]:  # the vector whose VBIOS manifest is at hand, as 1010_0200_882_96005E0001
        assert names == ("NV_GPU_DRIVER_GH100_535.86.09", "NV_GPU_VBIOS_1010_0200_882_96005E0001")
    if arch is Arch.LS10:
        assert names == ("NV_SWITCH_BIOS_5612_0002_890_9610550001",)
    certs = parse_chain(chain, Check.GPU_FORMAT, "chain", length=5)
    asked = [ocsp.load_der_ocsp_request(q.request).serial_number for q in questions]
    assert asked == [cert.serial_number for cert in certs[1:4]]
    assert {q.url for q in questions} == {OCSP_URL}
