"""A model, its encrypted pack, and memory to open one into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from enclave_server.model.chunks import CHUNK
from enclave_server.model.manifest import SIGNATURE
from enclave_server.model.pack import write_pack
from tests.enclave_server.model.packs import CANARY, ID, KEY


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
