"""The self-test's parts on their own; and, marked slow, the whole of it on the image in build/image."""

from __future__ import annotations

import json
import shutil
import socket
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from attestation import vtpm
from attestation.measure import Algorithm, parse_log, replay
from attestation.release import LeftOut
from attestation.simulator.vtpm import SimulatedVtpm
from enclave_server.settings import Settings
from image.errors import MISSING, ImageError
from image.guest.cmdline import Measured, Verity, command_line, parse_command_line
from image.guest.dm import open_verity
from image.guest.init import read_config
from image.guest.linux import Refused
from image.guest.settings import parse_guest
from image.machine import HOST
from image.measure.efi import measured
from image.measure.pcr import Pcrs
from image.measure.profiles import PROFILES
from image.selftest.engine import MODEL, engine, unreached
from image.selftest.registers import compared, differences, table
from image.selftest.run import selftest
from image.selftest.tampers import TAMPERS, Moves, Stops, Tamper, tamper_table
from image.selftest.world import Image, World, configured, make_world
from tests.attestation.measure.logs import entry, header

PROJECT = Path(__file__).parents[2]
BUILT = PROJECT / "build" / "image"
BY_NAME = {tamper.name: tamper for tamper in TAMPERS}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    if not shutil.which("mkfs.erofs"):
        pytest.skip("needs erofs-utils (apt-get install)")
    return make_world(tmp_path_factory.mktemp("world"), engine=8000, closed=9000)


@pytest.fixture
def image(tmp_path: Path, world: World) -> Image:
    """An image as a host has it, of bytes that stand for the real ones."""
    out = tmp_path / "out"
    out.mkdir()
    for name, content in (("vmlinuz", b"MZ"), ("initrd", b"070701" + b"0" * 200), ("root.img", bytes(8192))):
        (out / name).write_bytes(content)
    root = Verity(root_hash=sha256(b"\1" * 32 + bytes(4096)).digest(), data_blocks=1, salt=b"\1" * 32)
    (out / "cmdline").write_text(command_line(Measured(root=root, config=bytes(32))))
    (tmp_path / "work").mkdir()
    return configured(out, world, tmp_path / "work")


# What it brings along


def test_the_engine_answers() -> None:
    """As much of vLLM's surface as a gateway asks for."""
    with engine() as port:
        origin = f"http://127.0.0.1:{port}"

        def ask(path: str, body: Any = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            with urllib.request.urlopen(f"{origin}{path}", data=data, timeout=60) as answer:  # noqa: S310
                return json.loads(answer.read())

        assert ask("/health") == {}
        assert ask("/v1/models")["data"][0]["id"] == MODEL
        answer = ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
        assert answer["choices"][0]["message"]["content"] == "You said: Hi"


def test_a_port_counts_who_comes() -> None:
    """Nobody, then two; each once."""
    with unreached() as closed:
        assert closed.connections() == 0
        for _ in range(2):
            socket.create_connection(("127.0.0.1", closed.port), timeout=60).close()
        assert closed.connections() == 2
        assert closed.connections() == 0


def test_both_configurations(world: World) -> None:
    """The gateway and the VM take them; the one way out is the engine's, and the other one also wants a log that is not on it."""
    for config in (world.config, world.other_config):
        settings, guest = Settings.load(config), parse_guest(config)
        assert settings.engine == f"http://{HOST}:8000"
        assert settings.config_identity_required
        assert [(str(rule.network), rule.port) for rule in guest.egress] == [(f"{HOST}/32", 8000)]
        assert guest.model is not None
    assert Settings.load(world.other_config).log_url == f"http://{HOST}:9000"
    assert Settings.load(world.config).log_url is None


def test_the_image_is_the_one_that_was_built(image: Image, world: World, tmp_path: Path) -> None:
    """Kernel, initrd and root come from its folder; only the configuration is the self-test's own."""
    measured_ = parse_command_line(image.line.encode())
    assert measured_.config == sha256(world.config).digest()
    assert measured_.root == parse_command_line((tmp_path / "out" / "cmdline").read_bytes()).root
    assert {path.parent for path in (image.kernel, image.initrd, image.disks["enclave-root"])} == {
        tmp_path / "out"
    }
    with pytest.raises(ImageError, match="is no image"):
        configured(tmp_path, world, tmp_path)
    (tmp_path / "cmdline").write_text("quiet")
    with pytest.raises(ImageError, match="known words"):
        configured(tmp_path, world, tmp_path)


# What a host changes


def test_the_documentation_has_the_table() -> None:
    """Every line of it, as it is booted."""
    assert tamper_table() in (PROJECT / "docs" / "rebuild.md").read_text()


def changed(image: Image, tmp_path: Path, name: str) -> tuple[Tamper, Image]:
    folder = tmp_path / "tampered"
    folder.mkdir()
    return BY_NAME[name], BY_NAME[name].change(image, folder)


@pytest.mark.parametrize(
    "name",
    [
        "the root hash on the command line",
        "the configuration on its disk",
        "a word added to the command line",
    ],
)
def test_what_the_images_start_refuses(image: Image, tmp_path: Path, name: str) -> None:
    """Its own code, on this machine, says the line that the self-test waits for."""
    tamper, after = changed(image, tmp_path, name)
    assert isinstance(tamper.caught, Stops)
    with pytest.raises(Refused) as caught:
        start(after)
    assert f"REFUSED {caught.value}".startswith(tamper.caught.line)


def start(image: Image) -> None:
    """As process 1 does it, until there is need of a device mapper."""
    found = parse_command_line(image.line.encode())
    read_config(image.disks["enclave-config"], found.config)
    open_verity("root", image.disks["enclave-root"], found.root)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("the configuration, and its digest on the command line", "line"),
        ("one byte of the initrd", "initrd"),
    ],
)
def test_what_boots_and_is_measured(image: Image, tmp_path: Path, name: str, part: str) -> None:
    """It is consistent in itself, so that nothing in the machine can object; and it keeps every size."""
    tamper, after = changed(image, tmp_path, name)
    assert isinstance(tamper.caught, Moves)
    found = parse_command_line(after.line.encode())
    assert read_config(after.disks["enclave-config"], found.config)
    assert getattr(after, part) != getattr(image, part)
    assert len(after.line) == len(image.line)
    assert after.initrd.stat().st_size == image.initrd.stat().st_size
    assert tamper.tries_way_out == (part == "line")


def test_a_bit_of_the_root(image: Image, tmp_path: Path) -> None:
    """One bit, in a copy: the image that was built stays as it is."""
    _, after = changed(image, tmp_path, "one bit of the root's disk")
    before, now = image.disks["enclave-root"].read_bytes(), after.disks["enclave-root"].read_bytes()
    assert sum((a ^ b).bit_count() for a, b in zip(before, now, strict=True)) == 1


# What was measured beside what was predicted

EVENTS = (
    measured("kernel", "vmlinuz", b"kernel").into("PCR4"),
    measured("command line", "cmdline", b"line").into("PCR9"),
    measured("initrd", "initrd", b"initrd").into("PCR9"),
)


PREDICTED = {"this profile": Pcrs(events=EVENTS, left_out=(LeftOut(register="PCR0", reason="the cloud's"),))}


def document(*events: tuple[int, bytes]) -> bytes:
    """Evidence of a boot that measured this, from a simulated VM."""
    log = header(0, [(11, 32)]) + b"".join(entry(i, 1, data, data, [11]) for i, data in events)
    led = replay(parse_log(log), Algorithm.SHA256)
    pcrs = tuple(led.get(i, b"\xff" * 32 if 17 <= i < 23 else bytes(32)) for i in range(24))
    return vtpm.dump_evidence(SimulatedVtpm().evidence(b"nonce", pcrs=pcrs, event_log=log))


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([(4, b"kernel"), (9, b"line"), (9, b"initrd")], []),
        ([(4, b"kernel"), (9, b"other"), (9, b"initrd")], [("PCR9", "command line")]),
        ([(4, b"other"), (9, b"line"), (9, b"other")], [("PCR4", "kernel"), ("PCR9", "initrd")]),
        ([(4, b"kernel"), (9, b"line")], [("PCR9", "initrd")]),
        ([(4, b"kernel"), (4, b"more"), (9, b"line"), (9, b"initrd")], [("PCR4", "one event more")]),
        (
            [(4, b"kernel"), (9, b"line"), (9, b"initrd"), (12, b"x")],
            [("PCR12", "a value that nothing explains")],
        ),
    ],
)
def test_the_first_event_that_differs(events: list[tuple[int, bytes]], found: list[tuple[str, str]]) -> None:
    """Of each register, by what it should have been."""
    _, (comparison,) = compared(document(*events), PREDICTED)
    assert differences(comparison) == found
    assert comparison.same == (not found)


def test_the_profile_that_fits() -> None:
    """Of several the one that the boot is nearest to."""
    other = Pcrs(events=(measured("kernel", "vmlinuz", b"patched").into("PCR4"), *EVENTS[1:]), left_out=())
    _, comparisons = compared(
        document((4, b"kernel"), (9, b"line"), (9, b"initrd")), {"other": other, **PREDICTED}
    )
    assert [(c.cell.profile, c.same) for c in comparisons] == [("this profile", True), ("other", False)]


def test_a_line_for_each_register() -> None:
    """As expected, otherwise, or not predicted."""
    boot, (comparison,) = compared(document((0, b"firmware"), (4, b"kernel"), (9, b"other")), PREDICTED)
    lines = [line.split() for line in table(boot, comparison)]
    assert [line[0] for line in lines] == ["PCR0", "PCR4", "PCR9", "PCR12"]
    assert [line[4] for line in lines] == ["not", "as", "differs", "as"]


def test_a_boot_without_a_log() -> None:
    """Nothing is compared then."""
    bare = vtpm.dump_evidence(SimulatedVtpm().evidence(b"nonce"))
    with pytest.raises(ImageError, match="no event log"):
        compared(bare, PREDICTED)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As something that was skipped, before anything takes time."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="erofs-utils") as caught:
        selftest(tmp_path, profiles=PROFILES, say=print)
    assert caught.value.status == MISSING


# The whole


@pytest.mark.slow
def test_the_image_under_emulation() -> None:
    """`make image-selftest`: every boot, every register, the SDK, and every line of the table."""
    if not (BUILT / "cmdline").exists():
        pytest.skip("no image in build/image: `make image TARGET=gateway` builds one")
    said: list[str] = []
    try:
        selftest(BUILT, profiles=PROFILES, say=said.append)
    except ImageError as exc:
        if exc.status == MISSING:
            pytest.skip(str(exc))
        raise
    assert any("You said: Hello from outside" in line for line in said)
    for tamper in TAMPERS:
        assert any(line.startswith(f"{tamper.name}: ") for line in said)
