"""`attested evidence …` end to end: every kind, every exit code, every way to write a file, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from attestation.simulator.nitro import NitroDefect
from attestation.simulator.nvidia import GpuDefect
from attestation.simulator.snp import MEASUREMENT, SnpDefect
from attestation.simulator.tdx import DEFAULT_TD, TdxDefect
from attestation.simulator.vtpm import PCRS, VtpmDefect
from attestation.snp.report import REPORT_BYTES
from client_sdk.cli import app
from tests.attestation.nvidia import token_makers
from tests.attestation.nvidia.conftest import NOW as ISSUED
from tests.client_sdk.evidence_files import AT, NONCE, NOW, Bench, amd, intel
from tests.vectors import needs_vectors, read

ACCEPT, MALFORMED, NOT_AUTHENTIC, POLICY, UNDECIDED, USAGE = 0, 2, 3, 4, 5, 64


def attested(*arguments: str) -> Result:
    """One run; an exception that reaches the top is a defect of ours."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def as_json(arguments: Sequence[str]) -> tuple[int, dict[str, Any]]:
    result = attested(*arguments, "--json")
    (line,) = result.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert list(found) == ["verdict", "check", "detail", "advice", "violations", "claims"]
    assert (found["verdict"] == "accept") == (result.exit_code == 0)
    assert (found["check"] is None) == (result.exit_code == 0)
    return result.exit_code, found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A folder for files."""
    return Bench(tmp_path)


@pytest.mark.parametrize("kind", ["tdx", "snp", "snp_fetched", "nitro", "azure", "nvidia"])
def test_good_evidence_is_accepted_and_the_output_says_under_which_root(bench: Bench, kind: str) -> None:
    """Exit code 0, every link passed, and plainly that the root is no vendor's and measurements were not judged."""
    arguments = getattr(bench, kind)()
    result = attested(*arguments)
    assert result.exit_code == ACCEPT, result.output
    assert result.output.startswith("ACCEPTED")
    assert "REFUSED" not in result.output
    assert ("not reached" in result.output) == (kind == "azure")  # the sample has no event log to replay
    assert "is not a hardware vendor's" in result.output
    assert "not judged: no policy was given" in result.output
    code, found = as_json(arguments)
    assert code == ACCEPT
    assert found["claims"]
    assert found["detail"] == ""


@pytest.mark.parametrize(
    ("kind", "defect", "code", "check"),
    [
        ("tdx", TdxDefect.TRUNCATED, MALFORMED, "tdx.format"),
        ("tdx", TdxDefect.OTHER_ROOT, NOT_AUTHENTIC, "tdx.root"),
        ("tdx", TdxDefect.KEY_UNBOUND, NOT_AUTHENTIC, "tdx.ak_binding"),
        ("snp", SnpDefect.VEK_WITHOUT_TCB, MALFORMED, "snp.vek"),
        ("snp", SnpDefect.ASK_REVOKED, NOT_AUTHENTIC, "snp.revoked"),
        ("snp", SnpDefect.CRL_MISSING, POLICY, "snp.crl_missing"),
        ("nitro", NitroDefect.OTHER_KEY, NOT_AUTHENTIC, "nitro.signature"),
        ("azure", VtpmDefect.QUOTE_ALTERED, NOT_AUTHENTIC, "vtpm.signature"),
        ("azure", VtpmDefect.KEY_REPLACED, NOT_AUTHENTIC, "vtpm.runtime_data"),
        ("nvidia", GpuDefect.TRUNCATED, MALFORMED, "gpu.format"),
        ("nvidia", GpuDefect.SIGNATURE_CHANGED, NOT_AUTHENTIC, "gpu.signature"),
        ("nvidia", GpuDefect.CHIP_ON_HOLD, NOT_AUTHENTIC, "gpu.hold"),
        ("nvidia", GpuDefect.RIM_MISSING, POLICY, "gpu.rim_missing"),
        ("nvidia", GpuDefect.DEVTOOLS, POLICY, "gpu.mode"),
    ],
)
def test_each_defect_has_its_check_and_exit_code(
    bench: Bench, kind: str, defect: Any, code: int, check: str
) -> None:
    """The same name in words and in JSON, and authentic claims only where the evidence was authentic."""
    arguments = getattr(bench, kind)(defect)
    result = attested(*arguments)
    assert result.exit_code == code
    assert f"[{check}]" in result.output
    assert result.output.startswith("REFUSED")
    code_again, found = as_json(arguments)
    assert (code_again, found["check"]) == (code, check)
    assert bool(found["violations"]) == (code == POLICY) == bool(found["claims"])


def test_collateral_out_of_date_is_not_authentic(bench: Bench) -> None:
    """What the vendor said counts only while it says so."""
    code, found = as_json(bench.tdx(collateral=TdxDefect.TCB_INFO_EXPIRED))
    assert (code, found["check"]) == (NOT_AUTHENTIC, "tdx.tcb_info_dates")


def test_debugging_is_judged_without_a_policy(bench: Bench) -> None:
    """A report of a guest that its host may debug is refused, measurements or not."""
    debug = amd().report(bytes(64), policy=0x3_0000 | 1 << 19)
    code, found = as_json(bench.snp(report=debug))
    assert (code, [v["check"] for v in found["violations"]]) == (POLICY, ["snp.debug"])


def test_the_vendors_roots_count_unless_replaced(bench: Bench) -> None:
    """Without --root, a simulator's evidence is not authentic."""
    arguments = bench.tdx()
    code, found = as_json(arguments[: arguments.index("--root")])
    assert (code, found["check"]) == (NOT_AUTHENTIC, "tdx.root")


def test_what_is_missing_leaves_the_question_open(bench: Bench) -> None:
    """A missing file, collateral that was not given and issuers that are not shipped: 5, with what to do."""
    tdx, snp = bench.tdx(), bench.snp()
    result = attested(*tdx[:3])
    assert (result.exit_code, "attested collateral fetch" in result.output) == (UNDECIDED, True)
    assert result.output.startswith("COULD NOT DECIDE")
    result = attested(*snp[:5], "--at", AT)
    assert result.exit_code == UNDECIDED
    assert "kdsintf.amd.com/vcek/v1/Genoa/cert_chain" in result.output
    assert attested(*snp[:3]).exit_code == UNDECIDED
    for position in (2, 4, 8):
        missing = [*tdx[:position], str(bench.folder / "none"), *tdx[position + 1 :]]
        assert attested(*missing).exit_code == UNDECIDED, missing[position - 1]


def test_a_revocation_list_that_was_not_given_is_never_shown_as_passed(bench: Bench) -> None:
    """Without --crl the link stays not reached, and the policy refuses by name."""
    output = attested(*bench.snp(SnpDefect.CRL_MISSING)).output
    (line,) = (line for line in output.splitlines() if "revoked" in line)
    assert line.split()[-2:] == ["not", "reached"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["evidence", "tdx", "x", "--at", "yesterday"],
        ["evidence", "tdx"],
        ["evidence", "unknown"],
        ["evidence", "nvidia", "x"],
        ["evidence", "nvidia", "x", "--nonce", "xy"],
        ["evidence", "snp", "x", "--collateral", "a", "--vek", "b"],
        ["evidence", "tdx", "x", "--ear", "key.pem"],
        ["evidence", "tdx", "x", "--ear", "key.pem", "-o", "out"],
        ["--unknown"],
    ],
)
def test_wrong_usage_has_an_exit_code_of_its_own(arguments: list[str]) -> None:
    """2 means malformed evidence, so a usage error is 64."""
    assert attested(*arguments).exit_code == USAGE


@pytest.mark.parametrize(
    "write", [bytes, lambda q: q.hex().encode(), lambda q: b"0x" + q.hex().encode(), b64encode]
)
def test_a_quote_may_be_raw_hex_or_base64(bench: Bench, write: Any) -> None:
    """The three spellings are told apart by content."""
    arguments = bench.tdx()
    bench.file("quote", write(intel().quote(bytes(64))))
    assert attested(*arguments).exit_code == ACCEPT


def test_a_policy_judges_measurements(bench: Bench) -> None:
    """With a policy nothing is left out; one that names another image refuses, one for another platform too."""
    tdx = bench.tdx()
    measured = as_json(tdx)[1]["claims"]["td"]["mrtd"]
    pin = as_json(tdx)[1]["claims"]["root"]["spki_sha256"]
    root = f'[[roots.intel]]\nname = "simulated"\nspki_sha256 = "{pin}"\n'
    without_root = tdx[: tdx.index("--root")]
    for mrtd, code in ((measured, ACCEPT), ("00" * 48, POLICY)):
        policy = bench.file("policy.toml", f'[[tdx.measurements]]\nmrtd = "{mrtd}"\n{root}'.encode())
        result = attested(*without_root, "--policy", policy)
        assert result.exit_code == code, result.output
        assert "measurements were not judged" not in result.output
        assert "is not a hardware vendor's" in result.output
    other = bench.file("other.toml", b"[snp]\n")
    code, found = as_json([*tdx, "--policy", other])
    assert (code, found["check"]) == (POLICY, "policy.platform")


RELEASES = {
    "revoked": (
        '[[release.revoked]]\nid = "1"\nreason = "CVE"\ntdx = [{{ mrtd = "{mrtd}" }}]\nsnp = ["{snp}"]\nvtpm = [{{ pcr4 = "{pcr4}" }}]\n',
        "policy.revoked",
    ),
    "ended": ("[release]\nexpires = 2020-01-01T00:00:00Z\n", "policy.expired"),
    "retired": (
        '[[release.limited]]\nid = "1"\nuntil = 2020-01-01T00:00:00Z\ntdx = [{{ mrtd = "{mrtd}" }}]\nsnp = ["{snp}"]\nvtpm = [{{ pcr4 = "{pcr4}" }}]\n',
        "policy.retired",
    ),
    "reviewed": (
        '[references]\nfile = "refs.json"\nname = "acme"\n[[references.reviewers]]\nname = "ann"\nkey = "-"\n',
        "references.missing",
    ),
}


@pytest.mark.parametrize("kind", ["tdx", "snp", "azure"])
@pytest.mark.parametrize("release", RELEASES)
def test_a_policy_is_asked_about_releases_too(bench: Bench, kind: str, release: str) -> None:
    """What a whole policy refuses is not accepted as raw evidence: what is revoked, has ended, or waits for references."""
    text, check = RELEASES[release]
    text = text.format(mrtd=DEFAULT_TD.mrtd.hex(), snp=MEASUREMENT.hex(), pcr4=PCRS[4].hex())
    tables = """
[tdx]
any_measurement = true
[snp]
any_measurement = true
[azure]
any_pcrs = true
[azure.snp]
any_measurement = true
"""
    arguments = getattr(bench, kind)()
    accepted = attested(*arguments, "--policy", bench.file("policy.toml", tables.encode()))
    assert accepted.exit_code == ACCEPT, accepted.output
    code, found = as_json([*arguments, "--policy", bench.file("policy.toml", (text + tables).encode())])
    assert (code, [v["check"] for v in found["violations"]]) == (POLICY, [check])


@pytest.mark.parametrize("kind", ["nitro", "nvidia"])
def test_a_policy_that_has_ended_accepts_nothing(bench: Bench, kind: str) -> None:
    """Whatever it is asked about, also where no release could be told."""
    tables = "[gpu]\nallow_unreported_state = true\n[nitro]\nany_measurement = true\nany_age = true\nany_nonce = true\n"
    tables += "any_user_data = true\nany_public_key = true\n"
    arguments = getattr(bench, kind)()
    accepted = attested(*arguments, "--policy", bench.file("policy.toml", tables.encode()))
    assert accepted.exit_code == ACCEPT, accepted.output
    ended = "[release]\nexpires = 2020-01-01T00:00:00Z\n" + tables
    code, found = as_json([*arguments, "--policy", bench.file("policy.toml", ended.encode())])
    assert (code, [v["check"] for v in found["violations"]]) == (POLICY, ["policy.expired"])


@pytest.mark.parametrize(
    ("text", "code"),
    [(b"[tdx]\nallow_debugging = true\n", MALFORMED), (b"\xff", MALFORMED), (None, UNDECIDED)],
)
def test_a_bad_policy_file_judges_nothing(bench: Bench, text: bytes | None, code: int) -> None:
    """A misspelt field is an error, and a missing file no policy."""
    policy = str(bench.folder / "none") if text is None else bench.file("policy.toml", text)
    result = attested(*bench.tdx(), "--policy", policy)
    assert result.exit_code == code
    assert "ACCEPTED" not in result.output


def test_an_outcome_can_be_signed(bench: Bench) -> None:
    """--ear writes a token that says what the exit code says, for refusals too."""
    key = Ed25519PrivateKey.generate()
    pem = bench.file("key.pem", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    token = bench.folder / "ear.jwt"
    for defect, status in ((None, "warning"), (TdxDefect.PCK_REVOKED, "contraindicated")):
        attested(*bench.tdx(collateral=defect), "--ear", pem, "-o", str(token))
        ear = jwt.decode(
            token.read_text(), key.public_key(), algorithms=["EdDSA"], options={"verify_exp": False}
        )
        assert ear["submods"]["tdx"]["ear_status"] == status
        assert ear["iat"] == int(NOW.timestamp())


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(
    kind=st.sampled_from(["tdx", "snp", "nitro", "azure"]),
    data=st.binary(max_size=3000),
    tail=st.binary(max_size=8),
)
def test_no_bytes_give_a_traceback(bench: Bench, kind: str, data: bytes, tail: bytes) -> None:
    """Whatever the file holds, the outcome is one of the exit codes; nothing made up is accepted."""
    if len(data) % 3 == 0:
        data = amd().report(bytes(64)) if kind == "snp" else intel().quote(bytes(64)) + tail
    file = bench.file("anything", data[:REPORT_BYTES] if len(data) % 5 == 0 else data)
    assert attested("evidence", kind, file, "--at", AT).exit_code in {MALFORMED, NOT_AUTHENTIC, UNDECIDED}


def test_the_installed_program_behaves_the_same(bench: Bench) -> None:
    """In a process of its own: exit codes, one object on standard output, notes on standard error, no traceback."""
    program = [sys.executable, "-c", "from client_sdk.cli import main; main()"]
    for defect, code in ((None, ACCEPT), (NitroDefect.LEAF_EXPIRED, NOT_AUTHENTIC), (None, USAGE)):
        arguments = ["evidence"] if code == USAGE else bench.nitro(defect)
        json_flag = ["--json"] if len(arguments) > 1 else []
        done = subprocess.run([*program, *arguments, *json_flag], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        if json_flag:
            assert json.loads(done.stdout)["verdict"] == ("refuse" if code else "accept")
            assert "note: judged as of" in done.stderr


@needs_vectors
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (
            [
                "tdx",
                "tdx/quotes/dstack-v4-0c699d.bin",
                "--collateral",
                "tdx/collateral/tdx-b0c06f000000-20260813-ev20.json",
                "--at",
                "1787894484",
            ],
            ACCEPT,
        ),
        (
            [
                "tdx",
                "tdx/quotes/dstack-v4-149ed8.bin",
                "--collateral",
                "tdx/collateral/tdx-b0c06f000000-20260813-ev20.json",
                "--at",
                "1787894484",
            ],
            NOT_AUTHENTIC,
        ),
        (["tdx", "negative/derived/quote-truncated.bin"], MALFORMED),
        (["nitro", "nitro/dstack-54ae0f.cbor", "--at", "2025-12-25T16:04:19Z"], ACCEPT),
        (["nitro", "nitro/dstack-1c921b.cbor", "--at", "2025-12-25T08:20:46Z"], POLICY),
        (["azure", "azure-vtpm/az-snp-evidence-genoa.json", "--at", "2025-10-31T14:00:00Z"], UNDECIDED),
    ],
    ids=["tdx", "tdx-unknown-tcb", "tdx-truncated", "nitro", "nitro-debug", "azure-without-issuers"],
)
def test_real_evidence(arguments: list[str], code: int, tmp_path: Path) -> None:
    """Vendor-signed samples get the exit code that their kind of outcome has, under the vendors' own roots."""
    bench = Bench(tmp_path)
    given = [bench.file(a.replace("/", "-"), read(a)) if "/" in a else a for a in arguments]
    result = attested("evidence", *given)
    assert result.exit_code == code, result.output
    assert "hardware vendor's" not in result.output


@pytest.mark.parametrize(
    ("make", "at", "code", "check"),
    [
        (token_makers.nras, ISSUED, ACCEPT, None),
        (token_makers.ita, ISSUED, ACCEPT, None),
        (
            lambda: token_makers.nras(gpu={"measres": "fail"}),
            ISSUED,
            NOT_AUTHENTIC,
            "gpu.token_result",
        ),
        (
            lambda: token_makers.nras(key=token_makers.STRANGER),
            ISSUED,
            NOT_AUTHENTIC,
            "gpu.token_signature",
        ),
        (token_makers.nras, NOW.replace(year=2030), NOT_AUTHENTIC, "gpu.token_time"),
        (lambda: b"[]", ISSUED, MALFORMED, "gpu.token_format"),
    ],
    ids=["nras", "ita", "failed", "stranger", "expired", "malformed"],
)
def test_a_services_token_is_judged_by_the_keys_given(
    bench: Bench, make: Any, at: datetime, code: int, check: str | None
) -> None:
    """NVIDIA's and Intel's services; the output says that such a token is a service's word."""
    jwks = bench.file("keys.json", token_makers.JWKS)
    arguments = ["evidence", "nvidia-token", bench.file("token", make()), "--jwks", jwks]
    arguments += ["--nonce", NONCE.hex(), "--at", str(int(at.timestamp()))]
    assert "a service's word" in attested(*arguments).output
    found = as_json(arguments)
    assert (found[0], found[1]["check"]) == (code, check)
