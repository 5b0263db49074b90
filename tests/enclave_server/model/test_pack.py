"""Encrypted packs: what comes out is what went in, and whatever was done to a pack has a name and leaves nothing behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from enclave_server.commands.model import cli
from enclave_server.model import chunks
from enclave_server.model import pack as model_pack
from enclave_server.model.chunks import CHUNK, MAGIC, Part, encrypt
from enclave_server.model.manifest import File, Manifest, ModelError, ModelProblem, read_manifest
from enclave_server.model.memory import prepare_place
from enclave_server.model.pack import open_index, read_pack, unpack, write_pack
from tests.enclave_server.model.packs import CANARY, ID, KEY, flipped, problem


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
    monkeypatch.setattr(chunks, "CHUNK", 1024)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    write_pack(model, tmp_path / "small", KEY, model_id=ID)
    done = list[str]()

    def through(file: File, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if file.path == "one.safetensors":
            raise OSError(28, "No space left on device")
        for chunk in pieces:
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
    for word in (CANARY, b"config.json", b"three.safetensors", ID.encode(), b"a signature"):
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
    path.write_bytes((MAGIC if head else b"") + data)
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
    header = MAGIC + bytes(32) + len(text).to_bytes(8, "big")
    with (tmp_path / "pack").open("wb") as file:
        file.write(header)
        part = Part(label=b"index", offset=len(header), size=len(text))
        encrypt(file, [text], part, KEY, header)
    assert problem(lambda: open_index(tmp_path / "pack", KEY)) is ModelProblem.PACK
