"""A model directory as vLLM loads it: made beside its final place, checked, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


class ModelError(Exception):
    """The files are not the ones expected."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(directory: Path) -> dict[str, str]:
    """Every file's SHA-256, by its name; a model directory has no sub-directories."""
    return {path.name: sha256(path) for path in sorted(directory.iterdir())}


def check(directory: Path, pins: Mapping[str, str]) -> None:
    """The directory holds the pinned files, each with its pinned digest, and nothing else."""
    found = digests(directory)
    for name in sorted(found.keys() | pins.keys()):
        if found.get(name) != pins.get(name):
            raise ModelError(
                f"{name}: expected {pins.get(name, 'no such file')}, found {found.get(name, 'none')}"
            )


def publish(target: Path, write: Callable[[Path], None], verify: Callable[[Path], None]) -> None:
    """Let `write` fill a new directory and `verify` judge it; only then does it appear at `target`.

    Somebody who looks at `target`, even while this is killed, sees nothing or the whole model.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch) / "new"
        made.mkdir()
        write(made)
        for path in made.iterdir():
            path.chmod(0o644)  # the engine may run as another user than the one who made the files
        verify(made)
        if target.exists():
            target.rename(Path(scratch) / "old")
        try:
            made.rename(target)
        except OSError:
            verify(target)  # another process was first; its files must pass the same test


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(directory: Path, tokenizer: Any, context: int, **special: str) -> None:
    """A tokenizer and its configuration, as transformers reads them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            **special,
        },
    )


def llama_config(**sizes: Any) -> dict[str, Any]:
    """A llama config.json; what both of our models share is here, what differs is given."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rope_scaling": None,
        "dtype": "bfloat16",
        "use_cache": True,
        **sizes,
    }
