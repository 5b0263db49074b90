"""Encrypted packs: what comes out is what went in, and whatever was done to a pack has a name and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from enclave_server.commands.model import cli
from enclave_server.model import pack as model_pack
from enclave_server.model.manifest import SIGNATURE, File, Manifest, ModelError, ModelProblem, read_manifest
from enclave_server.model.memory import OPENED, claim, prepare_place
from enclave_server.model.pack import CHUNK, open_index, read_pack, unpack, write_pack
from tests.caller import Caller
from tests.enclave_server.fake_vllm import fake_python
from tests.enclave_server.test_provisioning import CHAT, Provision, public_pem, waiting
from tests.processes import running_with, until
from tests.served import Served, everything_written, model_settings

KEY = b"k" * 32
ID = "me/model@1"
CANARY = b"a weight that must be seen nowhere"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every size that a chunk's border makes special."""
    folder = tmp_path_factory.mktemp("packs") / "model"
    (folder / "sub").mkdir(parents=True)
    for name, size in (
        ("empty", 0),
        ("one", 1),
        ("chunk", CHUNK),
        ("more", CHUNK + 1),
        ("sub/three", 3 * CHUNK),
    ):
        (folder / f"{name}.safetensors").write_bytes((CANARY * (size // len(CANARY) + 1))[:size])
    (folder / "config.json").write_text("{}")
    (folder / SIGNATURE).write_bytes(b"a signature")
    return folder


@pytest.fixture(scope="module")
def pack(model: Path) -> Path:
    write_pack(model, model.parent / "model.pack", KEY, model_id=ID)
    return model.parent / "model.pack"


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a tmpfs."""
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder, "model")


def problem(work: Callable[[], object]) -> ModelProblem:
    with pytest.raises(ModelError) as caught:
        work()
    assert caught.value.advice
    return caught.value.problem


def test_there_and_back(model: Path, pack: Path, memory: Path) -> None:
    """The same files with the same digest, the publisher's signature too, readable by owner and group alone."""
    prepare_place(memory)
    assert unpack(pack, KEY, memory) == read_pack(pack, KEY) == read_manifest(model)
    for path in model.rglob("*"):
        if path.is_file():
            copy = memory / path.relative_to(model)
            assert copy.read_bytes() == path.read_bytes()
            assert not copy.stat().st_mode & 0o027


def test_no_run_has_anothers_keys(model: Path, pack: Path, tmp_path: Path) -> None:
    """Packed again, of the same files under the same key and id, every byte behind the first lines is another."""
    again = tmp_path / "again"
    write_pack(model, again, KEY, model_id=ID)
    one, other = pack.read_bytes(), again.read_bytes()
    assert len(one) == len(other)
    assert (
        sum(a == b for a, b in zip(one[56:], other[56:], strict=True)) < len(one) / 128
    )  # 1 in 256, by chance
    assert read_pack(again, KEY) == read_pack(pack, KEY)


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before that was seen, and could be read from the disk, has no key in common with the next run."""
    (model := tmp_path / "model").mkdir()
    (model / "config.json").write_bytes(CANARY)
    out, seen = tmp_path / "model.pack", list[bytes]()
    manifest = read_manifest(model)

    def changing(directory: Path) -> Manifest:
        (directory / "config.json").write_bytes(CANARY.swapcase())
        return manifest

    def keeping(path: Path, *, missing_ok: bool) -> None:
        seen.extend([path.read_bytes()] if path.exists() else [])
        path.rename(tmp_path / "removed")

    with monkeypatch.context() as patch:
        patch.setattr(model_pack, "read_manifest", changing)
        patch.setattr(Path, "unlink", keeping)
        assert problem(lambda: write_pack(model, out, KEY, model_id=ID)) is ModelProblem.CHANGED
    (model / "config.json").write_bytes(CANARY)
    write_pack(model, out, KEY, model_id=ID)
    (discarded,), whole = seen, out.read_bytes()
    assert len(discarded) == len(whole)
    key_stream = bytes(a ^ b for a, b in zip(discarded[-50:-16], whole[-50:-16], strict=True))
    assert key_stream != bytes(a ^ b for a, b in zip(CANARY, CANARY.swapcase(), strict=True))


def test_one_failure_ends_the_others(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be written ends the decryption of all the others at once, and its error is the one that is raised."""
    monkeypatch.setattr(model_pack, "CHUNK", 1024)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    write_pack(model, tmp_path / "small", KEY, model_id=ID)
    done = list[str]()

    def through(file: File, chunks: Iterator[bytes]) -> Iterator[bytes]:
        if file.path == "one.safetensors":
            raise OSError(28, "No space left on device")
        for chunk in chunks:
            time.sleep(0.001)
            yield chunk
        done.append(file.path)

    with pytest.raises(ModelError, match="No space left"):
        model_pack._each_file(open_index(tmp_path / "small", KEY), KEY, through, None)
    assert "sub/three.safetensors" not in done


def test_one_run_leaves_anothers_work(model: Path, tmp_path: Path) -> None:
    """Two that write one pack: the second is refused, and what the first has written stays."""
    out = tmp_path / "model.pack"
    (begun := tmp_path / "model.pack.partial").write_bytes(b"begun")
    with pytest.raises(ModelError, match="another run") as error:
        write_pack(model, out, KEY, model_id=ID)
    assert error.value.problem is ModelProblem.PACK
    assert begun.read_bytes() == b"begun"


def test_nothing_is_seen(pack: Path) -> None:
    """Neither content nor names."""
    data = pack.read_bytes()
    for word in (CANARY, b"config.json", b"three", ID.encode(), b"a signature"):
        assert word not in data


def test_the_command(model: Path, tmp_path: Path) -> None:
    """`model pack --encrypt` writes it and prints the digest of the plain files, and `model verify --decrypt` finds that again."""
    (tmp_path / "key").write_bytes(KEY)
    out, digest = tmp_path / "out.pack", read_manifest(model).digest().hex()
    done = CliRunner().invoke(
        cli, ["pack", str(model), "--id", ID, "--encrypt", f"{tmp_path}/key", "-o", str(out)]
    )
    assert (done.exit_code, f'model_digest = "{digest}"' in done.output) == (0, True), done.output
    verify = ["verify", str(out), "--decrypt", f"{tmp_path}/key", "--digest"]
    assert CliRunner().invoke(cli, [*verify, digest]).exit_code == 0
    refused = CliRunner().invoke(cli, [*verify, "00" * 32]).exception
    assert isinstance(refused, ModelError)
    assert refused.problem is ModelProblem.DIGEST
    (tmp_path / "key").write_bytes(KEY[1:])
    refused = CliRunner().invoke(cli, [*verify, digest]).exception
    assert isinstance(refused, ModelError)
    assert refused.problem is ModelProblem.PACK_KEY


# ------------------------------------------------------------------------------------------------- what is done to it


def swapped(data: bytearray) -> None:
    """Two whole chunks of one file, each opening at the other's place alone."""
    end, chunk = (
        len(data) - 11 - 16,
        CHUNK + 16,
    )  # the signature is last, the file with three chunks before it
    first, second = slice(end - 2 * chunk, end - chunk), slice(end - chunk, end)
    data[first], data[second] = data[second], data[first]


def flipped(at: int) -> Callable[[bytearray], None]:
    def flip(data: bytearray) -> None:
        data[at] ^= 1

    return flip


def cut(count: int) -> Callable[[bytearray], None]:
    def cut_off(data: bytearray) -> None:
        del data[-count:]

    return cut_off


DAMAGE: dict[str, tuple[ModelProblem, Callable[[bytearray], Any]]] = {
    "magic": (ModelProblem.PACK, flipped(0)),
    "salt": (ModelProblem.PACK_KEY, flipped(16)),
    "index length": (ModelProblem.PACK, flipped(48)),
    "index longer": (ModelProblem.PACK_KEY, flipped(55)),
    "index": (ModelProblem.PACK_KEY, flipped(60)),
    "a chunk": (ModelProblem.PACK, flipped(-2 * CHUNK)),
    "the last tag": (ModelProblem.PACK, flipped(-1)),
    "two chunks reordered": (ModelProblem.PACK, swapped),
    "last byte missing": (ModelProblem.PACK, cut(1)),
    "last chunk missing": (ModelProblem.PACK, cut(CHUNK + 16 + 11 + 16)),
    "only the header": (ModelProblem.PACK, lambda data: data.__delitem__(slice(56, None))),
    "nothing": (ModelProblem.PACK, lambda data: data.clear()),
    "one byte more": (ModelProblem.PACK, lambda data: data.append(0)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage(pack: Path, tmp_path: Path, what: str) -> None:
    """A truncated, altered, reordered or longer pack is refused by name."""
    expected, damage = DAMAGE[what]
    data = bytearray(pack.read_bytes())
    damage(data)
    (tmp_path / "damaged").write_bytes(data)
    assert problem(lambda: read_pack(tmp_path / "damaged", KEY)) is expected


def test_another_key(pack: Path) -> None:
    """Another key opens nothing, and no word says what it was."""
    with pytest.raises(ModelError) as caught:
        read_pack(pack, b"l" * 32)
    assert caught.value.problem is ModelProblem.PACK_KEY
    assert "llll" not in str(caught.value)
    assert problem(lambda: read_pack(pack.with_name("none"), KEY)) is ModelProblem.PACK


def test_files_of_another_pack(pack: Path, model: Path, tmp_path: Path) -> None:
    """A chunk of another pack under the same key, at the same place, does not open."""
    write_pack(model, tmp_path / "other", KEY, model_id="me/model@2")
    mixed = pack.read_bytes()[:-CHUNK] + (tmp_path / "other").read_bytes()[-CHUNK:]
    (tmp_path / "mixed").write_bytes(mixed)
    assert problem(lambda: read_pack(tmp_path / "mixed", KEY)) is ModelProblem.PACK


@given(data=st.binary(max_size=400), head=st.booleans())
def test_any_bytes(data: bytes, head: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any bytes are refused with a name."""
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes((model_pack.MAGIC if head else b"") + data)
    assert problem(lambda: open_index(path, KEY)) in {ModelProblem.PACK, ModelProblem.PACK_KEY}


def entry(path: Any, size: Any = 0) -> dict[str, Any]:
    return {"path": path, "size": size, "sha256": ""}


@pytest.mark.parametrize(
    "files",
    [
        [],
        [entry("../x")],
        [entry("/x")],
        [entry("a/../b")],
        [entry("a//b")],
        [entry(".")],
        [entry("")],
        [entry("a\0")],
        [entry("x.py")],
        [entry("a"), entry("a")],
        [entry("a"), entry("a/b")],
        [entry(1)],
        [entry("a", -1)],
        [entry("a", "1")],
        [{"path": "a"}],
        ["a"],
        {},
    ],
)
def test_an_index_that_is_none(tmp_path: Path, files: Any) -> None:
    """Whoever has the key can write nothing outside of the directory, no code, and no file over another."""
    text = rfc8785.dumps({"v": 1, "id": ID, "files": files})
    header = model_pack.MAGIC + bytes(32) + len(text).to_bytes(8, "big")
    with (tmp_path / "pack").open("wb") as file:
        file.write(header)
        part = model_pack._Part(label=b"index", offset=len(header), size=len(text))
        model_pack._encrypt(file, [text], part, KEY, header)
    assert problem(lambda: open_index(tmp_path / "pack", KEY)) is ModelProblem.PACK


# ------------------------------------------------------------------------------------------------------- its place


def test_place(tmp_path: Path, memory: Path) -> None:
    """Plaintext goes into an empty directory in memory, and nowhere else."""
    assert problem(lambda: prepare_place(tmp_path / "on a disk")) is ModelProblem.PLACE
    assert problem(lambda: prepare_place(memory / "nothing" / "above")) is ModelProblem.PLACE
    prepare_place(memory)
    assert memory.stat().st_mode & 0o777 == 0o700
    (memory / "something").touch()
    assert problem(lambda: prepare_place(memory)) is ModelProblem.PLACE


def test_what_a_killed_gateway_left(pack: Path, memory: Path) -> None:
    """The next one removes it, and nothing that it did not write: what is somebody's own, or of one that lives, is refused."""
    prepare_place(memory)
    held = claim(memory)
    unpack(pack, KEY, memory)
    assert problem(lambda: prepare_place(memory)) is ModelProblem.PLACE
    os.close(held)  # as a process's end does, whichever
    prepare_place(memory)
    assert not list(memory.iterdir())
    (memory / "config.json").write_text("somebody's own")
    assert problem(lambda: prepare_place(memory)) is ModelProblem.PLACE
    assert (memory / "config.json").exists()


def test_removal_is_taken_up_again(memory: Path) -> None:
    """What says whose files these are goes last, so that a removal that was cut short is finished the next time."""
    prepare_place(memory)
    os.close(claim(memory))
    (memory / "sub").mkdir()
    (memory / "sub" / "weights").write_bytes(CANARY)
    order = list[str]()
    original = Path.unlink

    def unlinked(path: Path, *, missing_ok: bool = False) -> None:
        order.append(path.name)
        original(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", unlinked)
        prepare_place(memory)
    assert order[-1] == OPENED
    assert not list(memory.iterdir())


ROOM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from enclave_server.model.manifest import ModelError
from enclave_server.model.pack import unpack
try:
    unpack(Path(sys.argv[2]), b"k" * 32, Path(sys.argv[3]))
except ModelError as error:
    print(error)
"""


def test_no_room(pack: Path, tmp_path: Path) -> None:
    """A tmpfs that is too small is said before anything is written to it."""
    place, script = tmp_path / "small", tmp_path / "room.py"
    place.mkdir()
    script.write_text(ROOM)
    shell = 'mount -t tmpfs -o size=1M none "$4" && "$0" "$1" "$2" "$3" "$4" && ls -A "$4"'
    arguments = map(str, (sys.executable, script, Path.cwd(), pack, place))
    command = ["unshare", "-rm", "sh", "-c", shell, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("the kernel allows no mount here")
    assert "[model.place]" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1


# ------------------------------------------------------------------------------------------------- the installed command


class Packed:
    """`enclave-server serve` with a pack, and what its owner has."""

    def __init__(self, folder: Path, memory: Path, damage: Callable[[bytearray], Any] | None = None) -> None:
        model, self.memory = folder / "model", memory
        model.mkdir()
        (model / "config.json").write_text('{"model_type":"fake"}')
        (model / "model.safetensors").write_bytes(CANARY * 1000)
        self.pack = folder / "model.pack"
        write_pack(model, self.pack, KEY, model_id=ID)
        if damage is not None:
            data = bytearray(self.pack.read_bytes())
            damage(data)
            self.pack.write_bytes(data)
        (folder / "gateway").mkdir()
        values = {
            **model_settings(model, "fake-model"),
            "model_pack": self.pack,
            "model_dir": memory,
            "engine_python": fake_python(folder / "python"),
            "engine_isolation": "none",
            "drain_seconds": 1,
            "owner_key": public_pem(),
            "secrets": ["model_key"],
        }
        self.gateway = Served(folder / "gateway", values)
        shutil.rmtree(model)
        self._owner = folder / "owner"

    def give(self, key: bytes = KEY, *more: str) -> Any:
        provision = Provision(self._owner, self.gateway.policy(), {"model_key": key})
        return provision(self.gateway.origin, *more)


@pytest.fixture
def packed(tmp_path: Path, memory: Path) -> Iterator[Packed]:
    running = Packed(tmp_path, memory)
    running.gateway.start()
    yield running
    if running.gateway.process.poll() is None:
        running.gateway.process.kill()
        running.gateway.process.wait(10)


def test_served_from_memory(packed: Packed, tmp_path: Path) -> None:
    """It waits; another key is refused and it still waits; with the right one it answers, and its end leaves nothing."""
    gateway = packed.gateway
    until(lambda: waiting(gateway), 30)
    wrong = packed.give(b"l" * 32)
    assert (wrong.exit_code, "secret.value" in wrong.stderr) == (3, True), wrong.output
    assert waiting(gateway)
    assert not list(packed.memory.iterdir())
    assert packed.give().exit_code == 0
    gateway.until_ready(30)
    assert (packed.memory / "model.safetensors").read_bytes() == CANARY * 1000
    with Caller(gateway.origin, gateway.policy()) as caller:
        assert caller.post("/v1/chat/completions", CHAT).status == 200
    written = everything_written(tmp_path / "gateway", tmp_path / "python")
    assert CANARY not in written
    assert KEY not in written
    assert gateway.terminate() == 0
    assert not list(packed.memory.iterdir())


def test_every_process_is_killed(packed: Packed) -> None:
    """`kill -9` of all of them leaves the model in memory; the next start removes it, and waits for its owner again."""
    gateway = packed.gateway
    until(lambda: waiting(gateway), 30)
    assert packed.give().exit_code == 0
    gateway.until_ready(30)
    everybody = running_with(str(gateway.log_file.parent))
    assert gateway.process.pid in everybody
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)  # nobody sees another die, and tidies up
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    gateway.process.wait(10)
    assert (packed.memory / "model.safetensors").exists()
    gateway.start()
    until(lambda: waiting(gateway), 30)
    assert not list(packed.memory.iterdir())
    assert gateway.terminate() == 0


def test_altered_on_the_disk(tmp_path: Path, memory: Path) -> None:
    """A pack whose index is right and whose weights are not ends the gateway with the chunk's name; no engine was started."""
    running = Packed(tmp_path, memory, flipped(-1))
    running.gateway.start()
    try:
        until(lambda: waiting(running.gateway), 30)
        running.give(KEY, "--wait", "1")
        assert running.gateway.process.wait(30) == 1
    finally:
        running.gateway.process.kill()
    assert "[model.pack]" in running.gateway.log
    assert "chunk 0 of model.safetensors" in running.gateway.log
    assert not list(memory.iterdir())
    assert not (tmp_path / "python/starts.jsonl").exists()
