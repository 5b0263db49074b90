"""The configuration file is the one that the machine was launched with, or the gateway does not start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from attestation.binding import parse_statement
from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError, VerificationError
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.policy import parse_policy
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import DEFAULT_TD, SimulatedTdx
from attestation.tdx.quote import parse_quote
from enclave_server.choices import ConfigIdentity, TeeKind
from enclave_server.commands.policy import policy_text
from enclave_server.config_identity import MARK, check_config_identity, configured, mr_config_id
from enclave_server.evidence.tee import Simulated
from enclave_server.identity import make_identity
from enclave_server.settings import Settings
from tests.servers import gateway_settings

CONTENT = b'tee = "tdx"\n'
DIGEST = sha256(CONTENT).digest()
ORIGINS = {"tee": "file", "port": "default"}
TDX = SimulatedTdx.create()


def td(config: bytes = bytes(48)) -> TdxEvidence:
    return TdxEvidence(TDX.quote(bytes(64), td=replace(DEFAULT_TD, mr_config_id=config)))


def guest(host_data: bytes = bytes(32)) -> SnpEvidence:
    return SnpEvidence(SimulatedSnp().report(bytes(64), host_data=host_data))


@pytest.fixture
def cmdline(tmp_path: Path) -> Path:
    """The command line of a machine that was launched with this configuration."""
    file = tmp_path / "cmdline"
    file.write_text(f"console=ttyS0 roothash=ab {MARK}{DIGEST.hex()} quiet\n")
    return file


@pytest.mark.parametrize("cpu", [td(), td(mr_config_id(DIGEST)), guest(), guest(DIGEST)])
def test_the_measured_file(cmdline: Path, cpu: TdxEvidence | SnpEvidence) -> None:
    """On the command line, and in the platform's field where the host set one."""
    assert check_config_identity(CONTENT, ORIGINS, cpu, cmdline=cmdline) == DIGEST


def refused(
    cmdline: Path,
    content: bytes | None = CONTENT,
    origins: Mapping[str, str] = ORIGINS,
    cpu: TdxEvidence | SnpEvidence | None = None,
) -> str:
    with pytest.raises(VerificationError) as caught:
        check_config_identity(content, origins, cpu or td(), cmdline=cmdline)
    assert caught.value.check is Check.CONFIG_IDENTITY
    assert caught.value.advice
    return caught.value.detail


def test_another_file(cmdline: Path) -> None:
    """One byte more is another file; both digests are in the error."""
    detail = refused(cmdline, CONTENT + b"\n")
    assert DIGEST.hex() in detail
    assert sha256(CONTENT + b"\n").hexdigest() in detail


@pytest.mark.parametrize(
    "line",
    ["", "quiet", MARK, f"{MARK}{DIGEST.hex().upper()}", f"{MARK}{DIGEST.hex()} {MARK}{'00' * 32}", f"x{MARK}{DIGEST.hex()}"],
)  # fmt: skip
def test_a_command_line_that_does_not_say_exactly_this(cmdline: Path, line: str) -> None:
    """Missing, empty, twice or in another form: none of these names this file."""
    cmdline.write_text(line)
    refused(cmdline)


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        (td(b"\x01" * 48), "MRCONFIGID"),
        (td(DIGEST + b"\x01" * 16), "MRCONFIGID"),
        (guest(b"\x01" * 32), "HOST_DATA"),
    ],
)
def test_a_platform_that_says_otherwise(cmdline: Path, cpu: TdxEvidence | SnpEvidence, name: str) -> None:
    """What the host set at launch has to be this file's digest too."""
    assert name in refused(cmdline, cpu=cpu)


def test_settings_from_elsewhere(cmdline: Path) -> None:
    """Variables and options are measured by nobody."""
    assert "port" in refused(cmdline, origins={"tee": "file", "port": "environment"})
    assert "workers" in refused(cmdline, origins={"workers": "option"})
    refused(cmdline, content=None)


def test_no_command_line(tmp_path: Path) -> None:
    """Without /proc nothing can be said."""
    with pytest.raises(UnavailableError, match=Check.CONFIG_IDENTITY):
        check_config_identity(CONTENT, ORIGINS, td(), cmdline=tmp_path / "none")


def test_who_has_to(tmp_path: Path) -> None:
    """Real TEEs have to unless said otherwise, simulated ones need not."""
    settings = gateway_settings(tmp_path)
    assert configured(settings, None, {}, lambda _: td()) is None

    def required(**changes: Any) -> bool:
        return settings.model_copy(update=changes).config_identity_required

    assert required(tee=TeeKind.TDX)
    assert required(tee=TeeKind.SNP)
    assert not required(tee=TeeKind.SNP, config_identity=ConfigIdentity.OFF)
    assert required(config_identity=ConfigIdentity.REQUIRED)
    with pytest.raises(VerificationError, match=Check.CONFIG_IDENTITY):
        configured(settings.model_copy(update={"tee": TeeKind.TDX}), None, {}, lambda _: td())


def test_settings_are_read_from_the_bytes_that_are_measured(tmp_path: Path) -> None:
    """The file's content is read once: settings and digest are about the same bytes."""
    settings = gateway_settings(tmp_path)
    text = "".join(
        f'{name} = "{getattr(settings, name)}"\n'
        for name in ("model_dir", "model_name", "model_digest", "tee", "engine_python")
    )
    assert Settings.load(text.encode()).model_digest == settings.model_digest
    assert Settings.origins(text.encode())["tee"] == "file"


def test_in_the_statement(tmp_path: Path) -> None:
    """Where it was checked the statement names the file's digest; elsewhere it says nothing of it."""
    settings = gateway_settings(tmp_path)
    with_it = make_identity(settings, engine_version="1", config_file=DIGEST)
    assert parse_statement(with_it.statement_bytes).config_file == DIGEST
    without = make_identity(settings, engine_version="1").statement_bytes
    assert b"config_file" not in without
    with pytest.raises(MalformedError, match="canonical"):
        parse_statement(without.replace(b'"config":', b'"config_file":null,"config":'))


@pytest.mark.parametrize("kind", ["simulated-tdx", "simulated-snp"])
def test_the_printed_policy_names_the_platforms_field(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes the printed policy accepts this HOST_DATA or MRCONFIGID, and no other."""
    settings = gateway_settings(tmp_path, tee=kind)
    tee = Simulated(settings)
    monkeypatch.setattr(
        tee, "evidence", lambda _: td(mr_config_id(DIGEST)) if "tdx" in kind else guest(DIGEST)
    )
    policy = parse_policy(policy_text(settings, tee))
    if policy.tdx is not None:
        assert policy.tdx.mr_config_id == {mr_config_id(DIGEST)}
        assert parse_quote(td(mr_config_id(DIGEST)).quote).td.mr_config_id in policy.tdx.mr_config_id
    else:
        assert policy.snp is not None
        assert policy.snp.host_data == {DIGEST}
