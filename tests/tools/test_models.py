"""The makers of the quick-start model and of the tiny test model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tools import model_files, quickstart_model, tiny_model

ROOT = Path(__file__).parent.parent.parent
ENGINE = ROOT / ".venv-engine" / "bin" / "python"


def write_one(directory: Path) -> None:
    (directory / "config.json").write_text("{}")


def accept(_: Path) -> None:
    pass


def test_a_model_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    """Files that fail their check leave nothing behind, neither the model nor a half of it."""

    def refuse(_: Path) -> None:
        raise model_files.ModelError("no")

    with pytest.raises(model_files.ModelError):
        model_files.publish(tmp_path / "model", write_one, refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_made_again_replaces_the_old_one(tmp_path: Path) -> None:
    """Nothing of the old directory stays."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.bin").write_text("old")
    model_files.publish(target, write_one, accept)
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("change", ["altered", "added", "missing"])
def test_one_file_that_differs_is_named(tmp_path: Path, change: str) -> None:
    """A changed, an extra and a missing file are each refused by name."""
    write_one(tmp_path)
    pins = model_files.digests(tmp_path)
    model_files.check(tmp_path, pins)
    match change:
        case "altered":
            (tmp_path / "config.json").write_text("{ }")
        case "added":
            (tmp_path / "code.py").write_text("")
        case _:
            (tmp_path / "config.json").unlink()
    with pytest.raises(model_files.ModelError, match="code.py" if change == "added" else "config.json"):
        model_files.check(tmp_path, pins)


@pytest.mark.parametrize(
    ("gguf", "llama"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.7.attn_q.weight", "model.layers.7.self_attn.q_proj.weight"),
        ("blk.29.ffn_down.weight", "model.layers.29.mlp.down_proj.weight"),
    ],
)
def test_tensors_get_their_checkpoint_names(gguf: str, llama: str) -> None:
    """The names are those that vLLM's llama loader looks for."""
    assert quickstart_model.tensor_name(gguf) == llama


@pytest.mark.vllm
def test_the_quickstart_model_has_its_pinned_bytes() -> None:
    """What `make model` left is byte for byte what is pinned."""
    model_files.check(model_files.CACHE / quickstart_model.NAME, quickstart_model.PINS)


@pytest.mark.vllm
def test_the_tiny_model_is_the_same_every_time(tmp_path: Path) -> None:
    """Two runs make the same bytes, and head_dim is one that vLLM's CPU attention supports."""
    out = tmp_path / "again"
    subprocess.run([ENGINE, "-m", "tools.tiny_model", "--out", out], check=True, cwd=ROOT)
    assert model_files.digests(out) == model_files.digests(model_files.CACHE / tiny_model.NAME)
    assert json.loads((out / "config.json").read_text())["head_dim"] in {32, 64, 128}
