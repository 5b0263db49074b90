"""Images of models: the same files give the same bytes, and no changed byte has the same root hash."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
from typer.testing import CliRunner

from enclave_server import verity
from enclave_server.commands.model import cli
from enclave_server.model.image import make_image, salt_of, verify_image
from enclave_server.model.manifest import ModelError, ModelProblem
from enclave_server.verity import BLOCK, append_tree

ID = "me/model@1"
VERITYSETUP = shutil.which("veritysetup", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
needs_erofs = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed")


def make_model(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sha256(name.encode()).digest() * 20_000)
        path.chmod(0o644)
    for path in (folder, folder / "sub"):
        path.chmod(0o755)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", ["model.safetensors", "config.json", "sub/a.txt"])


def run(*arguments: object) -> str:
    """What a command printed; its error, if it has one."""
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.output


def fake_image(path: Path, data_blocks: int) -> bytes:
    """An image around any data at all; its root hash."""
    salt = salt_of(ID)
    path.write_bytes(b"".join(i.to_bytes(4, "big") * (BLOCK // 4) for i in range(data_blocks)))
    return append_tree(path, salt).root_hash


@needs_erofs
def test_twice_the_same(model: Path, tmp_path: Path) -> None:
    """Images of two copies, made in another order and at another time, are the same; another id gives another root."""
    copy = make_model(tmp_path / "copy", ["sub/a.txt", "config.json", "model.safetensors"])
    os.utime(copy / "config.json", (1, 1))
    first, second = (make_image(folder, tmp_path / f"{folder.name}.img", ID) for folder in (model, copy))
    assert first == second
    assert (tmp_path / "model.img").read_bytes() == (tmp_path / "copy.img").read_bytes()
    assert make_image(model, tmp_path / "other.img", "me/model@2").root_hash != first.root_hash
    assert sorted(path.name for path in tmp_path.glob("*.img*")) == ["copy.img", "model.img", "other.img"]


@needs_erofs
def test_packed_and_verified(model: Path, tmp_path: Path) -> None:
    """`model pack` prints what `model verify` needs, and a changed byte of data or tree is refused."""
    out = tmp_path / "model.img"
    printed = run("pack", model, "--id", ID, "--erofs", out)
    assert f'model_digest = "{run("digest", model).strip()}"' in printed
    found = re.search(r"root hash ([0-9a-f]{64})", printed)
    assert found is not None
    assert ID in run("verify", out, "--id", ID, "--root-hash", found[1])
    for place in (5000, out.stat().st_size - 5000):
        changed = bytearray(out.read_bytes())
        changed[place] ^= 1
        other = tmp_path / "changed.img"
        other.write_bytes(changed)
        with pytest.raises(ModelError, match=r"\[model.image\] .*contradict"):
            run("verify", other, "--id", ID, "--root-hash", found[1])
    with pytest.raises(ModelError, match="another image's"):
        run("verify", out, "--id", "me/model@2", "--root-hash", found[1])


@needs_erofs
@pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="fsck.erofs is not installed")
def test_image_holds_the_files(model: Path, tmp_path: Path) -> None:
    """What is extracted from an image has the model's own digest; the tree behind it disturbs nobody."""
    make_image(model, tmp_path / "model.img", ID)
    out = tmp_path / "out"
    subprocess.run(
        ["fsck.erofs", f"--extract={out}", tmp_path / "model.img"], check=True, capture_output=True
    )
    assert run("digest", out) == run("digest", model)


@pytest.mark.parametrize("data_blocks", [1, 2, 128, 129, 128 * 128 + 1])
def test_veritysetup_agrees(tmp_path: Path, data_blocks: int) -> None:
    """The tree verifies, of one level and of three; cryptsetup's `veritysetup`, where it is, accepts the same root."""
    path = tmp_path / "image"
    root = fake_image(path, data_blocks)
    image = verify_image(path, root, ID)
    assert image.data_blocks == data_blocks
    if VERITYSETUP is None or data_blocks == 1:
        return
    words = image.command(path, "model").split()
    command = [VERITYSETUP, "verify", words[2], *words[4:]]
    subprocess.run(command, check=True, capture_output=True)
    with path.open("r+b") as file:
        file.write(b"x")
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


@pytest.mark.parametrize("size", [0, 1, BLOCK + 1, 2 * BLOCK, 4 * BLOCK - 1, 131 * BLOCK])
def test_other_sizes_are_refused(tmp_path: Path, size: int) -> None:
    """A file of a size that no image has is refused before it is hashed."""
    (tmp_path / "image").write_bytes(bytes(size))
    with pytest.raises(ModelError, match=r"\[model.image\] .*no image"):
        verify_image(tmp_path / "image", bytes(32), ID)


def test_refusals(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, modes, links, places and missing programs are refused by name, and nothing is left behind."""
    out = tmp_path / "out.img"
    for name in ("", "model", "@1", "a b@1", "me/model@", "-x@1", "m@1\n"):
        with pytest.raises(ModelError) as caught:
            run("pack", model, f"--id={name}")
        assert caught.value.problem is ModelProblem.ID
    with pytest.raises(ModelError, match="itself"):
        make_image(model, model / "out.img", ID)
    with pytest.raises(ModelError, match="no root hash"):
        run("verify", model, "--id", ID, "--root-hash", "x")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ModelError, match="erofs-utils"):
        make_image(model, out, ID)
    (model / "config.json").chmod(0o600)
    with pytest.raises(ModelError, match="chmod -R"):
        make_image(model, out, ID)
    (model / "config.json").chmod(0o644)
    (model / "link.json").symlink_to("config.json")
    with pytest.raises(ModelError, match="cp -rL"):
        make_image(model, out, ID)
    assert list(tmp_path.glob("out*")) == []


def test_tree_by_hand() -> None:
    """The root over two blocks is the digest of the one block that has both digests."""
    salt, blocks = salt_of(ID), [b"a" * BLOCK, b"b" * BLOCK]
    top = b"".join(sha256(salt + block).digest() for block in blocks) + bytes(BLOCK - 64)
    assert list(verity._tree(BytesIO(b"".join(blocks)), 2, salt)) == [(2 * BLOCK, top)]
