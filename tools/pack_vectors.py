"""Write docs/vectors/pack.json: a small model encrypted as a pack, and packs that must be refused.

    python -m tools.pack_vectors

Nothing is drawn at random, so the file comes out the same each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from enclave_server.model.manifest import ModelError, ModelProblem
from enclave_server.model.pack import open_index, read_pack, write_pack
from tools.sealed_vectors import fixed

FILE = Path(__file__).parent.parent / "docs/vectors/pack.json"
ID = "example/tiny@1"
FILES = {"config.json": b"{}", "empty.txt": b"", "sub/model.safetensors": fixed("weights", 100)}
KEY = fixed("model key")
SALT = fixed("salt of a pack")

REFUSED: dict[str, tuple[ModelProblem, Callable[[bytes], bytes]]] = {
    "another magic": (ModelProblem.PACK, lambda pack: b"A" + pack[1:]),
    "another salt": (ModelProblem.PACK_KEY, lambda pack: pack[:16] + bytes(32) + pack[48:]),
    "an index of another length": (ModelProblem.PACK_KEY, lambda pack: pack[:55] + b"\x01" + pack[56:]),
    "a byte of the index changed": (
        ModelProblem.PACK_KEY,
        lambda pack: pack[:56] + bytes([pack[56] ^ 1]) + pack[57:],
    ),
    "a byte of the last file changed": (
        ModelProblem.PACK,
        lambda pack: pack[:-20] + bytes([pack[-20] ^ 1]) + pack[-19:],
    ),
    "cut": (ModelProblem.PACK, lambda pack: pack[:-1]),
    "a byte more": (ModelProblem.PACK, lambda pack: pack + b"\0"),
}


def outcome(pack: bytes, key: bytes = KEY) -> str:
    """The digest of the model in it, or why it is refused."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "pack")
        path.write_bytes(pack)
        try:
            return read_pack(path, key).digest().hex()
        except ModelError as error:
            return str(error.problem)


def vectors() -> dict[str, Any]:
    """The whole file."""
    with TemporaryDirectory() as folder:
        model, path = Path(folder, "model"), Path(folder, "pack")
        for name, content in FILES.items():
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_bytes(content)
        digest = write_pack(model, path, KEY, model_id=ID, salt=SALT).digest().hex()
        pack, opened = path.read_bytes(), open_index(path, KEY)
    return {
        "about": "docs/models.md, encrypted packs; bytes in hex; made by tools/pack_vectors.py",
        "key": KEY.hex(),
        "id": opened.model_id,
        "files": {name: content.hex() for name, content in FILES.items()},
        "model_digest": digest,
        "salt": pack[16:48].hex(),
        "pack": pack.hex(),
        "refused": [
            {"what": what, "error": str(problem), "pack": change(pack).hex()}
            for what, (problem, change) in REFUSED.items()
        ],
    }


def text() -> str:
    return json.dumps(vectors(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
