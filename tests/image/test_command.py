"""`enclave-server image build`: what cannot be built is said in one line, before anything is done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from enclave_server.__main__ import cli
from image import build
from image.cli import cli as image_cli


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "enclave.toml"
    path.write_text("port = 8443\n")
    return path


def run(*arguments: object) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    result = CliRunner().invoke(cli, ["image", *map(str, arguments)])
    return result.exit_code, result.output


def test_help() -> None:
    """`--help` reaches the commands of the package, although it is imported only then."""
    status, printed = run("--help")
    assert status == 0
    assert "repro" in printed


def test_without_tools(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing tools are named as apt knows them, and the status says: skipped."""
    monkeypatch.setenv("PATH", str(tmp_path))
    status, printed = run("build", "-o", tmp_path / "out", "--config", config)
    assert status == 77
    assert printed.startswith(
        "SKIPPED: nothing was built: apt, buildah, dpkg, erofs-utils, mmdebstrap is needed"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quiet", [False, True])
def test_it_tells_how_far_it_is(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    """One line a step on standard error, and nothing but the result on the other; none with --quiet."""

    def building(out: Path, *, say: Callable[[str], None], **_: object) -> build.Built:
        for step in ("the kernel", "the disk"):
            say(step)
        return build.Built(id="ab", description={"source": "c0ffee"})

    monkeypatch.setattr("image.cli.build_image", building)
    arguments = ["build", "-o", str(tmp_path / "out"), "--config", str(config), *["--quiet"][: int(quiet)]]
    result = CliRunner().invoke(image_cli, arguments)
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'out'}: build ab\n"
    assert result.stderr == ("" if quiet else f"1/{build.STEPS} the kernel\n2/{build.STEPS} the disk\n")


@pytest.mark.parametrize("content", [b"", b"port = 1\n\0", b"#" * ((1 << 20) + 1)])
def test_no_configuration(
    tmp_path: Path, config: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that the guest could not tell from its filling, or would not read, is refused."""
    monkeypatch.setattr(build, "check_tools", lambda *_: None)
    config.write_bytes(content)
    status, printed = run("build", "-o", tmp_path / "out", "--config", config)
    assert status == 1
    assert "the configuration is empty, longer than 1 MiB, or ends with a zero byte" in printed


def test_another_folder_is_left_alone(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with other things in it is never replaced."""
    monkeypatch.setattr(build, "check_tools", lambda *_: None)
    status, printed = run("build", "-o", tmp_path, "--config", config)
    assert status == 1
    assert "exists and is no image" in printed
    assert config.exists()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway without the package `image` says how to get it."""
    monkeypatch.setitem(sys.modules, "image.cli", None)
    result = CliRunner().invoke(cli, ["image", "build"])
    assert "pip install 'attested-inference[server,image]'" in str(result.exception)


@pytest.mark.parametrize("source", ["0" * 40, "0" * 40 + "-changed"])
def test_built_from_changes(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Who builds what nobody else can make again is told so."""
    built = build.Built(id="b" * 64, description={"source": source})
    monkeypatch.setattr("image.cli.build_image", lambda *_, **__: built)
    status, printed = run("build", "-o", tmp_path / "out", "--config", config)
    assert status == 0
    assert ("nobody else can make it again" in printed) == source.endswith("-changed")
