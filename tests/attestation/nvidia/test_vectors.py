"""Real NVIDIA evidence, manifests and tokens get the verdict that the manifest of vectors expects, at their time."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from attestation.nvidia import tokens, verify
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.devices import parse_list
from attestation.nvidia.evidence import Arch, Feature, parse_evidence
from attestation.nvidia.policy import GpuPolicy
from attestation.nvidia.rim import load_rim, verify_rim
from attestation.nvidia.verify import check_measurements
from attestation.roots import VENDOR
from tests.vectors import manifest, needs_vectors, read

pytestmark = needs_vectors

AT = datetime(2024, 12, 1, tzinfo=UTC)
ENTRIES = {entry["id"]: entry for entry in manifest("nvidia")}
RIMS = [e for e in ENTRIES.values() if e["kind"].startswith("RIM")]
REPORTS = [e for e in ENTRIES.values() if e["kind"].startswith("SPDM")]
LISTS = [e for e in ENTRIES.values() if e["kind"].startswith("evidence list")]
TOKENS = [e for e in ENTRIES.values() if e["kind"].startswith("NRAS")]
RIM_FOLDER = "nvidia/rims/"


def _ids(entry: dict[str, Any]) -> str:
    return str(entry["id"])


def _claims(entry: dict[str, Any], *rims: str, at: datetime = AT, nonce: bytes | None = None) -> Any:
    report, chain = (read(path) for path in entry["files"])
    collateral = NvidiaCollateral(rims=tuple(read(RIM_FOLDER + rim) for rim in rims))
    asked = bytes.fromhex(entry["meta"]["nonce"]) if nonce is None else nonce
    return verify(report, chain, asked, collateral, VENDOR, at)


def _starts(prefix: str) -> dict[str, Any]:
    return next(entry for name, entry in ENTRIES.items() if name.startswith(prefix))


def test_every_vector_is_tested() -> None:
    """No kind of NVIDIA vector is passed over."""
    assert len(RIMS) + len(REPORTS) + len(LISTS) + len(TOKENS) == len(ENTRIES) > 40


@pytest.mark.parametrize("entry", REPORTS, ids=_ids)
def test_reports(entry: dict[str, Any]) -> None:
    """Signature, chain, nonce and firmware of every real report hold, and say what an independent reader found."""
    meta, claims = entry["meta"], _claims(entry)
    assert (claims.driver, claims.vbios) == (meta["driver"] or "", meta["vbios"])
    evidence = parse_evidence(read(entry["files"][0]))
    assert (evidence.project.upper(), evidence.project_sku, evidence.chip_sku) == (
        meta["project"],
        meta["project_sku"],
        meta["chip_sku"],
    )
    assert len(evidence.measurements) == meta["blocks"]
    assert claims.protected_pcie is {"aa": True, "55": False, "": None}[meta["protected_pcie"]]
    assert claims.model.split()[0] == entry["checked"]["leaf"].split()[0]
    for word in ("hwmodel ", "ueid "):
        if word in entry["expected"]:
            said = entry["expected"].split(word)[1].split(",")[0]
            assert said in {claims.model, claims.ueid}


@pytest.mark.parametrize("entry", REPORTS, ids=_ids)
def test_reports_answer_one_nonce(entry: dict[str, Any]) -> None:
    """A real report is refused for any other nonce."""
    with pytest.raises(VerificationError) as error:
        _claims(entry, nonce=bytes(32))
    assert error.value.check is Check.GPU_NONCE


@pytest.mark.parametrize("entry", REPORTS, ids=_ids)
def test_reports_before_their_certificates(entry: dict[str, Any]) -> None:
    """A chain counts from the day it was issued."""
    start = datetime.fromisoformat(entry["checked"]["window"][0])
    assert _claims(entry, at=start)
    with pytest.raises(VerificationError) as error:
        _claims(entry, at=start - timedelta(seconds=1))
    assert error.value.check is Check.GPU_CHAIN_VALIDITY


@pytest.mark.parametrize("entry", RIMS, ids=_ids)
def test_rims(entry: dict[str, Any]) -> None:
    """Every manifest is accepted in its signer's window, or refused for the reason that is known."""
    data = read(entry["files"][0])
    if not entry["checked"]["ok"]:
        chain = "issuer/subject" in entry["expected"]
        with pytest.raises(VerificationError) as error:
            verify_rim(load_rim(data), VENDOR.nvidia_rim, AT)
        assert error.value.check is (Check.GPU_RIM_CHAIN if chain else Check.GPU_RIM_SIGNATURE)
        return
    rim = load_rim(data)
    start, end = (datetime.fromisoformat(entry[name]) for name in ("valid_from", "valid_to"))
    for at in (start, end):
        assert verify_rim(rim, VENDOR.nvidia_rim, at) in VENDOR.nvidia_rim
    for at in (start - timedelta(seconds=1), end + timedelta(seconds=1)):
        with pytest.raises(VerificationError) as error:
            verify_rim(rim, VENDOR.nvidia_rim, at)
        assert error.value.check is Check.GPU_RIM_VALIDITY
    assert f"{len(rim.golden)} active" in entry["what"]
    assert f"product {rim.product} version {rim.version}" in entry["what"]


def _comparisons() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    refused = {e["files"][0] for e in RIMS if not e["checked"]["ok"]}
    return [(e, c) for e in REPORTS for c in e["rim_compare"] if c["rim"] not in refused]


@pytest.mark.parametrize(
    ("entry", "compare"), _comparisons(), ids=lambda value: value.get("id") or value["rim"].split("/")[-1]
)
def test_golden_values(entry: dict[str, Any], compare: dict[str, Any]) -> None:
    """Report against manifest, index by index: the same indexes match and differ that an independent reader found."""
    evidence, rim = parse_evidence(read(entry["files"][0])), load_rim(read(compare["rim"]))
    if not compare["mismatched"]:
        assert len(check_measurements(evidence, [rim])) == compare["matched"]
        return
    with pytest.raises(VerificationError) as error:
        check_measurements(evidence, [rim])
    assert error.value.check is Check.GPU_MEASUREMENT
    wrong = ", ".join(map(str, compare["mismatched"]))
    assert error.value.detail.startswith(f"measurements {wrong} are not")


def test_a_complete_hopper() -> None:
    """The one GPU whose two manifests are at hand: all 32 golden values match, in the manifests' window."""
    entry = _starts("gh100-h100-pcie-545")
    rims = ("Driver_RIM_test_no_gpu.swidtag", "1010_0200_882_96005E0001_test_no_gpu.swidtag")
    claims = _claims(entry, *rims)
    assert (len(claims.measured), claims.missing_rims) == (32, ())
    assert claims.collateral_expires == datetime(2025, 6, 22, 9, 38, 54, tzinfo=UTC)
    with pytest.raises(VerificationError) as error:
        _claims(entry, *rims, at=datetime(2025, 7, 1, tzinfo=UTC))
    assert error.value.check is Check.GPU_RIM_VALIDITY
    with pytest.raises(VerificationError) as error:
        _claims(entry, rims[0], "1010_0200_882_96005E0001_PROD.swidtag")
    assert error.value.check is Check.GPU_MEASUREMENT


def test_what_the_complete_hopper_lacks() -> None:
    """The default policy wants OCSP answers, the firmware digest and the driver's state too; each can be waived by name."""
    rims = ("Driver_RIM_test_no_gpu.swidtag", "1010_0200_882_96005E0001_test_no_gpu.swidtag")
    claims = [_claims(_starts("gh100-h100-pcie-545"), *rims)]
    assert {v.check for v in GpuPolicy().check(claims, AT)} == {
        Check.GPU_REVOCATION_UNKNOWN,
        Check.GPU_FWID,
        Check.GPU_MODE,
    }
    waived = GpuPolicy(allow_unknown_revocation=True, allow_missing_fwid=True, allow_unreported_state=True)
    assert waived.check(claims, AT) == []


def test_a_complete_switch() -> None:
    """An NVSwitch needs one manifest; all 31 golden values match."""
    rim = "switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml"
    claims = _claims(_starts("ls10"), rim, at=datetime(2026, 6, 1, tzinfo=UTC))
    assert (claims.arch, len(claims.measured), claims.missing_rims) == (Arch.LS10, 31, ())


def test_a_manifest_of_other_values() -> None:
    """Authentic manifests with other values than the GPU's are refused by measurement."""
    rim = "NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml"
    with pytest.raises(VerificationError) as error:
        _claims(_starts("gh100-h100-pcie-535"), rim)
    assert error.value.check is Check.GPU_MEASUREMENT


@pytest.mark.parametrize("entry", LISTS, ids=_ids)
def test_lists(entry: dict[str, Any]) -> None:
    """Every element of NVIDIA's lists is authentic for the list's nonce."""
    devices = parse_list(read(entry["files"][0]))
    assert len(devices) == 4
    for device in devices:
        assert device.nonce is not None
        claims = verify(
            device.report, device.chain, device.nonce, NvidiaCollateral(), VENDOR, AT, arch=device.arch
        )
        assert claims.arch is device.arch


def test_protected_pcie_topology() -> None:
    """GPUs of a real protected PCIe machine name exactly the switches that attested themselves, eight GPUs each."""
    gpus, switches = (
        [
            verify(d.report, d.chain, d.nonce or b"", NvidiaCollateral(), VENDOR, AT, arch=d.arch)
            for d in parse_list(read(f"nvidia/lists/{name}.json"))
        ]
        for name in ("sdk-multi-gpu-hopper-x4", "ppcie-switch-x4")
    )
    assert {g.feature for g in gpus} == {Feature.PPCIE}
    policy = GpuPolicy(
        allow_protected_pcie=True,
        allow_missing_rim=True,
        allow_unknown_revocation=True,
        allow_unreported_state=True,
    )
    found = policy.check([*gpus, *switches], AT)
    assert {v.check for v in found} == {Check.GPU_SWITCH}  # the vector has four of the machine's eight GPUs
    assert {v.expected[:10] for v in found} == {"the 8 GPUs"}
    assert any(v.expected.startswith("switches ") for v in policy.check([*gpus, *switches[1:]], AT))


@pytest.mark.parametrize("entry", TOKENS, ids=_ids)
def test_tokens(entry: dict[str, Any]) -> None:
    """NVIDIA's key is not published with the samples: no other key verifies them, but their digests belong together."""
    data = read(entry["files"][0])
    with pytest.raises(AttestationError) as error:
        tokens.verify_nras(data, b'{"keys": []}', bytes(32), AT)
    assert error.value.check in {Check.GPU_TOKEN_SIGNATURE, Check.GPU_TOKEN_FORMAT}
    (_, overall), devices = json.loads(data)
    assert overall.count(".") == 2
    assert devices
