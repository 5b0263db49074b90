"""Settings: one frozen object, unknown names refused, one digest for one meaning."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from attestation.checks import Check
from attestation.collect.tsm import TSM
from attestation.errors import UnavailableError
from enclave_server.__main__ import cli
from enclave_server.evidence.tee import open_tee
from enclave_server.settings import Settings

NEEDED = f"""
model_dir = "/model"
model_name = "m"
model_digest = "{"ab" * 32}"
tee = "simulated-tdx"
engine_python = "/python"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "enclave.toml"
    path.write_text(NEEDED)
    return path


def test_file_then_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable goes before the file, and the file before the default."""
    file.write_text(NEEDED + "port = 1234\nmax_headers = 50\n")
    monkeypatch.setenv("ENCLAVE_PORT", "4321")
    settings = Settings.load(file)
    assert (settings.port, settings.max_headers, settings.host) == (4321, 50, "127.0.0.1")


def test_unknown_names(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt key or variable is an error, not a silent default."""
    file.write_text(NEEDED + "prot = 1\n")
    with pytest.raises(ValueError, match=r"^prot: there is no such setting; did you mean port\?$"):
        Settings.load(file)
    file.write_text(NEEDED)
    monkeypatch.setenv("ENCLAVE_PROT", "1")
    with pytest.raises(ValueError, match="ENCLAVE_PROT"):
        Settings.load(file)


@pytest.mark.parametrize("missing", ["model_dir", "model_name", "model_digest", "tee", "engine_python"])
def test_required(file: Path, missing: str) -> None:
    """What has no safe default must be said."""
    file.write_text("\n".join(line for line in NEEDED.splitlines() if not line.startswith(missing)))
    with pytest.raises(ValueError, match=missing):
        Settings.load(file)


def test_each_problem_is_a_line(file: Path) -> None:
    """Names and what they may be, each once, and no value: it may be a secret that was put into the wrong line."""
    file.write_text(
        NEEDED + 'port = "hunter2"\nmax_headers = 1\naccess_database = "postgresql://u:hunter2@h/d"\n'
    )
    with pytest.raises(ValueError, match=r"^port: .*integer") as caught:
        Settings.load(file)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["port", "access_database", "max_headers"]
    assert "hunter2" not in str(caught.value)
    assert "http" not in str(caught.value)


def test_no_toml(file: Path) -> None:
    """A file that cannot be read is named."""
    for content in (b"port =", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"enclave\.toml is no TOML"):
            Settings.load(file)


def test_no_file(tmp_path: Path) -> None:
    """A configuration file that is not there is an error."""
    with pytest.raises(FileNotFoundError):
        Settings.load(tmp_path / "nothing.toml")


def test_nothing_given(file: Path) -> None:
    """Who gives no file is told which option names one; who gives one is told what it lacks, and no more."""
    with pytest.raises(ValueError, match="model_dir: must be set") as nothing:
        Settings.load()
    assert str(nothing.value).endswith(
        "--config names the file that sets them; docs/operate.md has every setting"
    )
    file.write_text("port = 1234")
    with pytest.raises(ValueError, match="tee: must be set") as little:
        Settings.load(file)
    assert "--config" not in str(little.value)


def test_frozen(file: Path) -> None:
    """Settings do not change while the gateway runs."""
    with pytest.raises(ValidationError):
        Settings.load(file).port = 1


def test_digest(file: Path) -> None:
    """The digest is the same for the same meaning, however it is written, and another for any other value."""
    first = Settings.load(file).digest()
    file.write_text("# a comment\n" + NEEDED + "port = 8443\n")
    assert Settings.load(file).digest() == first
    file.write_text(NEEDED + "port = 8444\n")
    assert Settings.load(file).digest() != first


def test_hardware_that_is_not_there(file: Path) -> None:
    """A TEE that the settings name and the machine lacks is a named error."""
    if TSM.is_dir():
        pytest.skip("this machine may have it")
    with pytest.raises(UnavailableError, match=Check.TEE_COLLECT):
        open_tee(Settings.load(file, tee="tdx"))


def test_simulator_needs_a_place(file: Path) -> None:
    """A simulated TEE without a directory for its keys is an error."""
    with pytest.raises(ValueError, match="simulator_dir"):
        open_tee(Settings.load(file))


def test_config_tells_origins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting is printed with the place it came from, and the place that won is the one named."""
    file.write_text(NEEDED + "port = 1234\nmax_headers = 50\n")
    monkeypatch.setenv("ENCLAVE_PORT", "4321")
    printed = CliRunner().invoke(cli, ["config", "--config", str(file)]).stdout.splitlines()
    assert "port = 4321  # environment" in printed
    assert "max_headers = 50  # file" in printed
    assert 'access = "keys"  # default' in printed
    assert "# runtime_dir is not set  # default" in printed


def test_config_command(file: Path) -> None:
    """`enclave-server config` prints TOML that gives the same settings again, and the digest."""
    file.write_text(
        NEEDED + 'engine_environment = {OMP_NUM_THREADS = "1"}\nengine_flags = ["--stream-interval=2"]\n'
    )
    printed = CliRunner().invoke(cli, ["config", "--config", str(file)]).stdout
    assert f"# digest: {Settings.load(file).digest().hex()}" in printed
    tomllib.loads(printed)
    again = file.with_name("again.toml")
    again.write_text(printed)
    assert Settings.load(again) == Settings.load(file)


def test_an_engine_by_option(file: Path) -> None:
    """`--engine` is the setting of that name, wherever it is given; it goes before the file's, and is told as an option."""
    file.write_text(NEEDED)
    option = ["--config", str(file), "--engine", "http+unix:///run/engine/vllm.sock"]
    printed = CliRunner().invoke(cli, ["config", *option]).stdout
    assert 'engine = "http+unix:///run/engine/vllm.sock"  # option\n' in printed
    assert "--uds=/run/engine/vllm.sock" in CliRunner().invoke(cli, ["engine", "command", *option]).stdout
    refused = CliRunner().invoke(cli, ["config", *option[:-1], "http://engine:8000"])
    assert str(refused.exception).startswith("engine: must be on this machine's loopback")


def test_a_seal_needs_its_register(file: Path) -> None:
    """SEV-SNP has nothing that a serving seal could be measured into."""
    assert Settings.load(file, serving_seal=True).serving_seal
    with pytest.raises(ValueError, match=r"^serving_seal needs RTMR3, which only TDX has$"):
        Settings.load(file, tee="snp", serving_seal=True)


@pytest.mark.parametrize(("port", "metrics_port"), [(9000, 9000), (9003, 9000), (8443, 65533)])
def test_ports_of_numbers(file: Path, port: int, metrics_port: int) -> None:
    """Each worker has one, none of them is the gateway's own, and all exist."""
    with pytest.raises(ValueError, match="metrics_port: "):
        Settings.load(file, workers=4, port=port, metrics_port=metrics_port)
    assert Settings.load(file, workers=4, port=port, metrics_port=10_000).metrics_port == 10_000
