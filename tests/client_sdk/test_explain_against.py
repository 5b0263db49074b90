"""What `attested explain` compares a boot with: cells of releases, the nearest of them, policies, and references that say nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.policy import Policy
from attestation.references import dump_envelope, dump_statement, sign
from attestation.release import Release, Revoked
from attestation.reviewers import ReferencesPolicy, Reviewer
from attestation.simulator.snp import MEASUREMENT, SimulatedSnp
from attestation.simulator.vtpm import PCRS, SimulatedVtpm
from attestation.snp import SnpPolicy
from attestation.tdx import TdxMeasurement, TdxPolicy
from attestation.vtpm import PcrPolicy, VtpmMeasurement, VtpmPolicy
from attestation.vtpm import dump_evidence as dump_azure
from client_sdk.policy_toml import dump_policy
from tests.attestation.measure.logs import (
    INITRD,
    KERNEL,
    boot,
    log,
)
from tests.client_sdk.explained import (
    ISSUED,
    NAMES,
    RELEASE,
    Files,
    cell,
    changed,
    expected,
    td_after,
    told,
    tpm_log,
    without_mrtd,
)
from tests.client_sdk.test_cli import attested


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


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
